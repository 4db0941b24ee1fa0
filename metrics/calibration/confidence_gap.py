"""Over- or under-confident? The signed gap between mean confidence and accuracy."""

from ..core.binning import validate_confidence
from ..core.mixture import validate_flags, validate_weights
from ..core.shapes import Flags, PerDraw, Scores, Weights


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
        >>> from deepens.metrics.calibration.confidence_gap import confidence_gap
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
