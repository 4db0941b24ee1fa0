"""Objectives on parts of a batch: where they say so, mean gradients are those of the batch."""

import math

import pytest
import torch
from contract import CLASSES
from deepens.ensembles import (
    CrossEntropy,
    DeepEnsemble,
    FoRDE,
    FunctionSpace,
    Greedy,
    Mixup,
    MixupMP,
    Noise,
    Objective,
    Repulsion,
    Repulsive,
    TrainingStep,
    WeightSpace,
)
from deepens.ensembles.objectives.parvi import SteinVariational
from deepens.ensembles.parts import Part
from one_step import prepared
from torch import nn

PARTS, BATCH, MEMBERS = 2, 8, 3


class _Part(Part):
    """A part whose other processes are known: what is gathered is the whole batch's."""

    whole: tuple[torch.Tensor, ...] = ()

    def gathered(self, values, dim):
        alike = [whole for whole in self.whole if whole.ndim == values.ndim]
        (found,) = [whole for whole in alike if torch.equal(_rows(whole, self, dim), values)]
        return found


def _rows(values, part, dim):
    own = values.shape[dim] // part.count
    return values.narrow(dim, part.rank * own, own)


def _network():
    layers = nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 36, CLASSES)
    return nn.Sequential(*layers).double()


def _gradients(objective, images, targets, part):
    members = max(len(fit) for fit in objective.fits(MEMBERS))
    ensemble = DeepEnsemble(_network, seeds=range(1, members + 1)).train()
    indices = torch.arange(BATCH)[part.rows(BATCH // part.count)]
    ensemble.set_step(2, part.rank)
    objective.set_step(TrainingStep(2, 9, indices, part))
    loss, values = objective(ensemble, images, targets)
    loss.backward()
    return values, [p.grad for p in ensemble.parameters()]


def _difference(objective, own):
    """The largest one of a gradient or a value, of one batch and of the mean over its parts."""
    torch.manual_seed(0)
    shape = (max(map(len, objective.fits(MEMBERS))), BATCH) if own else (BATCH,)
    images = torch.randn(*shape, 1, 8, 8, dtype=torch.float64)
    targets = torch.randint(CLASSES, shape)
    whole = _gradients(objective, images, targets, Part())
    found = []
    for rank in range(PARTS):
        part = _Part(rank, PARTS)
        part.whole = (images, targets)
        mine = _rows(images, part, -4), _rows(targets, part, -1)
        found.append(_gradients(objective, *mine, part))
    values = sum(each for each, _ in found) / PARTS
    gradients = [sum(parts) / PARTS for parts in zip(*(g for _, g in found), strict=True)]
    pairs = zip([whole[0], *whole[1]], [values, *gradients], strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def _greedy():
    objective = Greedy(CrossEntropy(), Noise(scale=3.0, images=20))
    images = [torch.zeros(BATCH, 1, 8, 8, dtype=torch.float64)]
    objective.prepare(images, [DeepEnsemble(_network, seeds=[7]).float()])
    return objective


def _stein(term):
    return SteinVariational(CrossEntropy(), term(Repulsion(scale=50.0)))


def _dirichlet():
    return MixupMP(Mixup(ratio=0.5, weights="dirichlet"))


AVERAGED = {
    "cross-entropy": lambda: CrossEntropy(smoothing=0.2),
    "chunks": lambda: CrossEntropy(members_at_once=1),
    "mixupmp": lambda: MixupMP(Mixup(ratio=0.5)),
    "mixup": lambda: MixupMP(Mixup(ratio=math.inf)),
    "dirichlet": _dirichlet,
    "weight-repulsion": lambda: Repulsive(CrossEntropy(), [WeightSpace(Repulsion(scale=50.0))]),
    "weight-svgd": lambda: _stein(WeightSpace),
    "greedy": _greedy,
}
COUPLED = {
    "forde": lambda: Repulsive(CrossEntropy(), [FoRDE()]),
    "function-repulsion": lambda: Repulsive(CrossEntropy(), [FunctionSpace(Repulsion(scale=50.0))]),
    "function-svgd": lambda: _stein(FunctionSpace),
}


def _prepared(make):
    objective = make()
    return objective if isinstance(objective, Greedy) else prepared(objective, 100, 1, 8, 8)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", AVERAGED)
def test_the_mean_over_parts_is_the_gradient_of_the_batch(name, own):
    objective = _prepared(AVERAGED[name])
    assert objective.averages_parts
    assert _difference(objective, own) < 1e-12


@pytest.mark.parametrize("name", COUPLED)
def test_objectives_that_compare_members_on_a_batch_say_that_it_is_not(name):
    objective = _prepared(COUPLED[name])
    assert not objective.averages_parts
    assert _difference(objective, own=False) > 1e-6


def test_an_objective_of_which_nothing_is_known_has_to_say_so():
    assert not Objective.averages_parts


def test_processes_draw_dropout_of_their_own_and_share_what_is_of_the_whole_batch():
    ensemble = DeepEnsemble(_network, seeds=[1]).train()
    drawn = {}
    for rank in (0, 1):
        ensemble.set_step(3, rank)
        for whole in (False, True):
            with ensemble.member_stream(0, "features", torch.device("cpu"), whole=whole):
                drawn[rank, whole] = float(torch.rand(()))
    assert drawn[0, False] == drawn[0, True] == drawn[1, True] != drawn[1, False]
