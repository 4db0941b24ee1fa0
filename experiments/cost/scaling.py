"""Compute-matched single models: the size at which a network has a given number of MACs."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

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
        within_tolerance: Whether ``|relative_error|`` is within the tolerance. Otherwise it is not
            a comparison at equal cost, and the report has to say so.
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
    error falls to a tenth of the tolerance. Networks are built without their weights on the meta
    device where their construction allows it, else for real; torch's random state is left alone.

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
        >>> from functools import partial
        >>> from deepens.ensembles.backbones import build
        >>> from deepens.experiments.cost.macs import count_macs
        >>> from deepens.experiments.cost.scaling import match_width
        >>> make = partial(build, "resnet8", num_classes=10, channels=3, image_size=32)
        >>> target = 4 * count_macs(make(), (3, 32, 32))
        >>> match = match_width(lambda width: make(width=width), target, (3, 32, 32))
        >>> match.within_tolerance, 1.9 < match.width < 2.1
        (True, True)

    Reference:
        Abe et al. (2022), arXiv:2202.06985
    """
    search = CostSearch(
        lambda width: count_macs(build_light(lambda: build(width)), image_shape),
        target_macs,
        tolerance,
    )
    search.halve(*search.bracket(math.sqrt(search.ratio), "width"))
    centre = search.best()
    for point in range(SCAN_POINTS):
        if search.unsettled():
            search.macs(centre * (1 + SCAN_REACH * (2 * point / (SCAN_POINTS - 1) - 1)))
    width = search.best()
    return replace(_match(search.macs(width), target_macs, tolerance), width=width)


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

    Depths are whole numbers of blocks, so that depth alone reaches few costs. The correction by
    width is small for a network with many blocks; if the target is below the cost of a network
    with one block, it is all that changes. If no width helps, since widths are whole numbers of
    channels, a depth further from 1 is corrected.

    Args:
        build: From a depth and a width multiplier, both > 0, to a network.
        target_macs: Multiply-accumulates per image to match, >= 1.
        image_shape: Channels, height and width of an image.
        tolerance: The largest relative error that counts as a match, > 0.

    Returns:
        The depth, rounded to as few digits as name the same network, and the width.

    Raises:
        ValueError: If an argument is out of bounds, or the cost does not grow with the depth.

    Example:
        >>> from functools import partial
        >>> from deepens.ensembles.backbones import build
        >>> from deepens.experiments.cost.macs import count_macs
        >>> from deepens.experiments.cost.scaling import match_depth
        >>> make = partial(build, "resnet20", num_classes=10, channels=3, image_size=32)
        >>> target = 2 * count_macs(make(), (3, 32, 32))
        >>> match = match_depth(lambda d, w: make(depth=d, width=w), target, (3, 32, 32))
        >>> match.depth, 0.98 < match.width < 1, match.within_tolerance
        (2.0, True, True)
    """
    search = CostSearch(
        lambda depth: count_macs(build_light(lambda: build(depth, 1.0)), image_shape),
        target_macs,
        tolerance,
    )
    search.halve(*search.bracket(search.ratio, "depth"))
    nearest = search.best()
    if abs(search.error(nearest)) <= tolerance:
        depth = search.shortest(nearest)
        return replace(_match(search.macs(nearest), target_macs, tolerance), depth=depth)
    matches: list[Match] = []
    for further in FURTHER_DEPTHS:
        depth = search.shortest(nearest * further if nearest > 1 else nearest / further)
        if depth in [match.depth for match in matches]:
            continue
        corrected = match_width(
            lambda width, depth=depth: build(depth, width),  # type: ignore[misc]
            target_macs,
            image_shape,
            tolerance=tolerance,
        )
        matches.append(replace(corrected, depth=depth))
        if corrected.within_tolerance:
            break
    return min(matches, key=lambda match: abs(match.relative_error))


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
        build: From the side of the images in pixels to the network, the same but for what depends
            on that size; a ValueError says that it cannot take such images.
        target_macs: Multiply-accumulates per image to match, >= 1.
        image_shape: Channels, height and width of an image as it is, of equal sides.
        step: Pixels by which sizes differ: the patch size of a transformer, >= 1.
        tolerance: The largest relative error that counts as a match, > 0.

    Returns:
        The closest size, whether or not it is within the tolerance.

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
    return replace(_match(search.macs(best), target_macs, tolerance), image_size=best)


def nearest_step(
    build: Callable[[str], nn.Module],
    names: Iterable[str],
    target_macs: int,
    image_shape: ImageShape,
    *,
    tolerance: float = 0.02,
) -> Match:
    """Find the network of a family that costs closest to a target.

    ``name = argmin_n |macs(build(n)) / target - 1|``

    Args:
        build: From a name to its network; a ValueError says that there is none for such images.
        names: The family.
        target_macs: Multiply-accumulates per image to match, >= 1.
        image_shape: Channels, height and width of an image.
        tolerance: The largest relative error that counts as a match, > 0.

    Returns:
        The closest, within the tolerance or not; the first of those that are equally close.

    Raises:
        ValueError: If an argument is out of bounds, or no network of the family can be built.

    Example:
        >>> from functools import partial
        >>> from deepens.ensembles.backbones import build
        >>> from deepens.experiments.cost.scaling import nearest_step
        >>> make = partial(build, num_classes=10, channels=3, image_size=32)
        >>> match = nearest_step(make, ["resnet8", "resnet14", "resnet20"], 30_000_000, (3, 32, 32))
        >>> match.name, match.within_tolerance
        ('resnet14', False)
    """
    check_target(target_macs, tolerance)
    costs = {}
    refusals = []
    for name in names:
        try:
            costs[name] = count_macs(build_light(lambda name=name: build(name)), image_shape)  # type: ignore[misc]
        except ValueError as error:
            refusals.append(str(error))
    if not costs:
        raise ValueError(f"names must hold a network that can be built, got {refusals}")
    best = min(costs, key=lambda name: abs(costs[name] / target_macs - 1))
    return replace(_match(costs[best], target_macs, tolerance), name=best)


def _match(macs: int, target: int, tolerance: float) -> Match:
    error = macs / target - 1
    return Match(macs=macs, relative_error=error, within_tolerance=abs(error) <= tolerance)
