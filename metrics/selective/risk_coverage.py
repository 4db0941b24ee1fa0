"""Selective prediction: what is the error rate if the least confident samples are refused?

Samples are accepted from the most confident down. Every error counts with the mean of its tie
block, so that results do not depend on the order of equally confident samples; and a threshold on
confidence cannot split a tie, so that coverage and risk at a threshold are read at block ends only.
Below, ``S_k`` is the number of errors among the k most confident of N samples.

All measures take these arguments, and return one value per draw, a scalar without weights:

Args:
    confidence: Any finite score that is higher for more certain samples.
    correct: Whether the prediction is right.
    weights: How often each sample counts, one row per bootstrap draw; once each by default.

Raises:
    ValueError: If an input is empty, not finite or of another length, or an option leaves its
        range.
"""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ..core.mixture import validate_flags, validate_share
from ..core.ranking import CumulativeCounts, area_from_counts, increments, rank, where_both
from ..core.shapes import Flags, PerDraw, Scores, Weights


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Risk (error rate) among the accepted samples at every distinct confidence.

    Attributes:
        threshold: Distinct confidences, highest first; samples at or above one are accepted.
        coverage: Share of samples accepted.
        risk: Share of errors among the accepted.
    """

    threshold: Float64[Tensor, "blocks"]
    coverage: Float64[Tensor, "blocks"]
    risk: Float64[Tensor, "blocks"]


def count_errors(
    confidence: Scores, correct: Flags, weights: Weights | None = None
) -> CumulativeCounts:
    """Count samples and errors from the most confident down: all that this file's metrics read."""
    validate_flags(correct, name="correct", num_samples=confidence.shape[0])
    return rank(confidence).cumulate(~correct, weights)


def risk_coverage_curve(confidence: Scores, correct: Flags) -> RiskCoverageCurve:
    """Return risk and coverage at every distinct confidence, for plots.

    One point a tie block, from the smallest coverage to full
    coverage.
    """
    ranking = rank(confidence)
    validate_flags(correct, name="correct", num_samples=confidence.shape[0])
    counts = ranking.cumulate(~correct)
    return RiskCoverageCurve(
        threshold=confidence[ranking.order[ranking.block_ends]].double(),
        coverage=counts.total / confidence.shape[0],
        risk=counts.flagged / counts.total,
    )


def area_under_risk_coverage(
    confidence: Scores, correct: Flags, weights: Weights | None = None
) -> PerDraw:
    """Return the area under the risk-coverage curve, ``AURC = (1/N) sum_k S_k / k``.

    In ``[0, 1]``; lower is better.

    Example:
        >>> import torch
        >>> from deepens.metrics import area_under_risk_coverage
        >>> confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
        >>> correct = torch.tensor([True, True, False, True, False])
        >>> round(area_under_risk_coverage(confidence, correct).item(), 5)
        0.19667

    Reference: Geifman et al. (2019), arXiv:1805.08206
    """
    return aurc_from_counts(count_errors(confidence, correct, weights))


def excess_area_under_risk_coverage(
    confidence: Scores, correct: Flags, weights: Weights | None = None
) -> PerDraw:
    """Return what the AURC exceeds its least value by, the one with every error ranked last.

    ``E-AURC = AURC - (1/N) sum_{k > N - n} (k - N + n) / k >= 0`` (up to rounding), n being the
    number of errors; lower is better.

    Reference: Geifman et al. (2019), arXiv:1805.08206
    """
    return excess_from_counts(count_errors(confidence, correct, weights))


def area_under_generalized_risk_coverage(
    confidence: Scores, correct: Flags, weights: Weights | None = None
) -> PerDraw:
    """Return the area under the generalized risk-coverage curve (AUGRC).

    The trapezoids below the points ``(k / N, S_k / N)`` from ``(0, 0)``: the mean risk of an
    undetected error. ``AUGRC = (1 - AUROC_f) acc (1 - acc) + (1 - acc)² / 2``, in ``[0, 0.5]``;
    lower is better.

    Example:
        >>> import torch
        >>> from deepens.metrics import area_under_generalized_risk_coverage
        >>> correct = torch.tensor([True, False])
        >>> area_under_generalized_risk_coverage(torch.tensor([0.9, 0.6]), correct).item()
        0.125

    Reference: Traub et al. (2024), arXiv:2407.01032
    """
    return augrc_from_counts(count_errors(confidence, correct, weights))


def coverage_at_risk(
    confidence: Scores, correct: Flags, risk: float = 0.05, weights: Weights | None = None
) -> PerDraw:
    """Return the largest share of samples that can be accepted at an error rate of at most `risk`.

    ``max {k / N : S_k / k <= risk}`` over the ends k of tie blocks, for a risk in ``[0, 1]``; 0 if
    there is none. The largest, even where a smaller coverage has a higher risk; higher is better.

    Example:
        >>> import torch
        >>> from deepens.metrics import coverage_at_risk
        >>> correct = torch.tensor([True, False, True, True])
        >>> coverage_at_risk(torch.tensor([0.9, 0.8, 0.7, 0.6]), correct, risk=0.25).item()
        1.0
    """
    return coverage_from_counts(count_errors(confidence, correct, weights), risk)


