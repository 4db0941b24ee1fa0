"""What replicates add to the variance of a contrast of methods, by themselves or in pairs.

`contrast_intervals` says what is estimated, and why.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

CAUTION = 3
"""By how much the spread of few paired replicates may be underestimated: so much larger, it decides
the degrees of freedom."""


class Part(NamedTuple):
    """One metric of a method in a contrast: its weight, values, draws, and networks by name."""

    weight: float
    observed: Float64[Tensor, "replicates"]
    drawn: Float64[Tensor, "draws replicates"]
    networks: tuple[str, ...]

    @property
    def replicates(self) -> int:
        """Replicates that have no network in common."""
        named = [name for name in self.networks if name]
        return len(self.networks) - len(named) + len(set(named))


class Terms(NamedTuple):
    """The variance of a contrast, by what it comes from, and its degrees of freedom."""

    images: float
    replicates: float
    freedom: float


def variance_terms(values: Sequence[Part], image_variance: float) -> list[Terms]:
    """Return the ways to estimate the variance of a contrast, of which the shorter is taken.

    Where no networks are in common, the interaction is counted with the images, and with the
    replicates or not; where some are, with the replicates alone.
    """
    groups = _groups([each for each in values if each.replicates > 1])
    spreads, interactions, counts = [], [], []
    for group in groups:
        spread, own, count = _of_group(group)
        spreads.append(spread)
        interactions.append(own)
        counts.append(count)
    whole = math.fsum(spreads)
    if not whole > 0:  # no spread, or NaN, of a metric that is undefined in some replicate
        return [Terms(image_variance, whole, math.inf)]
    spread = math.fsum(s**2 / (count - 1) for s, count in zip(spreads, counts, strict=True))
    if any(_is_paired(group) for group in groups):
        images = max(image_variance - math.fsum(interactions), 0.0)
        freedom = (images / CAUTION + whole) ** 2 / spread
        return [Terms(images, whole, freedom)]
    apart = (max(s - own, 0.0) for s, own in zip(spreads, interactions, strict=True))
    return [
        Terms(image_variance, term, (image_variance + term) ** 2 / spread)
        for term in (whole, math.fsum(apart))
    ]


def _is_paired(group: Sequence[Part]) -> bool:
    """Whether networks are in two of the replicates."""
    return len(group) > 1 or group[0].replicates < len(group[0].observed)


def _groups(parts: Sequence[Part]) -> list[list[Part]]:
    """Put methods together that have networks in common, directly or through others."""
    groups: list[tuple[set[str], list[Part]]] = []
    for part in parts:
        names = {*part.networks} - {""}
        linked = [each for each in groups if each[0] & names]
        groups = [each for each in groups if not each[0] & names]
        together = [own for _, members in linked for own in members]
        groups.append((names.union(*(known for known, _ in linked)), [*together, part]))
    return [members for _, members in groups]


def _of_group(group: Sequence[Part]) -> tuple[float, float, int]:
    """Variance that replicates of methods add together, the interaction's part, and how many."""
    first = group[0]
    count = min(part.replicates for part in group)
    if not _is_paired(group):
        own = (first.drawn - first.drawn.mean(1, keepdim=True)).var(0).sum().item() / (count - 1)
        spread = first.weight**2 * first.observed.var().item() / count
        return spread, first.weight**2 * own / count, count
    observed: dict[object, Tensor] = {}
    drawn: dict[object, Tensor] = {}
    for number, part in enumerate(group):
        share = part.weight / len(part.observed)
        rest = share * (part.observed - part.observed.mean())
        rest_drawn = share * (part.drawn - part.drawn.mean(1, keepdim=True))
        for place, name in enumerate(part.networks):
            key = name or (number, place)
            observed[key] = observed.get(key, 0.0) + rest[place]
            drawn[key] = drawn.get(key, 0.0) + rest_drawn[:, place]
    factor = count / (count - 1)
    spread = factor * torch.stack([*observed.values()]).square().sum().item()
    return spread, factor * torch.stack([*drawn.values()], 1).var(0).sum().item(), count
