"""Members once: runs of one recipe and seed hold the same networks, each trained and run once."""

import dataclasses
import json
import shutil

import pytest
import torch
import yaml
from deepens.experiments.comparison.cascade_runs import make_cascade
from deepens.experiments.comparison.ensemble_methods import training_config
from deepens.experiments.comparison.methods import settle_names
from deepens.experiments.comparison.units import units_of
from deepens.experiments.config import CascadePolicy, CompareConfig, TrainConfig
from deepens.experiments.evaluation import predict_splits as predicting
from deepens.experiments.evaluation.predictions import Predictions
from deepens.experiments.evaluation.train_and_evaluate import (
    train_and_evaluate,
    train_and_evaluate_together,
)
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run, check_claim, training_seconds
from deepens.experiments.training import fitting, sharing
from deepens.experiments.training.building import settle_batches
from deepens.experiments.training.independence import are_independent, networks_of

QUIET = Display(quiet=True)


def config_of(path, members, **options):
    return TrainConfig(
        members=members,
        epochs=1,
        seed=7,
        quiet=True,
        evaluate="full",
        out=str(path / f"m{members}"),
        **options,
    )


def together(path, *sizes, splits, **options):
    configs = [config_of(path, members, **options) for members in sizes]
    return train_and_evaluate_together(configs, splits=splits, display=QUIET)


@pytest.fixture(scope="module")
def alone(once, shifted_splits):
    """A run of three members, and one of two, each trained by itself."""

    def make(path):
        for members in (2, 3):
            train_and_evaluate(config_of(path, members), splits=shifted_splits)

    return once("alone", make)


@pytest.fixture(scope="module")
def shared(once, shifted_splits):
    return once("together", lambda path: together(path, 1, 3, 2, splits=shifted_splits))


@pytest.fixture
def copied(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "runs")


@pytest.fixture
def work(monkeypatch):
    """How many members are trained, and on which splits networks are run."""
    done = {"members": 0, "splits": 0}
    fit, run = fitting.fit, predicting.predict_batches

    def fitted(run, module, *more):
        done["members"] += module.ensemble.num_members
        return fit(run, module, *more)

    def predicted(*given):
        done["splits"] += 1
        return run(*given)

    monkeypatch.setattr(fitting, "fit", fitted)
    monkeypatch.setattr(predicting, "predict_batches", predicted)
    return done


def assert_same_run(first, second):
    """The same weights to the last byte, and the same predictions and metrics."""
    first, second = Run.open(first), Run.open(second)
    assert first.weights.read_bytes() == second.weights.read_bytes()
    ours, theirs = Predictions(first), Predictions(second)
    assert ours.splits == theirs.splits
    for split in ours.splits:
        assert torch.equal(ours.logits(split), theirs.logits(split))
    assert list(ours.shift_values) == list(theirs.shift_values)
    for split, values in ours.shift_values.items():
        assert torch.equal(values.nll, theirs.shift_values[split].nll)
    metrics = [json.loads(run.metrics.read_text()) for run in (first, second)]
    for each in metrics:
        del each["predictions"], each["sha256"]
    assert metrics[0].keys() == metrics[1].keys()
    for split, values in metrics[0].items():
        assert values == pytest.approx(metrics[1][split], rel=1e-12, nan_ok=True)


# What shared members are.


def test_shared_members_are_those_of_a_run_by_itself(alone, shared):
    for members in (2, 3):
        assert_same_run(shared / f"m{members}", alone / f"m{members}")
    whole = Predictions(shared / "m3")
    for split in whole.splits:
        first = Predictions(shared / "m1").logits(split)
        assert torch.equal(first, whole.logits(split)[:1])


def test_log_of_shared_members_is_that_of_their_training(alone, shared):
    whole, part = ((at / "m2" / "log.csv").read_text().splitlines() for at in (alone, shared))
    columns, own = (
        dict(zip(*(row.split(",") for row in log), strict=True)) for log in (whole, part)
    )
    assert {name: columns[name] for name in own} == own
    assert columns.keys() - own.keys() == {"val/nll", "val/accuracy"}  # of both members together
    one = (shared / "m1" / "log.csv").read_text().splitlines()
    assert {"val/nll", "val/nll_0", "train/loss", "train/loss_0"} <= set(one[0].split(","))


