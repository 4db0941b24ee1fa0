"""Compute-matched single models: the size at which a network has a given number of MACs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .cost_search import CostSearch, build_light, check_target
from .macs import count_macs
from .passes import ImageShape

__all__ = ["Match", "match_depth", "match_resolution", "match_width", "nearest_step"]

SCAN_REACH = 0.01
SCAN_POINTS = 9
FURTHER_DEPTHS = (1, 1.5, 2)
"""Multiples of the nearest depth whose widths are corrected, until one is within the tolerance."""

PATIENCE = 32
"""Number of consecutive sizes that a network refuses after which the search stops."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """The scaled network that comes closest to a cost.

    Args:
        macs: Multiply-accumulates per image.
        relative_error: ``macs / target - 1``, negative if the network is cheaper.
        within_tolerance: Whether ``|relative_error|`` is; else costs are not equal.
        width: Multiplier on the network's width.
        depth: Multiplier on the network's depth.
        image_size: Side of the images in pixels, if the resolution was scaled.
        name: Name of the network, if it was chosen from a family.
    """

    macs: int
    relative_error: float
    within_tolerance: bool
    width: float = 1.0
    depth: float = 1.0
    image_size: int | None = None
    name: str | None = None

    @classmethod
    def of(cls, macs: int, target: int, tolerance: float, **scaled: Any) -> "Match":
        """The match of a network of so many multiply-accumulates."""
        error = macs / target - 1
        within = abs(error) <= tolerance
        return cls(macs=macs, relative_error=error, within_tolerance=within, **scaled)


def match_width(
    build: Callable[[float], nn.Module],
    target_macs: int,
    image_shape: ImageShape,
    *,
    tolerance: float = 0.02,
) -> Match:
    """Find the width multiplier whose network costs closest to a number of multiply-accumulates.

    ``width = argmin_w |macs(build(w)) / target - 1|``

    Costs grow roughly with the square of the width, and in steps, since widths are whole numbers.
    A bracket around the target is halved to a thousandth of its width; nine widths within one per
    cent of the best then catch roundings that are not monotone. The search ends at once where the
    error falls to a tenth of the tolerance. Networks are built on the meta device where they can
    be; torch's random state is left alone.

    Args:
        build: From a width multiplier > 0 to a network.
        target_macs: Multiply-accumulates per image to match, >= 1.
        image_shape: Channels, height and width of an image.
        tolerance: The largest relative error that counts as a match, > 0.

    Returns:
        The closest width, whether or not it is within the tolerance.

    Raises:
        ValueError: If an argument is out of bounds, or the cost does not grow with the width.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.scaling import match_width
        >>> layer = lambda width: nn.Conv2d(1, round(16 * width), 3)  # 81 MACs per channel
        >>> match = match_width(layer, 3 * 16 * 81, (1, 5, 5))
        >>> match.macs, round(match.width, 1), match.within_tolerance
        (3888, 3.0, True)

    Reference:
        Abe et al. (2022), arXiv:2202.06985
    """

    def cost(width: int | float) -> int:
        return count_macs(build_light(lambda: build(width)), image_shape)

    search = CostSearch(cost, target_macs, tolerance)
    search.halve(*search.bracket(math.sqrt(search.ratio), "width"))
    centre = search.best()
    for point in range(SCAN_POINTS):
        if search.unsettled():
            search.macs(centre * (1 + SCAN_REACH * (2 * point / (SCAN_POINTS - 1) - 1)))
    width = search.best()
    return Match.of(search.macs(width), target_macs, tolerance, width=width)


def match_depth(
    build: Callable[[float, float], nn.Module],
    target_macs: int,
    image_shape: ImageShape,
    *,
    tolerance: float = 0.02,
) -> Match:
    """Find the depth whose network costs closest to a target, then correct it by the width.

    ``depth = argmin_d |macs(build(d, 1)) / target - 1|``, and where that is not within the
    tolerance ``width = argmin_w |macs(build(depth, w)) / target - 1|``

    Depths are whole numbers of blocks, so that depth alone reaches few costs. If the target is
    below the cost of a network with one block, only the width changes; if no width helps, a depth
    further from 1 is corrected. Arguments and errors are those of :func:`match_width`, but that
    ``build`` makes a network from a depth and a width multiplier, both > 0.

    Returns:
        The depth, rounded to as few digits as name the same network, and the width.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.scaling import match_depth
        >>> layers = lambda depth, width: nn.Sequential(  # 576 multiply-accumulates each
        ...     *(nn.Conv2d(1, 1, 3, padding=1) for _ in range(round(4 * depth)))
        ... )
        >>> match = match_depth(layers, 2 * 4 * 576, (1, 8, 8))
        >>> match.depth, match.width, match.within_tolerance
        (2.0, 1.0, True)
    """

    def cost(depth: int | float) -> int:
        return count_macs(build_light(lambda: build(depth, 1.0)), image_shape)

    search = CostSearch(cost, target_macs, tolerance)
    search.halve(*search.bracket(search.ratio, "depth"))
    nearest = search.best()
    if abs(search.error(nearest)) <= tolerance:
        depth = search.shortest(nearest)
        return Match.of(search.macs(nearest), target_macs, tolerance, depth=depth)
    matches: dict[float, Match] = {}
    for further in FURTHER_DEPTHS:
        depth = search.shortest(nearest * further if nearest > 1 else nearest / further)
        if depth in matches:
            continue

        def at_depth(width: float, depth: float = depth) -> nn.Module:
            return build(depth, width)

        corrected = match_width(at_depth, target_macs, image_shape, tolerance=tolerance)
        matches[depth] = replace(corrected, depth=depth)
        if corrected.within_tolerance:
            break
    return min(matches.values(), key=lambda match: abs(match.relative_error))


def match_resolution(
    build: Callable[[int], nn.Module],
    target_macs: int,
    image_shape: ImageShape,
    *,
    step: int = 1,
    tolerance: float = 0.02,
) -> Match:
    """Find the image size at which a network costs closest to a target.

    ``side = argmin_s |macs(build(s), s) / target - 1|``, over whole multiples of ``step``

    Costs grow with the square of the side, faster with attention. From the size that the square
    predicts, sizes are tried one after the other until the target lies between two of them.

    Args:
        build: From the side of the images in pixels to the network; a ValueError says that it
            cannot take such images.
        target_macs: Multiply-accumulates per image.
        image_shape: Channels, height and width of an image as it is, of equal sides.
        step: Pixels by which sizes differ: the patch size of a transformer, >= 1.
        tolerance: The largest relative error that counts as a match.

    Raises:
        ValueError: If an argument is out of bounds, or the network takes no size that was tried.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.scaling import match_resolution
        >>> convolution = nn.Conv2d(1, 10, 3, padding=1)  # 90 multiply-accumulates per pixel
        >>> match = match_resolution(lambda side: convolution, 2 * 90 * 64, (1, 8, 8))
        >>> match.image_size, match.macs, round(match.relative_error, 4), match.within_tolerance
        (11, 10890, -0.0547, False)
    """
    channels, side, _ = image_shape
    if step < 1:
        raise ValueError(f"step must be >= 1, got {step}")

    def cost(side: int | float) -> int:
        size = int(side)
        return count_macs(build_light(lambda: build(size)), (channels, size, size))

    search = CostSearch(cost, target_macs, tolerance, start=side)
    guess = step * max(1, round(side * math.sqrt(search.ratio) / step))
    for direction in (-step, step):
        size, refused = guess, 0
        while size >= step and refused < PATIENCE:
            try:
                if (search.macs(size) - target_macs) * direction >= 0:
                    break
                refused = 0
            except ValueError:
                refused += 1
            size += direction
    best = int(search.best())
    return Match.of(search.macs(best), target_macs, tolerance, image_size=best)


def nearest_step(
    build: Callable[[str], nn.Module],
    names: Iterable[str],
    target_macs: int,
    image_shape: ImageShape,
    *,
    tolerance: float = 0.02,
) -> Match:
    """Find the network of a family that costs closest to a target.

    ``name = argmin_n |macs(build(n)) / target - 1|``, the first of those that are equally close

    Other arguments are those of :func:`match_width`; ``build`` makes the network of a name, and a
    ValueError of it says that there is none for such images.

    Raises:
        ValueError: If an argument is out of bounds, or no network of the family can be built.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.scaling import nearest_step
        >>> layer = lambda name: nn.Conv2d(1, int(name), 3)  # 81 multiply-accumulates per channel
        >>> match = nearest_step(layer, ["8", "16", "32"], 1500, (1, 5, 5))
        >>> match.name, match.macs, match.within_tolerance
        ('16', 1296, False)
    """
    check_target(target_macs, tolerance)
    costs, refusals = {}, []
    for name in names:
        try:
            costs[name] = count_macs(build_light(lambda name=name: build(name)), image_shape)  # type: ignore[misc]
        except ValueError as error:
            refusals.append(str(error))
    if not costs:
        raise ValueError(f"names must hold a network that can be built, got {refusals}")
    best = min(costs, key=lambda name: abs(costs[name] / target_macs - 1))
    return Match.of(costs[best], target_macs, tolerance, name=best)
