"""The main job: every number in its files can be computed again from the runs."""

import csv
import dataclasses
import json
import math
import re
import shlex
import shutil
import statistics

import pytest
import torch
from deepens.ensembles.policies import OutOfReachError
from deepens.experiments.cli.compare_command import rebuild, run_compare
from deepens.experiments.cli.entry import parse
from deepens.experiments.comparison import compare as compare_module
from deepens.experiments.comparison.command_line import command_line
from deepens.experiments.comparison.compare import compare
from deepens.experiments.comparison.examples import examples_of_runs, save_examples
from deepens.experiments.comparison.judging import judge
from deepens.experiments.comparison.sentences import verdict_sentence
from deepens.experiments.comparison.stored import load_comparison, single_of_equal_cost
from deepens.experiments.config import CompareConfig
from deepens.experiments.evaluation.predictions import load_logits, load_metrics
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run
from deepens.metrics.core.catalogue import METRICS
from hypothesis import given, settings
from hypothesis import strategies as st

QUIET = Display(quiet=True)
pytestmark = pytest.mark.usefixtures("unchecked")  # whole comparisons; their parts are checked


@pytest.fixture(scope="module")
def original(shared_comparison):
    return shared_comparison("comparison", epochs=3, members=2, replicates=2)


@pytest.fixture(scope="module")
def found(original, loaded):
    return loaded(original.directory())


@pytest.fixture
def config(original, tmp_path):
    """The finished comparison in a directory that a test may change."""
    shutil.copytree(original.directory(), tmp_path / "digits")
    return dataclasses.replace(original, out=str(tmp_path / "digits"))


@pytest.fixture
def undrawn(monkeypatch):
    """Names of the reports that are written, without drawing them."""
    written = []
    for name in ("write_report", "write_markdown"):
        monkeypatch.setattr(
            f"deepens.experiments.cli.compare_command.{name}",
            lambda comparison, path: written.append(path.name),
        )
    return written


