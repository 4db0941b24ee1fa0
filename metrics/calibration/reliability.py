"""Calibration: does a confidence of 80 % mean being right 80 times in 100?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ..core.binning import (
    DEFAULT_BINS,
    BinSums,
    bin_index,
    bin_sums,
    validate_bins,
    validate_confidence,
)
from ..core.mixture import validate_flags, validate_weights
from ..core.ranking import rank
from ..core.shapes import Flags, PerDraw, Scalar, Scores, Weights


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


def expected_calibration_error(
    confidence: Scores, correct: Flags, *, bins: int = DEFAULT_BINS, weights: Weights | None = None
) -> PerDraw:
    """Return the expected calibration error (ECE) of the most probable class.

    ``ECE = sum_b (n_b / N) |accuracy_b - confidence_b|``

    Bins have equal width and are open below, closed above, ``(a, b]``; 0 falls in the first bin,
    and empty bins add 0. Sums are float64, counts whole numbers. The ECE is biased upwards: well
    calibrated data give about 0.03 at 500 samples, so N belongs beside it.

    Args:
        confidence: Probability of the predicted class, in ``[0, 1]``.
        correct: Whether the prediction is right.
        bins: Number of bins.
        weights: How often each sample counts, one row per bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` per draw (a scalar without weights); lower is better.

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
        return error_of_sums(bin_sums(confidence, correct, bins=bins))
    validate_weights(weights, num_samples=confidence.shape[0])
    gaps = weights.double() @ calibration_gaps(confidence, correct, bins=bins)
    return gaps.abs().sum(-1) / weights.sum(-1)


def calibration_gaps(
    confidence: Scores,
    correct: Flags,
    *,
    bins: int = DEFAULT_BINS,
    precision: torch.dtype | None = None,
) -> Float64[Tensor, "samples bins"]:
    """Return ``confidence - correct`` of each sample, in the column of its bin.

    The ECE of any weighting is then ``sum_b |weights @ gaps|_b / sum weights``.
    """
    index = bin_index(confidence, bins=bins, precision=precision)
    validate_flags(correct, name="correct", num_samples=confidence.shape[0])
    gap = confidence.double() - correct.double()
    return gap.new_zeros(gap.shape[0], bins).scatter_(1, index[:, None], gap[:, None])


def maximum_calibration_error(
    confidence: Scores, correct: Flags, *, bins: int = DEFAULT_BINS, weights: Weights | None = None
) -> PerDraw:
    """Return the maximum calibration error (MCE), ``max_b |accuracy_b - confidence_b|``.

    Over the bins that hold a sample; a bin of few samples can decide it alone. Arguments, range and
    errors as `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import maximum_calibration_error
        >>> correct = torch.tensor([True, False, True])
        >>> round(maximum_calibration_error(torch.tensor([0.9, 0.9, 0.3]), correct).item(), 4)
        0.7

    Reference: Naeini et al. (2015), AAAI; Guo et al. (2017), arXiv:1706.04599
    """
    return maximum_of_sums(bin_sums(confidence, correct, bins=bins, weights=weights))


def root_mean_square_calibration_error(
    confidence: Scores, correct: Flags, *, bins: int = DEFAULT_BINS, weights: Weights | None = None
) -> PerDraw:
    """Return the root mean square calibration error (RMS-CE), at least the ECE.

    ``sqrt(sum_b (n_b / N) (accuracy_b - confidence_b)²)``; arguments, range and errors as
    `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import root_mean_square_calibration_error
        >>> correct = torch.tensor([True, False])
        >>> confidence = torch.tensor([0.9, 0.3])
        >>> round(root_mean_square_calibration_error(confidence, correct).item(), 4)
        0.2236

    Reference: Hendrycks et al. (2019), arXiv:1812.04606; Kumar et al. (2019), arXiv:1909.10155
    """
    return squared_of_sums(bin_sums(confidence, correct, bins=bins, weights=weights)).sqrt()


def debiased_squared_calibration_error(
    confidence: Scores, correct: Flags, *, bins: int = DEFAULT_BINS, weights: Weights | None = None
) -> PerDraw:
    """Return the squared calibration error without most of its upward bias; it may be negative.

    ``sum_b (n_b / N) [(accuracy_b - confidence_b)² - accuracy_b (1 - accuracy_b) / (n_b - 1)]``

    What is taken off is the variance of a bin's accuracy: of well calibrated data the mean is about
    0, whatever the number of samples. A bin of one sample adds 0, as in the code that Kumar et al.
    published. Arguments and errors as `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import debiased_squared_calibration_error
        >>> correct = torch.tensor([True, False])
        >>> debiased_squared_calibration_error(torch.tensor([0.5, 0.5]), correct).item()
        -0.25

    Reference: Bröcker (2012), Climate Dynamics 39; Kumar et al. (2019), arXiv:1909.10155
    """
    return debiased_of_sums(bin_sums(confidence, correct, bins=bins, weights=weights))


def error_of_sums(sums: BinSums) -> Float64[Tensor, "*rows"]:
    """Return the ECE, ``sum_b |confidence sum_b - correct count_b| / N``."""
    return sums.gaps.abs().sum(-1) / sums.counts.sum(-1)


def maximum_of_sums(sums: BinSums) -> Float64[Tensor, "*rows"]:
    """Return the MCE of the sums over the samples of each bin, one value per row."""
    return (sums.gaps / sums.counts.clamp(min=1)).abs().amax(-1)


def squared_of_sums(sums: BinSums) -> Float64[Tensor, "*rows"]:
    """Return the squared calibration error of the sums of each bin, one value per row."""
    squares = sums.gaps.square() / sums.counts.clamp(min=1)
    return squares.sum(-1) / sums.counts.sum(-1)


def debiased_of_sums(sums: BinSums) -> Float64[Tensor, "*rows"]:
    """Return the debiased squared error of the sums of each bin, one value per row."""
    counts = sums.counts.double()
    accuracy = sums.correct / counts.clamp(min=1)
    variance = counts * accuracy * (1 - accuracy) / (counts - 1).clamp(min=1)
    squares = sums.gaps.square() / counts.clamp(min=1)
    return torch.where(counts > 1, squares - variance, 0.0).sum(-1) / counts.sum(-1)


def reliability_bins(
    confidence: Scores, correct: Flags, *, bins: int = DEFAULT_BINS
) -> ReliabilityBins:
    """Return counts, mean confidence and accuracy of each bin, for a reliability diagram.

    Arguments and errors as `expected_calibration_error`; empty bins hold 0.

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
    means = sums.confidence / divisor, sums.correct.double() / divisor
    return ReliabilityBins(edges, sums.counts, *means)


