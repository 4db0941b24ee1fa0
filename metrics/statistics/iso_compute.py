"""The gap between an ensemble and compute-matched single models."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Integer, Real
from scipy import special
from torch import Tensor

from ..core.mixture import validate_finite, validate_share, validate_values
from .bootstrap import summarize_replicates


@dataclass(frozen=True)
class IsoComputeGaps:
    """The gap of an ensemble's replicates to single models of the same cost, in one metric.

    Attributes:
        estimate: Mean gap over the replicates, in the metric's unit.
        standard_deviation: Of the gap over ``count`` replicates, ddof 1; NaN for a single one.
        single: What single models of that cost reach: the estimate is the mean less this.
        low: Lower end of the confidence interval of the mean gap, NaN where a spread is unknown.
        high: Its upper end.
        p_value: Two-sided, of there being no gap; NaN where a spread is unknown.
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
    values: Float[Tensor, "replicates"],
    frontier_macs: Real[Tensor, "singles"],
    frontier_values: Float[Tensor, "singles"],
    *,
    tolerance: float = 0.0,
    level: float = 0.95,
) -> IsoComputeGaps:
    """Summarize the `iso_compute_gap` of an ensemble's replicates in one metric.

    The mean gap is a weighted sum of means, ``sum_g w_g m_g``: of the replicates (``w = 1``) and of
    the single models at the two costs around (``w = -(1 - t), -t``). Hence

    ``e² = sum_g w_g² s_g² / n_g, ν = e⁴ / sum_g (w_g² s_g² / n_g)² / (n_g - 1)``

    with ``s_g`` the standard deviations (ddof 1), and the interval ``estimate ± e`` times Student's
    quantile at Welch's ν; the p-value of no gap is ``2 T_ν(-|estimate| / e)``, T being Student's
    distribution function. Both hold what training gives by chance, in ensembles and single models,
    if no network is in two of them; not the choice of images (`paired_bootstrap`), nor how far the
    true frontier bends between two costs. Both are NaN where the ensemble, or a cost whose weight
    is not 0, has one replicate only: its spread is unknown.

    Arguments and errors as `iso_compute_gap`, ``values`` being one per replicate; a ``level``
    outside ``(0, 1)`` is refused too.

    Example:
        >>> import torch
        >>> from deepens.metrics.statistics.iso_compute import iso_compute_gaps
        >>> single_macs = torch.tensor([100, 100, 400, 400])
        >>> single_accuracy = torch.tensor([0.70, 0.72, 0.74, 0.76]).double()
        >>> accuracy = torch.tensor([0.76, 0.77, 0.78]).double()
        >>> found = iso_compute_gaps(400, accuracy, single_macs, single_accuracy)
        >>> round(found.estimate, 4), round(found.standard_deviation, 4), found.count
        (0.02, 0.01, 3)
        >>> round(found.single, 4), round(found.low, 4), round(found.high, 4)
        (0.75, -0.0398, 0.0798)
        >>> round(found.p_value, 2)
        0.25

    Reference: Welch (1947), Biometrika 34; Abe et al. (2022), arXiv:2202.06985
    """
    validate_share(level, "level", "(0, 1)")
    validate_values(values, name="values")
    cost = torch.tensor([macs], dtype=torch.float64, device=values.device)
    _validate(cost, values[:1], "macs", "values")
    single = _frontier(cost, frontier_macs, frontier_values, tolerance).item()
    summary = summarize_replicates(values.double().tolist())
    costs, place = _levels(frontier_macs, tolerance)
    lower, share = _position(cost, costs)
    groups = [(1.0, values.double())]
    for index, weight in ((lower, 1.0 - share), (lower + 1, share)):
        if weight > 0:
            groups.append((weight.item(), frontier_values.double()[place == index]))
    estimate = summary.mean - single
    error, freedom = _welch(groups)
    reach, p_value = 0.0, float(estimate == 0)  # where nothing varies, which is certain
    if error != 0:
        reach = -float(special.stdtrit(freedom, (1 - level) / 2)) * math.sqrt(error)
        p_value = 2 * float(special.stdtr(freedom, -abs(estimate) / math.sqrt(error)))
    spread, ends = summary.standard_deviation, (estimate - reach, estimate + reach)
    return IsoComputeGaps(estimate, spread, summary.count, single, *ends, p_value)


def _frontier(
    macs: Tensor, frontier_macs: Tensor, frontier_values: Tensor, tolerance: float
) -> Float64[Tensor, "*metrics ensembles"]:
    """Return what single models of these costs reach."""
    _validate(frontier_macs, frontier_values, "frontier_macs", "frontier_values")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must lie in [0, 1), got {tolerance}")
    costs, place = _levels(frontier_macs, tolerance)
    counts = torch.bincount(place)
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
    sums = frontier_values.new_zeros((*frontier_values.shape[:-1], len(costs)), dtype=torch.float64)
    means = sums.index_add_(-1, place, frontier_values.double()) / counts
    lower, share = _position(macs.double(), costs)
    return (1.0 - share) * means[..., lower] + share * means[..., lower + 1]


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


def _welch(groups: list[tuple[float, Tensor]]) -> tuple[float, float]:
    """Return the variance of a weighted sum of means and Welch's ν, NaN where one is unknown."""
    if any(len(group) < 2 for _, group in groups):
        return math.nan, math.nan
    errors = [weight**2 * group.var().item() / len(group) for weight, group in groups]
    error = math.fsum(errors)
    if error == 0:
        return 0.0, math.inf
    shares = [(part / error) ** 2 for part in errors]
    freedom = 1 / sum(s / (len(group) - 1) for s, (_, group) in zip(shares, groups, strict=True))
    return error, freedom


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
