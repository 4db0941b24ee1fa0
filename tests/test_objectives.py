"""Objectives by name, as a run is told them: sums, refusals, and what is kept with a run."""

import dataclasses

import pytest
import torch
from deepens.datasets.image_format import ImageFormat
from deepens.ensembles import (
    CrossEntropy,
    Greedy,
    Mixup,
    MixupMP,
    Objective,
    ObjectiveValue,
    Repulsion,
    Repulsive,
    SteinVariational,
)
from deepens.experiments.cli.entry import main
from deepens.experiments.comparison.compare import compare
from deepens.experiments.comparison.ensemble_methods import training_config
from deepens.experiments.comparison.methods import find_method
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.report import render_page
from deepens.experiments.store.checkpoint import load_tensors
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run
from deepens.experiments.training import registry
from deepens.experiments.training.building import build_objective, settle_batches
from deepens.experiments.training.registry import register_objective
from deepens.experiments.training.train import train
from deepens.experiments.training.weights import load_ensemble
from torch.nn.functional import cross_entropy

QUIET = Display(quiet=True)
ADDED = (
    "forde",
    "forde-pca",
    "forde-tuned",
    "weight-repulsion",
    "function-repulsion",
    "weight-svgd",
    "function-svgd",
)
SHOWN = ("mixupmp", "mixupmp-0.5", "mixupmp-1", "mixupmp-2", "mixup", "greedy")


@pytest.fixture
def splits(few_splits, unchecked):
    return few_splits


def config(out, **changes):
    options = {"data": "digits", "corruptions": ("none",), "epochs": 1, "members": 2, "quiet": True}
    return TrainConfig(**options | {"out": str(out)} | changes)


def built(objective, **groups):
    return build_objective(TrainConfig(objective=objective, **groups))


def test_sums_are_a_likelihood_and_what_is_added():
    assert isinstance(built("cross-entropy"), CrossEntropy)
    both = built("mixupmp+forde+weight-repulsion")
    assert isinstance(both, Repulsive)
    assert isinstance(both.likelihood, MixupMP)
    assert len(both.terms) == 2
    assert isinstance(built("forde+mixupmp").likelihood, MixupMP)
    assert isinstance(built("weight-repulsion").likelihood, CrossEntropy)
    assert isinstance(built("greedy+mixupmp"), Greedy)
    svgd = Repulsion(update="svgd")
    assert isinstance(built("function-repulsion", repulsion=svgd), SteinVariational)


@pytest.mark.parametrize(
    ("objective", "groups", "line"),
    [
        ("ford", {}, "unknown objective 'ford'; did you mean 'forde'"),
        ("forde+forde", {}, "names one part twice"),
        ("cross-entropy+mixupmp", {}, "two likelihoods, cross-entropy and mixupmp"),
        ("greedy+forde", {}, "greedy trains members one after the other"),
        ("forde", {"repulsion": Repulsion(update="svgd")}, "use kde-wgd"),
        ("weight-repulsion+function-repulsion", {"repulsion": Repulsion(update="svgd")}, "kde-wgd"),
        (
            "mixupmp+function-repulsion",
            {"repulsion": Repulsion(update="svgd")},
            "shows each member its own",
        ),
        ("mixupmp+forde", {"mixup": Mixup(ratio=float("inf"))}, "the batch's own images"),
    ],
)
def test_sums_that_make_no_sense_are_refused_with_the_reason(objective, groups, line):
    with pytest.raises(ValueError, match=line):
        built(objective, **groups)


class _Whole(Objective):
    """Label smoothing, written as a whole objective."""

    def forward(self, ensemble, images, targets):
        losses = [cross_entropy(own, targets, label_smoothing=0.1) for own in ensemble(images)]
        return ObjectiveValue(sum(losses), torch.stack(losses).detach())


@pytest.fixture
def own_objectives(monkeypatch):
    monkeypatch.setattr(registry, "OBJECTIVES", dict(registry.OBJECTIVES))
    register_objective("smooth", lambda config: _Whole())
    register_objective("smooth-of", lambda config: lambda likelihood: _Whole())


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        ("smooth+forde", "smooth is an objective of its own, to which forde cannot be added"),
        ("forde+smooth", "smooth is an objective of its own, to which forde cannot be added"),
        ("smooth-of+forde", "smooth-of is an objective of its own, to which forde cannot"),
        ("smooth+mixupmp", "smooth is an objective of its own, to which mixupmp cannot be added"),
        ("smooth-of+greedy", "smooth-of is an objective of its own, to which greedy cannot"),
    ],
)
def test_an_objective_of_ones_own_is_refused_in_sums_for_what_it_is(
    own_objectives, objective, line
):
    with pytest.raises(ValueError, match=line):
        built(objective)


