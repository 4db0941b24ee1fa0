"""Secondary metrics of calibration, selective prediction and conformal sets."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...metrics.calibration.temperature import WAYS
from ...metrics.core.catalogue import metric_info, metrics_with
from ..comparison.verdicts import Comparison
from ..evaluation.temperatures import SCALED
from .model import Cell, Table
from .splits import SplitGroup, directed_label, labelled_groups, metrics_of
from .tables import basis, block_table, is_secondary, measure_heading, metrics_table, quality_cell

TEMPERATURES = (
    "A temperature T divides the logits; it is fitted on val/calibrate and kept under shift. A "
    "temperature above 1 makes predictions less confident, and can calibrate an over-confident "
    "single model as well as an ensemble, so both are shown before and after scaling. Pooled "
    "scales the ensemble's own prediction and changes none of its answers; joint scales all "
    "members alike before pooling; member calibrates each member before pooling, which usually "
    "leaves the ensemble under-confident. For a single model the three coincide. A T of 0.05 or 20 "
    "is the end of the search: the validation images were too few, or all classified correctly, "
    "and the value cannot be relied on."
)
"""What a reader of the temperatures must know."""

SETS = (
    "A conformal set contains every class whose score is at most a threshold, fitted on "
    "val/conform so that at least 90 % of the sets contain the label on images of the same "
    "distribution, whatever the network; there is no coverage guarantee under shift. With n images "
    "to fit on, the coverage on test images varies from one draw of these to the next, with a "
    "standard deviation of about sqrt(0.09 / n). Smaller sets say more, at equal coverage. LAC "
    "makes the smallest sets and may leave some empty; APS and RAPS adapt them to the image."
)
"""What a reader of prediction sets must know."""


def calibration_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield metrics before and after temperature scaling, and further calibration errors."""
    for group in labelled_groups(comparison):
        known = metrics_of(comparison, group)
        if any(metric_info(metric).scope == "temperature" for metric in known):
            yield _temperature_table(comparison, group)
        metrics = metrics_with(topic="calibration")
        yield from _chosen(comparison, group, metrics, ", calibration errors")


def _temperature_table(comparison: Comparison, group: SplitGroup) -> Table:
    """Make a block of methods for raw predictions, and one for each way to scale them."""
    blocks, last = {"raw": [(group, metric) for metric in SCALED]}, {"raw": ""}
    for way in WAYS:
        found = {metric_info(m).measure: m for m in metrics_with(scope="temperature", way=way)}
        blocks[f"T {way}"] = [(group, found[metric]) for metric in SCALED]
        last[f"T {way}"] = found.get("temperature", "")
    heads = ("Temperature", *map(directed_label, SCALED), "T")
    title = f"{group.title}, before and after temperature scaling"
    table = block_table(comparison, title, basis(comparison, group), blocks, heads)
    methods = {method.name: method for method in comparison.methods}
    rows = []
    for row in table.rows:
        cell = Cell("1") if row.group == "raw" else Cell("one per member", mark="missing")
        if metric := last[row.group]:
            cell = quality_cell(methods[row.head], group, metric)
        rows.append(replace(row, cells=(*row.cells, cell)))
    return replace(table, rows=tuple(rows))


def selection_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield the secondary metrics of selective prediction beside the primary ones."""
    for group in labelled_groups(comparison):
        metrics = ("aurc", "augrc", *metrics_with(topic="selection", role="secondary"))
        yield from _chosen(comparison, group, metrics, ", selection")


def _chosen(
    comparison: Comparison, group: SplitGroup, metrics: Sequence[str], note: str
) -> Iterator[Table]:
    """Yield those metrics that were measured, where some of them have no other table."""
    known = set(metrics_of(comparison, group))
    if any(metric in known and is_secondary(metric) for metric in metrics):
        yield metrics_table(comparison, group, [m for m in metrics if m in known], note)


def set_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield coverage and size of conformal sets, with a block per nonconformity score."""
    known = metrics_with(scope="conformal")
    for group in labelled_groups(comparison):
        if set(known).isdisjoint(metrics_of(comparison, group)):
            continue
        blocks: dict[str, list[tuple[SplitGroup, str]]] = {}
        for metric in known:
            blocks.setdefault(metric_info(metric).score_label, []).append((group, metric))
        labels = (measure_heading(metric) for _, metric in next(iter(blocks.values())))
        title, where = f"{group.title}, conformal sets", basis(comparison, group)
        yield block_table(comparison, title, where, blocks, ("Score", *labels))
