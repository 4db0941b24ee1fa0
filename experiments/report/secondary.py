"""Tables of what is not judged: calibration, selection, conformal sets, diversity and cost."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from ...metrics.calibration.temperature import WAYS
from ...metrics.core.catalogue import metric_info, metrics_with
from ..comparison.formatting import listed
from ..comparison.single_models import ensembles_of, plain_single
from ..comparison.verdicts import Comparison, MethodSummary
from ..cost.axes import AXES, Axis
from ..cost.measurement import Cost
from ..evaluation.temperatures import SCALED
from .model import Cell, Notes, Row, Table, Text
from .splits import (
    SplitGroup,
    count_range,
    directed_label,
    groups_by_kind,
    image_counts,
    labelled_groups,
    metrics_of,
    replicate_range,
)
from .tables import basis, block_table, is_secondary, measure_heading, metrics_table, quality_cell

TEMPERATURES = (
    "A temperature T divides the logits; it is fitted on val/calibrate and kept under shift. A "
    "temperature above 1 makes predictions less confident, and can calibrate an over-confident "
    "single model as well as an ensemble, so both are shown before and after scaling. Pooled "
    "scales the ensemble's own prediction and changes none of its answers; joint scales all "
    "members alike before pooling; member calibrates each member before pooling, which usually "
    "leaves the ensemble under-confident. For a single model the three coincide. A T at the end of "
    "its search, 0.05 or 20, or of images that are all classified correctly, is not identified: it "
    "is neither used nor judged."
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


def calibration_tables(comparison: Comparison) -> Iterator[Table | Notes]:
    """Yield metrics before and after temperature scaling, and further calibration errors."""
    yield from _not_identified(comparison, WAYS)
    for group in labelled_groups(comparison):
        known = metrics_of(comparison, group)
        if any(metric_info(metric).scope == "temperature" for metric in known):
            yield _temperature_table(comparison, group)
        metrics = metrics_with(topic="calibration")
        yield from _chosen(comparison, group, metrics, ", calibration errors")


def _not_identified(comparison: Comparison, keys: Collection[str]) -> Iterator[Notes]:
    """Say of which methods temperatures, or conformal sets, are not identified, and why."""
    reasons: dict[str, dict[str, None]] = {}
    for method in comparison.methods:
        for replicate in method.replicates:
            for key, why in replicate.unidentified.items():
                if key in keys:
                    reasons.setdefault(why, {})[method.name] = None
    if reasons:
        said = (f"{listed([*names])}: not identified ({why})." for why, names in reasons.items())
        yield Notes(tuple(said))


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


def set_tables(comparison: Comparison) -> Iterator[Table | Notes]:
    """Yield coverage and size of conformal sets, with a block per nonconformity score."""
    yield from _not_identified(comparison, ("conformal",))
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


DIVERSITY = (
    "How much the members of an ensemble differ: in their answers (disagreement, pairwise KL, "
    "cosine), in their errors (double fault, Q, correlation) and in the features that they use "
    "(the cosine between their input gradients: 1 is the same direction, 0 an unrelated one). "
    "Diversity is not good by itself: an ensemble's NLL is its members' mean NLL minus the Jensen "
    "gap, and its Brier score theirs minus the ambiguity, so diversity helps only where the gap "
    "grows by more than the members get worse. A single model has no diversity and is not in the "
    "tables."
)
LACKING = (
    "Some of these numbers were not measured when the runs were evaluated: `deepens evaluate RUN "
    "--predict` on each run, then `deepens report`, adds them."
)
_DIFFER = (
    *("disagreement", "normalized_disagreement", "ensemble_improvement_rate"),
    *("pairwise_kl", "cosine_similarity"),
    *("double_fault", "q_statistic", "error_correlation", "input_gradient_similarity"),
)
_NLL = ("mean_member_nll", "jensen_gap", "nll")
_BRIER = ("mean_member_brier", "brier_ambiguity", "brier")
_UNLABELLED = ("pairwise_kl", "cosine_similarity", "input_gradient_similarity")


def diversity_tables(comparison: Comparison) -> Iterator[Table | Text]:
    """Yield the tables: in distribution, then means over the shifted, the near and the far splits.

    OOD images that were encoded a second time are a kind of their own.
    """
    ensembles = ensembles_of(comparison.methods)
    lacking = False
    for group in groups_by_kind(comparison):
        metrics = [
            metric
            for part in (_DIFFER, _NLL, _BRIER)
            for metric in part
            if _measured(ensembles, group, metric) and _measured(ensembles, group, part[0])
        ]
        if metrics:
            yield _diversity_table(comparison, group, metrics, ensembles)
            lacking = lacking or _lacks(group, ensembles)
    if lacking and "gradients" not in comparison.unmeasured:
        yield Text(LACKING)


def _diversity_table(
    comparison: Comparison,
    group: SplitGroup,
    metrics: Sequence[str],
    ensembles: Sequence[MethodSummary],
) -> Table:
    table = metrics_table(comparison, group, metrics, ", diversity", ensembles)
    rows = []
    for row, method in zip(table.rows, ensembles, strict=True):
        cells = []
        for metric, cell in zip(metrics, row.cells, strict=True):
            known = _measured((method,), group, metric)
            shown = replace(cell, best=False)  # no diversity is the best one
            cells.append(shown if known else Cell("not measured", mark="missing"))
        rows.append(replace(row, cells=tuple(cells)))
    return replace(table, rows=tuple(rows), basis=_basis(comparison, group, ensembles))


def _lacks(group: SplitGroup, ensembles: Sequence[MethodSummary]) -> bool:
    """Tell whether some run was evaluated without some of the numbers."""
    wanted = _UNLABELLED if group.name.is_ood else metrics_with(role="diversity")
    return not all(
        metric in replicate.metrics.get(split, {})
        for method in ensembles
        for replicate in method.replicates
        for split in group.splits
        for metric in wanted
    )


def _measured(methods: Sequence[MethodSummary], group: SplitGroup, metric: str) -> bool:
    return any(
        all(metric in replicate.metrics.get(split, {}) for split in group.splits)
        for method in methods
        for replicate in method.replicates
    )


def _basis(comparison: Comparison, group: SplitGroup, methods: Sequence[MethodSummary]) -> str:
    """State how many images each value rests on, gradients by themselves, and the replicates."""
    key, word = ("n_ood", "OOD images") if group.name.is_ood else ("n", "images")
    each, parts = " in each" if len(group.splits) > 1 else "", []
    if images := image_counts(comparison, group, key):
        parts.append(f"n = {count_range(images)} {word}{each}")
    if gradients := image_counts(comparison, group, "n_gradients"):
        parts.append(f"input gradients on {count_range(gradients)}{each}")
    return ", ".join([*parts, replicate_range(methods)])


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
    cells = {
        m.name: tuple(_cost_cell(axis, m.cost, reference.cost) for axis in axes) for m in methods
    }
    rows = tuple(Row(m.name, cells[m.name], m.description) for m in methods)
    where = f"\N{MULTIPLICATION SIGN} relative to {reference.name}"
    table = Table("Cost of each method", where, ("Method", *(axis.label for axis in axes)), rows)
    known = any("energy" in axis.key for axis in axes)
    return table, Text(_ENERGY_KNOWN if known else _ENERGY_UNKNOWN)


def _cost_cell(axis: Axis, cost: Cost, reference: Cost) -> Cell:
    amount, base = axis.of(cost), axis.of(reference)
    if not math.isfinite(amount):
        word = "counted" if axis.basis.startswith("counted") else "measured"
        return Cell(f"not {word}", mark="missing", value=math.nan)
    ratio = f"\N{MULTIPLICATION SIGN} {amount / base:.2f}" if math.isfinite(base) else ""
    return Cell(axis.text(amount), ratio, value=amount)
