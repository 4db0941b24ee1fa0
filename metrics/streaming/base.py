"""Bases of the `torchmetrics` metrics: data comes batch by batch, and results do not depend on it.

States are sums or per-sample values that add up, so that one batch, many batches and many
processes give the same number. They are float64 or whole numbers and stay so: a float32
accumulator loses digits at millions of samples. A concrete metric names its pure `function`.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Float64, Integer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..core.mixture import validate_batch
from ..core.plots import Axes
from ..core.shapes import Scalar
from ..io.arrays import read_logits, read_targets
from ..io.logit_source import Kind, Layout

Result = TypeVar("Result")
Batch = Float64[Tensor, "members batch classes"]
RawBatch = Float[Tensor, "members batch classes"]
Labels = Integer[Tensor, "batch"]


class Shared(Generic[Result]):
    """A function of list states whose last result serves all the metrics that hold these lists.

    In a `MetricCollection` the metrics with the same states share them, and each asks for the same
    sort. The last result is kept for as long as its batches are, and only for these very tensors,
    unchanged since. Each state is passed as one tensor.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function = function
        self._parts: list[tuple[weakref.ref[Tensor], int]] = []
        self._result: Any = None

    def __call__(self, *states: Tensor | list[Tensor]) -> Result:
        """Return the function of the states, computed now or kept from the last call."""
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

    @property
    def is_kept(self) -> bool:
        """Whether a result is kept, for a call with the same states."""
        return self._result is not None

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

    function: Callable[..., Tensor]
    """The pure function behind the metric; each base says what it is called with."""

    def plot(self, val: Any = None, ax: Axes | None = None) -> Any:
        """Draw the metric, its curve where it has one, or else its value; return figure and axes.

        Values ``val``, such as those of batches, are drawn as points instead, as torchmetrics does;
        without ``ax``, all is drawn in a new figure.
        """
        if val is not None:
            return self._plot(val, ax)
        if ax is None:
            from matplotlib import pyplot

            _, ax = pyplot.subplots()
        if not self.draw(ax):
            return self._plot(None, ax)
        return ax.get_figure(), ax

    def draw(self, axes: Axes) -> bool:
        """Draw the curve behind the value, and say whether there is one."""
        return False

    def keep_apart(self, kind: str) -> None:
        """Add an empty state named after what the metric is of.

        torchmetrics takes metrics with states of the same names and values for one metric, and two
        may be alike on a first batch.
        """
        self.add_state(kind, torch.zeros((), dtype=torch.int8), dist_reduce_fx="sum")

    def require_samples(self, count: Tensor | int) -> None:
        """Refuse to compute before a sample was added."""
        if count == 0:
            raise ValueError(f"{type(self).__name__} needs >= 1 sample, got 0: call update first")

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> torch.nn.Module:
        def keeping_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_dtype, exclude_state)


class LabelledMetric(EnsembleMetric):
    """A metric of logits and labels; a concrete one implements `add`."""

    @abstractmethod
    def add(self, logits: Batch, targets: Labels) -> None:
        """Add a valid batch to the states."""

    def update(
        self, logits: Any, targets: Any, *, layout: Layout = "MNC", kind: Kind = "logits"
    ) -> None:
        """Add a batch of raw outputs, members first, and class indices, or as `evaluate` takes it.

        Raises:
            ValueError: If ``logits`` are not finite or empty, or of other members or classes than
                the metric is for, or ``targets`` do not fit them.
        """
        given, logits = logits, read_logits(logits, layout=layout, kind=kind)
        targets = read_targets(targets, logits, like=given)
        validate_batch(logits, targets)
        self.add(logits.double(), targets)


class SampleMean(LabelledMetric):
    """The mean over samples of one value per sample: a float64 sum and a whole number are kept.

    A concrete mean names a `function` of float64 logits and labels, or implements `per_sample`.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.keep_apart(f"is_{type(self).__name__}")

    def per_sample(self, logits: Batch, targets: Labels) -> Float64[Tensor, "batch"]:
        """Return one value per sample from float64 logits."""
        return type(self).function(logits, targets).double()

    def add(self, logits: Batch, targets: Labels) -> None:
        """Add the values of a batch to their sum."""
        values = self.per_sample(logits, targets)
        self.total += values.sum()
        self.count += values.shape[0]

    def compute(self) -> Scalar:
        """Return the mean over all samples seen so far."""
        self.require_samples(self.count)
        return self.total / self.count
