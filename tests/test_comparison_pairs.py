"""Every ensemble against every single model: the numbers of `judge`, drawn once a method."""

import dataclasses
import math

import pytest
import torch
from deepens.experiments.comparison import resampling
from deepens.experiments.comparison.judging import judge, judge_all
from deepens.experiments.comparison.sentences import verdict_sentence
from deepens.experiments.comparison.verdicts import MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.metrics.samples import sample_values
from deepens.metrics.statistics.hypothesis_tests import holm_adjusted
from deepens.metrics.suite import evaluate_ood_values, evaluate_values

OPTIONS = {"draws": 100, "seed": 3}
SPLITS = ("test", "shift/fog/1", "shift/blur/1", "near_ood/letters", "far_ood/noise")


def make_method(name, sharpness, macs, *, members=2, splits=SPLITS, scaled=True, count=2):
    """Replicates whose logits point to the right class the more, the sharper they are."""
    runs = []
    for replicate in range(count):
        generator = torch.Generator().manual_seed(sum(name.encode()) + 31 * replicate)
        targets = torch.arange(120) % 4
        logits = torch.randn(members, 120, 4, generator=generator)
        logits[:, range(120), targets] += sharpness
        values = {"test": sample_values(logits, targets)}
        metrics = {"test": evaluate_values(values["test"])}
        for number, split in enumerate(split for split in splits if split != "test"):
            if split.startswith("shift"):
                weaker = 0.5 * logits + 0.1 * number
                weaker[..., number] += 1
                values[split] = sample_values(weaker, targets)
                metrics[split] = evaluate_values(values[split])
            else:
                far = torch.randn(members, 60, 4, generator=generator)
                values[split] = sample_values(far)
                metrics[split] = evaluate_ood_values(values["test"], values[split])
        cooled = sample_values(logits / 1.3, targets, more=False)
        metrics["test"] |= {
            f"{key}_pooled": evaluate_values(cooled)[key] for key in ("nll", "brier", "ece")
        }
        held = cooled if scaled else None
        runs.append(Replicate(f"{name}-{replicate}", metrics, values, (), held))
    return MethodSummary(name, name, Cost(macs, 10, 1.0, 1.0, 10), tuple(runs))


@pytest.fixture(scope="module")
def ensembles():
    return [make_method("deep", 2.5, 400), make_method("packed", 1.9, 150)]


@pytest.fixture(scope="module")
def singles():
    costs = (("single", 1.0, 100), ("wide-2", 1.7, 246), ("wide", 2.0, 404))
    return [make_method(*each, members=1) for each in costs]


def numbers(verdicts):
    """All fields; NaN is made equal to itself."""
    return [
        {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in dataclasses.asdict(verdict).items()
        }
        for verdict in verdicts
    ]


def test_each_pair_has_the_numbers_that_it_has_alone(ensembles, singles):
    found = judge_all(ensembles, singles, **OPTIONS)
    alone = [v for e in ensembles for s in singles for v in judge(e, s, **OPTIONS)]
    assert len({(v.split, v.metric) for v in alone}) > 20
    assert {v.outcome for v in alone} == {"better", "worse", "undecided", "undefined"}
    assert numbers(found) == numbers(alone)


def test_every_method_is_resampled_once_a_split(ensembles, singles, monkeypatch):
    drawn = []

    def counted(evaluations, **options):
        drawn.append(options["sizes"])
        return original(evaluations, **options)

    original = resampling.bootstrap_draws
    monkeypatch.setattr(resampling, "bootstrap_draws", counted)
    judge_all(ensembles, singles, **OPTIONS)
    assert len(drawn) == 5 * 4  # methods times test, shift, near and far


def test_words_tell_by_how_much_the_costs_differ(ensembles, singles):
    found = judge_all(ensembles, singles, **OPTIONS)
    told = {}
    for each in found:
        verdict = dataclasses.replace(each, replicates=3, p_value=0.01)
        key = (verdict.challenger, verdict.baseline, verdict.mark)
        told.setdefault(key, verdict_sentence(verdict))
    assert "deep beats wide-2 (at 1.63 times its MACs) (" in told["deep", "wide-2", "better"]
    assert "packed beats wide-2 (at 0.61 times its MACs)" in told["packed", "wide-2", "better"]
    assert "wide beats packed (at 2.69 times its MACs)" in told["packed", "wide", "worse"]
    unclear = told["packed", "wide-2", "not shown"]
    assert "no difference shown between packed, at 0.61 times the MACs, and wide-2 (" in unclear
    for (challenger, baseline, _), sentence in told.items():
        equal = (challenger, baseline) == ("deep", "wide")  # 400 against 404 MACs
        assert ("compute-matched" in sentence) == (equal and "no verdict" not in sentence)


def test_raw_p_values_are_those_that_holms_method_adjusts(ensembles, singles):
    verdicts = judge(ensembles[0], singles[1], **OPTIONS)
    defined = [v for v in verdicts if v.outcome != "undefined"]
    assert holm_adjusted([v.raw_p_value for v in defined]) == [v.p_value for v in defined]
    assert any(v.raw_p_value < v.p_value for v in defined)
    undefined = [v for v in verdicts if v.outcome == "undefined"]
    assert undefined
    assert all(math.isnan(v.raw_p_value) for v in undefined)


def test_pairs_are_compared_on_the_splits_and_metrics_that_both_have(ensembles, singles):
    cascade = make_method("cascade", 2.4, 200, splits=("test", "far_ood/noise"), scaled=False)
    found = judge_all([ensembles[0], cascade], singles, **OPTIONS)
    ours = [v for v in found if v.challenger == "cascade"]
    assert {v.split for v in ours} == {"test", "far_ood/noise"}
    assert not any(v.metric.endswith("_pooled") for v in ours)
    whole = [v for e in ensembles[:1] for s in singles for v in judge(e, s, **OPTIONS)]
    assert numbers(v for v in found if v.challenger == "deep") == numbers(whole)
    # Holm's count is that of the pair.
    assert {v.compared for v in ours} == {
        sum(v.outcome != "undefined" for v in ours if v.baseline == "wide")
    }


def test_means_over_other_shifted_copies_are_not_compared(ensembles, singles):
    less = make_method("less", 2.4, 200, splits=("test", "shift/fog/1"))
    found = judge_all([less, ensembles[0]], singles, **OPTIONS)
    assert {v.split for v in found if v.challenger == "less"} == {"test"}
    assert "shift" in {v.split for v in found if v.challenger == "deep"}


def test_replicates_of_one_method_must_hold_the_same_splits(ensembles, singles):
    first, second = singles[0].replicates
    torn = dataclasses.replace(second, values={"test": second.values["test"]})
    single = dataclasses.replace(singles[0], replicates=(first, torn))
    with pytest.raises(ValueError, match="single-1 has predictions of other splits than single-0"):
        judge_all(ensembles, [single], **OPTIONS)
