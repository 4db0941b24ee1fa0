"""The abstraction carries ensembles whose members share tensors, and keeps member streams apart."""

import torch
from contract import CLASSES, EnsembleContract
from stacked import StackedLinear


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


def test_without_a_step_the_global_generator_is_used():
    ensemble = StackedLinear(4, 2, seeds=[1, 2]).train()
    torch.manual_seed(3)
    first = _draw(ensemble, 0)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), first)
