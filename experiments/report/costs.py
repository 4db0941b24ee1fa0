"""The table of what each method costs."""

import math

from ..comparison.verdicts import Comparison, MethodSummary
from .model import Cell, Row, Table, Text

ENERGY_KNOWN = (
    "Energy is what the processor packages of the machine, or its GPU with them, used in that "
    "time by their own counters: it includes other work and idle power."
)
ENERGY_UNKNOWN = (
    "Energy is not reported: the counters of the machine that was measured cannot be read, or an "
    "earlier version made these files."
)
_ENERGY = ("Training energy", "Energy per image")
_OPTIONAL = ("Training MACs", *_ENERGY)
"""Columns that are left out where nothing is known."""


def cost_table(comparison: Comparison) -> tuple[Table | Text, ...]:
    """Make the table of costs, relative to ``single`` or to the method of fewest MACs."""
    if not comparison.methods:
        return ()
    named = [method for method in comparison.methods if method.name == "single"]
    reference = named[0] if named else min(comparison.methods, key=lambda m: m.cost.macs)
    costs = {method.name: _costs(method) for method in comparison.methods}
    known = [
        column
        for column in costs[reference.name]
        if column not in _OPTIONAL or any(math.isfinite(each[column][0]) for each in costs.values())
    ]
    base = costs[reference.name]
    rows = tuple(
        Row(
            method.name,
            tuple(_cell(name, *costs[method.name][name], base[name][0]) for name in known),
            method.description,
        )
        for method in comparison.methods
    )
    where = f"\N{MULTIPLICATION SIGN} relative to {reference.name}"
    table = Table("Cost of each method", where, ("Method", *known), rows)
    return table, Text(ENERGY_KNOWN if set(known) & set(_ENERGY) else ENERGY_UNKNOWN)


def _cell(column: str, amount: float, text: str, reference: float) -> Cell:
    if not math.isfinite(amount):
        word = "counted" if column == "Training MACs" else "measured"
        return Cell(f"not {word}", mark="missing", value=math.nan)
    compared = math.isfinite(reference) and reference > 0
    return Cell(text, f"× {amount / reference:.2f}" if compared else "", value=amount)


def _costs(method: MethodSummary) -> dict[str, tuple[float, str]]:
    """Return each cost by its column: the amount to compare, and how it is written."""
    cost = method.cost
    seconds, joules, joules_per_image, macs = (
        math.nan if amount is None else float(amount)
        for amount in (
            cost.training_seconds,
            cost.training_joules,
            cost.joules_per_image,
            cost.training_macs,
        )
    )
    one, many = cost.latency_ms_batch1, cost.latency_ms_batch256
    memory = float(cost.peak_memory_bytes)
    return {
        "MACs per image": (float(cost.macs), scaled(float(cost.macs))),
        "Parameters": (float(cost.parameters), scaled(float(cost.parameters))),
        "Latency, batch 1": (one, f"{one:.3g} ms"),
        "Latency per image, batch 256": (many, f"{many:.3g} ms"),
        "Peak memory": (memory, f"{memory / 2**20:,.1f} MiB"),
        "Training time": (seconds, _duration(seconds)),
        "Training MACs": (macs, scaled(macs)),
        "Training energy": (joules, f"{joules:.3g} J" if joules < 1e3 else f"{scaled(joules)}J"),
        "Energy per image": (joules_per_image, f"{1e3 * joules_per_image:.3g} mJ"),
    }


def scaled(amount: float) -> str:
    """Write a count with three digits and a unit: 12.3 M."""
    units = (" E", " P", " T", " G", " M", " k")
    for size, unit in zip((1e18, 1e15, 1e12, 1e9, 1e6, 1e3), units, strict=True):
        if abs(amount) >= size:
            return f"{amount / size:.3g}{unit}"
    return f"{amount:g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
