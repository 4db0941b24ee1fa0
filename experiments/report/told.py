"""What is told of calibration and selection beside the metrics by which methods are judged."""

import math
from collections.abc import Sequence

from ...metrics.catalogue import TOLD_OF_CALIBRATION, TOLD_OF_SELECTION, TOLD_OF_TEMPERATURE
from ..comparison import Comparison
from ..temperatures import SCALED
from .splits import SplitGroup, directed_label, kind_of, method_values, metrics_of, split_groups
from .tables import (
    basis,
    best_mean,
    is_told,
    method_cell,
    metrics_table,
    quality_cell,
    table_html,
)

TEMPERATURES = (
    "A temperature T divides the logits; it is fitted on val/calibrate and kept under shift. Above "
    "1 it makes predictions less confident, and can make an over-confident single model as honest "
    "as an ensemble: so both stand here raw and scaled. Pooled scales the ensemble's own "
    "prediction and changes none of its answers; joint scales all members alike before pooling; "
    "member calibrates each member before pooling, which usually leaves the ensemble "
    "under-confident. For a single model the three are one. A T of 0.05 or 20 is the end of its "
    "search: the validation images were too few, or all classified rightly, and it is not to be "
    "relied on."
)
"""What a reader of the temperatures must know."""


def calibration_tables(comparison: Comparison) -> str:
    """Write further calibration errors, and what temperatures make of each method, raw beside it.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where nothing of it was measured.
    """
    parts: list[str] = []
    for group in split_groups(comparison):
        if kind_of(group.splits[0]) in ("test", "shift"):
            parts.append(_temperature_table(comparison, group))
            errors = ("ece", *TOLD_OF_CALIBRATION)
            parts.append(_chosen_table(comparison, group, errors, ", calibration errors"))
    return "\n".join(filter(None, parts))


def _temperature_table(comparison: Comparison, group: SplitGroup) -> str:
    """Write a block of methods for raw predictions, and one for each place of a temperature."""
    found = set(metrics_of(comparison, group))
    if not found.intersection(TOLD_OF_TEMPERATURE):
        return ""
    rows: list[list[str]] = []
    for way in ("", "pooled", "joint", "member"):
        metrics = [f"{name}_{way}" if way else name for name in SCALED]
        best = {metric: best_mean(comparison, group, metric) for metric in metrics}
        for index, method in enumerate(comparison.methods):
            name = f"T {way}" if way else "raw"
            count = len(comparison.methods)
            first = f'<th scope="rowgroup" rowspan="{count}">{name}</th>'
            cells = [quality_cell(method, group, metric, best[metric]) for metric in metrics]
            values = method_values(method, group, f"temperature_{way}")
            cells.append(
                quality_cell(method, group, f"temperature_{way}", math.nan)
                if values
                else '<td class="none">each its own</td>' * (way == "member") or "<td>1</td>"
            )
            rows.append([*([] if index else [first]), method_cell(method), *cells])
    heads = ["Temperature", "Method", *map(directed_label, SCALED), "T"]
    title = f"{group.title}, raw and at temperature T"
    return table_html(title, basis(comparison, group), heads, rows)


def selection_tables(comparison: Comparison) -> str:
    """Write the measures of selective prediction by which methods are not judged.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where nothing of it was measured.
    """
    tables = (
        _chosen_table(comparison, group, ("aurc", "augrc", *TOLD_OF_SELECTION), ", selection")
        for group in split_groups(comparison)
        if kind_of(group.splits[0]) in ("test", "shift")
    )
    return "\n".join(filter(None, tables))


def _chosen_table(
    comparison: Comparison, group: SplitGroup, metrics: Sequence[str], note: str
) -> str:
    """Write those of the metrics that were measured, where some of them have no other table."""
    found = set(metrics_of(comparison, group))
    if not any(metric in found and is_told(metric) for metric in metrics):
        return ""
    return metrics_table(comparison, group, [m for m in metrics if m in found], note)
