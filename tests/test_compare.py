"""The main job: every number in its files can be computed again from the runs.

Most properties are those of the stored comparison; one small comparison is trained for all tests of
what making one does.
"""

import csv
import dataclasses
import json
import math
import shlex
import shutil
import statistics
from collections import Counter

import pytest
import torch
from deepens.ensembles.policies import OutOfReachError
from deepens.experiments.cli.entry import parse
from deepens.experiments.comparison import compare as compare_module
from deepens.experiments.comparison.command_line import command_line
from deepens.experiments.comparison.compare import compare
from deepens.experiments.comparison.examples import examples_of_runs, save_examples
from deepens.experiments.comparison.judging import judge
from deepens.experiments.comparison.partners import single_of_equal_cost
from deepens.experiments.comparison.stored import (
    load_comparison,
    write_tables,
)
from deepens.experiments.config import CompareConfig
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.evaluation import predictions as predictions_module
from deepens.experiments.evaluation.predictions import Predictions, load_metrics
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run, claim, read_config
from deepens.experiments.training.weights import hash_file
from deepens.metrics.core.catalogue import METRICS
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_logits import load_logits

METHODS = ("cascade-deep-2", "single", "wide-1.2", "deep-2", "threshold-deep-2", "epochs-2")


@pytest.fixture
def path(finished_comparison):
    return finished_comparison.directory()


@pytest.fixture
def quick(finished_comparison):
    """The same, judged by few bootstrap draws."""
    quick = dataclasses.replace(finished_comparison, draws=100)
    (quick.directory() / "config.yaml").write_text(quick.to_yaml())
    return quick.directory()


@pytest.fixture
def methods(loaded_comparison):
    return {method.name: method for method in loaded_comparison.methods}


# What a finished comparison concludes.


def test_results_have_one_row_for_each_method_replicate_split_and_metric(path, loaded_comparison):
    frame = loaded_comparison.results
    assert not frame.duplicated(["method", "replicate", "split", "metric"]).any()
    for (method, replicate), rows in frame.groupby(["method", "replicate"]):
        metrics = json.loads((path / f"{method}-{replicate}" / "metrics.json").read_text())
        expected = {(split, name): v for split, held in metrics.items() for name, v in held.items()}
        found = {(r.split, r.metric): r.value for r in rows.itertuples()}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == pytest.approx(math.nan if value is None else value, nan_ok=True)
    assert frame.groupby(["method", "replicate"]).ngroups == 10


def test_files_hold_the_frames(path, loaded_comparison):
    import pandas

    (path / "results.csv").unlink()
    write_tables(loaded_comparison, path)
    for name in ("results", "verdicts"):
        frame = getattr(loaded_comparison, name)
        read = pandas.read_csv(path / f"{name}.csv")
        pandas.testing.assert_frame_equal(read, frame, rtol=1e-12)
    with (path / "results.csv").open() as lines:
        counts = {row["value"] for row in csv.DictReader(lines) if row["metric"] == "n"}
    assert all(count.isdigit() for count in counts)


def test_verdicts_are_differences_of_replicate_means(loaded_comparison):
    results, verdicts = loaded_comparison.results, loaded_comparison.verdicts
    copies = results.split.str.startswith("shift/")
    means = results.groupby(["method", "split", "metric"]).value.mean()
    stored = {"shift/gaussian_noise/3", "shift/contrast/3"}  # whose logits are there
    shifted = results[copies & results.split.isin(stored)].groupby(["method", "metric"])
    shift = shifted.value.mean()
    assert set(zip(verdicts.challenger, verdicts.baseline, strict=True)) == {
        ("deep", "wide"),
        ("packed", "wide"),
        ("cascade-deep", "single to wide, interpolated"),
    }
    assert set(verdicts[verdicts.split == "test"].metric) == {
        *("accuracy", "nll", "brier", "ece", "aurc", "augrc", "coverage_at_5_risk"),
        *("nll_pooled", "brier_pooled", "ece_pooled"),
    }
    macs = {method.name: method.cost.macs for method in loaded_comparison.methods}
    share = math.log(macs["cascade-deep"] / macs["single"]) / math.log(
        macs["wide"] / macs["single"]
    )
    for row in verdicts.itertuples():

        def mean(name, row=row):
            if row.split == "shift":
                return shift[name, row.metric]
            return means[name, row.split, row.metric]

        ours = mean(row.challenger)
        if row.baseline in macs:
            theirs = mean(row.baseline)
        else:
            theirs = (1 - share) * mean("single") + share * mean("wide")
        # Of the cascade, what is kept of single images under shift is in single precision, and its
        # members are not compared.
        tolerance = 1e-9 if row.split == "shift" else 1e-12
        if row.baseline in macs or row.outcome != "undefined":
            assert row.difference == pytest.approx(ours - theirs, abs=tolerance)


