"""The search for the size at which the cost of a network is closest to a target."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["CostSearch", "build_light", "check_target"]

Size = int | float
RESOLUTION = 1e-3
GOOD_ENOUGH = 0.1


class CostSearch:
    """A search for a target cost, which counts the cost of each size once.

    Args:
        cost: From a size, such as a width multiplier, to multiply-accumulates.
        target: Multiply-accumulates to match, >= 1.
        tolerance: The largest relative error that counts as a match, > 0.
        start: The size from which the ratio to the target is computed.
    """

    def __init__(
        self, cost: Callable[[Size], int], target: int, tolerance: float, *, start: Size = 1.0
    ) -> None:
        check_target(target, tolerance)
        self.cost, self.target, self.tolerance = cost, target, tolerance
        self.tried: dict[Size, int] = {}
        self.ratio = target / max(self.macs(start), 1)

    def macs(self, size: Size) -> int:
        """The cost of a size."""
        if size not in self.tried:
            self.tried[size] = self.cost(size)
        return self.tried[size]

    def error(self, size: Size) -> float:
        """The relative deviation of its cost from the target."""
        return self.macs(size) / self.target - 1

    def best(self) -> Size:
        """The closest size so far, the first of equally close ones."""
        return min(self.tried, key=lambda size: abs(self.error(size)))

    def shortest(self, size: float) -> float:
        """The size of the same cost with the fewest decimal digits."""
        rounded = (round(size, digits) for digits in range(4))
        return next((s for s in rounded if s and self.cost(s) == self.macs(size)), size)

    def unsettled(self) -> bool:
        """Whether the best size so far is not yet close enough to stop."""
        return abs(self.error(self.best())) > GOOD_ENOUGH * self.tolerance

    def bracket(self, guess: float, what: str) -> tuple[float, float]:
        """Return two sizes, the first no more expensive than the target, the second no cheaper.

        Both are the size at which the network stops shrinking if even that is too expensive.
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
        """Halve the bracket until the search is settled."""
        while self.unsettled() and low < high and high / low > 1 + RESOLUTION:
            middle = math.sqrt(low * high)
            if self.macs(middle) < self.target:
                low = middle
            else:
                high = middle


def build_light(build: Callable[[], nn.Module]) -> nn.Module:
    """Build on the meta device, or for real where a construction needs its weights.

    Warnings are suppressed, since the network that is trained repeats them; torch's random state
    does not change.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return build()
        except (NotImplementedError, RuntimeError):
            return build()


def check_target(target_macs: int, tolerance: float) -> None:
    """Refuse a target or tolerance that is out of bounds."""
    if target_macs < 1:
        raise ValueError(f"target_macs must be >= 1, got {target_macs}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
