"""The gap between an ensemble and compute-matched single models."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Integer, Real
from torch import Tensor

from ..core.mixture import validate_finite, validate_values
from .bootstrap import contrast_intervals, summarize_replicates
from .draws import Draws


@dataclass(frozen=True)
class IsoComputeGaps:
    """The gap of an ensemble's replicates to single models of the same cost, in one metric.

    Attributes:
        estimate: Mean gap over the replicates, in the metric's unit.
        standard_deviation: Of the gap over ``count`` replicates, ddof 1; NaN for a single one.
        single: What single models of that cost reach: the estimate is the mean less this.
        low: Lower end of the confidence interval of the mean gap, NaN where a spread is unknown,
            or how the metric varies with the choice of images.
        high: Its upper end.
        p_value: Two-sided, of there being no gap; NaN where the interval is.
    """

    estimate: float
    standard_deviation: float
    count: int
    single: float
    low: float
    high: float
    p_value: float


def iso_compute_gap(
    macs: Real[Tensor, "ensembles"],
    values: Float[Tensor, "*metrics ensembles"],
    frontier_macs: Real[Tensor, "singles"],
    frontier_values: Float[Tensor, "*metrics singles"],
    *,
    tolerance: float = 0.0,
) -> Float64[Tensor, "*metrics ensembles"]:
    """Return by how much an ensemble's metric exceeds that of single models at the same MACs.

    With ``c_1 < c_2 < ...`` the single models' costs and ``v_k`` the mean metric of those at
    ``c_k``, an ensemble of cost ``c_k <= c <= c_{k+1}`` with metric v has the gap

    ``v - (1 - t) v_k - t v_{k+1}, t = log(c / c_k) / log(c_{k+1} / c_k)``.

    The single models count as given: to leave out those that others beat at less cost, and so
    choose them by the values that they are compared in, would favour them. Above 0 the ensemble is
    better if higher values are, and worse if lower ones are (NLL, errors).

    Args:
        macs: Multiply-accumulate operations of each ensemble for one image, of all its members.
        values: The ensembles' metrics; any leading dimensions, e.g. one row per metric.
        frontier_macs: Of each single model, in any order; replicates share a number.
        frontier_values: The single models' metrics.
        tolerance: By what share of its MACs an ensemble may lie beyond the cheapest or the most
            expensive single model, and is then compared with that one as it is. Single models whose
            costs differ by no more count as of one, their mean: otherwise a tiny difference in cost
            would decide with which of them an ensemble is compared.

    Raises:
        ValueError: If an input is not finite or of another length, MACs are not > 0, single models
            have fewer than 2 distinct costs, or an ensemble lies beyond them by more than
            ``tolerance``: nothing is extrapolated.

    Example:
        >>> import torch
        >>> from deepens.metrics.statistics.iso_compute import iso_compute_gap
        >>> single_macs = torch.tensor([100, 100, 400])
        >>> single_accuracy = torch.tensor([0.70, 0.72, 0.75]).double()
        >>> ensembles = torch.tensor([200, 400]), torch.tensor([0.74, 0.77]).double()
        >>> gaps = iso_compute_gap(*ensembles, single_macs, single_accuracy)
        >>> [round(gap, 4) for gap in gaps.tolist()]
        [0.01, 0.02]

    Reference: Abe et al. (2022), arXiv:2202.06985, who compare at matching sizes; the interpolation
    between them is ours
    """
    _validate(macs, values, "macs", "values")
    return values.double() - _frontier(macs, frontier_macs, frontier_values, tolerance)


def iso_compute_gaps(
    macs: int | float,
    ensemble: Draws,
    singles: Sequence[tuple[int | float, Draws]],
    *,
    tolerance: float = 0.0,
    level: float = 0.95,
) -> dict[str, IsoComputeGaps]:
    """Summarize the `iso_compute_gap` of an ensemble's replicates in every metric.

    The mean gap is a weighted sum of means, ``sum_g w_g m_g``: of the replicates (``w = 1``) and of
    the single models at the two costs around (``w = -(1 - t), -t``). Its interval and p-value are
    those of `contrast_intervals`: they hold what training gives by chance, in ensembles and single
    models, and the choice of images, which all of them share; not how far the true frontier bends
    between two costs. Both are NaN where the ensemble, or a cost whose weight is not 0, has one
    replicate only: its spread is unknown.

    Args:
        macs: Multiply-accumulate operations of the ensemble for one image.
        ensemble: Its `bootstrap_draws`.
        singles: MACs and draws of the single models, in any order.
        tolerance: As in `iso_compute_gap`.
        level: Confidence level of the intervals.

    Returns:
        Metric name -> gap and interval.

    Raises:
        ValueError: As `iso_compute_gap` and `contrast_intervals`.

    Example:
        >>> import torch
        >>> from deepens.metrics import bootstrap_draws
        >>> from deepens.metrics.statistics.iso_compute import iso_compute_gaps
        >>> def runs(*hits):  # of 100 images
        ...     flags = [torch.arange(100) < count for count in hits]
        ...     shares = [lambda w, f=f: {"accuracy": (w * f).sum(-1) / 100} for f in flags]
        ...     return bootstrap_draws(shares, sizes=[100])
        >>> singles = [(100, runs(70, 72)), (400, runs(74, 76))]
        >>> found = iso_compute_gaps(400, runs(76, 77, 78), singles)["accuracy"]
        >>> round(found.estimate, 4), round(found.standard_deviation, 4), found.count
        (0.02, 0.01, 3)
        >>> round(found.single, 4), found.low < 0 < found.high
        (0.75, True)

    Reference: Abe et al. (2022), arXiv:2202.06985
    """
    groups = [(1.0, ensemble)]
    groups += [(-weight, draws) for weight, draws in around(macs, singles, tolerance=tolerance)]
    intervals = contrast_intervals(groups, level=level)
    known = all(len(values) > 1 for _, draws in groups for values in draws.observed.values())
    gaps = {}
    for name, found in intervals.items():
        summary = summarize_replicates(ensemble.observed[name].double().tolist())
        ends = (found.low, found.high, found.p_value) if known else (math.nan,) * 3
        gaps[name] = IsoComputeGaps(
            found.estimate,
            summary.standard_deviation,
            summary.count,
            summary.mean - found.estimate,
            *ends,
        )
    return gaps


def around(
    macs: int | float, singles: Sequence[tuple[int | float, Draws]], *, tolerance: float = 0.0
) -> list[tuple[float, Draws]]:
    """Return weight and draws of the single models at the costs next to some MACs.

    Weights are ``1 - t`` and ``t`` of `iso_compute_gap`, one alone where the other is 0; single
    models of one cost are as one. Errors as there.
    """
    cost = torch.tensor([macs], dtype=torch.float64)
    given = torch.tensor([each for each, _ in singles], dtype=torch.float64)
    _validate(cost, cost, "macs", "values")
    _validate(given, given, "frontier_macs", "frontier_values")
    costs, place = _costs(cost, given, tolerance)
    lower, share = _position(cost, costs)
    found = []
    for index, weight in ((lower, 1.0 - share), (lower + 1, share)):
        if weight > 0:
            first, *more = (
                draws for at, (_, draws) in zip(place, singles, strict=True) if at == index
            )
            found.append((weight.item(), functools.reduce(Draws.beside, more, first)))
    return found


def log_share(macs: int | float, lower: int | float, upper: int | float) -> float:
    """Return t of `iso_compute_gap`: how far some MACs are from a cost to a larger one.

    It is cut off at 0 and 1.

    Example:
        >>> from deepens.metrics.statistics.iso_compute import log_share
        >>> round(log_share(200, 100, 400), 12), log_share(500, 100, 400)
        (0.5, 1.0)
    """
    costs = torch.tensor([lower, upper], dtype=torch.float64)
    _, share = _position(torch.tensor([macs], dtype=torch.float64), costs)
    return share.item()


def _frontier(
    macs: Tensor, frontier_macs: Tensor, frontier_values: Tensor, tolerance: float
) -> Float64[Tensor, "*metrics ensembles"]:
    """Return what single models of these costs reach."""
    _validate(frontier_macs, frontier_values, "frontier_macs", "frontier_values")
    costs, place = _costs(macs, frontier_macs, tolerance)
    counts = torch.bincount(place)
    sums = frontier_values.new_zeros((*frontier_values.shape[:-1], len(costs)), dtype=torch.float64)
    means = sums.index_add_(-1, place, frontier_values.double()) / counts
    lower, share = _position(macs.double(), costs)
    return (1.0 - share) * means[..., lower] + share * means[..., lower + 1]


def _costs(
    macs: Tensor, frontier_macs: Tensor, tolerance: float
) -> tuple[Float64[Tensor, "costs"], Integer[Tensor, "singles"]]:
    """Return `_levels`, if they are two or more around all of these costs."""
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must lie in [0, 1), got {tolerance}")
    costs, place = _levels(frontier_macs, tolerance)
    if len(costs) < 2:
        raise ValueError(
            f"frontier_macs must hold >= 2 distinct costs, got {costs[0].item():.6g} only: add "
            "single models of another size"
        )
    for cost in macs.double():
        if not costs[0] * (1 - tolerance) <= cost <= costs[-1] * (1 + tolerance):
            raise ValueError(
                f"macs must lie within the single models' [{costs[0].item():.6g}, "
                f"{costs[-1].item():.6g}], got {cost.item():.6g}: add a single model that is "
                f"{'cheaper' if cost < costs[0] else 'more expensive'}, or raise tolerance"
            )
    return costs, place


def _levels(
    macs: Tensor, tolerance: float
) -> tuple[Float64[Tensor, "costs"], Integer[Tensor, "singles"]]:
    """Return the distinct costs, those within the tolerance as one, and the place of each model."""
    costs, place = torch.unique(macs.double(), return_inverse=True)
    level = torch.zeros(len(costs), dtype=torch.int64, device=macs.device)
    first = 0
    for index in range(1, len(costs)):
        apart = bool(costs[index] > costs[first] * (1 + tolerance))
        level[index] = level[index - 1] + apart
        first = index if apart else first
    place = level[place]
    sums = costs.new_zeros(int(level[-1]) + 1).index_add_(0, place, macs.double())
    return sums / torch.bincount(place), place


def _position(macs: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of the cost below each, and how far in log MACs it is to the next."""
    lower = torch.searchsorted(costs, macs).clamp(1, len(costs) - 1) - 1
    share = (macs / costs[lower]).log() / (costs[lower + 1] / costs[lower]).log()
    return lower, share.clamp(0.0, 1.0)  # beyond an end by less than the tolerance: at the end


def _validate(macs: Tensor, values: Tensor, name: str, values_name: str) -> None:
    """Refuse costs and values that do not belong together."""
    validate_values(macs, name=name)
    if macs.min() <= 0:
        raise ValueError(f"{name} must be > 0, got {macs.min().item():.6g}")
    if values.ndim < 1 or values.shape[-1] != len(macs):
        raise ValueError(
            f"{values_name} must have shape [..., {len(macs)}], one per model as {name}, got "
            f"{list(values.shape)}"
        )
    if values.numel() < 1:
        raise ValueError(f"{values_name} must hold >= 1 metric, got 0")
    validate_finite(values, values_name)
