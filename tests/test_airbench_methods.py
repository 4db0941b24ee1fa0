"""Every method on an airbench network: it is built, scaled, trained, and starts from the images."""

import dataclasses

import pytest
import torch
from deepens.datasets.image_format import ImageFormat
from deepens.ensembles import PackedEnsemble
from deepens.ensembles.backbones import build
from deepens.ensembles.backbones.airbench import Whitening
from deepens.ensembles.objective import TrainingStep
from deepens.ensembles.options import Packed
from deepens.ensembles.policies import ensemble_stages
from deepens.experiments.comparison.ensemble_methods import training_config
from deepens.experiments.comparison.methods import find_method
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.training.building import build_ensemble, build_objective, settle_batches
from deepens.experiments.training.devices import pipeline_for
from deepens.experiments.training.train import train
from deepens.experiments.training.weights import load_ensemble
from one_step import prepared

COLOUR = ImageFormat(tuple("abcde"), 3, (16, 16), (0.5,) * 3, (0.25,) * 3)
RECIPE = CompareConfig(
    backbone="airbench94", width=0.1, members=2, device="cpu", label_smoothing=0.1
)


def made(name, image_format=COLOUR):
    """The run of a method and its ensemble."""
    options, _ = find_method(name, 2).changes(RECIPE, image_format)
    run = settle_batches(training_config(RECIPE, name, 0, options))
    if run.image_size is not None:
        image_format = dataclasses.replace(image_format, size=(run.image_size,) * 2)
    return run, build_ensemble(run, image_format), image_format


def whitenings(ensemble):
    return [part for part in ensemble.modules() if isinstance(part, Whitening)]


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("wide-3", 0.02), ("deeper-2", 0.02), ("resolution-2", 0.1), ("wide-packed-4", 0.02)],
)
def test_single_models_are_scaled_to_the_cost(name, tolerance):
    run, ensemble, image_format = made(name)
    if name == "wide-packed-4":
        target = count_macs(made("packed-4")[1], COLOUR.shape)
    else:
        target = int(name[-1]) * count_macs(made("single")[1], COLOUR.shape)
    assert count_macs(ensemble, image_format.shape) == pytest.approx(target, rel=tolerance)
    assert (run.members, run.backbone) == (1, "airbench94")
    assert whitenings(ensemble)[0].out_channels == 24


def test_the_family_are_the_papers_three_networks():
    assert made("family-2")[0].backbone == "airbench95"
    assert made("family-4")[0].backbone == "airbench96"


def test_exits_cost_hardly_more_than_the_network():
    _, ensemble, _ = made("multi-exit-3")
    plain = count_macs(made("single")[1], COLOUR.shape)
    assert ensemble.num_members == 3
    assert plain < count_macs(ensemble, COLOUR.shape) < 1.1 * plain


@pytest.mark.parametrize(
    "name",
    [
        *("deep", "packed", "multi-exit-3", "mixupmp-1", "mixup", "greedy", "weight-repulsion"),
        *("function-repulsion", "function-svgd", "forde", "forde-pca"),
    ],
)
def test_a_step_of_every_method_moves_all_that_is_trained(name):
    torch.manual_seed(3)
    run, ensemble, _ = made(name)
    objective = build_objective(run)
    objective.check(ensemble)
    prepared(objective, 40, *COLOUR.shape)
    objective.set_step(TrainingStep(0, 10))
    ensemble.train().set_step(0)
    images, targets = torch.randn(6, *COLOUR.shape), torch.randint(5, (6,))
    if run.batches == "own":
        images, targets = torch.stack([images] * 2), torch.stack([targets] * 2)
    loss, values = objective(ensemble, images, targets)
    loss.backward()
    assert bool(torch.isfinite(values).all())
    for key, parameter in ensemble.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert float(parameter.grad.abs().sum()) > 0, key


@pytest.mark.parametrize("name", ["deep", "multi-exit-3"])
def test_stages_of_a_cascade_are_the_members(name):
    _, ensemble, _ = made(name)
    images = torch.randn(4, *COLOUR.shape)
    ensemble.eval()
    hidden, logits = images, []
    for stage in ensemble_stages(ensemble, list(range(ensemble.num_members))):
        hidden, answer = stage(hidden)
        logits.append(answer[0])
    assert torch.equal(torch.stack(logits), ensemble(images))


def test_packed_members_keep_the_whitening_whole_and_are_slim_elsewhere():
    ensemble = PackedEnsemble(
        lambda: build("airbench94", num_classes=5, channels=3, image_size=16, width=0.5),
        seeds=[1, 2, 3, 4],
        options=Packed(alpha=2.0),
        image_shape=COLOUR.shape,
    )
    body = ensemble.member(0).body
    assert body[0].out_channels == body[2].convolutions[0].in_channels == 24
    assert body[2].convolutions[0].out_channels == 16
    assert not body[0].weight.requires_grad


def _trained(path, splits, **options):
    config = TrainConfig(
        out=str(path), backbone="airbench94", epochs=1, device="cpu", quiet=True,
        **{"members": 2, "width": 0.05, "seed": 3} | options,
    )  # fmt: skip
    return load_ensemble(train(config, splits=splits))[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 0.1},
        {"ensemble": "packed"},
        {"ensemble": "packed", "packed": Packed(execution="grouped")},
        {"ensemble": "multi-exit", "members": 3},
        {"objective": "greedy"},
    ],
)
def test_every_ensemble_whitens_by_the_training_images(tmp_path, few_splits, options):
    ensemble = _trained(tmp_path / "run", few_splits, **options)
    train_split = few_splits["train"]
    pipeline = pipeline_for(TrainConfig(device="cpu"), ImageFormat.of(few_splits))
    expected = Whitening(1)
    expected.initialise([pipeline.normalized(train_split.images)])
    found = whitenings(ensemble)
    assert len(found) == (1 if options.get("ensemble") == "multi-exit" else ensemble.num_members)
    for layer in found:
        torch.testing.assert_close(layer.weight, expected.weight, rtol=0, atol=1e-5)
    assert len({tuple(layer.bias.tolist()) for layer in found}) == len(found)


@pytest.mark.parametrize("family", ["deep", "packed"])
def test_a_member_trained_alone_is_the_same_from_the_whitening_on(tmp_path, few_splits, family):
    both = _trained(tmp_path / "both", few_splits, ensemble=family)
    alone = _trained(tmp_path / "alone", few_splits, ensemble=family, member=1)
    for key, value in alone.member(0).state_dict().items():
        assert torch.equal(value, both.member(1).state_dict()[key]), key
