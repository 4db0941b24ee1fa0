"""Families that a contributor may write next: random signs, fixed masks, shared weights.

The contract must carry them: discrete initialisation, and buffers that differ by member.
"""

import torch
from deepens.ensembles import Ensemble, Network
from torch import nn


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


class _Hidden(Ensemble):
    """One hidden layer that members share, drawn from the first seed, and its output weights."""

    def __init__(self, size, hidden, classes, *, seeds):
        super().__init__(seeds)
        generator = generator_of(self.seeds[0])
        self.weight = nn.Parameter(torch.randn(hidden, size, generator=generator) / size**0.5)
        self.output = nn.Parameter(torch.randn(classes, hidden, generator=generator))

    @property
    def shares_parameters(self):
        return self.num_members > 1

    def prefix(self, images):
        return images.flatten(-3)

    def features(self, images, members):
        own = images if images.ndim == 3 else [images] * len(members)
        return [self.hidden(flat, i) for flat, i in zip(own, members, strict=True)]

    def head(self, features, members):
        return torch.stack([f @ self.output.T for f in features])

    def network(self, hidden, *others):
        """A copy of one member, given the weights of its hidden layer and what follows it."""
        layer = nn.Linear(*self.weight.shape[::-1], bias=False, dtype=self.weight.dtype)
        head = nn.Linear(*self.output.shape[::-1], bias=False, dtype=self.weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(hidden)
            head.weight.copy_(self.output)
        return Network(nn.Sequential(nn.Flatten(), layer, *others), head)

    def member_parameters(self, index):
        return [(self.weight, None), (self.output, None)]

    def member_state(self, index):
        return {"weight": self.weight.detach(), "output": self.output.detach()}


class RandomSigns(_Hidden):
    """BatchEnsemble: the shared weight between two vectors of a member's own, drawn as signs."""

    def __init__(self, size, hidden, classes, *, seeds):
        super().__init__(size, hidden, classes, seeds=seeds)
        drawn = [generator_of(seed) for seed in self.seeds]
        self.read = nn.Parameter(torch.stack([signs(size, g) for g in drawn]))
        self.write = nn.Parameter(torch.stack([signs(hidden, g) for g in drawn]))

    def hidden(self, flat, index):
        return torch.tanh((flat * self.read[index]) @ self.weight.T * self.write[index])

    def member(self, index):
        rank_one = self.write[self.chosen([index])[0], :, None] * self.read[index]
        return self.network(self.weight * rank_one, nn.Tanh())

    def member_parameters(self, index):
        return [*super().member_parameters(index), (self.read, index), (self.write, index)]

    def member_state(self, index):
        own = {"read": self.read.detach()[index], "write": self.write.detach()[index]}
        return super().member_state(index) | own


class FixedMasks(_Hidden):
    """Masksembles: members differ in nothing but the hidden units that a fixed mask leaves them."""

    def __init__(self, size, hidden, classes, *, seeds):
        super().__init__(size, hidden, classes, seeds=seeds)
        drawn = [signs(hidden, generator_of(seed)).clamp(min=0) for seed in self.seeds]
        self.register_buffer("masks", torch.stack(drawn))

    def hidden(self, flat, index):
        return torch.tanh(flat @ self.weight.T) * self.masks[index]

    def member(self, index):
        mask = Mask(self.masks[self.chosen([index])[0]].clone())
        return self.network(self.weight, nn.Tanh(), mask)

    def member_state(self, index):
        return super().member_state(index) | {"mask": self.masks[index]}


class Mask(nn.Module):
    """Which features are kept, for good."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, values):
        return values * self.mask


def signs(count, generator):
    return 2.0 * torch.randint(2, (count,), generator=generator) - 1