@pytest.mark.parametrize("keep_logits", [False, True])
def test_networks_are_trained_once_and_see_each_image_once(
    tmp_path, shifted_splits, work, keep_logits
):
    runs = together(tmp_path, 1, 2, 3, splits=shifted_splits, keep_logits=keep_logits)
    predicted = [n for n in shifted_splits.names() if n not in predicting.CHOSEN_ON]
    assert work == {"members": 3, "splits": len(predicted)}
    assert [run.config.members for run in runs] == [1, 2, 3]
    shifted = [split for split in runs[0].predictions.splits if split.startswith("shift/")]
    assert bool(shifted) is keep_logits
    assert not together(tmp_path, 2, 3, splits=shifted_splits, keep_logits=keep_logits)[
        0
    ].resume.exists()
    assert work == {"members": 3, "splits": len(predicted)}


def test_training_cost_is_that_of_the_members_alone(shared):
    whole, two, one = (Run.open(shared / f"m{members}") for members in (3, 2, 1))
    assert training_seconds(two) == pytest.approx(training_seconds(whole) * 2 / 3)
    assert training_seconds(one) == pytest.approx(training_seconds(whole) / 3)
    record = json.loads(one.environment.read_text())
    assert record[sharing.SHARED] == {"m3": [0]}
    assert record["epochs"] == 1


# What is there already.


def test_a_larger_ensemble_trains_only_the_members_that_are_missing(
    tmp_path, few_splits, work, shared
):
    together(tmp_path, 1, splits=few_splits, corruptions=("none",))
    together(tmp_path, 1, 2, splits=few_splits, corruptions=("none",))
    assert work["members"] == 2
    grown = together(tmp_path, 3, 1, 2, splits=few_splits, corruptions=("none",))
    assert work["members"] == 3
    logits = Predictions(shared / "m3").logits("test")
    assert torch.equal(grown[0].predictions.logits("test"), logits)
    assert list(Run.open(tmp_path / "m3").path.glob("members")) == []
    record = json.loads(grown[0].environment.read_text())
    assert record[sharing.SHARED] == {"m2": [0, 1]}


def test_a_smaller_ensemble_comes_without_training_and_from_stored_logits(
    copied, alone, shifted_splits, work
):
    shutil.rmtree(copied / "m2")
    together(copied, 2, splits=shifted_splits)  # its source is not among the runs any more
    shifted = len(shifted_splits.names("shift"))
    assert work == {"members": 0, "splits": shifted}
    assert_same_run(copied / "m2", alone / "m2")


def test_a_deleted_run_is_made_again_of_what_the_others_hold(copied, alone, shifted_splits, work):
    shutil.rmtree(copied / "m3")
    assert_same_run(copied / "m2", alone / "m2")  # needs no other run
    together(copied, 1, 2, 3, splits=shifted_splits)
    assert work["members"] == 1
    assert_same_run(copied / "m3", alone / "m3")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_interrupted_evaluation_goes_on(tmp_path, few_splits, monkeypatch, work, number):
    save, left = predicting.save_index, [number]

    def interrupted(run, *given, **content):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        save(run, *given, **content)

    monkeypatch.setattr(predicting, "save_index", interrupted)
    options = {"splits": few_splits, "corruptions": ("none",)}
    with pytest.raises(KeyboardInterrupt):
        together(tmp_path, 1, 2, 3, **options)
    runs = together(tmp_path, 1, 2, 3, **options)
    assert work["members"] == 3
    logits = [run.predictions.logits("test") for run in runs]
    assert [len(each) for each in logits] == [1, 2, 3]
    assert all(torch.equal(each, logits[-1][: len(each)]) for each in logits)
    assert all(run.metrics.exists() for run in runs)


