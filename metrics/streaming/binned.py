"""Calibration errors batch by batch: only sums of bins, or of cells, are kept."""

from collections.abc import Callable

import torch
from jaxtyping import Float64
from torch import Tensor

from ..calibration import reliability
from ..calibration.classwise import class_sums, top_label_of_sums, top_label_sums
from ..calibration.smooth import CELLS, residual_sums, smooth_error_of_residuals
from ..core.binning import DEFAULT_BINS, BinSums, bin_sums, validate_bins
from ..core.mixture import confidence_of, mixture_log_probs
from ..core.plots import Axes, plot_reliability
from ..core.reliability_bands import bands_of_sums
from ..core.shapes import Scalar
from .base import Batch, LabelledMetric, Labels


class BinnedCalibrationMetric(LabelledMetric):
    """A function of the sums of equal-width bins ``(a, b]``, of the mixture's predicted class.

    A concrete metric names a `function` of `BinSums`, and may have ``rows`` of bins, the shape of
    its table before them. In a collection those of as many bins share one table.
    """

    higher_is_better = False
    counts: Tensor
    correct: Tensor
    confidence: Tensor

    def __init__(self, bins: int = DEFAULT_BINS, *, rows: tuple[int, ...] = ()) -> None:
        super().__init__()
        validate_bins(bins)
        self.bins, self.rows = bins, rows
        whole = torch.zeros((*self.rows, bins), dtype=torch.int64)
        self.add_state("counts", whole, dist_reduce_fx="sum")
        self.add_state("correct", whole.clone(), dist_reduce_fx="sum")
        self.add_state("confidence", whole.double(), dist_reduce_fx="sum")

    def add(self, logits: Batch, targets: Labels) -> None:
        """Add the sums of a batch."""
        sums = self.batch_sums(mixture_log_probs(logits), targets)
        self.counts += sums.counts
        self.correct += sums.correct
        self.confidence += sums.confidence

    def batch_sums(self, log_probs: Float64[Tensor, "batch classes"], targets: Labels) -> BinSums:
        """Return the sums of a batch: here over bins of the predicted class's probability."""
        confidence, predicted = confidence_of(log_probs)
        right = predicted == targets
        return bin_sums(confidence, right, bins=self.bins, precision=torch.float64)

    def compute(self) -> Scalar:
        """Return the metric of all samples seen so far."""
        self.require_samples(self.counts.sum())
        return type(self).function(BinSums(self.counts, self.correct, self.confidence))

    def draw(self, axes: Axes) -> bool:
        """Draw a reliability diagram, where there is one row of bins."""
        if self.rows:
            return False
        sums = BinSums(self.counts, self.correct, self.confidence)
        plot_reliability(axes, bands_of_sums(sums))
        return True


class ExpectedCalibrationError(BinnedCalibrationMetric):
    """ECE of the mixture's most probable class, as `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import ExpectedCalibrationError
        >>> ExpectedCalibrationError(bins=15)(torch.zeros(2, 2, 2), torch.tensor([0, 1]))
        tensor(0., dtype=torch.float64)
    """

    function = reliability.error_of_sums


class MaximumCalibrationError(BinnedCalibrationMetric):
    """MCE of the mixture's most probable class, as `maximum_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import MaximumCalibrationError
        >>> MaximumCalibrationError()(torch.zeros(2, 2, 2), torch.tensor([0, 0]))
        tensor(0.5000, dtype=torch.float64)
    """

    function = reliability.maximum_of_sums


class RootMeanSquareCalibrationError(BinnedCalibrationMetric):
    """RMS-CE of the mixture's predicted class, as `root_mean_square_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import RootMeanSquareCalibrationError
        >>> RootMeanSquareCalibrationError()(torch.zeros(2, 2, 2), torch.tensor([0, 0]))
        tensor(0.5000, dtype=torch.float64)
    """

    function = lambda sums: reliability.squared_of_sums(sums).sqrt()  # noqa: E731


class DebiasedSquaredCalibrationError(BinnedCalibrationMetric):
    """Squared calibration error less its bias, as `debiased_squared_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import DebiasedSquaredCalibrationError
        >>> DebiasedSquaredCalibrationError()(torch.zeros(2, 2, 2), torch.tensor([0, 1]))
        tensor(-0.2500, dtype=torch.float64)
    """

    function = reliability.debiased_of_sums


class ClassBinnedMetric(BinnedCalibrationMetric):
    """A function of the sums of bins of each of ``num_classes`` classes, of ``[classes, bins]``.

    A concrete metric also names the `sums` of a batch.
    """

    sums: Callable[..., BinSums]

    def __init__(self, num_classes: int, bins: int = DEFAULT_BINS) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be >= 2, got {num_classes}")
        super().__init__(bins, rows=(num_classes,))
        self.num_classes = num_classes

    def batch_sums(self, log_probs: Float64[Tensor, "batch classes"], targets: Labels) -> BinSums:
        """Return the sums of a batch, a row per class."""
        if log_probs.shape[-1] != self.num_classes:
            raise ValueError(
                f"logits must have {self.num_classes} classes, got {log_probs.shape[-1]}"
            )
        return type(self).sums(log_probs, targets, bins=self.bins)


class ClasswiseCalibrationError(ClassBinnedMetric):
    """Classwise ECE of the mixture, as `classwise_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import ClasswiseCalibrationError
        >>> ClasswiseCalibrationError(num_classes=2)(torch.zeros(3, 2, 2), torch.tensor([0, 0]))
        tensor(0.5000, dtype=torch.float64)
    """

    sums = class_sums
    function = lambda sums: reliability.error_of_sums(sums).mean()  # noqa: E731


class TopLabelCalibrationError(ClassBinnedMetric):
    """Top-label calibration error of the mixture, as `top_label_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics import TopLabelCalibrationError
        >>> TopLabelCalibrationError(num_classes=2)(torch.zeros(3, 2, 2), torch.tensor([0, 1]))
        tensor(0., dtype=torch.float64)
    """

    sums = top_label_sums
    function = top_label_of_sums


class SmoothCalibrationError(LabelledMetric):
    """Smooth calibration error of the mixture, as `smooth_calibration_error`; 4096 sums are kept.

    Example:
        >>> import torch
        >>> from deepens.metrics import SmoothCalibrationError
        >>> SmoothCalibrationError()(torch.zeros(2, 2, 2), torch.tensor([0, 1]))
        tensor(0., dtype=torch.float64)
    """

    higher_is_better = False
    residuals: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        cells = torch.zeros(CELLS, dtype=torch.float64)
        self.add_state("residuals", cells, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, logits: Batch, targets: Labels) -> None:
        """Add the residuals of a batch."""
        confidence, predicted = confidence_of(mixture_log_probs(logits))
        self.residuals += residual_sums(confidence, predicted == targets)
        self.count += logits.shape[1]

    def compute(self) -> Scalar:
        """Return the smECE of all samples seen so far."""
        self.require_samples(self.count)
        return smooth_error_of_residuals(self.residuals, number=int(self.count))
