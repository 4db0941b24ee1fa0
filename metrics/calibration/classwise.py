"""Calibration class by class: of every class's probability, and within each predicted class."""

import functools
import operator

import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from ..core.binning import DEFAULT_BINS, BinSums, bin_index, sums_by_index
from ..core.mixture import confidence_of, validate_flags, validate_targets, validate_values
from ..core.shapes import Flags, LogProbs, Scalar, Scores, Targets
from .reliability import error_of_sums

CHUNK = 2**20  # probabilities worked on at a time
_ROUNDING = 1e-4  # how far above 0 rounding may leave the logarithm of a probability of 1


def classwise_calibration_error(
    log_probs: LogProbs, targets: Targets, *, bins: int = DEFAULT_BINS
) -> Scalar:
    """Return the classwise ECE: of each class's probability, averaged over classes.

    ``(1/C) sum_c sum_b (n_cb / N) |share of class c in bin b - mean p_c in bin b|``, in ``[0, 1]``

    Bins are those of `expected_calibration_error`, filled anew for every class with all N samples.
    With many classes most probabilities are near 0 and calibrated trivially, so that the value
    shrinks with C: compare it at one number of classes only.

    Raises:
        ValueError: If ``log_probs``, of the mixture, are NaN, above 0 or empty, ``targets`` are not
            integers in ``[0, classes)``, one per sample, or ``bins`` is below 1.

    Example:
        >>> import torch
        >>> from deepens.metrics import classwise_calibration_error
        >>> log_probs = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()
        >>> round(classwise_calibration_error(log_probs, torch.tensor([0, 1])).item(), 4)
        0.3

    Reference: Kull et al. (2019), arXiv:1910.12656; Nixon et al. (2019), arXiv:1904.01685
    """
    return error_of_sums(class_sums(log_probs, targets, bins=bins)).mean()


def class_sums(
    log_probs: LogProbs,
    targets: Targets,
    *,
    bins: int = DEFAULT_BINS,
    precision: torch.dtype | None = None,
) -> BinSums:
    """Sum each class's probabilities and occurrences over bins of that probability.

    ``precision`` is that of `bin_index`: by default the log-probabilities' own.
    """
    samples, classes = log_probs.shape
    if not log_probs.numel():
        raise ValueError(f"log_probs must hold >= 1 sample, got shape {[samples, classes]}")
    highest = log_probs.amax().item()
    if highest > _ROUNDING:  # as logits and probabilities have it
        raise ValueError(f"log_probs must be <= 0, got {highest}: are they logarithms?")
    validate_targets(targets, num_samples=samples, num_classes=classes)
    size = max(1, CHUNK // classes)
    offsets = torch.arange(classes, device=log_probs.device)
    parts = []
    for start in range(0, samples, size):
        probs = log_probs[start : start + size].double().exp().clamp(max=1.0)
        hit = targets[start : start + size].long()[:, None] == offsets
        inside = bin_index(probs.flatten(), bins=bins, precision=precision or log_probs.dtype)
        place = inside.reshape(probs.shape) + bins * offsets
        parts.append(
            sums_by_index(place.flatten(), probs.flatten(), hit.flatten(), rows=(classes, bins))
        )
    return functools.reduce(operator.add, parts)


def top_label_calibration_error(
    confidence: Scores,
    correct: Flags,
    predicted: Integer[Tensor, "samples"],
    *,
    bins: int = DEFAULT_BINS,
    precision: torch.dtype | None = None,
) -> Scalar:
    """Return the top-label calibration error: the ECE within each predicted class.

    ``sum_c sum_b (n_cb / N) |accuracy_cb - confidence_cb|``, c the predicted class, of which one
    below 0 is refused. It is at least the ECE, in which over-confidence on one class can make up
    for under-confidence on another, and more biased upwards, having C times as many bins.
    ``precision`` is that of `bin_index`; other arguments and errors as
    `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import top_label_calibration_error
        >>> confidence, correct = torch.tensor([0.75, 0.75]), torch.tensor([True, False])
        >>> top_label_calibration_error(confidence, correct, torch.tensor([0, 1])).item()
        0.5

    Reference: Gupta & Ramdas (2022), arXiv:2107.08353
    """
    samples = confidence.shape[0]
    validate_flags(correct, name="correct", num_samples=samples)
    validate_values(predicted, name="predicted", num_samples=samples)
    if predicted.is_floating_point() or predicted.dtype == torch.bool:
        raise ValueError(f"predicted must hold class indices >= 0, got {predicted.dtype} values")
    if predicted.min() < 0:
        raise ValueError(f"predicted must hold class indices >= 0, got {int(predicted.min())}")
    place = predicted.long() * bins + bin_index(confidence, bins=bins, precision=precision)
    rows = (int(predicted.max()) + 1, bins)
    return top_label_of_sums(sums_by_index(place, confidence, correct, rows=rows))


def top_label_sums(
    log_probs: Float64[Tensor, "samples classes"], targets: Targets, *, bins: int = DEFAULT_BINS
) -> BinSums:
    """Sum over bins of the mixture's confidence, one row per predicted class."""
    confidence, predicted = confidence_of(log_probs)
    place = predicted * bins + bin_index(confidence, bins=bins, precision=log_probs.dtype)
    return sums_by_index(place, confidence, predicted == targets, rows=(log_probs.shape[-1], bins))


def top_label_of_sums(sums: BinSums) -> Scalar:
    """Return the top-label calibration error of the sums of each predicted class's bins."""
    return sums.gaps.abs().sum() / sums.counts.sum()