def test_options_that_came_later_leave_the_identity_of_older_runs_alone():
    assert "mixup.divisor" not in TrainConfig().substance()
    rows = TrainConfig(mixup=Mixup(divisor="rows"))
    assert rows.substance() == TrainConfig().substance() | {"mixup.divisor": "rows"}


def test_an_objective_of_ones_own_trains_alone(own_objectives):
    assert isinstance(built("smooth"), _Whole)
    assert isinstance(built("smooth-of+mixupmp"), _Whole)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"objective": "forde", "batches": "own"}, r"own gives each its own; set --batches shared"),
        ({"objective": "function-repulsion", "batches": "own"}, r"set --batches shared"),
        ({"objective": "weight-repulsion", "member": 0}, r"leave --member out"),
        ({"objective": "greedy", "member": 1}, r"leave --member out"),
    ],
)
def test_runs_that_cannot_be_are_refused_before_their_directory_is_made(
    tmp_path, splits, changes, line
):
    with pytest.raises(ValueError, match=line):
        train(config(tmp_path / "run", **changes), splits=splits, display=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_basis_of_too_many_pixels_is_refused_before_its_directory_is_made(
    tmp_path, splits, monkeypatch
):
    monkeypatch.setattr("deepens.ensembles.objectives.forde.LARGEST_BASIS", 63)
    changes = {"objective": "forde", "batches": "shared", "repulsion": Repulsion(lengthscale="pca")}
    with pytest.raises(ValueError, match=r"at most 63 channels x pixels, got 1 x 8 x 8 = 64; use"):
        train(config(tmp_path / "run", **changes), splits=splits, display=QUIET)
    assert not (tmp_path / "run").exists()
    # One member needs none.
    monkeypatch.setattr(
        "deepens.ensembles.objectives.forde.principal_components",
        lambda images: pytest.fail("computed for one member"),
    )
    train(config(tmp_path / "run", **changes | {"members": 1}), splits=splits, display=QUIET)


def test_a_scale_of_zero_leaves_members_their_own_order_and_alone(tmp_path, splits):
    off = {"objective": "forde", "repulsion": Repulsion(scale=0.0)}
    plain = train(config(tmp_path / "plain"), splits=splits, display=QUIET)
    run = train(config(tmp_path / "off", **off), splits=splits, display=QUIET)
    alone = train(config(tmp_path / "alone", member=1, **off), splits=splits, display=QUIET)
    expected, found = load_tensors(plain.weights)[0], load_tensors(run.weights)[0]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    own = load_ensemble(alone)[0].member_state(0)
    for name, value in load_ensemble(run)[0].member_state(1).items():
        assert torch.equal(own[name], value)


def test_one_line_on_the_command_line(capsys):
    assert main(["train", "--data", "digits", "--mixup.ratio", "-1", "--out", "x"]) != 0
    assert "mixup.ratio must be >= 0, got -1" in capsys.readouterr().err


@pytest.mark.filterwarnings("error:one member has no other")
@pytest.mark.parametrize("objective", ["forde", "greedy"])
@pytest.mark.parametrize("family", [{}, {"ensemble": "lora", "backbone": "vit-micro/4"}])
def test_one_member_is_said_to_be_bypassed_once(tmp_path, splits, monkeypatch, objective, family):
    said = []
    monkeypatch.setattr(Display, "say", lambda self, line: said.append(line))
    train(config(tmp_path / "run", objective=objective, members=1, **family), splits=splits)
    assert [line for line in said if "bypassed" in line] == [
        "one member has no other to be repelled from: the repulsion is bypassed"
    ]


def test_a_basis_is_kept_with_the_run_and_not_computed_again(tmp_path, splits, monkeypatch):
    pca = {"objective": "forde", "batches": "shared", "repulsion": Repulsion(lengthscale="pca")}
    run = train(config(tmp_path / "run", **pca), splits=splits, display=QUIET)
    weights = run.weights.read_bytes()
    assert (run.path / "objective.safetensors").exists()
    run.weights.unlink()
    monkeypatch.setattr(
        "deepens.ensembles.objectives.forde.principal_components",
        lambda images: pytest.fail("computed again"),
    )
    again = train(config(tmp_path / "run", **pca), splits=splits, display=QUIET)
    assert again.weights.read_bytes() == weights
    again.weights.unlink()
    kept = run.path / "objective.safetensors"
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        train(config(tmp_path / "run", **pca), splits=splits, display=QUIET)


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["deep", "packed", "lora", "explicit"])
@pytest.mark.parametrize(
    "objective",
    ["mixupmp", "forde", "weight-repulsion", "function-repulsion", "greedy", "mixupmp+forde"],
)
def test_every_ensemble_is_trained_by_every_objective(tmp_path, few_splits, ensemble, objective):
    options = {}
    if ensemble in ("lora", "explicit"):
        options = {"backbone": "vit-micro/4", "width": 0.5, "depth": 0.5, "batch_size": 128}
    run = train_and_evaluate(
        config(
            tmp_path / "run",
            ensemble=ensemble,
            objective=objective,
            batches="shared",
            **options,
        ),
        splits=few_splits,
        display=QUIET,
    )
    assert run.metrics.exists()


