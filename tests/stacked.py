"""A second, quite different ensemble: all members in one parameter with a leading member axis.

The abstractions must carry it as they carry networks in a list; packed and LoRA ensembles will
hold their parameters in this way.
"""

import torch
from deepens.ensembles import Ensemble, Network
from torch import nn


class StackedLinear(Ensemble):
    """One linear map a member; ``weight`` is [M, D, C], the images' mean is taken once for all."""

    def __init__(self, size, classes, *, seeds):
        super().__init__(seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        weights = [torch.randn(size, classes, generator=g) / size**0.5 for g in generators]
        self.weight = nn.Parameter(torch.stack(weights))

    def prefix(self, images):
        return images.flatten(-3)

    def features(self, images, members):
        return [images[k] if images.ndim == 3 else images for k in range(len(members))]

    def head(self, features, members):
        return torch.stack([f @ self.weight[i] for f, i in zip(features, members, strict=True)])

    def member(self, index):
        linear = nn.Linear(*self.weight.shape[1:], bias=False, dtype=self.weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight[index].T)
        return Network(nn.Flatten(), linear)

    def member_parameters(self, index):
        return [(self.weight, index)]

    def member_state(self, index):
        return {"head.weight": self.weight.detach()[index].T}
