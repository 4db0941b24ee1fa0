"""What an ensemble is judged against: a single model of its cost, or the two that bracket it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ...metrics.statistics.iso_compute import log_share
from ..config import CompareConfig
from .formatting import listed
from .methods import find_method
from .single_models import frontier_of, validation_nll
from .verdicts import Between, MethodSummary

Name = TypeVar("Name")


@dataclass(frozen=True)
class Partner:
    """A single model, or what lies between two of them at an ensemble's cost.

    Attributes:
        parts: Weight and single model: one of weight 1, or the next cheaper of weight ``1 - t`` and
            the next more expensive of weight ``t``, as in
            :func:`~deepens.metrics.statistics.iso_compute.iso_compute_gap`.
        between: Of two, their names and MACs over the ensemble's; empty of one.
    """

    parts: tuple[tuple[float, MethodSummary], ...]
    between: Between = ()

    @property
    def singles(self) -> list[MethodSummary]:
        """The single models without their weights."""
        return [single for _, single in self.parts]

    @property
    def name(self) -> str:
        """The single model's, or one such as ``single to wide-4, interpolated``."""
        names = [single.name for single in self.singles]
        return f"{' to '.join(names)}, interpolated" if self.between else names[0]


def partner_of(
    ensemble: MethodSummary,
    singles: Sequence[MethodSummary],
    *,
    tolerance: float,
    best_kept: bool = False,
) -> Partner | None:
    """Find what an ensemble is judged against; None where nothing brackets its cost.

    A single model of equal cost, as `single_of_equal_cost` finds it; else the two around it, of
    those that differ in size alone (`frontier_of`). Where several cost as much as the next cheaper
    or more expensive one, within the tolerance, the one of lowest validation NLL is taken, so that
    nothing is chosen on the test images. Nothing is extrapolated.
    """
    equal = single_of_equal_cost(ensemble, singles, tolerance=tolerance, best_kept=best_kept)
    if equal is not None:
        return Partner(((1.0, equal),))
    macs = ensemble.cost.macs
    by_name = {single.name: single for single in frontier_of(singles)}
    costs = {name: single.cost.macs for name, single in by_name.items()}
    below, above = around(macs, costs, tolerance)
    if not below or not above:
        return None
    low, high = (
        _best([by_name[name] for name in names], macs, best_kept) for names in (below, above)
    )
    share = log_share(macs, low.cost.macs, high.cost.macs)
    between = tuple((each.name, each.cost.macs / macs) for each in (low, high))
    return Partner(((1.0 - share, low), (share, high)), between)


def single_of_equal_cost(
    ensemble: MethodSummary,
    singles: Sequence[MethodSummary],
    *,
    tolerance: float,
    best_kept: bool = False,
) -> MethodSummary | None:
    """The best single model that costs as many MACs as an ensemble, within the tolerance.

    Of several the one of lowest validation NLL (on val/select), so that nothing is chosen on the
    test images; where that is not known of all, the one of the nearest cost.
    """
    macs = ensemble.cost.macs
    near = [single for single in singles if abs(single.cost.macs / macs - 1) <= tolerance]
    return _best(near, macs, best_kept) if near else None


def around(
    macs: int | float, costs: Mapping[Name, int | float], tolerance: float
) -> tuple[list[Name], list[Name]]:
    """List those next below and next above some MACs, each with those that cost as much.

    Example:
        >>> from deepens.experiments.comparison.partners import around
        >>> around(200, {"a": 50, "b": 99, "c": 100, "d": 400, "e": 900}, 0.02)
        (['b', 'c'], ['d'])
    """
    below = max((cost for cost in costs.values() if cost < macs), default=0.0)
    above = min((cost for cost in costs.values() if cost > macs), default=math.inf)
    return (
        [name for name, cost in costs.items() if below * (1 - tolerance) <= cost <= below],
        [name for name, cost in costs.items() if above <= cost <= above * (1 + tolerance)],
    )


def _best(near: Sequence[MethodSummary], macs: int | float, best_kept: bool) -> MethodSummary:
    losses = {each.name: validation_nll(each, best_kept=best_kept) for each in near}
    if any(map(math.isnan, losses.values())):
        return min(near, key=lambda each: abs(each.cost.macs / macs - 1))
    return min(near, key=lambda each: losses[each.name])


def without_equal(
    name: str,
    macs: int | float,
    costs: Mapping[str, int | float],
    config: CompareConfig,
    *,
    planned: bool = False,
) -> str:
    """Say of an ensemble without a single model of equal cost what becomes of it, and the remedy.

    Args:
        name: The ensemble.
        macs: Its cost.
        costs: MACs of the single models to interpolate between.
        config: The comparison.
        planned: Whether the comparison is yet to be made.
    """
    sides = below, above = around(macs, costs, config.cost_tolerance)
    within = f"within {100 * config.cost_tolerance:g} %"
    none = f"no single model among the methods costs the same {within}"
    remedy = _remedy(name, macs, costs.get("single"), config, sides)
    if below and above:
        ends = [
            " or ".join(f"{each} ({costs[each] / macs:.3g} times the MACs)" for each in names)
            for names in sides
        ]
        add = f"; add {remedy} to --methods for one of equal cost" if remedy else ""
        return (
            f"{name} {'will be' if planned else 'is'} judged against single models of equal cost, "
            f"interpolated linearly in log MACs between {listed(ends)}, since {none}; how far the "
            f"line between them bends is not in the intervals{add}"
        )
    start = f"{name} will have no verdict" if planned else f"No verdict on {name}"
    lacking = " or ".join(["less"] * (not below) + ["more"] * (not above))
    beyond = f"and none costs {lacking}, so nothing can be interpolated"
    return f"{start}: {none}, {beyond}; add {remedy or 'one'} to --methods"


def _remedy(
    name: str,
    macs: int | float,
    plain: int | float | None,
    config: CompareConfig,
    sides: tuple[Sequence[str], Sequence[str]],
) -> str:
    """A single model of equal cost, or one to interpolate to; nothing where none is known.

    A built-in network can be widened to any cost; a published one has the sizes of its family and
    of images, which seldom cost the same.
    """
    if ":" not in config.backbone:
        matched = find_method(name, plugins=config.plugins).matched
        return matched or (f"wide-{macs / plain:.3g}" if plain else "")
    if all(sides) or not plain:
        return ""
    beyond = macs / plain * (1.25 if sides[0] else 0.8)
    return f"{'family' if '@' in config.backbone else 'resolution'}-{round(beyond, 1):g}"
