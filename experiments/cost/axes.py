"""Every kind of cost, with its label, unit, format and the way in which it is obtained."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .measurement import Cost

_PREFIXES = ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))

_BASIS = {
    "macs": "counted",
    "parameters": "counted",
    "memory": "in a pass over 256 images",
    "latency": "median, one image at a time",
    "throughput": "median, in batches of 256",
    "training": "wall time, of all members",
    "compute": "counted, a backward pass as two forward passes",
    "training-energy": "the machine's counters, idle power and other work included",
    "energy": "the machine's counters, in batches of 256",
}


@dataclass(frozen=True)
class Axis:
    """One kind of cost: a column of the table of costs, and an axis on which budgets are set.

    Attributes:
        key: Short name.
        label: Heading of a column, and title of an axis.
        unit: Of the amount, such as ``ms``; empty for a count.
        field: The field of :class:`~.measurement.Cost` that holds the amount.
        text: Writes an amount with its unit.
    """

    key: str
    label: str
    unit: str
    field: str
    text: Callable[[float], str]

    @property
    def basis(self) -> str:
        """How the amount is obtained."""
        return _BASIS[self.key]

    def of(self, cost: Cost) -> float:
        """Return the amount, NaN where it is unknown.

        Example:
            >>> from deepens.experiments.cost.axes import AXES
            >>> from deepens.experiments.cost.measurement import Cost
            >>> cost = Cost(4_010_000, 10, 1.0, 1.0, 10)
            >>> AXES[0].of(cost), AXES[0].text(AXES[0].of(cost))
            (4010000.0, '4.01 M MACs')
        """
        found = getattr(cost, self.field) or 0
        return float(found) if found > 0 else math.nan


def prefixed(amount: int | float) -> str:
    """Write a count with three digits and a decimal prefix.

    Example:
        >>> from deepens.experiments.cost.axes import prefixed
        >>> prefixed(12_340_000), prefixed(640)
        ('12.3 M', '640')
    """
    for size, prefix in _PREFIXES:
        if amount >= size:
            return f"{amount / size:.3g}{prefix}"
    return f"{amount:g}"


def multiple_text(multiple: float) -> str:
    """Write how many times the plain single model's cost something is, such as ``4×``."""
    return f"{multiple:.3g}\N{MULTIPLICATION SIGN}"


def _macs(amount: int | float) -> str:
    return f"{prefixed(amount)} MACs"


def _mebibytes(amount: int | float) -> str:
    return f"{amount / 2**20:,.1f} MiB"


def _milliseconds(amount: int | float) -> str:
    return f"{amount:.3g} ms"


def _duration(seconds: float) -> str:
    size, unit = (1, "s") if seconds < 120 else (60, "min") if seconds < 7200 else (3600, "h")
    return f"{seconds / size:.3g} {unit}"


def _joules(amount: int | float) -> str:
    if amount < 1:
        return f"{1e3 * amount:.3g} mJ"
    text = prefixed(amount)
    return f"{text}J" if text[-1].isalpha() else f"{text} J"


AXES: tuple[Axis, ...] = (
    Axis("macs", "MACs per image", "MACs", "macs", _macs),
    Axis("parameters", "Parameters", "", "parameters", prefixed),
    Axis("memory", "Peak memory", "bytes", "peak_memory_bytes", _mebibytes),
    Axis("latency", "Latency, batch 1", "ms", "latency_ms_batch1", _milliseconds),
    Axis("throughput", "Latency per image, batch 256", "ms", "latency_ms_batch256", _milliseconds),
    Axis("training", "Training time", "s", "training_seconds", _duration),
    Axis("compute", "Training compute", "MACs", "training_macs", _macs),
    Axis("training-energy", "Training energy", "J", "training_joules", _joules),
    Axis("energy", "Energy per image", "J", "joules_per_image", _joules),
)
"""Every kind of cost, inference MACs first: a table of costs, a figure or a budget shows those that
are known of at least one method."""