def test_outcome_follows_from_interval_and_direction(loaded_comparison):
    for verdict in loaded_comparison.judgements:
        low, high = METRICS[verdict.metric].bounds
        assert -(high - low) <= verdict.low <= verdict.high <= high - low
        if verdict.outcome == "undefined":
            assert "mutual_information" in verdict.metric
            assert math.isnan(verdict.p_value)
        elif verdict.low <= 0 <= verdict.high:
            assert verdict.outcome == "undecided"
        else:
            better = (verdict.estimate > 0) == METRICS[verdict.metric].higher_is_better
            assert verdict.outcome == ("better" if better else "worse")


def test_p_values_are_adjusted_for_all_verdicts_on_the_two_methods(loaded_comparison):
    for challenger in ("deep", "packed"):
        verdicts = [v for v in loaded_comparison.judgements if v.challenger == challenger]
        defined = [each for each in verdicts if each.outcome != "undefined"]
        assert {each.compared for each in verdicts} == {len(defined)}
        least = min(each.p_value for each in defined)
        for verdict in defined:
            assert least <= verdict.p_value <= 1
            decided = verdict.outcome != "undecided"
            assert verdict.survives == (decided and verdict.p_value <= 0.05)


def test_better_worse_and_undecided_are_distinguished(methods):
    """Shift the challenger's per-sample NLL by a known amount, and see it found."""

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
    assert {v.outcome for v in judge(shifted(-5.0), one, draws=200, seed=0)} == {"undecided"}


def test_replicates_that_have_networks_in_common_are_judged_in_pairs(methods):
    def named(name, *networks):
        method = methods[name]
        replicates = zip(method.replicates, networks, strict=True)
        own = tuple(dataclasses.replace(each, networks=n) for each, n in replicates)
        return dataclasses.replace(method, replicates=own)

    apart = judge(methods["deep"], methods["wide"], draws=200, seed=0)
    paired = judge(named("deep", "a", "b"), named("wide", "a", "b"), draws=200, seed=0)
    others = judge(named("deep", "a", "b"), named("wide", "c", "d"), draws=200, seed=0)
    assert apart == others
    assert [each.estimate for each in paired] == [each.estimate for each in apart]
    where_replicates_vary = [each.freedom for each in paired if math.isfinite(each.freedom)]
    assert min(where_replicates_vary) >= 1
    assert any(p.low != a.low for p, a in zip(paired, apart, strict=True))


def test_replicates_without_the_same_splits_are_refused(methods):
    first, *rest = methods["wide"].replicates
    less = dataclasses.replace(first, values={"test": first.values["test"]})
    wide = dataclasses.replace(methods["wide"], replicates=(less, *rest))
    with pytest.raises(ValueError, match="wide-0 has predictions of other splits than deep-0"):
        judge(methods["deep"], wide, draws=200, seed=0)


def test_ensemble_is_judged_against_the_single_model_of_its_cost_whatever_its_name(methods):
    singles = [methods["single"], methods["wide"]]
    cheap = dataclasses.replace(methods["deep"], cost=methods["single"].cost)
    assert single_of_equal_cost(cheap, singles, tolerance=0.02).name == "single"
    expensive = dataclasses.replace(methods["deep"].cost, macs=10 * methods["deep"].cost.macs)
    dear = dataclasses.replace(cheap, cost=expensive)
    assert single_of_equal_cost(dear, singles, tolerance=0.02) is None


