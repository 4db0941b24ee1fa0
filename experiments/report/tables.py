"""Tables of methods by metrics: mean and standard deviation over replicates, the best one marked.

Every section that lists results uses these, so that a number reads the same everywhere.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...metrics.core.catalogue import (
    BY_MEMBER,
    DIVERSITY,
    OF_MEMBERS,
    TOLD_OF_CALIBRATION,
    TOLD_OF_SELECTION,
    TOLD_OF_SETS,
    TOLD_OF_TEMPERATURE,
)
from ..comparison.verdicts import Comparison, MethodSummary
from .model import Cell, Folded, Row, Table
from .splits import (
    SplitGroup,
    count_range,
    directed_label,
    higher_is_better,
    image_counts,
    is_single,
    kind_of,
    mean_and_spread,
    method_values,
    metrics_of,
    number,
    replicate_range,
    severity_groups,
    split_groups,
    spread_beside,
)

OOD_COMPARED = ("msp", "entropy", "mutual_information")
"""OOD scores that verdicts are about, or that ensembles are asked for first."""

OOD_SCORES = (
    "Verdicts, histograms and ROC curves use scores that every method has (maximum softmax "
    "probability and predictive entropy). Other scores are reported as means over replicates "
    "without intervals; those that compare members are not defined for a single model."
)
"""What a reader of the tables of OOD detection must know."""

_MEASURES = ("auroc", "aupr_out", "aupr_in", "fpr95")
_SECONDARY = frozenset(
    (*TOLD_OF_CALIBRATION, *TOLD_OF_TEMPERATURE, *TOLD_OF_SELECTION, *TOLD_OF_SETS, *DIVERSITY)
)


def is_secondary(metric: str) -> bool:
    """Tell whether a metric has a table of its own and no verdict."""
    return metric in _SECONDARY


def is_compared(metric: str) -> bool:
    """Tell whether methods are compared by a metric; other OOD scores have their own tables."""
    measure = next((m for m in _MEASURES if metric.startswith(f"{m}_")), "")
    score = metric.removeprefix(f"{measure}_")
    return score in OOD_COMPARED if measure else not is_secondary(metric)


def says_nothing(method: MethodSummary, metric: str) -> bool:
    """Tell whether a metric is not defined for a method that is one network.

    Such are OOD scores that compare members, diversity, and what is reported by member.
    """
    of_members = (BY_MEMBER, *(f"_{score}" for score in OF_MEMBERS))
    detection = metric.startswith(_MEASURES) and metric.endswith(of_members)
    return (detection or metric in DIVERSITY) and is_single(method)


def best_mean(comparison: Comparison, group: SplitGroup, metric: str) -> float:
    """Return the best of the methods' means, NaN where there is none or all are equal."""
    direction = higher_is_better(metric)
    means = (
        mean_and_spread(method_values(method, group, metric))[0]
        for method in comparison.methods
        if not says_nothing(method, metric)
    )
    finite = {mean for mean in means if math.isfinite(mean)}
    if direction is None or len(finite) < 2:
        return math.nan
    return max(finite) if direction else min(finite)


def quality_cell(
    method: MethodSummary, group: SplitGroup, metric: str, best: float = math.nan
) -> Cell:
    """Write mean ± sd over a method's replicates, marked where the mean is the best one."""
    values = method_values(method, group, metric)
    mean, spread = mean_and_spread(values)
    if not values or says_nothing(method, metric):
        return Cell("undefined", mark="missing", value=math.nan)
    missing = len(method.replicates) - len(values)
    notes = (
        f"± {spread_beside(mean, spread)}" if math.isfinite(spread) else "",
        f"({missing} undefined)" if missing else "",
    )
    note = " ".join(filter(None, notes))
    return Cell(number(mean), note, value=mean, best=mean == best)


def metrics_table(
    comparison: Comparison,
    group: SplitGroup,
    metrics: Sequence[str],
    note: str = "",
    methods: Sequence[MethodSummary] | None = None,
) -> Table:
    """Make one row per method and one column per metric, the best mean of each column marked."""
    best = {metric: best_mean(comparison, group, metric) for metric in metrics}
    rows = tuple(
        Row(
            method.name,
            tuple(quality_cell(method, group, metric, best[metric]) for metric in metrics),
            method.description,
        )
        for method in (comparison.methods if methods is None else methods)
    )
    heads = ("Method", *map(directed_label, metrics))
    return Table(group.title + note, basis(comparison, group), heads, rows)


def block_table(
    comparison: Comparison,
    title: str,
    where: str,
    blocks: Mapping[str, Sequence[tuple[SplitGroup, str]]],
    heads: tuple[str, ...],
) -> Table:
    """Make a block of rows per key, such as an OOD score, with one row per method.

    Args:
        comparison: What was measured.
        title: Of the table.
        where: On how many images and replicates it rests.
        blocks: Name of each block -> the split and metric of each of its columns.
        heads: Of the column of blocks, then of the metrics.
    """
    rows = [
        Row(method.name, cells, method.description, name)
        for name, columns in blocks.items()
        for method, cells in _block_rows(comparison, columns)
    ]
    return Table(title, where, ("Method", *heads[1:]), tuple(rows), heads[0])


