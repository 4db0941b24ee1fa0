"""The risk-coverage curve, and its areas and points as functions of cumulative counts.

``S_k`` is the number of errors among the k most confident of N samples. Every error counts with
the mean of its tie block; a threshold cannot split a block, so the curve has one point per block.
"""

import functools
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ..core.mixture import validate_flags
from ..core.ranking import CumulativeCounts, area_from_counts, rank
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

    Arguments and errors as in `areas`; one point a tie block, from the smallest coverage to full
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


def aurc_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return the AURC; a tie block ``(a, b]`` of error rate r adds its terms in closed form.

    ``sum_{k=a+1..b} (S_a + (k - a) r) / k = (S_a - a r)(H_b - H_a) + (b - a) r``, with H the
    harmonic numbers.
    """
    size, errors = counts.block_total, counts.block_flagged
    rate = errors / size.clamp(min=1)
    harmonic = _harmonic_numbers(counts.total)
    at_zero_rate = (counts.flagged - errors) - (counts.total - size) * rate
    gained = torch.diff(harmonic, prepend=torch.zeros_like(harmonic[..., :1]))
    return ((at_zero_rate * gained).sum(-1) + errors.sum(-1)) / counts.total[..., -1]


def excess_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return the E-AURC: the AURC less that of a ranking with every error last."""
    number, errors = counts.total[..., -1], counts.flagged[..., -1]
    correct_ones = number - errors
    excess = torch.digamma(number + 1) - torch.digamma(correct_ones + 1)  # H_N - H_{N - n}
    oracle = errors - correct_ones * excess
    return aurc_from_counts(counts) - oracle / number


def auroc_of_failures_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return AUROC_f; NaN, with a warning, where all predictions are right or all wrong."""
    missing = (counts.flagged[..., -1] == 0) | (counts.unflagged[..., -1] == 0)
    if missing.any():
        warnings.warn(
            "AUROC of failures is undefined where all predictions are right, or all wrong: NaN is "
            "returned",
            RuntimeWarning,
            stacklevel=3,
        )
    return (1.0 - area_from_counts(counts)).masked_fill(missing, torch.nan)


def augrc_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return the AUGRC, ``sum over blocks (b - a)(S_a + S_b) / (2 N²)``."""
    midpoints = counts.flagged - 0.5 * counts.block_flagged
    return torch.linalg.vecdot(counts.block_total, midpoints) / counts.total[..., -1].square()


def coverage_from_counts(counts: CumulativeCounts, risk: float) -> PerDraw:
    """Return the largest coverage, over block ends, with an error rate of at most ``risk``."""
    validate_risk(risk)
    allowed = counts.flagged / counts.total.clamp(min=1) <= risk
    return (counts.total * allowed).amax(-1) / counts.total[..., -1]


def risk_from_counts(counts: CumulativeCounts, coverage: float) -> PerDraw:
    """Return the error rate at the first block end with at least the given coverage."""
    validate_coverage(coverage)
    short = counts.total / counts.total[..., -1:] < coverage
    first = short.sum(-1, keepdim=True)  # coverage never falls along the ranking
    accepted, errors = counts.total.gather(-1, first), counts.flagged.gather(-1, first)
    return (errors / accepted).squeeze(-1)


def validate_coverage(coverage: float) -> None:
    """Refuse a coverage outside ``(0, 1]``."""
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must lie in (0, 1], got {coverage}")


def validate_risk(risk: float) -> None:
    """Refuse a risk outside ``[0, 1]``."""
    if not 0 <= risk <= 1:
        raise ValueError(f"risk must lie in [0, 1], got {risk}")


def _harmonic_numbers(whole: Tensor) -> Tensor:
    """Return H_k of every whole number k, looked up in one table; digamma is exact to rounding."""
    table = _harmonic_table(int(whole[..., -1].max()), whole.device)
    return table.expand(*whole.shape[:-1], -1).gather(-1, whole.long())


@functools.lru_cache(maxsize=2)  # the same for all draws of a bootstrap
def _harmonic_table(upper: int, device: torch.device) -> Tensor:
    table = torch.arange(1, upper + 2, dtype=torch.float64, device=device).digamma_()
    return table - table[0]