def risk_at_coverage(
    confidence: Scores, correct: Flags, coverage: float, weights: Weights | None = None
) -> PerDraw:
    """Return the error rate when at least the share `coverage` of samples is accepted.

    ``S_k / k`` at the first end k of a tie block with ``k / N >= coverage``, which is in
    ``(0, 1]``; lower is better.
    """
    return risk_from_counts(count_errors(confidence, correct, weights), coverage)


def auroc_of_failures(
    confidence: Scores, correct: Flags, weights: Weights | None = None
) -> PerDraw:
    """Return the AUROC of failure detection, written AUROC_f.

    ``P(confidence of a right prediction > that of a wrong one) + P(equal) / 2``: how well
    confidence separates the two, whatever the accuracy. Higher is better, 0.5 is chance; NaN, with
    a warning, where all predictions are right, or all wrong.

    Example:
        >>> import torch
        >>> from deepens.metrics import auroc_of_failures
        >>> correct = torch.tensor([True, False, True, True])
        >>> round(auroc_of_failures(torch.tensor([0.9, 0.8, 0.7, 0.6]), correct).item(), 4)
        0.3333

    Reference: Hendrycks & Gimpel (2017), arXiv:1610.02136; Jaeger et al. (2023), arXiv:2211.15259
    """
    return auroc_of_failures_from_counts(count_errors(confidence, correct, weights))


def aurc_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return the AURC; a tie block ``(a, b]`` of error rate r adds its terms in closed form.

    ``sum_{k=a+1..b} (S_a + (k - a) r) / k = (S_a - a r)(H_b - H_a) + (b - a) r``, with H the
    harmonic numbers.
    """
    size, errors = counts.block_total, counts.block_flagged
    gained = increments(_harmonic_numbers(counts.total))
    before = (counts.total - size).mul_(errors / size.clamp(min=1))
    at_zero_rate = (counts.flagged - errors).sub_(before)
    return (at_zero_rate.mul_(gained).sum(-1) + errors.sum(-1)) / counts.total[..., -1]


def excess_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return the E-AURC: the AURC less that of a ranking with every error last."""
    number, errors = counts.total[..., -1], counts.flagged[..., -1]
    correct_ones = number - errors
    excess = torch.digamma(number + 1) - torch.digamma(correct_ones + 1)  # H_N - H_{N - n}
    oracle = errors - correct_ones * excess
    return aurc_from_counts(counts) - oracle / number


def auroc_of_failures_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return AUROC_f; NaN, with a warning, where all predictions are right or all wrong."""
    why = "AUROC of failures is undefined where all predictions are right, or all wrong"
    return where_both(1.0 - area_from_counts(counts), counts, why)


def augrc_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return the AUGRC, ``sum over blocks (b - a)(S_a + S_b) / (2 N²)``."""
    midpoints = counts.flagged.sub(counts.block_flagged, alpha=0.5)
    return torch.linalg.vecdot(counts.block_total, midpoints) / counts.total[..., -1].square()


def coverage_from_counts(counts: CumulativeCounts, risk: float) -> PerDraw:
    """Return the largest coverage, over block ends, with an error rate of at most ``risk``."""
    validate_share(risk, "risk", "[0, 1]")
    allowed = counts.flagged / counts.total.clamp(min=1) <= risk
    return (counts.total * allowed).amax(-1) / counts.total[..., -1]


def risk_from_counts(counts: CumulativeCounts, coverage: float) -> PerDraw:
    """Return the error rate at the first block end with at least the given coverage."""
    validate_share(coverage, "coverage")
    short = counts.total / counts.total[..., -1:] < coverage
    first = short.sum(-1, keepdim=True)  # coverage never falls along the ranking
    accepted, errors = counts.total.gather(-1, first), counts.flagged.gather(-1, first)
    return (errors / accepted).squeeze(-1)


def _harmonic_numbers(whole: Tensor) -> Tensor:
    """Return H_k of every whole number k, looked up in one table; digamma is exact to rounding."""
    table = _harmonic_table(int(whole[..., -1].max()), whole.device)
    return table.expand(*whole.shape[:-1], -1).gather(-1, whole.long())


@functools.lru_cache(maxsize=2)  # the same for all draws of a bootstrap
def _harmonic_table(upper: int, device: torch.device) -> Tensor:
    table = torch.arange(1, upper + 2, dtype=torch.float64, device=device).digamma_()
    return table - table[0]
