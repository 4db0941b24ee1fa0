"""Selective prediction: what is the error rate if the least confident samples are refused?

Samples are accepted from the most confident down. Every error counts with the mean of its tie
block, so that results do not depend on the order of equally confident samples; and a threshold on
confidence cannot split a tie, so that coverage and risk at a threshold are read at block ends only.

Below, ``S_k`` is the number of errors among the k most confident of N samples.
"""

from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor

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
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the area under the risk-coverage curve, ``AURC = (1/N) sum_k S_k / k``.

    Args:
        confidence: Any score that is higher for more certain samples.
        correct: Whether the prediction is right.
        weights: How often each sample counts, one row per bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` per draw (a scalar without weights); lower is better.

    Raises:
        ValueError: If an input is empty, not finite, or of another length.

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
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return what the AURC exceeds its least value by, the one with every error ranked last.

    ``E-AURC = AURC - (1/N) sum_{k > N - n} (k - N + n) / k``, n being the number of errors.

    Args:
        confidence: Any score that is higher for more certain samples.
        correct: Whether the prediction is right.
        weights: How often each sample counts, one row per bootstrap draw; once each by default.

    Returns:
        One value >= 0 (up to rounding) per draw (a scalar without weights); lower is better.

    Raises:
        ValueError: If an input is empty, not finite, or of another length.

    Reference: Geifman et al. (2019), arXiv:1805.08206
    """
    return excess_from_counts(count_errors(confidence, correct, weights))


def area_under_generalized_risk_coverage(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the area under the generalized risk-coverage curve (AUGRC).

    The trapezoids below the points ``(k / N, S_k / N)`` from ``(0, 0)``: the mean risk of an
    undetected error. ``AUGRC = (1 - AUROC_f) acc (1 - acc) + (1 - acc)² / 2``.

    Args:
        confidence: Any score that is higher for more certain samples.
        correct: Whether the prediction is right.
        weights: How often each sample counts, one row per bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 0.5]`` per draw (a scalar without weights); lower is better.

    Raises:
        ValueError: If an input is empty, not finite, or of another length.

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
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    risk: float = 0.05,
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the largest share of samples that can be accepted at an error rate of at most `risk`.

    ``max {k / N : S_k / k <= risk}`` over the ends k of tie blocks; 0 if there is none. The
    largest, even where a smaller coverage has a higher risk.

    Args:
        confidence: Any score that is higher for more certain samples.
        correct: Whether the prediction is right.
        risk: Highest error rate allowed among the accepted.
        weights: How often each sample counts, one row per bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` per draw (a scalar without weights); higher is better.

    Raises:
        ValueError: If an input is empty, not finite or of another length, or ``risk`` leaves
            ``[0, 1]``.

    Example:
        >>> import torch
        >>> from deepens.metrics import coverage_at_risk
        >>> correct = torch.tensor([True, False, True, True])
        >>> coverage_at_risk(torch.tensor([0.9, 0.8, 0.7, 0.6]), correct, risk=0.25).item()
        1.0
    """
    return coverage_from_counts(count_errors(confidence, correct, weights), risk)


def risk_at_coverage(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    coverage: float,
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the error rate when at least the share `coverage` of samples is accepted.

    ``S_k / k`` at the first end k of a tie block with ``k / N >= coverage``.

    Args:
        confidence: Any score that is higher for more certain samples.
        correct: Whether the prediction is right.
        coverage: Least share of samples to accept.
        weights: How often each sample counts, one row per bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` per draw (a scalar without weights); lower is better.

    Raises:
        ValueError: If an input is empty, not finite or of another length, or ``coverage`` leaves
            ``(0, 1]``.
    """
    return risk_from_counts(count_errors(confidence, correct, weights), coverage)


def auroc_of_failures(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the AUROC of failure detection, written AUROC_f.

    ``P(confidence of a right prediction > that of a wrong one) + P(equal) / 2``: how well
    confidence separates the two, whatever the accuracy.

    Args:
        confidence: Any score that is higher for more certain samples.
        correct: Whether the prediction is right.
        weights: How often each sample counts, one row per bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` per draw (a scalar without weights); higher is better, 0.5 is
        chance. NaN, with a warning, where all predictions are right, or all wrong.

    Raises:
        ValueError: If an input is empty, not finite, or of another length.

    Example:
        >>> import torch
        >>> from deepens.metrics import auroc_of_failures
        >>> correct = torch.tensor([True, False, True, True])
        >>> round(auroc_of_failures(torch.tensor([0.9, 0.8, 0.7, 0.6]), correct).item(), 4)
        0.3333

    Reference: Hendrycks & Gimpel (2017), arXiv:1610.02136; Jaeger et al. (2023), arXiv:2211.15259
    """
    return auroc_of_failures_from_counts(count_errors(confidence, correct, weights))
