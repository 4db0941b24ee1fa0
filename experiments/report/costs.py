"""The table of what each method costs."""

import math

from ..comparison.single_models import plain_single
from ..comparison.verdicts import Comparison
from ..cost.axes import AXES, Axis
from ..cost.measurement import Cost
from .model import Cell, Row, Table, Text

_ENERGY_KNOWN = (
    "Energy is what the processor packages of the machine, or its GPU with them, used in that "
    "time by their own counters: it includes other work and idle power."
)
_ENERGY_UNKNOWN = (
    "Energy is not reported: it needs `pip install 'deepens[energy]'` and a machine whose counters "
    "can be read, at the time of measuring."
)
_OPTIONAL = ("compute", "training-energy", "energy")
"""Keys of the axes that are left out where nothing is known."""


def cost_table(comparison: Comparison) -> tuple[Table | Text, ...]:
    """Make the table of costs, relative to ``single`` or to the method of fewest MACs."""
    methods = comparison.methods
    if not methods:
        return ()
    reference = plain_single(methods) or min(methods, key=lambda method: method.cost.macs)
    axes = [
        axis
        for axis in AXES
        if axis.key not in _OPTIONAL or any(math.isfinite(axis.of(m.cost)) for m in methods)
    ]
    cells = {m.name: tuple(_cell(axis, m.cost, reference.cost) for axis in axes) for m in methods}
    rows = tuple(Row(m.name, cells[m.name], m.description) for m in methods)
    where = f"\N{MULTIPLICATION SIGN} relative to {reference.name}"
    table = Table("Cost of each method", where, ("Method", *(axis.label for axis in axes)), rows)
    known = any("energy" in axis.key for axis in axes)
    return table, Text(_ENERGY_KNOWN if known else _ENERGY_UNKNOWN)


def _cell(axis: Axis, cost: Cost, reference: Cost) -> Cell:
    amount, base = axis.of(cost), axis.of(reference)
    if not math.isfinite(amount):
        word = "counted" if axis.basis.startswith("counted") else "measured"
        return Cell(f"not {word}", mark="missing", value=math.nan)
    ratio = f"\N{MULTIPLICATION SIGN} {amount / base:.2f}" if math.isfinite(base) else ""
    return Cell(axis.text(amount), ratio, value=amount)
