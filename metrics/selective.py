"""Selective prediction: what is the error rate if the least confident samples are refused?

Samples are accepted from the most confident down. Every error counts with the mean of its tie
block, so that results do not depend on the order of equally confident samples; and a threshold on
confidence cannot split a tie, so that coverage and risk at a threshold are read at block ends only.

Below, ``S_k`` is the number of errors among the k most confident of N samples.
"""

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from .mixture import mixture_log_probs
from .risk_coverage import augrc_from_counts, aurc_from_counts, count_errors, coverage_from_counts
from .scoring import correctness
from .streaming import EnsembleMetric, validate_batch
from .uncertainty import maximum_probability


def area_under_risk_coverage(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the area under the risk-coverage curve, ``AURC = (1/N) sum_k S_k / k``.

    Args:
        confidence: Any score that is higher for more certain samples.
        correct: Whether the prediction is right.
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` a draw (a scalar without weights); lower is better.

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
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value >= 0 (up to rounding) a draw (a scalar without weights); lower is better.

    Raises:
        ValueError: If an input is empty, not finite, or of another length.

    Reference: Geifman et al. (2019), arXiv:1805.08206
    """
    counts = count_errors(confidence, correct, weights)
    number, errors = counts.total[..., -1], counts.flagged[..., -1]
    correct_ones = number - errors
    excess = torch.digamma(number + 1) - torch.digamma(correct_ones + 1)  # H_N - H_{N - n}
    oracle = errors - correct_ones * excess
    return aurc_from_counts(counts) - oracle / number


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
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 0.5]`` a draw (a scalar without weights); lower is better.

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
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` a draw (a scalar without weights); higher is better.

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
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` a draw (a scalar without weights); lower is better.

    Raises:
        ValueError: If an input is empty, not finite or of another length, or ``coverage`` leaves
            ``(0, 1]``.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must lie in (0, 1], got {coverage}")
    counts = count_errors(confidence, correct, weights)
    short = counts.total / counts.total[..., -1:] < coverage
    first = short.sum(-1, keepdim=True)  # coverage never falls along the ranking
    accepted, errors = counts.total.gather(-1, first), counts.flagged.gather(-1, first)
    return (errors / accepted).squeeze(-1)


class SelectiveMetric(EnsembleMetric):
    """A metric of confidence and correctness, which are all that is kept of a batch.

    A concrete metric implements `evaluate`.
    """

    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

    @abstractmethod
    def evaluate(
        self, confidence: Float64[Tensor, "samples"], correct: Bool[Tensor, "samples"]
    ) -> Float64[Tensor, ""]:
        """Return the metric of all samples."""

    def update(
        self, logits: Float[Tensor, "members batch classes"], targets: Integer[Tensor, "batch"]
    ) -> None:
        """Add a batch.

        Args:
            logits: Raw outputs, members first.
            targets: Class indices.

        Raises:
            ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.
        """
        validate_batch(logits, targets)
        log_probs = mixture_log_probs(logits.double())
        self.confidence.append(maximum_probability(log_probs))
        self.correct.append(correctness(log_probs, targets))

    def compute(self) -> Float64[Tensor, ""]:
        """Return the metric of all samples seen so far.

        Raises:
            ValueError: If no batch was added.
        """
        return self.evaluate(dim_zero_cat(self.confidence), dim_zero_cat(self.correct))


class AreaUnderRiskCoverage(SelectiveMetric):
    """AURC of the mixture's confidence, as `area_under_risk_coverage`."""

    higher_is_better = False

    def evaluate(self, confidence: Tensor, correct: Tensor) -> Float64[Tensor, ""]:
        """Return the AURC of all samples."""
        return area_under_risk_coverage(confidence, correct)


class AreaUnderGeneralizedRiskCoverage(SelectiveMetric):
    """AUGRC of the mixture's confidence, as `area_under_generalized_risk_coverage`."""

    higher_is_better = False

    def evaluate(self, confidence: Tensor, correct: Tensor) -> Float64[Tensor, ""]:
        """Return the AUGRC of all samples."""
        return area_under_generalized_risk_coverage(confidence, correct)


class CoverageAtRisk(SelectiveMetric):
    """Largest coverage at a bounded error rate, as `coverage_at_risk`.

    Args:
        risk: Highest error rate allowed among the accepted.

    Raises:
        ValueError: If ``risk`` leaves ``[0, 1]``.

    Example:
        >>> import torch
        >>> from deepens.metrics import CoverageAtRisk
        >>> metric = CoverageAtRisk(risk=0.05)
        >>> metric.update(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 1]))
        >>> metric.compute().item()
        0.5
    """

    higher_is_better = True

    def __init__(self, risk: float = 0.05) -> None:
        super().__init__()
        if not 0 <= risk <= 1:
            raise ValueError(f"risk must lie in [0, 1], got {risk}")
        self.risk = risk

    def evaluate(self, confidence: Tensor, correct: Tensor) -> Float64[Tensor, ""]:
        """Return the coverage over all samples."""
        return coverage_at_risk(confidence, correct, self.risk)
