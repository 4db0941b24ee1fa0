"""Calibration: does a confidence of 80 % mean being right 80 times in 100?"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer
from torch import Tensor

from .mixture import mixture_log_probs, validate_values, validate_weights
from .scoring import correctness
from .streaming import EnsembleMetric, validate_batch
from .uncertainty import maximum_probability

DEFAULT_BINS = 15


@dataclass(frozen=True)
class ReliabilityBins:
    """What a reliability diagram shows; empty bins hold 0 throughout.

    Attributes:
        edges: Edges of the equal-width bins, from 0 to 1; bin b is ``(edges[b], edges[b + 1]]``.
        counts: Samples in each bin.
        confidence: Mean confidence in each bin.
        accuracy: Share of correct samples in each bin.
    """

    edges: Float64[Tensor, "edges"]
    counts: Int64[Tensor, "bins"]
    confidence: Float64[Tensor, "bins"]
    accuracy: Float64[Tensor, "bins"]


@dataclass(frozen=True)
class BinSums:
    """Sums over the samples of each bin; they add up over batches and processes.

    Attributes:
        counts: Samples in each bin.
        correct: Correct samples in each bin.
        confidence: Sum of the confidences in each bin.
    """

    counts: Int64[Tensor, "bins"]
    correct: Int64[Tensor, "bins"]
    confidence: Float64[Tensor, "bins"]


def expected_calibration_error(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    *,
    bins: int = DEFAULT_BINS,
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the expected calibration error (ECE) of the most probable class.

    ``ECE = sum_b (n_b / N) |accuracy_b - confidence_b|``

    Bins have equal width and are open below, closed above, ``(a, b]``; 0 falls in the first bin,
    and empty bins add 0. Sums are float64, counts whole numbers. The ECE is biased upwards: well
    calibrated data give about 0.03 at 500 samples, so N belongs beside it.

    Args:
        confidence: Probability of the predicted class, in ``[0, 1]``.
        correct: Whether the prediction is right.
        bins: Number of bins.
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` a draw (a scalar without weights); lower is better.

    Raises:
        ValueError: If an input is empty, not finite or of another length, ``confidence`` leaves
            ``[0, 1]``, or ``bins`` is below 1.

    Example:
        >>> import torch
        >>> from deepens.metrics import expected_calibration_error
        >>> correct = torch.tensor([True, False, True, True])
        >>> round(expected_calibration_error(torch.full((4,), 0.9), correct).item(), 4)
        0.15

    Reference: Naeini et al. (2015), AAAI; Guo et al. (2017), arXiv:1706.04599
    """
    if weights is None:
        return calibration_error_of_sums(bin_sums(confidence, correct, bins=bins))
    validate_weights(weights, num_samples=confidence.shape[0])
    gaps = weights.double() @ calibration_gaps(confidence, correct, bins=bins)
    return gaps.abs().sum(-1) / weights.sum(-1)


def calibration_error_of_sums(sums: BinSums) -> Float64[Tensor, ""]:
    """Return the ECE, ``sum_b |confidence sum_b - correct count_b| / N``.

    Args:
        sums: Sums over the samples of each bin.

    Returns:
        A scalar in ``[0, 1]``.
    """
    return (sums.confidence - sums.correct).abs().sum() / sums.counts.sum()


def calibration_gaps(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    *,
    bins: int = DEFAULT_BINS,
) -> Float64[Tensor, "samples bins"]:
    """Return ``confidence - correct`` of each sample, in the column of its bin.

    The ECE of any weighting is then ``sum_b |weights @ gaps|_b / sum weights``.

    Args:
        confidence: Probability of the predicted class, in ``[0, 1]``.
        correct: Whether the prediction is right.
        bins: Number of bins.

    Returns:
        One row a sample, 0 outside the column of its bin.

    Raises:
        ValueError: As `expected_calibration_error`.
    """
    index = _bin_index(confidence, correct, bins)
    gap = confidence.double() - correct.double()
    return gap.new_zeros(gap.shape[0], bins).scatter_(1, index[:, None], gap[:, None])