def test_the_single_model_of_equal_cost_is_the_one_of_lowest_validation_loss(methods):
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
    assert single_of_equal_cost(ensemble, [near, other, far], tolerance=0.02).name == "deeper"
    silent = dataclasses.replace(
        other, replicates=(dataclasses.replace(wide.replicates[0], log=()),)
    )
    assert single_of_equal_cost(ensemble, [near, silent], tolerance=0.02).name == "wide"


def test_log_of_every_epoch_is_read(path, loaded_comparison):
    for method in loaded_comparison.methods:
        for replicate in method.replicates:
            if method.family == "cascade":
                assert replicate.log == ()
                continue
            with (path / replicate.directory / "log.csv").open() as lines:
                last = list(csv.DictReader(lines))[-1]
            assert [row["epoch"] for row in replicate.log] == [1, 2, 3]
            assert replicate.log[-1] == {name: float(value) for name, value in last.items()}


# What is missing or damaged.


@pytest.mark.usefixtures("unchecked")
def test_missing_or_broken_log_and_pictures_cost_only_their_figures(quick, loaded_comparison):
    path = quick
    log, pictures = path / "deep-0" / "log.csv", path / "examples.safetensors"
    log.write_text("epoch,val/nll\n1,0.5\n2\n3,x\n")
    pictures.write_bytes(pictures.read_bytes()[:100])
    less = load_comparison(path)
    deep = next(m for m in less.methods if m.name == "deep")
    assert deep.replicates[0].log == ({"epoch": 1, "val/nll": 0.5}, {"epoch": 2}, {"epoch": 3})
    assert less.examples is None
    assert any("no pictures" in note and "damaged" in note for note in less.picture_notes)
    assert len(less.judgements) == len(loaded_comparison.judgements)
    log.unlink()
    pictures.unlink()
    less = load_comparison(path)
    assert next(m for m in less.methods if m.name == "deep").replicates[0].log == ()
    assert any("examples.safetensors is missing" in note for note in less.picture_notes)
    save_examples(
        pictures, dataclasses.replace(loaded_comparison.examples, runs=("single-0", "deep-0"))
    )
    less = load_comparison(path)
    assert less.examples is None
    assert any("examples.safetensors is of other runs" in note for note in less.picture_notes)


@pytest.mark.parametrize("text", ["{}", "[1]", ""])
def test_damaged_comparison_is_refused(path, text):
    file = path / "comparison.json"
    whole = file.read_text()
    file.write_text(text)
    with pytest.raises(ValueError, match="unfinished comparison|missing or damaged"):
        load_comparison(path)
    file.write_text(whole.replace('"costs"', '"other"'))
    with pytest.raises(ValueError, match=r"comparison\.json is missing or damaged"):
        load_comparison(path)


def test_unfinished_comparisons_say_how_to_finish_them(tmp_path, finished_comparison):
    claim(tmp_path / "x", CompareConfig(out=str(tmp_path / "x")))
    # As a sitting leaves it that was killed before costs were measured again.
    policy = dataclasses.replace(finished_comparison.cascade, width=0.3)
    changed = dataclasses.replace(finished_comparison, cascade=policy)
    (changed.directory() / "config.yaml").write_text(changed.to_yaml())
    for path in (tmp_path / "x", changed.directory()):
        with pytest.raises(ValueError, match="unfinished comparison; run `deepens compare --conf"):
            load_comparison(path)


@pytest.mark.usefixtures("unchecked")
def test_comparisons_of_earlier_versions_lack_what_was_added_later(quick):
    file = quick / "comparison.json"
    known = json.loads(file.read_text())
    assert "conclusive" not in known
    del known["cautions"], known["data_notes"]
    file.write_text(json.dumps(known))
    older = load_comparison(quick)
    assert (older.cautions, older.data_notes, older.conclusive) == ((), (), False)


# The pictures.


