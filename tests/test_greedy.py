"""Greedy training: each member differs from those before it, on noise."""

import dataclasses

import pytest
import torch
from contract import CLASSES, ObjectiveContract
from deepens.ensembles import CrossEntropy, DeepEnsemble, Greedy, Mixup, MixupMP, Noise
from deepens.ensembles.objectives.greedy import likeness
from deepens.experiments.config import TrainConfig
from deepens.experiments.store.progress import Display
from deepens.experiments.training.fitting import Recorder
from deepens.experiments.training.train import train
from deepens.experiments.training.weights import load_ensemble
from one_step import Images, after, batch, convolutional, same

QUIET = Display(quiet=True)


def greedy(context, likelihood=None, **options):
    objective = Greedy(likelihood or CrossEntropy(), Noise(images=20, **options), seed=5)
    objective.prepare(Images(10, 1, 8, 8), context)
    return objective.double()


class TestGreedy(ObjectiveContract):
    def make(self):
        return greedy([self.ensemble(2).float()])


def trained(*seeds):
    return DeepEnsemble(lambda: convolutional(1).networks[0].float(), seeds=seeds)


def test_likeness_equals_its_formula():
    generator = torch.Generator().manual_seed(1)
    own, before = torch.rand(2, 7, 4, generator=generator), torch.rand(3, 7, 4, generator=generator)
    for i in range(2):
        d = [sum((own[i, s] - before[j, s]).square().sum() for s in range(7)) / 7 for j in range(3)]
        expected = torch.stack([(-2.5 * x).exp() for x in d]).sum().log()
        torch.testing.assert_close(likeness(own, before, 2.5)[i], expected)


def test_the_first_member_and_a_scale_of_zero_are_the_likelihood_bit_for_bit():
    plain = after(CrossEntropy(), convolutional(1), *batch())
    for objective in (greedy([]), greedy([convolutional(2).float()], scale=0.0)):
        found = after(objective, convolutional(1), *batch())
        assert torch.equal(found[0], plain[0])
        assert same(found[2], plain[2])


def test_noise_leaves_the_running_statistics_alone():
    plain = after(CrossEntropy(), convolutional(1), *batch())
    found = after(greedy([convolutional(2).float()], scale=10.0), convolutional(1), *batch())
    assert not same(found[2], plain[2])
    assert same(found[3], plain[3])


def test_descending_makes_a_member_differ_on_the_noise():
    """From a slightly different network: at the same one the gradient is zero, a saddle."""
    objective = greedy([convolutional(1).float()], scale=5.0)
    member = convolutional(1).eval()
    with torch.no_grad():
        for parameter in member.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    energies = []
    for _ in range(40):
        energy = likeness(member(objective.noise).softmax(-1), objective.before, 5.0).sum()
        energies.append(float(energy.detach()))
        member.zero_grad()
        energy.backward()
        with torch.no_grad():
            for parameter in member.parameters():
                parameter -= 0.02 * parameter.grad
    assert energies[0] > -0.5
    assert energies[-1] < energies[0] - 0.5


def test_noise_is_the_same_for_every_fit_and_the_context_is_kept():
    first, second = greedy([convolutional(1).float()]), greedy([convolutional(2).float()])
    assert torch.equal(first.noise, second.noise)
    assert first.before.shape == (1, 20, CLASSES)
    assert second.before.shape == (2, 20, CLASSES)
    assert float(first.noise.std()) == pytest.approx(5.0, rel=0.1)


def test_greedy_adds_to_mixup():
    ensemble = convolutional(1)
    ensemble.set_step(1)
    mixed = after(MixupMP(Mixup()), ensemble, *batch())
    found = after(
        greedy([convolutional(2).float()], MixupMP(Mixup()), scale=10.0), ensemble, *batch()
    )
    assert not same(found[2], mixed[2])
    assert same(found[3], mixed[3])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, splits):
    return train(config(tmp_path_factory.mktemp("greedy") / "run"), splits=splits, display=QUIET)


def config(out, **changes):
    options = {"data": "digits", "epochs": 2, "members": 3, "objective": "greedy"}
    options |= {"noise": Noise(scale=20.0, images=64), "checkpoint_seconds": 0.0, "quiet": True}
    return TrainConfig(**options | {"out": str(out)} | changes)


def weights(run):
    return load_ensemble(run)[0].state_dict()


@pytest.mark.usefixtures("unchecked")
def test_members_are_trained_in_turn_each_by_those_before(tmp_path, splits, whole):
    run = whole
    deep = train(config(tmp_path / "deep", objective="cross-entropy"), splits=splits, display=QUIET)
    ours, plain = weights(run), weights(deep)
    same_as_deep = {
        index: all(
            torch.equal(ours[k], plain[k]) for k in ours if k.startswith(f"networks.{index}.")
        )
        for index in range(3)
    }
    assert same_as_deep == {0: True, 1: False, 2: False}
    assert not (run.path / "fits").exists()
    columns = (run.path / "log.csv").read_text().splitlines()[0].split(",")
    assert {"val/nll_0", "val/nll_1", "val/nll_2", "train/loss"} <= set(columns)
    two = train(config(tmp_path / "two", members=2), splits=splits, display=QUIET)
    assert all(torch.equal(value, ours[name]) for name, value in weights(two).items())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_stopped_run_resumes_member_by_member_to_the_same_weights(
    tmp_path, splits, monkeypatch, whole, stop_after
):
    advance, count = Recorder.on_train_epoch_end, 0

    def stop(self, *arguments):
        nonlocal count
        advance(self, *arguments)
        count += 1
        if count == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "on_train_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path / "stopped"), splits=splits, display=QUIET)
    finished = tmp_path / "stopped" / "fits" / "0.safetensors"
    assert finished.exists() == (stop_after >= 3)
    before = finished.stat().st_mtime_ns if finished.exists() else None
    epochs = 0
    with monkeypatch.context() as patched:

        def counted(self, *arguments):
            nonlocal epochs
            advance(self, *arguments)
            epochs += 1

        patched.setattr(Recorder, "on_train_epoch_end", counted)
        resumed = train(config(tmp_path / "stopped"), splits=splits, display=QUIET)
    assert before is None or epochs <= 4
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert (resumed.path / "log.csv").read_text() == (whole.path / "log.csv").read_text()


@pytest.mark.usefixtures("unchecked")
def test_a_fit_of_another_run_is_refused(tmp_path, splits):
    first = config(tmp_path / "first", epochs=1)
    run = train(first, splits=splits, display=QUIET)
    other = train(
        dataclasses.replace(first, seed=1, out=str(tmp_path / "other")),
        splits=splits,
        display=QUIET,
    )
    run.weights.unlink()
    (run.path / "fits").mkdir()
    (run.path / "fits" / "0.safetensors").write_bytes(other.weights.read_bytes())
    with pytest.raises(ValueError, match="belongs to another run; delete it and run again"):
        train(first, splits=splits, display=QUIET)