def bin_sums(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    *,
    bins: int = DEFAULT_BINS,
) -> BinSums:
    """Sum counts, correct predictions and confidences over equal-width bins ``(a, b]``.

    Args:
        confidence: Probability of the predicted class, in ``[0, 1]``.
        correct: Whether the prediction is right.
        bins: Number of bins.

    Returns:
        Whole-number counts and float64 sums of each bin.

    Raises:
        ValueError: As `expected_calibration_error`.
    """
    index = _bin_index(confidence, correct, bins)
    return BinSums(
        counts=torch.bincount(index, minlength=bins),
        correct=torch.bincount(index[correct], minlength=bins),
        confidence=torch.bincount(index, weights=confidence.double(), minlength=bins),
    )


def reliability_bins(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    *,
    bins: int = DEFAULT_BINS,
) -> ReliabilityBins:
    """Return counts, mean confidence and accuracy of each bin, for a reliability diagram.

    Args:
        confidence: Probability of the predicted class, in ``[0, 1]``.
        correct: Whether the prediction is right.
        bins: Number of equal-width bins ``(a, b]``; 0 falls in the first.

    Returns:
        One value a bin, 0 where the bin is empty.

    Raises:
        ValueError: As `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import reliability_bins
        >>> table = reliability_bins(torch.tensor([0.5, 0.75]), torch.tensor([True, False]), bins=2)
        >>> table.counts, table.accuracy.tolist()
        (tensor([1, 1]), [1.0, 0.0])
    """
    sums = bin_sums(confidence, correct, bins=bins)
    divisor = sums.counts.clamp(min=1)
    edges = torch.arange(bins + 1, dtype=torch.float64, device=confidence.device) / bins
    return ReliabilityBins(
        edges=edges,
        counts=sums.counts,
        confidence=sums.confidence / divisor,
        accuracy=sums.correct.double() / divisor,
    )


def _bin_index(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")
    validate_values(confidence, name="confidence")
    validate_values(correct, name="correct", num_samples=confidence.shape[0])
    low, high = confidence.aminmax()
    if low < 0 or high > 1:
        worst = low if low < 0 else high
        raise ValueError(f"confidence must lie in [0, 1], got {worst.item()}")
    # quotients, so that an edge such as 3/15 is the float64 nearest to 0.2
    inner_edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    return torch.bucketize(confidence.double(), inner_edges)


class ExpectedCalibrationError(EnsembleMetric):
    """ECE of the mixture's most probable class, as `expected_calibration_error`.

    Args:
        bins: Number of equal-width bins ``(a, b]``.

    Raises:
        ValueError: If ``bins`` is below 1.

    Example:
        >>> import torch
        >>> from deepens.metrics import ExpectedCalibrationError
        >>> metric = ExpectedCalibrationError()
        >>> metric.update(torch.zeros(2, 2, 2), torch.tensor([0, 1]))
        >>> metric.compute().item()
        0.0
    """

    higher_is_better = False
    counts: Tensor
    correct: Tensor
    confidence: Tensor

    def __init__(self, bins: int = DEFAULT_BINS) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"bins must be >= 1, got {bins}")
        self.bins = bins
        whole, real = torch.zeros(bins, dtype=torch.int64), torch.zeros(bins, dtype=torch.float64)
        self.add_state("counts", whole, dist_reduce_fx="sum")
        self.add_state("correct", whole.clone(), dist_reduce_fx="sum")
        self.add_state("confidence", real, dist_reduce_fx="sum")

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
        confidence = maximum_probability(log_probs)
        sums = bin_sums(confidence, correctness(log_probs, targets), bins=self.bins)
        self.counts += sums.counts
        self.correct += sums.correct
        self.confidence += sums.confidence

    def compute(self) -> Float64[Tensor, ""]:
        """Return the ECE of all samples seen so far.

        Raises:
            ValueError: If no batch was added.
        """
        if not self.counts.any():
            raise ValueError("ExpectedCalibrationError needs >= 1 sample, got 0: call update first")
        return calibration_error_of_sums(BinSums(self.counts, self.correct, self.confidence))