def adaptive_calibration_error(
    confidence: Scores, correct: Flags, *, bins: int = DEFAULT_BINS
) -> Scalar:
    """Return the adaptive calibration error: the ECE over bins of equal mass.

    ``sum_b (n_b / N) |accuracy_b - confidence_b|``, b the parts of the sorted confidences, as equal
    in number as can be; the first are the larger ones, and with fewer samples than ``bins`` each is
    a bin. Equally confident samples may fall on both sides of an edge: each counts with the mean
    correctness of its tie block, so that their order does not matter. Arguments, errors and upward
    bias as `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import adaptive_calibration_error
        >>> confidence = torch.tensor([0.5, 0.6, 0.7, 0.8], dtype=torch.float64)
        >>> correct = torch.tensor([True, False, True, True])
        >>> round(adaptive_calibration_error(confidence, correct, bins=2).item(), 4)
        0.15

    Reference: Nguyen & O'Connor (2015), arXiv:1508.05154; Nixon et al. (2019), arXiv:1904.01685
    """
    validate_bins(bins)
    validate_confidence(confidence)
    validate_flags(correct, name="correct", num_samples=confidence.shape[0])
    ranking = rank(-confidence)  # from the least confident up
    counts = ranking.cumulate(correct)
    accuracy = counts.block_flagged / counts.block_total
    hits = accuracy.repeat_interleave(counts.block_total.long())
    gaps = (confidence.double()[ranking.order] - hits).tensor_split(bins)
    return torch.stack([gap.sum().abs() for gap in gaps]).sum() / confidence.shape[0]


def confidence_gap(
    confidence: Scores, correct: Flags, *, weights: Weights | None = None
) -> PerDraw:
    """Return the mean confidence less the accuracy: above 0 is over-confident, below 0 under.

    ``(1/N) sum_n (confidence_n - correct_n)``, in ``[-1, 1]``

    It has no bins and, unlike every error that takes absolute values, no bias. Its size is at most
    the ECE, whatever the bins: gaps of opposite sign cancel, so that 0 does not mean calibrated.
    Arguments and errors as `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import confidence_gap
        >>> correct = torch.tensor([True, False])
        >>> confidence_gap(torch.tensor([1.0, 0.75]), correct).item()
        0.375
    """
    validate_confidence(confidence)
    validate_flags(correct, name="correct", num_samples=confidence.shape[0])
    gaps = confidence.double() - correct.double()
    if weights is None:
        return gaps.mean()
    validate_weights(weights, num_samples=confidence.shape[0])
    return weights.double() @ gaps / weights.sum(-1)