def test_an_interrupted_growth_goes_on(tmp_path, few_splits, monkeypatch, work):
    options = {"splits": few_splits, "corruptions": ("none",)}
    together(tmp_path, 1, **options)
    compose = sharing.compose

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(sharing, "compose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        together(tmp_path, 3, **options)
    monkeypatch.setattr(sharing, "compose", compose)
    (whole,) = together(tmp_path, 3, **options)
    assert work["members"] == 3
    assert len(whole.predictions.logits("test")) == 3


def test_members_of_a_damaged_run_are_refused_by_its_name(copied, shifted_splits, work):
    file = copied / "m3" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    shutil.rmtree(copied / "m1")
    with pytest.raises(ValueError, match=r"m3/weights\.safetensors"):
        together(copied, 1, splits=shifted_splits)
    assert work["members"] == 0
    assert not (copied / "m1").exists()


def test_a_cascade_runs_over_shared_members_as_over_others(alone, shared, tmp_path):
    found = [
        make_cascade(
            Predictions(at / "m2"), tmp_path / name, CascadePolicy(width=0.3), policy="window"
        )
        for name, at in (("alone", alone), ("shared", shared))
    ]
    assert found[0].policy.to_dict() == found[1].policy.to_dict()
    assert found[0].reached == found[1].reached
    metrics = [each.predictions.metrics for each in found]
    assert metrics[0].keys() == metrics[1].keys()
    for split, values in metrics[0].items():
        assert values == pytest.approx(metrics[1][split], nan_ok=True)


def test_detectors_score_shared_members_as_those_of_the_whole(tmp_path, few_splits):
    pytest.importorskip("pytorch_ood")
    options = {"splits": few_splits, "corruptions": ("none",), "detectors": ("knn",)}
    two, three = together(tmp_path, 2, 3, **options)
    scores = [run.predictions.scores("test")["knn"] for run in (two, three)]
    assert torch.equal(scores[0], scores[1][:2])


# Which runs share.


@pytest.mark.parametrize(
    "options",
    [
        {"keep": "best"},
        {"early_stopping": 2},
        {"batches": "shared"},
        {"ensemble": "packed"},
        {"objective": "forde"},
        {"objective": "greedy"},
        {"member": 1},
    ],
)
def test_members_that_depend_on_others_are_not_shared(options):
    assert are_independent(TrainConfig())
    assert are_independent(TrainConfig(objective="mixupmp"))
    assert not are_independent(TrainConfig(**options))


def test_networks_are_named_by_recipe_and_seed_alone():
    own = networks_of(TrainConfig())
    same = {"members": 2, "out": "elsewhere", "batches": "own", "quiet": True}
    assert own == networks_of(TrainConfig(**same))
    for other in ({"seed": 1}, {"epochs": 3}, {"width": 2.0}, {"objective": "mixupmp"}):
        assert own != networks_of(TrainConfig(**other))


CHANGES = {
    "single": ({"members": 1}, ""),
    "deep-4": ({"members": 4}, ""),
    "wide-4": ({"members": 1, "width": 2.0}, ""),
    "deep-2": ({"members": 2}, ""),
    "packed-2": ({"members": 2, "ensemble": "packed"}, ""),
    "forde-2": ({"members": 2, "objective": "forde"}, ""),
}


def groups(**options):
    return [
        (unit.replicate, tuple(unit.runs))
        for unit in units_of(CompareConfig(replicates=2, **options), CHANGES)
    ]


def test_methods_of_one_recipe_are_one_training():
    shared = [("single", "deep-4", "deep-2"), ("wide-4",), ("packed-2",), ("forde-2",)]
    assert groups() == [(replicate, names) for replicate in (0, 1) for names in shared]
    apart = [(replicate, (name,)) for replicate in (0, 1) for name in CHANGES]
    assert groups(share_members=False) == apart == groups(keep="best")


def test_comparisons_of_earlier_versions_go_on_without_sharing(tmp_path):
    config = CompareConfig(methods=("single", "deep-2"), out=str(tmp_path))
    older = {n: v for n, v in config.to_dict().items() if n != "share_members"}
    assert CompareConfig.from_dict(older).share_members
    assert not CompareConfig.from_dict(older, stored=True).share_members
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    assert settle_names(config) == dataclasses.replace(config, share_members=False)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert settle_names(config) == config
    apart = dataclasses.replace(config, share_members=False)
    with pytest.raises(ValueError, match="share_members: False, not True"):
        check_claim(tmp_path, settle_names(apart))


def test_seeds_are_those_of_earlier_versions_where_nothing_is_shared():
    for name, (options, _) in CHANGES.items():
        apart = training_config(CompareConfig(share_members=False), name, 1, options)
        best = training_config(CompareConfig(keep="best"), name, 1, options)
        assert apart.seed == best.seed
        shared = training_config(CompareConfig(), name, 1, options)
        independent = are_independent(settle_batches(shared))
        assert (shared.seed != apart.seed) == independent
    assert training_config(CompareConfig(share_members=False), "single", 0, {}).seed == (
        training_config(dataclasses.replace(CompareConfig(), keep="best"), "single", 0, {}).seed
    )


def test_replicates_and_recipes_share_no_seed():
    runs = [
        training_config(CompareConfig(), name, replicate, CHANGES[name][0])
        for name in ("single", "wide-4", "packed-2")
        for replicate in (0, 1, 2)
    ]
    assert len({run.seed for run in runs}) == len(runs)
