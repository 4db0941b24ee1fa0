"""Selective prediction: what is the error rate if the least confident samples are refused?

Samples are accepted from the most confident down. Every error counts with the mean of its tie
block, so that results do not depend on the order of equally confident samples; and a threshold on
confidence cannot split a tie, so that coverage and risk at a threshold are read at block ends only.
Below, ``S_k`` is the number of errors among the k most confident of N samples.

All take these arguments, and return one value per draw, a scalar without weights:

Args:
    confidence: Any finite score that is higher for more certain samples.
    correct: Whether the prediction is right.
    weights: How often each sample counts, one row per bootstrap draw; once each by default.

Raises:
    ValueError: If an input is empty, not finite or of another length, or an option leaves its
        range.
"""

from ..core.shapes import Flags, PerDraw, Scores, Weights
from .risk_coverage import (
    augrc_from_counts,
    aurc_from_counts,
    auroc_of_failures_from_counts,
    count_errors,
    coverage_from_counts,
    excess_from_counts,
    risk_from_counts,
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
