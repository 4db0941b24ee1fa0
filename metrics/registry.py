"""Registered metrics: one function, which is computed, resampled and reported like any other.

Use it for a metric of labelled splits that the suite lacks, in a plugin or in a file of a room
below. `evaluate`, `SplitEvaluation` and hence bootstrap intervals, comparisons and reports pick up
what is registered. A file of our own is registered when `suite` imports it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from jaxtyping import Float64
from torch import Tensor

from .core.catalogue import METRICS, MetricInfo, forget_metric, list_metric
from .core.shapes import PerDraw
from .core.values import SampleValues

MetricFunction = Callable[[SampleValues, Float64[Tensor, "*draws samples"]], PerDraw]
"""From the values of samples, and how often each counts, to one value per draw."""

_FUNCTIONS: dict[str, MetricFunction] = {}

REGISTERED: Mapping[str, MetricFunction] = MappingProxyType(_FUNCTIONS)
"""Key of each registered metric -> its function."""


def register_metric(info: MetricInfo) -> Callable[[MetricFunction], MetricFunction]:
    """Register the function below, which is returned as it is, as a metric of labelled splits.

    Args:
        info: Its identity. With the role ``"primary"`` it is resampled, and methods are compared by
            it if it has a direction; with ``"secondary"`` it is computed once per split.

    Raises:
        ValueError: If there is a metric of this name already, or ``info`` is of another scope than
            ``"split"`` or another role.

    Example:
        >>> from deepens.metrics import MetricInfo, evaluate, register_metric, unregister_metric
        >>> import torch
        >>> error_rate = MetricInfo(
        ...     "error_rate", "Error rate", False, "share", (0.0, 1.0), "Share of errors."
        ... )
        >>> @register_metric(error_rate)
        ... def weighted_error_rate(values, weights):
        ...     return weights @ (~values.correct).double() / weights.sum(-1)
        >>> evaluate(torch.tensor([[[2.0, 0.0], [2.0, 0.0]]]), torch.tensor([0, 1]))["error_rate"]
        0.5
        >>> unregister_metric("error_rate")
    """
    if info.name in METRICS:
        raise ValueError(f"a metric called {info.name!r} exists already; choose another name")
    if info.scope != "split" or info.role not in ("primary", "secondary"):
        raise ValueError(
            "a registered metric must have scope 'split' and role 'primary' or 'secondary', got "
            f"{info.scope!r} and {info.role!r}"
        )

    def register(function: MetricFunction) -> MetricFunction:
        list_metric(info)
        _FUNCTIONS[info.name] = function
        return function

    return register


def unregister_metric(name: str) -> None:
    """Forget a registered metric; another name is a ``ValueError``."""
    if name not in _FUNCTIONS:
        raise ValueError(f"name must be a registered metric, got {name!r}")
    del _FUNCTIONS[name]
    forget_metric(name)


@contextmanager
def registered_metric(info: MetricInfo, function: MetricFunction) -> Iterator[None]:
    """Register a metric for the duration of a ``with`` block, for tests and notebooks."""
    register_metric(info)(function)
    try:
        yield
    finally:
        unregister_metric(info.name)


def registered_values(
    values: SampleValues, weights: Tensor | None, role: str
) -> Iterator[tuple[str, PerDraw]]:
    """Yield the registered metrics of a role, of the data as they are or of each row of weights."""
    for name, function in _FUNCTIONS.items():
        if METRICS[name].role == role:
            counts = values.confidence.new_ones(len(values)) if weights is None else weights
            result = function(values, counts.double())
            if result.shape != counts.shape[:-1]:
                raise ValueError(
                    f"{name} must give one value per draw, {list(counts.shape[:-1])}, got shape "
                    f"{list(result.shape)}"
                )
            yield name, result