def _block_rows(
    comparison: Comparison, columns: Sequence[tuple[SplitGroup, str]]
) -> Iterator[tuple[MethodSummary, tuple[Cell, ...]]]:
    best = [best_mean(comparison, *column) for column in columns]
    for method in comparison.methods:
        if not says_nothing(method, columns[0][1]):
            places = zip(columns, best, strict=True)
            yield method, tuple(quality_cell(method, *column, top) for column, top in places)


def basis(comparison: Comparison, group: SplitGroup) -> str:
    """Write on how many images and replicates a table rests."""
    kinds = (("n", "images"), ("n_id", "test images"), ("n_ood", "OOD images"))
    counts = {kind: image_counts(comparison, group, key) for key, kind in kinds}
    written = " and ".join(f"{count_range(each)} {kind}" for kind, each in counts.items() if each)
    each = " in each" if len(group.splits) > 1 else ""
    images = f"n = {written}{each}" if written else "number of images unknown"
    return f"{images}, {replicate_range(comparison.methods)}"


def quality_tables(comparison: Comparison) -> Iterator[Table]:
    """Yield the tables of the test images, metrics with a direction first."""
    for group in split_groups(comparison):
        if group.splits == ("test",):
            for directed, note in ((True, ""), (False, ", without a direction")):
                if metrics := _plain_metrics(comparison, group, directed):
                    yield metrics_table(comparison, group, metrics, note)


def _plain_metrics(comparison: Comparison, group: SplitGroup, directed: bool) -> list[str]:
    """List the metrics that have a direction, or those that have none, and no other table."""
    return [
        metric
        for metric in metrics_of(comparison, group)
        if (higher_is_better(metric) is not None) == directed and not is_secondary(metric)
    ]


def shift_tables(comparison: Comparison) -> Iterator[Any]:
    """Yield the mean over all shifted splits and, folded, over those of each severity."""
    for group in split_groups(comparison):
        if kind_of(group.splits[0]) == "shift":
            yield metrics_table(comparison, group, _plain_metrics(comparison, group, True))
    severities = severity_groups(comparison)
    if len(severities) > 1:
        parts = (
            metrics_table(comparison, g, _plain_metrics(comparison, g, True)) for g in severities
        )
        yield Folded("Each severity, as a table", "", tuple(parts))


def detection_tables(comparison: Comparison) -> Iterator[Any]:
    """Yield OOD detection in rows of score and method; sets that a mean covers are folded."""
    groups = [
        g for g in split_groups(comparison) if kind_of(g.splits[0]) in ("near_ood", "far_ood")
    ]
    means = {split for group in groups if len(group.splits) > 1 for split in group.splits}
    covered = [g for g in groups if len(g.splits) == 1 and g.splits[0] in means]
    shown = [g for g in groups if g not in covered]
    yield from filter(None, (_detection_table(comparison, g, compared=True) for g in shown))
    more = [_detection_table(comparison, group, compared=False) for group in shown]
    if any(more):
        yield Folded("Other scores", "", tuple(filter(None, more)))
    if covered:
        metrics = [metric for group in covered for metric in metrics_of(comparison, group)]
        blocks = {
            _parts(f"auroc_{score}")[1]: [(group, f"auroc_{score}") for group in covered]
            for score in _scores(metrics)
        }
        heads = ("Score", *(group.title for group in covered))
        where = replicate_range(comparison.methods)
        table = block_table(
            comparison, "AUROC\N{NO-BREAK SPACE}↑ of each set", where, blocks, heads
        )
        yield Folded("Each set alone", f"{len(covered)} sets", (table,))


def _detection_table(comparison: Comparison, group: SplitGroup, *, compared: bool) -> Table | None:
    """Make all measures of a group, by the scores that are compared or by all others."""
    known = metrics_of(comparison, group)
    measures = [m for m in _MEASURES if any(metric.startswith(f"{m}_") for metric in known)]
    scores = [s for s in _scores(known) if (s in OOD_COMPARED) == compared]
    if not scores:
        return None
    blocks = {
        _parts(f"{measures[0]}_{score}")[1]: [(group, f"{m}_{score}") for m in measures]
        for score in scores
    }
    heads = ("Score", *(_parts(f"{measure}_{scores[0]}")[0] for measure in measures))
    title = group.title + ("" if compared else ", other scores")
    return block_table(comparison, title, basis(comparison, group), blocks, heads)


def _scores(metrics: Iterable[str]) -> list[str]:
    """List the OOD scores that metrics measure."""
    known = list(metrics)
    return list(
        dict.fromkeys(
            metric.removeprefix(f"{measure}_")
            for measure in _MEASURES
            for metric in known
            if metric.startswith(f"{measure}_")
        )
    )


def _parts(metric: str) -> tuple[str, str]:
    """Return the measure's heading and the score's name: ``AUROC ↑`` and ``entropy``."""
    measure, _, rest = directed_label(metric).partition(" (")
    score, _, arrow = rest.partition(")")
    return f"{measure}{arrow}", score
