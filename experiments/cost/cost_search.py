"""The search for the size at which a network costs nearest to a target."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["CostSearch", "build_light", "check_target"]

RESOLUTION = 1e-3
GOOD_ENOUGH = 0.1


class CostSearch:
    """What has been tried on the way to a target; each size is counted once.

    Args:
        cost: From a size, such as a width multiplier, to multiply-accumulates.
        target: Multiply-accumulates to aim at, >= 1.
        tolerance: The largest relative error that counts as a match, > 0.
        start: The size from which the search is guessed.
    """

    def __init__(
        self,
        cost: Callable[[int | float], int],
        target: int,
        tolerance: float,
        *,
        start: int | float = 1.0,
    ) -> None:
        check_target(target, tolerance)
        self.cost = cost
        self.target = target
        self.tolerance = tolerance
        self.tried: dict[int | float, int] = {}
        self.ratio = target / max(self.macs(start), 1)

    def macs(self, size: int | float) -> int:
        """What a size costs."""
        if size not in self.tried:
            self.tried[size] = self.cost(size)
        return self.tried[size]

    def error(self, size: int | float) -> float:
        """How far off it is, relative to the target."""
        return self.macs(size) / self.target - 1

    def best(self) -> int | float:
        """The nearest of the sizes tried, the first of equals."""
        return min(self.tried, key=lambda size: abs(self.error(size)))

    def shortest(self, size: float) -> float:
        """The same size by its cost, written in as few digits as name it."""
        rounded = (round(size, digits) for digits in range(4))
        return next((s for s in rounded if s and self.cost(s) == self.macs(size)), size)

    def unsettled(self) -> bool:
        """Whether a better size is worth another try."""
        return abs(self.error(self.best())) > GOOD_ENOUGH * self.tolerance

    def bracket(self, guess: float, what: str) -> tuple[float, float]:
        """Return two sizes, the first no dearer than the target and the second no cheaper.

        Where even the smallest network is too dear, both are where it stops shrinking.
        """
        low, high = guess / 1.05, guess * 1.05
        while self.macs(low) > self.target:
            cheaper = low / 2
            if self.macs(cheaper) >= self.macs(low):
                return low, low
            low, high = cheaper, low
        while self.macs(high) < self.target:
            if high > 1e6 or self.macs(high * 2) <= self.macs(high):
                raise ValueError(
                    f"build must grow with its {what}, got {self.macs(high)} multiply-accumulates "
                    f"at {what}s {high:.4g} and {2 * high:.4g}"
                )
            low, high = high, high * 2
        return low, high

    def halve(self, low: float, high: float) -> None:
        """Narrow the bracket down."""
        while self.unsettled() and low < high and high / low > 1 + RESOLUTION:
            middle = math.sqrt(low * high)
            if self.macs(middle) < self.target:
                low = middle
            else:
                high = middle


def build_light(build: Callable[[], nn.Module]) -> nn.Module:
    """Build on the meta device, or for real where a construction needs its weights.

    What it warns of is left to the network that will be trained; torch's random state is left
    alone.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return build()
        except (NotImplementedError, RuntimeError):
            return build()


def check_target(target_macs: int, tolerance: float) -> None:
    """Refuse what is no target."""
    if target_macs < 1:
        raise ValueError(f"target_macs must be >= 1, got {target_macs}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
