"""Binned calibration errors batch by batch: what is kept is the sums of each bin."""

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64, Integer
from torch import Tensor

from ..core.binning import DEFAULT_BINS, BinSums, bin_sums
from ..core.mixture import confidence_of, mixture_log_probs
from ..core.plots import plot_reliability
from ..core.reliability_bands import bands_of_sums
from ..core.streaming import EnsembleMetric, validate_batch
from .reliability import debiased_of_sums, error_of_sums, maximum_of_sums, squared_of_sums

if TYPE_CHECKING:
    import matplotlib.axes


class BinnedCalibrationMetric(EnsembleMetric):
    """A function of the sums of equal-width bins ``(a, b]``, of the mixture's predicted class.

    A concrete metric implements `evaluate`. In a collection those of as many bins share one table.

    Args:
        bins: Number of bins.
        num_classes: Rows of the table, one a class; None for a table of one row.

    Raises:
        ValueError: If ``bins`` is below 1 or ``num_classes`` below 2.
    """

    higher_is_better = False
    counts: Tensor
    correct: Tensor
    confidence: Tensor

    def __init__(self, bins: int = DEFAULT_BINS, *, num_classes: int | None = None) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"bins must be >= 1, got {bins}")
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be >= 2, got {num_classes}")
        self.bins, self.num_classes = bins, num_classes
        rows = (bins,) if num_classes is None else (num_classes, bins)
        whole, real = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.float64)
        self.add_state("counts", whole, dist_reduce_fx="sum")
        self.add_state("correct", whole.clone(), dist_reduce_fx="sum")
        self.add_state("confidence", real, dist_reduce_fx="sum")

    @abstractmethod
    def evaluate(self, sums: BinSums) -> Float64[Tensor, ""]:
        """Return the metric of all samples."""

    def update(
        self, logits: Float[Tensor, "members batch classes"], targets: Integer[Tensor, "batch"]
    ) -> None:
        """Add a batch.

        Args:
            logits: Raw outputs, members first.
            targets: Class indices.

        Raises:
            ValueError: If ``logits`` are not finite or empty or of other classes, or ``targets`` do
                not fit them.
        """
        validate_batch(logits, targets)
        if self.num_classes not in (None, logits.shape[-1]):
            raise ValueError(f"logits must have {self.num_classes} classes, got {logits.shape[-1]}")
        sums = self.batch_sums(mixture_log_probs(logits.double()), targets)
        self.counts += sums.counts
        self.correct += sums.correct
        self.confidence += sums.confidence

    def batch_sums(
        self,
        log_probs: Float64[Tensor, "batch classes"],
        targets: Integer[Tensor, "batch"],
    ) -> BinSums:
        """Return the sums of a batch: here over bins of the predicted class's probability."""
        confidence, predicted = confidence_of(log_probs)
        return bin_sums(confidence, predicted == targets, bins=self.bins)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the metric of all samples seen so far.

        Raises:
            ValueError: If no batch was added.
        """
        if not self.counts.any():
            raise ValueError(f"{type(self).__name__} needs >= 1 sample, got 0: call update first")
        return self.evaluate(BinSums(self.counts, self.correct, self.confidence))

    def draw(self, axes: "matplotlib.axes.Axes") -> bool:
        """Draw a reliability diagram, where there is one row of bins."""
        if self.num_classes is not None:
            return False
        sums = BinSums(self.counts, self.correct, self.confidence)
        plot_reliability(axes, bands_of_sums(sums))
        return True


class ExpectedCalibrationError(BinnedCalibrationMetric):
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

    def evaluate(self, sums: BinSums) -> Float64[Tensor, ""]:
        """Return the ECE of all samples."""
        return error_of_sums(sums)


class MaximumCalibrationError(BinnedCalibrationMetric):
    """MCE of the mixture's most probable class, as `maximum_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import MaximumCalibrationError
        >>> metric = MaximumCalibrationError()
        >>> metric.update(torch.zeros(2, 2, 2), torch.tensor([0, 0]))
        >>> metric.compute().item()
        0.5
    """

    def evaluate(self, sums: BinSums) -> Float64[Tensor, ""]:
        """Return the MCE of all samples."""
        return maximum_of_sums(sums)


class RootMeanSquareCalibrationError(BinnedCalibrationMetric):
    """RMS-CE of the mixture's predicted class, as `root_mean_square_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import RootMeanSquareCalibrationError
        >>> metric = RootMeanSquareCalibrationError()
        >>> metric.update(torch.zeros(2, 2, 2), torch.tensor([0, 0]))
        >>> metric.compute().item()
        0.5
    """

    def evaluate(self, sums: BinSums) -> Float64[Tensor, ""]:
        """Return the RMS-CE of all samples."""
        return squared_of_sums(sums).sqrt()


class DebiasedSquaredCalibrationError(BinnedCalibrationMetric):
    """Squared calibration error less its bias, as `debiased_squared_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import DebiasedSquaredCalibrationError
        >>> metric = DebiasedSquaredCalibrationError()
        >>> metric.update(torch.zeros(2, 2, 2), torch.tensor([0, 1]))
        >>> metric.compute().item()
        -0.25
    """

    def evaluate(self, sums: BinSums) -> Float64[Tensor, ""]:
        """Return the debiased squared error of all samples."""
        return debiased_of_sums(sums)