def test_pictures_are_the_test_images_that_the_runs_find_hardest(path, loaded_comparison, splits):
    found = loaded_comparison
    names = [method.name for method in found.methods]
    runs = {
        name: [Predictions(path / f"{name}-{r}") for r in (0, 1)]
        for name in names
        if name != "cascade-deep"
    }
    examples = examples_of_runs(runs, splits, data="digits")
    replicates = [r for m in found.methods if m.name in runs for r in m.replicates]
    nll = torch.stack([replicate.values["test"].nll for replicate in replicates]).mean(0)
    hardest = examples.index[list(examples.hardest)]
    assert nll[hardest].tolist() == pytest.approx(nll.topk(len(hardest)).values.tolist())
    assert torch.equal(examples.images, splits["test"].images[examples.index])
    assert torch.equal(examples.targets, splits["test"].targets[examples.index])
    for row, name in enumerate(examples.methods):
        chosen = list(examples.overconfident[name])
        assert chosen
        assert (examples.predicted[row, chosen] != examples.targets[chosen]).all()
    other = dataclasses.replace(splits["test"], targets=splits["test"].targets.roll(1))
    changed = dataclasses.replace(splits, splits={**splits.splits, "test": other})
    with pytest.raises(ValueError, match="single-0 was evaluated on other test images than digits"):
        examples_of_runs(runs, changed, data="digits")


# Making a comparison.


@pytest.fixture(scope="module")
def made(once, few_splits):
    """The directory of a small comparison with cascades, made once per test session."""

    def make(path):
        config = CompareConfig(
            methods=METHODS, out=str(path), epochs=1, replicates=1, draws=100, quiet=True,
            corruptions=("none",),
        )  # fmt: skip
        compare(config, splits=few_splits)

    return once("comparison-with-cascades", make)


@pytest.fixture(scope="module")
def small(made):
    return load_comparison(made)


@pytest.fixture
def copied(made, tmp_path):
    """The small comparison in a directory that a test may change."""
    shutil.copytree(made, tmp_path / "digits")
    config = read_config(made, CompareConfig)
    return dataclasses.replace(config, out=str(tmp_path / "digits"))


@pytest.fixture
def measured(monkeypatch, small):
    """Costs are not measured again: they are those of the small comparison."""
    costs = {method.name: method.cost for method in small.methods}
    monkeypatch.setattr(
        compare_module, "method_costs", lambda config, runs, *more: {n: costs[n] for n in runs}
    )


def test_ensembles_cost_their_members_and_cascades_what_they_run(made, small):
    costs = {method.name: method.cost for method in small.methods}
    assert list(costs) == list(METHODS)
    single, deep, cascade = costs["single"], costs["deep-2"], costs["cascade-deep-2"]
    assert deep.macs == 2 * single.macs
    assert deep.parameters == 2 * single.parameters
    assert costs["wide-1.2"].macs == pytest.approx(1.2 * single.macs, rel=0.02)
    for cost in costs.values():
        assert isinstance(cost, Cost)
        assert cost.training_seconds > 0
        assert 0 < cost.latency_ms_batch256 < cost.latency_ms_batch1
        assert cost.peak_memory_bytes > 4 * cost.parameters
    assert single.macs < cascade.macs < deep.macs
    for field in ("parameters", "training_seconds", "training_macs", "peak_memory_bytes"):
        assert getattr(cascade, field) == getattr(deep, field)
    record = json.loads((made / "cascade-deep-2-0" / "calibration.json").read_text())
    shares = zip(record["reached"]["test"], record["macs"], strict=True)
    assert cascade.macs == round(sum(share * macs for share, macs in shares))
    assert costs["epochs-2"].macs == single.macs
    assert costs["epochs-2"].training_macs == deep.training_macs == 2 * single.training_macs


def test_every_ensemble_is_compared_with_every_single_model(small):
    ensembles = ("cascade-deep-2", "deep-2", "threshold-deep-2")
    singles = ("single", "wide-1.2", "epochs-2")
    pairs = {(verdict.challenger, verdict.baseline) for verdict in small.against_singles}
    assert pairs == {(a, b) for a in ensembles for b in singles}
    means = small.results.groupby(["method", "split", "metric"]).value.mean()
    for verdict in small.against_singles:
        if verdict.metric == "nll":
            ours, theirs = (means[n, "test", "nll"] for n in (verdict.challenger, verdict.baseline))
            assert verdict.estimate == pytest.approx(ours - theirs, abs=1e-12)