def test_mixed_weights_reach_the_loop_with_indices(tmp_path, splits):
    mixup = Mixup(weights="dirichlet")
    run = train(
        config(tmp_path / "run", objective="mixupmp", mixup=mixup), splits=splits, display=QUIET
    )
    parts = [
        train(
            config(tmp_path / f"{i}", objective="mixupmp", mixup=mixup, member=i),
            splits=splits,
            display=QUIET,
        )
        for i in range(2)
    ]
    whole = load_ensemble(run)[0]
    for index, part in enumerate(parts):
        alone = load_ensemble(part)[0].member_state(0)
        for name, value in whole.member_state(index).items():
            assert torch.equal(value, alone[name])


@pytest.mark.slow
def test_all_of_them_are_compared(tmp_path, few_splits):
    found = compare(
        CompareConfig(
            data="digits",
            corruptions=("none",),
            methods=("single", "wide", "deep", *ADDED, *SHOWN),
            members=2,
            replicates=1,
            epochs=1,
            draws=100,
            out=str(tmp_path / "all"),
            quiet=True,
        ),
        splits=few_splits,
        display=QUIET,
    )
    assert [method.name for method in found.methods][3:] == [*ADDED, *SHOWN]
    assert "forde-pca" in render_page(found)


@pytest.mark.parametrize("method", ["forde", "forde-pca", "forde-tuned", "mixup"])
def test_methods_that_fix_an_option_take_no_other_value_from_the_comparison(splits, method):
    options = CompareConfig(
        methods=(method,), repulsion=Repulsion(update="svgd"), mixup=Mixup(weights="dirichlet")
    )
    changes, _ = find_method(method).changes(options, ImageFormat.of(splits))
    build_objective(training_config(options, method, 0, changes))


@pytest.mark.parametrize(
    ("changes", "batches"),
    [
        ({"objective": "forde"}, "shared"),
        ({"objective": "mixupmp+function-repulsion"}, "shared"),
        ({"objective": "forde", "members": 1}, "own"),
        ({"objective": "forde", "batches": "own"}, "own"),
        ({"ensemble": "multi-exit", "members": 3}, "shared"),
        ({"ensemble": "multi-exit", "members": 3, "member": 1}, "own"),
        ({}, "own"),
    ],
)
def test_batches_are_by_default_what_objective_and_family_need(changes, batches):
    config = TrainConfig(**changes)
    assert settle_batches(config).batches == batches
    if "batches" not in changes:
        assert not TrainConfig(**changes).differences(dataclasses.replace(config, batches="own"))


def test_what_auto_chose_is_said_and_stored(tmp_path, splits, capsys):
    display = Display()
    run = train(config(tmp_path / "run", objective="forde"), splits=splits, display=display)
    assert capsys.readouterr().err.count("all members share one batch, as the objective forde") == 1
    assert Run.open(run.path).config.batches == "shared"
