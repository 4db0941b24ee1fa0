"""Calibration error over bins that hold equally many samples."""

import torch

from ..core.binning import DEFAULT_BINS, validate_bins, validate_confidence
from ..core.mixture import validate_flags
from ..core.ranking import rank
from ..core.shapes import Flags, Scalar, Scores


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
