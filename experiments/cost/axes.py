"""The ways to say what a method costs, in which budgets can be set."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..comparison.verdicts import MethodSummary
from .measurement import Cost


@dataclass(frozen=True)
class Axis:
    """One way to say what a method costs.

    Attributes:
        key: Short name.
        label: What stands at the axis.
        amount: What a method costs; None or NaN where that is not known.
        told: The amount in words.
    """

    key: str
    label: str
    amount: Callable[[Cost], float | None]
    told: Callable[[float], str]

    def of(self, method: MethodSummary) -> float:
        """Return what a method costs, NaN where that is not known."""
        found = self.amount(method.cost)
        return float(found) if found is not None and found > 0 else math.nan


def _prefixed(amount: float) -> str:
    """Write a count with three digits and a unit: 12.3 M."""
    for size, unit in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if amount >= size:
            return f"{amount / size:.3g}{unit}"
    return f"{amount:g}"


def _duration(seconds: float) -> str:
    for size, unit, bound in ((1, "s", 120), (60, "min", 7200), (3600, "h", math.inf)):
        if seconds < bound:
            return f"{seconds / size:.3g} {unit}"
    return ""


AXES: tuple[Axis, ...] = (
    Axis("macs", "MACs per image", lambda c: c.macs, lambda a: f"{_prefixed(a)} MACs"),
    Axis("parameters", "Parameters", lambda c: c.parameters, _prefixed),
    Axis("memory", "Peak memory", lambda c: c.peak_memory_bytes, lambda a: f"{a / 2**20:,.1f} MiB"),
    Axis("latency", "Latency, batch 1", lambda c: c.latency_ms_batch1, lambda a: f"{a:.3g} ms"),
    Axis(
        "throughput",
        "Latency per image, batch 256",
        lambda c: c.latency_ms_batch256,
        lambda a: f"{a:.3g} ms",
    ),
    Axis("training", "Training time", lambda c: c.training_seconds, _duration),
    Axis(
        "compute", "Training compute", lambda c: c.training_macs, lambda a: f"{_prefixed(a)} MACs"
    ),
    Axis("energy", "Energy per image", lambda c: c.joules_per_image, lambda a: f"{a:.3g} J"),
)
"""The costs that a budget can be set in, the main one first."""


def told_multiple(multiple: float) -> str:
    """Write how many times the plain single model something costs, such as ``4×``."""
    return f"{multiple:.3g}\N{MULTIPLICATION SIGN}"
