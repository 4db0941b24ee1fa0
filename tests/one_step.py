"""One training step of a small ensemble, to compare objectives by."""

import copy

import torch
from contract import CLASSES, ObjectiveContract
from deepens.ensembles import (
    CrossEntropy,
    DeepEnsemble,
    FoRDE,
    FunctionSpace,
    Repulsion,
    Repulsive,
    SteinVariational,
    WeightSpace,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Images:
    """Training images in batches."""

    def __init__(self, *shape, seed=2):
        self.all = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.all)

    def __iter__(self):
        return iter(self.all.split(7))


def prepared(objective, *shape):
    objective.prepare(Images(*(shape or (40, 1, 8, 8))))
    return objective


SPACES = {
    "identity": lambda **options: FoRDE(Repulsion(**options)),
    "pca": lambda **options: FoRDE(Repulsion(lengthscale="pca", **options)),
    "tuned": lambda **options: FoRDE(Repulsion(lengthscale="tuned", **options)),
    "weights": lambda **options: WeightSpace(Repulsion(**options)),
    "functions": lambda **options: FunctionSpace(Repulsion(**options)),
}


def made(name, likelihood=None, **options):
    likelihood = likelihood or CrossEntropy()
    if name.startswith("svgd "):
        objective = SteinVariational(likelihood, SPACES[name[5:]](update="svgd", **options))
    else:
        objective = Repulsive(likelihood, [SPACES[name](**options)])
    return prepared(objective)


EVERY = (*SPACES, "svgd weights", "svgd functions")


def convolutional(num_members, *, dropout=0.0):
    def factory():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(4 * 36, CLASSES),
        )

    return DeepEnsemble(factory, seeds=range(1, num_members + 1)).double()


def batch(count=6):
    contract = ObjectiveContract()
    return contract.batch(count)


def after(objective, ensemble, images, targets):
    """A copy's gradients, running statistics and value after one pass."""
    ensemble = copy.deepcopy(ensemble).train()
    loss, values = objective(ensemble, images, targets)
    loss.backward()
    gradients = [p.grad for p in ensemble.parameters() if p.requires_grad]
    return loss.detach(), values, gradients, list(ensemble.buffers())


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result
