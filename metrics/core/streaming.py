"""Abstract bases of the `torchmetrics` shells: data comes batch by batch, results do not care.

The states are sums or per-sample values that add up, so that one batch, many batches and many
processes give the same number. They are float64 or whole numbers and stay so: a float32
accumulator loses digits at millions of samples.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from jaxtyping import Float, Float64, Integer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .mixture import confidence_of, mixture_log_probs, validate_logits, validate_targets

if TYPE_CHECKING:
    import matplotlib.axes

Result = TypeVar("Result")


class Shared(Generic[Result]):
    """A function of list states whose last result serves all the metrics that hold these lists.

    In a `MetricCollection` the metrics with the same states share them, and each asks for the same
    sort. The last result is kept for as long as its batches are, and only for these very tensors,
    unchanged since.

    Args:
        function: Takes each state as one tensor.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function = function
        self._parts: list[tuple[weakref.ref[Tensor], int]] = []
        self._result: Any = None

    def __call__(self, *states: Tensor | list[Tensor]) -> Result:
        """Return the function of the states, whether by calling it or from the last time."""
        lists = [[state] if isinstance(state, Tensor) else state for state in states]
        parts = [part for state in lists for part in state]
        known = len(parts) == len(self._parts) and all(
            held() is part and version == part._version
            for part, (held, version) in zip(parts, self._parts, strict=True)
        )
        if known and parts:
            return self._result
        # Forgotten first, and kept last: batches of another metric may be freed at any line, and
        # what they take along must not be this result.
        self._parts, self._result = [], None
        result = self._function(*(dim_zero_cat(state) for state in lists))
        held = [(weakref.ref(part, self._forget), part._version) for part in parts]
        self._parts, self._result = held, result
        return result

    def _forget(self, gone: "weakref.ref[Tensor]") -> None:
        if any(held is gone for held, _ in self._parts):
            self._parts, self._result = [], None


class EnsembleMetric(Metric, ABC):
    """A metric of member logits whose states keep their dtype wherever the model is cast to.

    `torchmetrics` guards its states against ``.half()`` and ``.float()``, but not against
    ``.to(torch.float16)`` or `set_dtype`; here these move devices and leave dtypes alone.
    """

    full_state_update: bool = False
    is_differentiable: bool = False

    def plot(self, val: Any = None, ax: "matplotlib.axes.Axes | None" = None) -> Any:
        """Draw the metric: its curve where it has one, or else its value.

        Args:
            val: Values to draw as points instead, such as those of batches, as torchmetrics does.
            ax: Where to draw; a new figure when absent.

        Returns:
            Figure and axes.
        """
        if val is not None:
            return self._plot(val, ax)
        if ax is None:
            from matplotlib import pyplot

            _, ax = pyplot.subplots()
        if not self.draw(ax):
            return self._plot(None, ax)
        return ax.get_figure(), ax

    def draw(self, axes: "matplotlib.axes.Axes") -> bool:
        """Draw the curve behind the value, and say whether there is one."""
        return False

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> torch.nn.Module:
        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_dtype, exclude_state)


class SampleMean(EnsembleMetric):
    """The mean over samples of one value a sample: a float64 sum and a whole number.

    A concrete mean implements `per_sample`.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # torchmetrics takes metrics with states of the same names and values for one metric, and
        # two means may be alike on a first batch: their kinds tell them apart.
        kind = f"is_{type(self).__name__}"
        self.add_state(kind, torch.zeros((), dtype=torch.int8), dist_reduce_fx="sum")

    @abstractmethod
    def per_sample(
        self, logits: Float64[Tensor, "members batch classes"], targets: Integer[Tensor, "batch"]
    ) -> Float64[Tensor, "batch"]:
        """Return one value a sample from float64 logits."""

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
        values = self.per_sample(logits.double(), targets)
        self.total += values.sum()
        self.count += values.shape[0]

    def compute(self) -> Float64[Tensor, ""]:
        """Return the mean over all samples seen so far.

        Raises:
            ValueError: If no batch was added.
        """
        if self.count == 0:
            raise ValueError(f"{type(self).__name__} needs >= 1 sample, got 0: call update first")
        return self.total / self.count


class ConfidenceMetric(EnsembleMetric):
    """A metric of the mixture's confidence and correctness; nine bytes a sample are kept.

    A concrete metric implements ``compute``.
    """

    confidence: list[Tensor]
    correct: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("confidence", [], dist_reduce_fx="cat")
        self.add_state("correct", [], dist_reduce_fx="cat")

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
        confidence, predicted = confidence_of(mixture_log_probs(logits.double()))
        self.confidence.append(confidence)
        self.correct.append(predicted == targets)


def validate_batch(logits: Tensor, targets: Tensor) -> None:
    """Refuse a batch of logits and labels that do not belong together.

    Args:
        logits: What is to be ``[members, samples, classes]``.
        targets: What is to be one class index a sample.

    Raises:
        ValueError: As `validate_logits` and `validate_targets`.
    """
    validate_logits(logits)
    validate_targets(targets, num_samples=logits.shape[1], num_classes=logits.shape[2])
