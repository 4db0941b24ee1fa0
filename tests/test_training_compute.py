"""Training compute: three forward passes an image, of members and of what they start from."""

import dataclasses

import pytest
import torch
from deepens.datasets.image_format import ImageFormat
from deepens.ensembles import LoRA
from deepens.experiments.config import TrainConfig
from deepens.experiments.cost.macs import count_macs
from deepens.experiments.cost.training_compute import (
    forward_macs,
    run_training_macs,
    training_macs,
    why_not_counted,
)
from deepens.experiments.store.run import Run, write_json
from deepens.experiments.training.building import build_base, build_ensemble, build_network
from torch.utils.flop_counter import FlopCounterMode

FORM = ImageFormat(channels=1, size=(8, 8), classes=tuple("abc"), mean=(0.5,), std=(0.5,))
PLAIN = TrainConfig(members=3, epochs=5, batch_size=64)


def made(path, config, *, epochs, base_epochs=None):
    run = Run(path, dataclasses.replace(config, out=str(path)))
    write_json(run.environment, {"epochs": epochs})
    if base_epochs is not None:
        write_json(path / "base" / "environment.json", {"epochs": base_epochs})
    return run, build_ensemble(run.config, FORM)


@pytest.mark.parametrize("backbone", ["small-cnn", "vit-micro/2"])
def test_a_step_computes_three_forward_passes_but_for_the_first_layer_s_inputs(backbone):
    ensemble = build_ensemble(dataclasses.replace(PLAIN, backbone=backbone), FORM)
    counted = training_macs(forward_macs(ensemble, FORM.shape, shared=False), images=4, epochs=1)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        ensemble(torch.randn(3, 4, *FORM.shape)).sum().backward()
    done = counter.get_total_flops() // 2
    assert 0.9 * counted < done <= counted


def test_compute_of_a_run_is_that_of_its_epochs_and_whole_batches(tmp_path):
    run, ensemble = made(tmp_path / "run", PLAIN, epochs=4)  # it stopped early
    found = run_training_macs(run, ensemble, FORM.shape, images=200)
    once = count_macs(build_network(PLAIN, FORM), FORM.shape)
    assert found == 3 * 3 * once * 192 * 4


def test_a_single_model_of_as_many_epochs_more_has_the_ensemble_s_compute(tmp_path):
    deep = made(tmp_path / "deep", PLAIN, epochs=4)
    single = made(tmp_path / "single", dataclasses.replace(PLAIN, members=1), epochs=12)
    counts = {run_training_macs(*each, FORM.shape, images=200) for each in (deep, single)}
    assert len(counts) == 1


@pytest.mark.parametrize("ensemble", ["lora", "explicit"])
def test_a_base_s_training_is_part_of_it(tmp_path, ensemble):
    config = dataclasses.replace(PLAIN, ensemble=ensemble, backbone="vit-micro/2")
    run, members = made(tmp_path / "run", config, epochs=5, base_epochs=7)
    found = run_training_macs(
        run, members, FORM.shape, images=64, base=build_base(run.config, FORM)
    )
    own = training_macs(forward_macs(members, FORM.shape, shared=False), images=64, epochs=5)
    base = count_macs(build_network(config, FORM), FORM.shape)
    assert found == own + 3 * base * 64 * 7
    assert run_training_macs(run, members, FORM.shape, images=64) == own


def test_members_compute_for_batches_of_their_own_what_they_share():
    config = TrainConfig(ensemble="lora", backbone="vit-micro/2", members=3, lora=LoRA(blocks=1))
    ensemble = build_ensemble(config, FORM, base=build_base(config, FORM))
    shared, own = (forward_macs(ensemble, FORM.shape, shared=s) for s in (True, False))
    assert shared == count_macs(ensemble, FORM.shape)
    assert own == pytest.approx(3 * count_macs(ensemble.member(0), FORM.shape), rel=0.05)
    assert own > 1.5 * shared


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objective": "forde"}, "input gradients"),
        ({"objective": "mixupmp+weight-repulsion"}, "pseudo-data"),
        ({"objective": "greedy"}, "on noise"),
        ({"objective": "mixupmp", "members": 1}, "pseudo-data"),
        ({"objective": "function-repulsion", "members_at_once": 1}, "runs members twice"),
        ({"objective": "something-new"}, "may make more passes"),
    ],
)
def test_objectives_of_more_passes_are_not_counted(tmp_path, changes, reason):
    config = dataclasses.replace(PLAIN, **changes)
    assert reason in why_not_counted(config)
    run, _ = made(tmp_path / "run", PLAIN, epochs=4)
    run = dataclasses.replace(run, config=config)
    assert run_training_macs(run, build_ensemble(PLAIN, FORM), FORM.shape, images=200) is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"members_at_once": 1},
        {"objective": "weight-repulsion+function-repulsion"},
        {"objective": "forde", "members": 1},
    ],
)
def test_objectives_of_the_same_passes_are_counted(changes):
    assert why_not_counted(dataclasses.replace(PLAIN, **changes)) is None


def test_what_cannot_be_counted_is_refused(tmp_path):
    with pytest.raises(ValueError, match="images must be >= 0, got -1"):
        training_macs(1, images=-1, epochs=1)
    run, ensemble = made(tmp_path / "run", PLAIN, epochs=None)
    with pytest.raises(ValueError, match=r"environment\.json is missing or damaged; delete"):
        run_training_macs(run, ensemble, FORM.shape, images=200)
