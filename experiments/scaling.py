"""Single models as dear as an ensemble: the width at which a network costs what it may cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .cost import ImageShape, count_macs

__all__ = ["WidthMatch", "match_width"]

RESOLUTION = 1e-3
SCAN_REACH = 0.01
SCAN_POINTS = 9
GOOD_ENOUGH = 0.1


@dataclass(frozen=True)
class WidthMatch:
    """The width multiplier that comes closest to a cost.

    Args:
        width: The multiplier.
        macs: Multiply-accumulates of one image at that width.
        relative_error: ``macs / target - 1``, negative where the network is cheaper.
        within_tolerance: Whether ``|relative_error|`` is within the tolerance asked for. Where it
            is not, the comparison is not at equal cost, and whoever reports it has to say so.
    """

    width: float
    macs: int
    relative_error: float
    within_tolerance: bool


def match_width(
    build: Callable[[float], nn.Module],
    target_macs: int,
    image_shape: ImageShape,
    *,
    tolerance: float = 0.02,
) -> WidthMatch:
    """Find the width multiplier whose network costs closest to a number of multiply-accumulates.

    ``width = argmin_w |macs(build(w)) / target - 1|``

    Costs grow roughly with the square of the width, and in steps, since widths are whole numbers.
    A bracket around the target is halved to a thousandth of its width; nine widths within one per
    cent of the best then catch roundings that are not monotone. The search ends at once where the
    error falls to a tenth of the tolerance. Networks are built without their weights on the meta
    device where their construction allows it, else for real; torch's random state is left alone.

    Args:
        build: From a width multiplier > 0 to a network.
        target_macs: Multiply-accumulates of one image to aim at, >= 1.
        image_shape: Channels, height and width of an image.
        tolerance: The largest relative error that counts as a match, > 0.

    Returns:
        The closest width found, within the tolerance or not.

    Raises:
        ValueError: If an argument is out of bounds, or the cost does not grow with the width.

    Example:
        >>> from functools import partial
        >>> from deepens.ensembles.backbones import build
        >>> from deepens.experiments.macs import count_macs
        >>> from deepens.experiments.scaling import match_width
        >>> make = partial(build, "resnet8", num_classes=10, channels=3, image_size=32)
        >>> target = 4 * count_macs(make(), (3, 32, 32))
        >>> match = match_width(lambda width: make(width=width), target, (3, 32, 32))
        >>> match.within_tolerance, 1.9 < match.width < 2.1
        (True, True)

    Reference:
        Abe et al. (2022), arXiv:2202.06985
    """
    if target_macs < 1:
        raise ValueError(f"target_macs must be >= 1, got {target_macs}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
    macs: dict[float, int] = {}

    def cost(width: float) -> int:
        if width not in macs:
            macs[width] = count_macs(_build_light(build, width), image_shape)
        return macs[width]

    def error(width: float) -> float:
        return cost(width) / target_macs - 1

    def best() -> float:
        return min(macs, key=lambda width: abs(error(width)))

    def unsettled() -> bool:
        return abs(error(best())) > GOOD_ENOUGH * tolerance

    low, high = _bracket(cost, target_macs)
    while unsettled() and low < high and high / low > 1 + RESOLUTION:
        middle = math.sqrt(low * high)
        if cost(middle) < target_macs:
            low = middle
        else:
            high = middle
    centre = best()
    for point in range(SCAN_POINTS):
        if unsettled():
            cost(centre * (1 + SCAN_REACH * (2 * point / (SCAN_POINTS - 1) - 1)))
    width = best()
    return WidthMatch(
        width=width,
        macs=cost(width),
        relative_error=error(width),
        within_tolerance=abs(error(width)) <= tolerance,
    )


def _bracket(cost: Callable[[float], int], target: int) -> tuple[float, float]:
    """Return two widths, the first no dearer than the target and the second no cheaper.

    Where even the narrowest network is too dear, both are the width at which it stops shrinking.
    """
    guess = math.sqrt(target / max(cost(1.0), 1))
    low, high = guess / 1.05, guess * 1.05
    while cost(low) > target:
        cheaper = low / 2
        if cost(cheaper) >= cost(low):
            return low, low
        low, high = cheaper, low
    while cost(high) < target:
        if high > 1e6 or cost(high * 2) <= cost(high):
            raise ValueError(
                f"build must grow with its width, got {cost(high)} multiply-accumulates at widths "
                f"{high:.4g} and {2 * high:.4g}"
            )
        low, high = high, high * 2
    return low, high


def _build_light(build: Callable[[float], nn.Module], width: float) -> nn.Module:
    """Build on the meta device, or for real where a construction needs its weights."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build(width)
        except (NotImplementedError, RuntimeError):
            return build(width)