def test_metrics_that_a_cascade_does_not_have_are_undefined(small):
    cascade = next(method for method in small.methods if method.name == "cascade-deep-2")
    test = cascade.replicates[0].metrics["test"]
    for name in ("mutual_information", "disagreement", "nll_joint", "temperature_joint"):
        assert math.isnan(test[name])
    for name in ("accuracy", "nll", "nll_pooled", "ece", "aurc", "confidence"):
        assert math.isfinite(test[name])
    ood = next(v for k, v in cascade.replicates[0].metrics.items() if k.startswith("near_ood"))
    assert math.isnan(ood["auroc_max_logit"])
    assert math.isfinite(ood["auroc_energy"])
    against = [v for v in small.against_singles if v.challenger == "cascade-deep-2"]
    members = [v for v in against if v.metric.endswith("mutual_information")]
    assert statistics.multimode(v.outcome for v in members) == ["undefined"]


def test_methods_of_one_replicate_share_the_members_of_one_recipe_and_no_others(made, small):
    runs = [Run.open(made / f"{name}-0") for name in ("single", "deep-2", "epochs-2", "wide-1.2")]
    (note,) = [note for note in small.notes if "share members" in note]
    assert note.startswith("In each replicate single and deep-2 share members: ")
    networks = {method.name: method.networks for method in small.methods}
    assert networks["single"] == networks["deep-2"] == networks["cascade-deep-2"] != ("",)
    assert len({networks[name] for name in ("single", "wide-1.2", "epochs-2")}) == 3
    single, first, second, *others = torch.cat([load_logits(run)["test"][0] for run in runs])
    assert torch.equal(single, first)
    members = [first, second, *others]
    for i in range(len(members)):
        for j in range(i):
            assert not torch.equal(members[i], members[j])


@pytest.mark.usefixtures("unchecked", "measured")
def test_finished_runs_are_not_repeated_and_more_can_be_added(copied, few_splits):
    path = copied.directory()
    before = {p: p.stat().st_mtime_ns for p in path.glob("*/weights.safetensors")}
    finished = []
    others = tuple(name for name in METHODS if name not in ("single", "deep-2"))
    more = dataclasses.replace(copied, replicates=2, methods=("single", "deep-2"), drop=others)
    cautious = dataclasses.replace(few_splits, cautions=("Copies.",), notes=("Left out.",))
    grown = compare(more, splits=cautious, finished=finished.append)
    after = {p: p.stat().st_mtime_ns for p in path.glob("*/weights.safetensors")}
    assert before.items() <= after.items()
    assert {p.parent.name for p in after.keys() - before.keys()} == {"single-1", "deep-2-1"}
    assert finished == ["single-0", "deep-2-0", "single-1", "deep-2-1"]
    assert [len(method.replicates) for method in grown.methods] == [2, 2]
    assert grown.judgements == ()
    assert any("No verdict on deep-2" in note for note in grown.verdict_notes)
    assert any("Left out by --methods" in n and "wide-1.2-0" in n for n in grown.notes)
    assert (grown.cautions, grown.data_notes) == (("Copies.",), ("Left out.",))
    assert not {"Copies.", "Left out."} & set(grown.notes)
    assert "accuracy" in load_metrics(Run.open(path / "deep-2-1"))["test"]