def _rows(config):
    with (config.directory() / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_results_hold_one_row_for_each_method_replicate_split_and_metric(config, found):
    rows = _rows(config)
    keys = [(r["method"], r["replicate"], r["split"], r["metric"]) for r in rows]
    assert len(set(keys)) == len(keys)
    total = 0
    for method in config.methods:
        for replicate in range(2):
            metrics = load_metrics(Run.open(config.directory() / f"{method}-{replicate}"))
            expected = {
                (method, str(replicate), split, metric): value
                for split, held in metrics.items()
                for metric, value in held.items()
            }
            held = {k: float(r["value"]) for k, r in zip(keys, rows, strict=True) if k in expected}
            assert held == pytest.approx(expected, nan_ok=True)
            total += len(expected)
    assert len(keys) == total


def test_estimates_are_differences_of_replicate_means(config, found):
    rows = _rows(config)

    def mean(method, split, metric):
        return statistics.fmean(
            float(r["value"])
            for r in rows
            if (r["method"], r["split"], r["metric"]) == (method, split, metric)
        )

    assert {v.metric for v in found.judgements if v.split == "test"} == {
        "accuracy", "nll", "brier", "ece", "aurc", "augrc", "coverage_at_5_risk",
        "nll_pooled", "brier_pooled", "ece_pooled",
    }  # fmt: skip
    for verdict in found.judgements:
        expected = mean("deep", verdict.split, verdict.metric)
        expected -= mean("wide", verdict.split, verdict.metric)
        assert verdict.estimate == pytest.approx(expected, abs=1e-12)
        if verdict.outcome != "undefined":
            said = re.search(r"\(([+-][\d.]+), 95 % interval \[", verdict_sentence(verdict))
            assert float(said[1]) == pytest.approx(verdict.estimate, abs=5.1e-5)


def test_outcome_follows_from_interval_and_direction(found):
    for verdict in found.judgements:
        if verdict.outcome == "undefined":
            assert "mutual_information" in verdict.metric
            continue
        if verdict.low <= 0 <= verdict.high:
            assert verdict.outcome == "undecided"
            assert "includes zero" in verdict_sentence(verdict)
        else:
            better = (verdict.estimate > 0) == METRICS[verdict.metric].higher_is_better
            assert verdict.outcome == ("better" if better else "worse")
            assert "excludes zero" in verdict_sentence(verdict)


def test_p_values_are_adjusted_for_all_verdicts_on_the_two_methods(found):
    defined = [each for each in found.judgements if each.outcome != "undefined"]
    assert {each.compared for each in found.judgements} == {len(defined)}
    least = min(each.p_value for each in defined)
    for verdict in found.judgements:
        if verdict.outcome == "undefined":
            assert math.isnan(verdict.p_value)
            continue
        assert least <= verdict.p_value <= 1
        decided = verdict.outcome != "undecided"
        assert (
            f"by Holm's method for {len(defined)} verdicts" in verdict_sentence(verdict)
        ) == decided
        assert verdict.survives == (decided and verdict.p_value <= 0.05)


def test_intervals_stay_within_the_possible_differences(found):
    for verdict in found.judgements:
        low, high = METRICS[verdict.metric].bounds
        assert -(high - low) <= verdict.low <= verdict.high <= high - low


def test_ensemble_costs_its_members_and_wide_costs_the_same(found):
    costs = {method.name: method.cost for method in found.methods}
    assert costs["deep"].macs == 2 * costs["single"].macs
    assert costs["wide"].macs == pytest.approx(costs["deep"].macs, rel=0.02)
    assert costs["deep"].parameters == 2 * costs["single"].parameters
    for cost in costs.values():
        assert cost.training_seconds > 0
        assert 0 < cost.latency_ms_batch256 < cost.latency_ms_batch1
        assert cost.peak_memory_bytes > 4 * cost.parameters


def test_tables_and_report_are_rebuilt_from_the_runs_without_data_or_training(
    config, monkeypatch, undrawn
):
    path = config.directory()
    tables = {name: (path / name).read_bytes() for name in ("results.csv", "verdicts.csv")}
    for name in tables:
        (path / name).unlink()

    def refuse(*args, **kwargs):
        raise AssertionError("the report read the data, or trained")

    monkeypatch.setattr("deepens.experiments.comparison.compare.load", refuse)
    monkeypatch.setattr("deepens.experiments.comparison.compare.train_and_evaluate", refuse)
    again = rebuild(path, display=QUIET)
    assert {name: (path / name).read_bytes() for name in tables} == tables
    assert undrawn == ["report.html", "report.md"]
    assert again.examples.runs == tuple(f"{m}-{r}" for m in config.methods for r in range(2))


def test_finished_runs_are_not_repeated_and_more_can_be_added(config, splits):
    path = config.directory()
    before = {p: p.stat().st_mtime_ns for p in path.glob("*/weights.safetensors")}
    more = dataclasses.replace(config, replicates=3, methods=("single", "deep"))
    grown = compare(more, splits=splits)
    after = {p: p.stat().st_mtime_ns for p in path.glob("*/weights.safetensors")}
    assert before.items() <= after.items()
    assert {p.parent.name for p in after.keys() - before.keys()} == {"single-2", "deep-2"}
    assert [len(method.replicates) for method in grown.methods] == [3, 3]
    assert grown.judgements == ()
    assert any("No verdict on deep" in note for note in grown.verdict_notes)
    assert any("Left out by --methods" in note and "wide-1" in note for note in grown.notes)


def test_pictures_are_the_test_images_that_the_runs_find_hardest(config, found, splits):
    runs = [r for method in found.methods for r in method.replicates]
    nll = torch.stack([replicate.values["test"].nll for replicate in runs]).mean(0)
    examples = found.examples
    hardest = examples.index[list(examples.hardest)]
    assert nll[hardest].tolist() == pytest.approx(nll.topk(len(hardest)).values.tolist())
    assert torch.equal(examples.images, splits["test"].images[examples.index])
    assert torch.equal(examples.targets, splits["test"].targets[examples.index])
    assert examples.classes == splits.classes
    for method in found.methods:
        row = examples.methods.index(method.name)
        chosen = list(examples.overconfident[method.name])
        assert chosen
        assert (examples.predicted[row, chosen] != examples.targets[chosen]).all()


def test_log_of_every_epoch_is_read(config, found):
    for method in found.methods:
        for replicate in method.replicates:
            assert [row["epoch"] for row in replicate.log] == [1, 2, 3]
            file = config.directory() / replicate.directory / "log.csv"
            with file.open() as lines:
                last = list(csv.DictReader(lines))[-1]
            assert replicate.log[-1] == {name: float(value) for name, value in last.items()}


def test_missing_or_broken_log_and_pictures_cost_only_their_figures(config, found):
    path = config.directory()
    log, pictures = path / "deep-0" / "log.csv", path / "examples.safetensors"
    whole = pictures.read_bytes()
    log.unlink()
    pictures.unlink()
    less = load_comparison(path)
    assert next(m for m in less.methods if m.name == "deep").replicates[0].log == ()
    assert less.examples is None
    assert any("examples.safetensors is missing" in note for note in less.picture_notes)
    log.write_text("epoch,val/nll\n1,0.5\n2\n3,x\n")
    pictures.write_bytes(whole[:100])
    less = load_comparison(path)
    deep = next(m for m in less.methods if m.name == "deep")
    assert deep.replicates[0].log == ({"epoch": 1, "val/nll": 0.5}, {"epoch": 2}, {"epoch": 3})
    assert less.examples is None
    assert any("no pictures" in note and "damaged" in note for note in less.picture_notes)


def test_pictures_are_not_chosen_by_predictions_of_other_images(config, found, splits):
    runs = {m: [Run.open(config.directory() / f"{m}-{r}") for r in (0, 1)] for m in config.methods}
    test = splits["test"]
    other = dataclasses.replace(test, targets=test.targets.roll(1))
    changed = dataclasses.replace(splits, splits={**splits.splits, "test": other})
    with pytest.raises(ValueError, match="single-0 was evaluated on other test images than digits"):
        examples_of_runs(runs, changed, data=config.data)


def test_pictures_of_other_runs_are_left_out_with_a_note(config, found):
    file = config.directory() / "examples.safetensors"
    save_examples(file, dataclasses.replace(found.examples, runs=("single-0", "deep-0")))
    less = load_comparison(config.directory())
    assert less.examples is None
    assert any("examples.safetensors is of other runs" in note for note in less.picture_notes)


def test_another_recipe_in_the_same_directory_is_refused(config, found, splits):
    with pytest.raises(ValueError, match="another configuration .*epochs: 4, not 3"):
        compare(dataclasses.replace(config, epochs=4), splits=splits)


def test_unfinished_comparison_says_how_to_finish_it(tmp_path):
    config = CompareConfig(out=str(tmp_path / "x"))
    from deepens.experiments.store.run import claim

    claim(tmp_path / "x", config)
    with pytest.raises(ValueError, match="unfinished comparison; run `deepens compare --config"):
        load_comparison(tmp_path / "x")


def test_methods_of_one_replicate_share_no_member(config, found):
    logits = [
        load_logits(Run.open(config.directory() / f"{method}-{replicate}"))["test"][0]
        for method in ("single", "deep")
        for replicate in range(2)
    ]
    members = torch.cat(logits)
    for i in range(len(members)):
        for j in range(i):
            assert not torch.equal(members[i], members[j])


def test_better_worse_and_undecided_are_told_apart(found):
    """Shift the challenger's per-sample NLL by a known amount, and see it found."""
    methods = {method.name: method for method in found.methods}

    def shifted(amount):
        replicates = []
        for replicate in methods["wide"].replicates:
            test = replicate.values["test"]
            test = dataclasses.replace(test, nll=test.nll + amount)
            metrics = {**replicate.metrics}
            metrics["test"] = metrics["test"] | {"nll": metrics["test"]["nll"] + amount}
            values = {"test": test}
            replicates.append(dataclasses.replace(replicate, metrics=metrics, values=values))
        return dataclasses.replace(methods["wide"], name="deep", replicates=tuple(replicates))

    base = shifted(0.0)
    for amount, outcome in [(-5.0, "better"), (5.0, "worse"), (0.0, "undecided")]:
        verdicts = judge(shifted(amount), base, draws=200, seed=0)
        nll = next(v for v in verdicts if v.metric == "nll")
        assert nll.estimate == pytest.approx(amount, abs=1e-9)
        assert nll.outcome == outcome
        assert nll.low <= amount <= nll.high
    one = dataclasses.replace(base, replicates=base.replicates[:1])
    for verdict in judge(shifted(-5.0), one, draws=200, seed=0):
        assert verdict.outcome == "undecided"
        assert "no claim, since one replicate" in verdict_sentence(verdict)


def test_replicates_without_the_same_splits_are_refused(found):
    methods = {method.name: method for method in found.methods}
    first, *rest = methods["wide"].replicates
    less = dataclasses.replace(first, values={"test": first.values["test"]})
    wide = dataclasses.replace(methods["wide"], replicates=(less, *rest))
    with pytest.raises(ValueError, match="wide-0 has predictions of other splits than deep-0"):
        judge(methods["deep"], wide, draws=200, seed=0)


def test_ensemble_is_judged_against_the_single_model_of_its_cost_whatever_its_name(found):
    assert {(v.challenger, v.baseline) for v in found.judgements} == {("deep", "wide")}
    methods = {method.name: method for method in found.methods}
    cheap = dataclasses.replace(methods["deep"], cost=methods["single"].cost)
    assert single_of_equal_cost(cheap, found.methods).name == "single"
    dear = dataclasses.replace(methods["deep"].cost, macs=10 * methods["deep"].cost.macs)
    assert single_of_equal_cost(dataclasses.replace(cheap, cost=dear), found.methods) is None


@pytest.mark.parametrize("text", ["{}", "[1]", ""])
def test_damaged_comparison_is_refused(config, found, text):
    file = config.directory() / "comparison.json"
    whole = file.read_text()
    file.write_text(text)
    with pytest.raises(ValueError, match="unfinished comparison|missing or damaged"):
        load_comparison(config.directory())
    file.write_text(whole.replace('"costs"', '"other"'))
    with pytest.raises(ValueError, match=r"comparison\.json is missing or damaged"):
        load_comparison(config.directory())


@pytest.mark.parametrize("verbose", [False, True])
def test_command_prints_cautions_and_the_report_and_every_verdict_if_asked(
    config, found, capsys, splits, monkeypatch, undrawn, verbose
):
    cautious = dataclasses.replace(
        splits, cautions=("40 of 200 are copies.",), notes=("One is left out.",)
    )
    monkeypatch.setattr("deepens.experiments.comparison.compare.load", lambda *a, **k: cautious)
    assert run_compare(dataclasses.replace(config, verbose=verbose)) == 0
    printed = capsys.readouterr().out
    assert "40 of 200 are copies." in " ".join(printed.split())
    assert ("note: One is left out." in printed) == verbose
    lines = printed.splitlines()
    assert any(each.outcome == "undefined" for each in found.judgements)
    for each in found.judgements:
        said = verdict_sentence(each) in lines
        assert said == (verbose and each.outcome != "undefined")
    assert lines[-1].endswith("report.html")


def test_cautions_and_notes_on_the_data_are_kept_and_older_files_have_none(config, splits):
    file = config.directory() / "comparison.json"
    cautious = dataclasses.replace(splits, cautions=("Copies.",), notes=("Left out.",))
    compare(config, splits=cautious)
    again = load_comparison(config.directory())
    assert (again.cautions, again.data_notes) == (("Copies.",), ("Left out.",))
    assert not {"Copies.", "Left out."} & set(again.notes)
    known = json.loads(file.read_text())
    assert known["environment"]["wall_seconds_of_this_sitting"] >= 0
    del known["cautions"], known["data_notes"]
    file.write_text(json.dumps(known))
    older = load_comparison(config.directory())
    assert (older.cautions, older.data_notes) == ((), ())


WORDS = st.text("ab,'\"[]-=$ \\#", max_size=6).map(str.strip)


@settings(max_examples=25, deadline=None)
@given(
    methods=st.lists(WORDS, min_size=1, max_size=4, unique=True),
    caveat=WORDS.filter(lambda words: words != "--"),  # argparse has no way to take it
    replicates=st.integers(1, 9),
)
def test_command_gives_the_same_configuration_back(methods, caveat, replicates):
    config = CompareConfig(methods=tuple(methods), caveat=caveat, replicates=replicates)
    name, *words = shlex.split(command_line(config))
    assert (name, words[0]) == ("deepens", "compare")
    assert parse(words)[1] == config


def test_command_keeps_plain_lists_in_one_word():
    assert "--methods single,deep" in command_line(CompareConfig(methods=("single", "deep")))


@pytest.fixture(scope="module")
def with_cascades(shared_comparison, loaded):
    config = shared_comparison(
        "comparison-of-cascades", epochs=2, replicates=2, draws=100, keep_logits=True,
        methods=("cascade-deep-2", "single", "wide-1.2", "deep-2", "threshold-deep-2", "long-2"),
    )  # fmt: skip
    return config, loaded(config.directory())


def test_a_cascade_is_a_method_over_the_members_of_another(with_cascades):
    config, found = with_cascades
    methods = {method.name: method for method in found.methods}
    assert list(methods) == list(config.methods)
    cascade, ensemble = methods["cascade-deep-2"], methods["deep-2"]
    assert cascade.family == "cascade"
    assert methods["single"].cost.macs < cascade.cost.macs < ensemble.cost.macs
    for field in ("parameters", "training_seconds", "training_macs", "peak_memory_bytes"):
        assert getattr(cascade.cost, field) == getattr(ensemble.cost, field)
    told = [
        json.loads((config.directory() / f"cascade-deep-2-{r}" / "calibration.json").read_text())
        for r in range(2)
    ]
    average = statistics.fmean(
        sum(share * cost for share, cost in zip(each["reached"]["test"], each["macs"], strict=True))
        for each in told
    )
    assert cascade.cost.macs == round(average)
    assert not any(p.name.startswith("weights") for p in config.directory().glob("cascade-*/*"))


def test_longer_training_costs_as_much_training_as_the_ensemble(with_cascades):
    _, found = with_cascades
    costs = {method.name: method.cost for method in found.methods}
    assert costs["long-2"].training_macs == costs["deep-2"].training_macs
    assert costs["long-2"].training_macs == 2 * costs["single"].training_macs
    assert costs["long-2"].macs == costs["single"].macs


def test_every_ensemble_is_held_against_every_single_model(with_cascades):
    _, found = with_cascades
    ensembles = ("cascade-deep-2", "deep-2", "threshold-deep-2")
    singles = ("single", "wide-1.2", "long-2")
    pairs = {(verdict.challenger, verdict.baseline) for verdict in found.against_singles}
    assert pairs == {(a, b) for a in ensembles for b in singles}
    for verdict in found.against_singles:
        if (verdict.split, verdict.metric) != ("test", "nll"):
            continue
        means = [
            statistics.fmean(r.metrics["test"]["nll"] for r in method.replicates)
            for name in (verdict.challenger, verdict.baseline)
            for method in found.methods
            if method.name == name
        ]
        assert verdict.estimate == pytest.approx(means[0] - means[1], abs=1e-12)


def test_cascades_are_calibrated_again_without_training_when_their_target_changes(
    with_cascades, splits, tmp_path, monkeypatch
):
    config, before = with_cascades
    shutil.copytree(config.directory(), tmp_path / "digits")
    weights = {p: p.stat().st_mtime_ns for p in (tmp_path / "digits").glob("*/weights.safetensors")}
    policy = dataclasses.replace(config.cascade, target_coverage=0.5, width=0.2)
    wider = dataclasses.replace(config, out=str(tmp_path / "digits"), cascade=policy)
    found = compare(wider, splits=splits)
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    costs = [{method.name: method.cost.macs for method in each.methods} for each in (before, found)]
    assert costs[1]["cascade-deep-2"] > costs[0]["cascade-deep-2"]
    held = json.loads((tmp_path / "digits/cascade-deep-2-0/calibration.json").read_text())
    assert held["task"]["target_coverage"] == 0.5


def test_a_report_of_other_cascades_than_the_costs_are_of_is_refused(with_cascades, tmp_path):
    config, _ = with_cascades
    shutil.copytree(config.directory(), tmp_path / "digits")
    policy = dataclasses.replace(config.cascade, width=0.3)
    # As a sitting leaves it that was killed before costs were measured again.
    changed = dataclasses.replace(config, out=str(tmp_path / "digits"), cascade=policy)
    (tmp_path / "digits/config.yaml").write_text(changed.to_yaml())
    with pytest.raises(ValueError, match="unfinished comparison"):
        load_comparison(tmp_path / "digits")


def test_a_cascade_that_cannot_be_calibrated_costs_no_other_method(
    with_cascades, splits, tmp_path, monkeypatch
):
    config, _ = with_cascades
    shutil.copytree(config.directory(), tmp_path / "digits")
    made = compare_module.make_cascade

    def refused(source, path, options, *, policy):
        if path.name == "cascade-deep-2-1":
            raise OutOfReachError("a risk of 0.05 is out of reach: the lowest is 0.2")
        return made(source, path, options, policy=policy)

    monkeypatch.setattr(compare_module, "make_cascade", refused)
    policy = dataclasses.replace(config.cascade, target_coverage=0.6)
    found = compare(
        dataclasses.replace(config, out=str(tmp_path / "digits"), cascade=policy),
        splits=splits,
    )  # fmt: skip
    names = ["single", "wide-1.2", "deep-2", "threshold-deep-2", "long-2"]
    assert [method.name for method in found.methods] == names
    notes = " ".join(found.verdict_notes)
    assert "There is no cascade-deep-2, replicate 1: a risk of 0.05 is out of reach" in notes
    assert "change --cascade.target-risk" in notes


def test_lost_predictions_of_a_cascade_are_made_again(with_cascades, splits, tmp_path):
    config, _ = with_cascades
    shutil.copytree(config.directory(), tmp_path / "digits")
    lost = tmp_path / "digits/cascade-deep-2-0/predictions/test.safetensors"
    held = lost.read_bytes()
    lost.unlink()
    compare(dataclasses.replace(config, out=str(tmp_path / "digits")), splits=splits)
    assert lost.read_bytes() == held
    lost.write_bytes(held[:50])
    compare(dataclasses.replace(config, out=str(tmp_path / "digits")), splits=splits)
    assert lost.read_bytes() == held


def test_what_a_cascade_cannot_tell_is_undefined(with_cascades):
    _, found = with_cascades
    cascade = next(method for method in found.methods if method.name == "cascade-deep-2")
    test = cascade.replicates[0].metrics["test"]
    for name in ("mutual_information", "disagreement", "nll_joint", "temperature_joint"):
        assert math.isnan(test[name])
    for name in ("accuracy", "nll", "nll_pooled", "ece", "aurc", "confidence"):
        assert math.isfinite(test[name])
    ood = next(v for k, v in cascade.replicates[0].metrics.items() if k.startswith("near_ood"))
    assert math.isnan(ood["auroc_max_logit"])
    assert math.isfinite(ood["auroc_energy"])
    judged = [v for v in found.judgements if v.challenger == "cascade-deep-2"]
    against = [v for v in found.against_singles if v.challenger == "cascade-deep-2"]
    members = [v for v in judged + against if v.metric.endswith("mutual_information")]
    assert members
    assert {v.outcome for v in members} == {"undefined"}


def test_a_cascade_over_one_member_is_refused_before_anything_is_trained(splits, tmp_path):
    config = CompareConfig(methods=("deep-1", "cascade-deep-1"), out=str(tmp_path / "x"))
    with pytest.raises(ValueError, match="an ensemble of >= 2 members, which deep-1 is not"):
        compare(config, splits=splits)
    assert not (tmp_path / "x").exists()


def test_a_cascade_over_members_that_nobody_trains_is_refused(splits, tmp_path):
    config = CompareConfig(methods=("single", "cascade-deep-2"), out=str(tmp_path / "x"))
    with pytest.raises(ValueError, match="add deep-2 to --methods"):
        compare(config, splits=splits)
    assert not (tmp_path / "x").exists()


def test_two_names_of_one_method_are_refused_before_anything_is_trained(splits, tmp_path):
    config = CompareConfig(
        methods=("deep", "wide", "deep-3"), members=3, out=str(tmp_path / "x"), quiet=True
    )
    with pytest.raises(ValueError, match="deep and deep-3 are one method, since members is 3"):
        compare(config, splits=splits)
    assert not (tmp_path / "x").exists()


def test_the_single_model_of_equal_cost_is_the_one_of_lowest_validation_loss(found):
    methods = {method.name: method for method in found.methods}
    ensemble, wide = methods["deep"], methods["wide"]

    def with_loss(name, loss, macs):
        replicates = tuple(
            dataclasses.replace(each, log=({"val/nll": 9.0}, {"val/nll": loss}))
            for each in wide.replicates
        )
        cost = dataclasses.replace(wide.cost, macs=macs)
        return dataclasses.replace(wide, name=name, replicates=replicates, cost=cost)

    macs = ensemble.cost.macs
    near = with_loss("wide", 0.5, macs)
    other = with_loss("deeper", 0.4, round(1.015 * macs))
    far = with_loss("wide-2", 0.1, round(1.03 * macs))
    assert single_of_equal_cost(ensemble, [near, other, far]).name == "deeper"
    silent = dataclasses.replace(other, replicates=wide.replicates[:1])
    silent = dataclasses.replace(
        silent, replicates=(dataclasses.replace(silent.replicates[0], log=()),)
    )
    assert single_of_equal_cost(ensemble, [near, silent]).name == "wide"
