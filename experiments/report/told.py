"""What is told of calibration and selection beside the metrics by which methods are judged."""

import math
from collections.abc import Mapping, Sequence

from ...metrics.core.catalogue import metric_info, metrics_with
from ..comparison.verdicts import Comparison
from ..evaluation.temperatures import SCALED
from .splits import SplitGroup, directed_label, direction_arrow, kind_of, metrics_of, split_groups
from .tables import (
    basis,
    best_mean,
    has_own_table,
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


_EACH_ITS_OWN = '<td class="none">each its own</td>'

SETS = (
    "A conformal set holds every class whose score is at most a threshold, fitted on val/conform "
    "so that at least 90 % of the sets of images like those hold the label, whatever the network; "
    "under shift nothing is promised. With n images to fit on, the coverage on test images still "
    "varies from one draw of these to the next, with a standard deviation of about "
    "sqrt(0.09 / n). Smaller sets say more, at equal coverage. LAC makes the smallest, and may "
    "leave some empty; APS and RAPS adapt them to the image."
)
"""What a reader of prediction sets must know."""


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
            errors = metrics_with(topic="calibration")
            parts.append(_chosen_table(comparison, group, errors, ", calibration errors"))
    return "\n".join(filter(None, parts))


def set_tables(comparison: Comparison) -> str:
    """Write coverage and size of conformal sets.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where nothing of it was measured.
    """
    tables = (
        _set_table(comparison, group)
        for group in split_groups(comparison)
        if kind_of(group.splits[0]) in ("test", "shift")
    )
    return "\n".join(filter(None, tables))


def _set_table(comparison: Comparison, group: SplitGroup) -> str:
    """Write a block of methods for each nonconformity score."""
    found = set(metrics_of(comparison, group))
    if not found.intersection(metrics_with(scope="conformal")):
        return ""
    blocks = {
        score.upper(): metrics_with(scope="conformal", score=score)
        for score in ("lac", "aps", "raps")
    }
    rows = _blocks(comparison, group, blocks)
    labels = [metric_info(name).measure_label + direction_arrow(name) for name in blocks["LAC"]]
    title = f"{group.title}, conformal sets"
    return table_html(title, basis(comparison, group), ["Score", "Method", *labels], rows)


def _temperature_table(comparison: Comparison, group: SplitGroup) -> str:
    """Write a block of methods for raw predictions, and one for each place of a temperature."""
    found = set(metrics_of(comparison, group))
    if not found.intersection(metrics_with(scope="temperature")):
        return ""
    ways = {"raw": "", "T pooled": "_pooled", "T joint": "_joint", "T member": "_member"}
    blocks = {name: [f"{each}{way}" for each in SCALED] for name, way in ways.items()}
    last = (f"temperature{way}" for way in ways.values() for _ in comparison.methods)
    rows = _blocks(comparison, group, blocks)
    for row, method, metric in zip(rows, len(ways) * comparison.methods, last, strict=True):
        words = {"temperature": "<td>1</td>", "temperature_member": _EACH_ITS_OWN}
        row.append(words.get(metric) or quality_cell(method, group, metric, math.nan))
    heads = ["Temperature", "Method", *map(directed_label, SCALED), "T"]
    title = f"{group.title}, raw and at temperature T"
    return table_html(title, basis(comparison, group), heads, rows)


def _blocks(
    comparison: Comparison, group: SplitGroup, blocks: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    """Rows of cells: one a method in each block, whose name the first row bears."""
    rows: list[list[str]] = []
    for name, metrics in blocks.items():
        best = {metric: best_mean(comparison, group, metric) for metric in metrics}
        for index, method in enumerate(comparison.methods):
            count = len(comparison.methods)
            first = f'<th scope="rowgroup" rowspan="{count}">{name}</th>'
            cells = [quality_cell(method, group, metric, best[metric]) for metric in metrics]
            rows.append([*([] if index else [first]), method_cell(method), *cells])
    return rows


def selection_tables(comparison: Comparison) -> str:
    """Write the measures of selective prediction by which methods are not judged.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where nothing of it was measured.
    """
    chosen = ("aurc", "augrc", *metrics_with(topic="selection", role="secondary"))
    tables = (
        _chosen_table(comparison, group, chosen, ", selection")
        for group in split_groups(comparison)
        if kind_of(group.splits[0]) in ("test", "shift")
    )
    return "\n".join(filter(None, tables))


def _chosen_table(
    comparison: Comparison, group: SplitGroup, metrics: Sequence[str], note: str
) -> str:
    """Write those of the metrics that were measured, where some of them have no other table."""
    found = set(metrics_of(comparison, group))
    if not any(metric in found and has_own_table(metric) for metric in metrics):
        return ""
    return metrics_table(comparison, group, [m for m in metrics if m in found], note)