@pytest.mark.usefixtures("unchecked", "measured")
def test_a_comparison_only_grows_unless_a_method_is_dropped(copied, few_splits, capsys):
    display = Display()
    finished = []
    one = dataclasses.replace(copied, methods=("deep-2",), quiet=False)
    again = compare(one, splits=few_splits, display=display, finished=finished.append)
    assert [method.name for method in again.methods] == list(METHODS)
    assert sorted(finished) == sorted(f"{name}-0" for name in METHODS)
    assert "unless you give --drop cascade-deep-2,single," in capsys.readouterr().err
    results = (copied.directory() / "results.csv").read_text()
    assert all(f"\n{name}," in results for name in METHODS)
    left = compare(dataclasses.replace(one, drop=("wide-1.2",)), splits=few_splits)
    kept = [name for name in METHODS if name != "wide-1.2"]
    assert [method.name for method in left.methods] == kept
    assert (copied.directory() / "wide-1.2-0" / "weights.safetensors").exists()
    assert read_config(copied.directory(), CompareConfig).drop == ()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"drop": ("nothing",)}, "drop must name methods of the comparison, got 'nothing': .* has"),
        ({"out": "elsewhere", "drop": ("single",)}, "there is no comparison in elsewhere"),
    ],
)
def test_only_what_is_there_can_be_dropped(copied, few_splits, options, line):
    methods = ("deep-2",)
    with pytest.raises(ValueError, match=line):
        compare(dataclasses.replace(copied, methods=methods, **options), splits=few_splits)
    with pytest.raises(ValueError, match="drop must not name what --methods names"):
        dataclasses.replace(copied, methods=methods, drop=methods)


@pytest.mark.usefixtures("unchecked")
def test_cascades_are_calibrated_again_without_training_when_their_target_changes(
    copied, few_splits, small, monkeypatch
):
    hashed = Counter()

    def counted(path):
        hashed[path.parent.name] += 1
        return hash_file(path)

    monkeypatch.setattr(predictions_module, "hash_file", counted)
    weights = {p: p.stat().st_mtime_ns for p in copied.directory().glob("*/weights.safetensors")}
    policy = dataclasses.replace(copied.cascade, target_coverage=0.5, width=0.2)
    found = compare(dataclasses.replace(copied, cascade=policy), splits=few_splits)
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    trained = {name for name in METHODS if "cascade" not in name and "threshold" not in name}
    assert hashed == {f"{name}-0": 1 for name in trained}  # each run's predictions are opened once
    costs = [{method.name: method.cost.macs for method in each.methods} for each in (small, found)]
    assert costs[1]["cascade-deep-2"] > costs[0]["cascade-deep-2"]
    record = json.loads((copied.directory() / "cascade-deep-2-0/calibration.json").read_text())
    assert record["task"]["target_coverage"] == 0.5
    assert not (copied.directory() / "cascade-deep-2-0/config.yaml").exists()


@pytest.mark.usefixtures("unchecked", "measured")
def test_a_cascade_that_cannot_be_calibrated_costs_no_other_method(copied, few_splits, monkeypatch):
    make = compare_module.make_cascade

    def refused(source, path, options, *, policy):
        if path.name == "cascade-deep-2-0":
            raise OutOfReachError("a risk of 0.05 is out of reach: the lowest is 0.2")
        return make(source, path, options, policy=policy)

    monkeypatch.setattr(compare_module, "make_cascade", refused)
    found = compare(copied, splits=few_splits)
    assert [method.name for method in found.methods] == list(METHODS[1:])
    notes = " ".join(found.verdict_notes)
    assert "There is no cascade-deep-2, replicate 0: a risk of 0.05 is out of reach" in notes
    assert "change --cascade.target-risk" in notes


# What is refused before anything is trained.


def test_another_recipe_in_the_same_directory_is_refused(copied, few_splits):
    with pytest.raises(ValueError, match="another configuration .*epochs: 4, not 1"):
        compare(dataclasses.replace(copied, epochs=4), splits=few_splits)


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        (("deep-1", "cascade-deep-1"), "an ensemble of >= 2 members, which deep-1 is not"),
        (("single", "cascade-deep-2"), "add deep-2 to --methods"),
        (("deep", "wide", "deep-3"), "deep and deep-3 are one method, since members is 3"),
    ],
)
def test_methods_that_do_not_go_together_are_refused(few_splits, tmp_path, methods, reason):
    config = CompareConfig(methods=methods, members=3, out=str(tmp_path / "x"), quiet=True)
    with pytest.raises(ValueError, match=reason):
        compare(config, splits=few_splits)
    assert not (tmp_path / "x").exists()


# The command line that makes it again.


WORDS = st.text("ab,'\"[]-=$ \\#", max_size=6).map(str.strip)


@settings(max_examples=12, deadline=None)
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
