"""The abstraction carries ensembles whose members share tensors, and keeps member streams apart."""

import numpy as np
import pytest
import torch
import torchvision
from contract import CLASSES, EnsembleContract
from deepens.ensembles import DeepEnsemble
from stacked import StackedLinear
from torch import nn
from toy_families import RandomSigns


class TestStackedLinear(EnsembleContract):
    def make(self, num_members):
        return StackedLinear(64, CLASSES, seeds=[7, 8, 9][:num_members])

    def plain(self):
        return self.make(1).member(0)


def _draw(ensemble, index, stage="features"):
    with ensemble.member_stream(index, stage, torch.device("cpu")):
        return torch.rand(4)


def test_streams_differ_by_member_step_and_stage():
    ensemble = StackedLinear(4, 2, seeds=[1, 2]).train()
    ensemble.set_step(0)
    draws = [_draw(ensemble, 0), _draw(ensemble, 1), _draw(ensemble, 0, "head")]
    ensemble.set_step(1)
    draws.append(_draw(ensemble, 0))
    for i, first in enumerate(draws):
        assert not any(torch.equal(first, other) for other in draws[:i])
    ensemble.set_step(0)
    assert torch.equal(_draw(ensemble, 0), draws[0])


def test_a_stream_is_torchs_of_its_seed_without_seeding_what_is_not_used(monkeypatch):
    ensemble = StackedLinear(4, 2, seeds=[1, 2]).train()
    ensemble.set_step(5)
    key = (1, 5, len("features"), *b"features")
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    expected = torch.rand(4, generator=torch.Generator().manual_seed(seed))
    # Where there is no GPU, each call would keep a stack trace for the day that there is one.
    monkeypatch.setattr(torch, "manual_seed", None)
    before = torch.get_rng_state()
    assert torch.equal(_draw(ensemble, 0), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_step_the_global_generator_is_used():
    ensemble = StackedLinear(4, 2, seeds=[1, 2]).train()
    torch.manual_seed(3)
    first = _draw(ensemble, 0)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), first)


def _googlenet():
    network = torchvision.models.GoogLeNet(num_classes=7, init_weights=False)
    return network.to("meta")


class _Squeezed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1))

    def forward(self, images):
        return self.layers(images).squeeze()


def _linear(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, classes))


@pytest.mark.parametrize("execution", ["loop", "grouped"])
@pytest.mark.parametrize(
    ("factory", "line"),
    [
        (_Squeezed, r"member 0 returns \[\d\] for \d images: keep the batch and the classes"),
        (lambda: nn.Conv2d(3, 5, 3), r"member 0 returns \[4, 5, 62, 62\]: average feature maps"),
        (lambda: _linear(1), r"at least 2 classes, but member 0 returns 1"),
    ],
)
def test_networks_that_return_other_than_logits_are_refused_in_words(
    factory, line, execution, unchecked
):
    ensemble = DeepEnsemble(factory, seeds=[1, 2], execution=execution)
    with pytest.raises(ValueError, match=line):
        ensemble(torch.zeros(4, 3, 64, 64))


def test_networks_with_side_heads_are_refused_in_words(unchecked):
    ensemble = DeepEnsemble(_googlenet, seeds=[1, 2])
    with pytest.raises(ValueError, match=r"returns GoogLeNetOutputs: .*aux_logits=False"):
        ensemble(torch.zeros(4, 3, 64, 64, device="meta"))


def test_members_of_other_classes_are_refused_by_their_indices(unchecked):
    ensemble = DeepEnsemble([lambda c=c: _linear(c) for c in (2, 3, 4)], seeds=[1, 2, 3])
    with pytest.raises(ValueError, match=r"member 1 returns 3 logits .* member 2 returns 4"):
        ensemble(torch.zeros(4, 3, 64, 64), members=[1, 2])


def test_a_family_that_returns_other_than_logits_is_refused_too(unchecked):
    class Maps(RandomSigns):
        def head(self, features, members):
            return super().head(features, members)[..., None]

    with pytest.raises(ValueError, match=r"member 0 returns \[5, 3, 1\]"):
        Maps(4, 6, 3, seeds=[1, 2])(torch.zeros(5, 1, 2, 2))
