"""Shift is judged from a few numbers per image, as it would be from the logits."""

import dataclasses
from collections import ChainMap

import pytest
import torch
from deepens.experiments.comparison.headlines import headlines
from deepens.experiments.comparison.judging import judge, judge_all
from deepens.experiments.comparison.summary import UNJUDGED_SHIFT, summarize
from deepens.experiments.comparison.verdicts import Comparison
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.predictions import Predictions, load_metrics
from deepens.experiments.evaluation.shift_values import ShiftValues, compact, values_file
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import read_json, write_json
from deepens.metrics import evaluate as evaluate_logits
from deepens.metrics.samples import sample_values
from deepens.metrics.suite import MeanEvaluation
from test_comparison_pairs import make_method

QUIET = Display(quiet=True)
JUDGED = ("accuracy", "nll", "brier", "ece")


def as_stored(method):
    """A method whose values under shift are those that a run's file keeps."""

    def stored(replicate):
        tensors = {}
        for split in replicate.shifted:
            tensors |= compact(split, replicate.values[split])
        held = {s: v for s, v in replicate.values.items() if s not in replicate.shifted}
        return dataclasses.replace(replicate, values=ChainMap(held, ShiftValues(tensors)))

    return dataclasses.replace(method, replicates=tuple(map(stored, method.replicates)))


def without_shift(method, *, replicates=3):
    """A method of which the first replicates have no values under shift."""

    def bare(replicate):
        held = {s: v for s, v in replicate.values.items() if s not in replicate.shifted}
        return dataclasses.replace(replicate, values=held)

    own = method.replicates
    runs = (*map(bare, own[:replicates]), *own[replicates:])
    return dataclasses.replace(method, replicates=tuple(runs))


@pytest.fixture(scope="module")
def pair():
    return [
        make_method("deep", 2.1, 400, count=3),
        make_method("wide", 2.0, 404, members=1, count=3),
    ]


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_stored_values_give_the_metrics_of_the_logits(classes):
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(2, 60, classes, generator=generator)
    targets = torch.randint(classes, (60,), generator=generator)
    targets[:30] = logits.mean(0).argmax(-1)[:30]
    tensors = compact("shift/fog/1", sample_values(logits, targets))
    found = MeanEvaluation([ShiftValues(tensors)["shift/fog/1"]])()
    expected = evaluate_logits(logits, targets)
    for metric in JUDGED:
        assert found[metric].item() == pytest.approx(expected[metric], rel=1e-6)
    assert found["ece"].item() == pytest.approx(expected["ece"], rel=1e-12)
    size = sum(tensor.nbytes for tensor in tensors.values()) / 60
    assert size <= (30 if classes <= 256 else 36)


def test_classes_of_any_number_are_kept(pair):
    values = pair[0].replicates[0].values["test"]
    for highest in (255, 256, 32_767, 32_768, 2**31):
        said = torch.arange(len(values)) % 4
        said[0] = highest
        more = dataclasses.replace(values, predicted=said, targets=said.flip(0))
        found = ShiftValues(compact("shift/x/1", more))["shift/x/1"]
        assert torch.equal(found.predicted, said)
        assert torch.equal(found.targets, said.flip(0))


def test_a_loss_beyond_float32_is_stored_as_the_largest_number(pair):
    values = pair[0].replicates[0].values["test"]
    diverged = dataclasses.replace(values, nll=torch.full_like(values.nll, 1e300))
    assert ShiftValues(compact("shift/x/1", diverged))["shift/x/1"].nll.isfinite().all()


def test_verdicts_under_shift_are_those_from_logits(pair):
    options = {"draws": 200, "seed": 1}
    whole = judge(*pair, **options)
    found = judge(*map(as_stored, pair), **options)
    assert {v.metric for v in found if v.split == "shift"} == set(JUDGED)
    assert [(v.split, v.metric, v.mark) for v in found] == [
        (v.split, v.metric, v.mark) for v in whole
    ]
    for ours, theirs in zip(found, whole, strict=True):
        if theirs.mark:
            assert (ours.estimate, ours.low, ours.high, ours.p_value) == pytest.approx(
                (theirs.estimate, theirs.low, theirs.high, theirs.p_value), rel=1e-4, abs=1e-7
            )


@pytest.mark.parametrize("lacking", [1, 3])
def test_shift_that_some_run_has_no_values_of_is_named_as_not_judged(pair, lacking):
    deep, wide = pair
    torn = without_shift(deep, replicates=lacking)
    verdicts = judge_all([torn], [wide], draws=50, seed=1)
    assert "shift" not in {v.split for v in verdicts}

    def told(method, verdicts):
        made = Comparison("d", "", (wide, method), tuple(verdicts), 50, (), "", {}, "")
        (headline,) = headlines(made)
        return headline, summarize(made).cautions

    headline, cautions = told(torn, verdicts)
    assert headline.unjudged == ("Shift",)
    assert headline.sentence.endswith("Not judged: Shift.")
    assert headline.tally.endswith("Not judged: Shift.")
    assert UNJUDGED_SHIFT in cautions
    headline, cautions = told(deep, judge(deep, wide, draws=50, seed=1))
    assert headline.unjudged == ()
    assert UNJUDGED_SHIFT not in cautions


def test_a_run_keeps_values_in_place_of_logits(shared_run, splits, copy_run, unchecked):
    kept, plain = (
        shared_run(f"shift-{name}", shifted=True, members=2, epochs=1, keep_logits=name == "logits")
        for name in ("logits", "values")
    )
    with_logits = Predictions(kept)
    assert not with_logits.shift_values
    run = copy_run(plain)
    before = load_metrics(run)
    assert before == load_metrics(kept)
    found = Predictions(run)
    shifted = [split for split in with_logits.splits if split.startswith("shift/")]
    assert list(found.shift_values) == shifted
    assert not set(shifted) & set(found.splits)
    for split in shifted:
        for name in ("nll", "brier", "confidence", "correct"):
            ours = getattr(found.shift_values[split], name).double()
            theirs = getattr(with_logits.values(split, more=False), name).double()
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
    images = sum(len(splits[split]) for split in shifted)
    assert values_file(run).stat().st_size < 31 * images + 8000

    # Runs of earlier versions name no such file; damaged ones are refused.
    index = run.path / "predictions" / "index.json"
    known = read_json(index)
    file = values_file(run)
    content = bytearray(file.read_bytes())
    content[-5] ^= 16
    file.write_bytes(content)
    with pytest.raises(ValueError, match="shift_values.safetensors.*deepens evaluate"):
        Predictions(run).check()
    file.unlink()
    with pytest.raises(ValueError, match="shift_values.safetensors"):
        Predictions(run).shift_values  # noqa: B018
    write_json(index, {name: value for name, value in known.items() if name != "shift_values"})
    assert not Predictions(run).shift_values
    evaluate(run, display=QUIET)
    assert load_metrics(run) == before
