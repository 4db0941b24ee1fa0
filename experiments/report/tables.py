"""Tables of methods by metrics: mean and standard deviation over replicates, the best one marked.

Every section that lists results uses these, so that a number reads the same everywhere.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...metrics.core.catalogue import DETECTION_MEASURES, detection_key, metric_info
from ..comparison.formatting import number, plus_minus
from ..comparison.single_models import is_single
from ..comparison.verdicts import Comparison, MethodSummary
from .model import Cell, Folded, Row, Table
from .splits import (
    SplitGroup,
    count_range,
    directed_label,
    direction_arrow,
    higher_is_better,
    image_counts,
    mean_and_spread,
    metrics_of,
    replicate_range,
    severity_groups,
    split_groups,
)

OOD_SCORES = (
    "Verdicts, histograms and ROC curves use scores that every method has (maximum softmax "
    "probability and predictive entropy). Other scores are reported as means over replicates "
    "without intervals; those that compare members are not defined for a single model."
)
"""What a reader of the tables of OOD detection must know."""


def is_secondary(metric: str) -> bool:
    """Tell whether a metric has a table of its own and no verdict."""
    return metric_info(metric).role in ("secondary", "diversity")


def compared_metrics(comparison: Comparison, group: SplitGroup) -> list[str]:
    """List the metrics on a group by which methods are compared."""
    return [metric for metric in metrics_of(comparison, group) if not is_secondary(metric)]


def says_nothing(method: MethodSummary, metric: str) -> bool:
    """Tell whether a metric is not defined for a method that is one network.

    Such are OOD scores that compare members, diversity, and what is reported by member.
    """
    info = metric_info(metric)
    several = info.role == "diversity" or (info.scope == "detection" and info.needs_members)
    return several and is_single(method)


def best_mean(comparison: Comparison, group: SplitGroup, metric: str) -> float:
    """Return the best of the methods' means, NaN where there is none or all are equal."""
    direction = higher_is_better(metric)
    means = (
        mean_and_spread(method.values(group.splits, metric))[0]
        for method in comparison.methods
        if not says_nothing(method, metric)
    )
    finite = {mean for mean in means if math.isfinite(mean)}
    if direction is None or len(finite) < 2:
        return math.nan
    return max(finite) if direction else min(finite)


def spread_cell(values: Sequence[float], best: float = math.nan, missing: int = 0) -> Cell:
    """Write mean ± sd over replicates, marked where it is the best, and how many are undefined."""
    if not values:
        return Cell("undefined", mark="missing", value=math.nan)
    mean, sd = mean_and_spread(values)
    note = f"{plus_minus(mean, sd)} {f'({missing} undefined)' if missing else ''}".strip()
    return Cell(number(mean), note, value=mean, best=mean == best)


def why_not_identified(method: MethodSummary, metric: str) -> str:
    """Why a method's temperature or conformal sets, by which a metric is, were not used."""
    info = metric_info(metric)
    key = "conformal" if info.scope == "conformal" else info.way
    reasons = [each.unidentified.get(key, "") for each in method.replicates]
    return next(filter(None, reasons), "")


def quality_cell(
    method: MethodSummary, group: SplitGroup, metric: str, best: float = math.nan
) -> Cell:
    """Write mean ± sd over a method's replicates, marked where the mean is the best one."""
    values = [] if says_nothing(method, metric) else method.values(group.splits, metric)
    if not values and (reason := why_not_identified(method, metric)):
        return Cell("not identified", mark="missing", value=math.nan, title=reason)
    return spread_cell(values, best, len(method.replicates) - len(values))


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

    ``blocks`` maps the name of each block to the split and metric of each of its columns;
    ``heads`` are of the column of blocks, then of the metrics.
    """
    rows = []
    for name, columns in blocks.items():
        best = [best_mean(comparison, *column) for column in columns]
        for method in comparison.methods:
            if not says_nothing(method, columns[0][1]):
                places = zip(columns, best, strict=True)
                cells = tuple(quality_cell(method, *column, top) for column, top in places)
                rows.append(Row(method.name, cells, method.description, name))
    return Table(title, where, ("Method", *heads[1:]), tuple(rows), heads[0])


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
        for directed, note in ((True, ""), (False, ", without a direction")):
            if group.kind == "test" and (metrics := _plain_metrics(comparison, group, directed)):
                yield metrics_table(comparison, group, metrics, note)


def _plain_metrics(comparison: Comparison, group: SplitGroup, directed: bool = True) -> list[str]:
    """List the metrics that have a direction, or those that have none, and no other table."""
    found = compared_metrics(comparison, group)
    return [metric for metric in found if (higher_is_better(metric) is not None) == directed]


def shift_tables(comparison: Comparison) -> Iterator[Table | Folded]:
    """Yield the mean over all shifted splits and, folded, over those of each severity."""

    def table(group: SplitGroup) -> Table:
        return metrics_table(comparison, group, _plain_metrics(comparison, group))

    yield from (table(group) for group in split_groups(comparison) if group.kind == "shift")
    severities = severity_groups(comparison)
    if len(severities) > 1:
        yield Folded("Each severity, as a table", "", tuple(map(table, severities)))


def detection_tables(comparison: Comparison) -> Iterator[Table | Folded]:
    """Yield OOD detection in rows of score and method; sets that a mean covers are folded."""
    groups = [g for g in split_groups(comparison) if g.name.is_ood]
    means = {split for group in groups if len(group.splits) > 1 for split in group.splits}
    covered = [g for g in groups if len(g.splits) == 1 and g.splits[0] in means]
    shown = [g for g in groups if g not in covered]
    yield from filter(None, (_detection_table(comparison, g, compared=True) for g in shown))
    more = tuple(filter(None, (_detection_table(comparison, g, compared=False) for g in shown)))
    if more:
        yield Folded("Other scores", "", more)
    if covered:
        metrics = [metric for group in covered for metric in metrics_of(comparison, group)]
        blocks = {
            label: [(group, detection_key("auroc", score, by_member=own)) for group in covered]
            for label, score, own in _scores(metrics)
        }
        heads = ("Score", *(group.title for group in covered))
        where = replicate_range(comparison.methods)
        title = f"{measure_heading('auroc_msp')} of each set"
        table = block_table(comparison, title, where, blocks, heads)
        yield Folded("Each set alone", f"{len(covered)} sets", (table,))


def _detection_table(comparison: Comparison, group: SplitGroup, *, compared: bool) -> Table | None:
    """Make all measures of a group, by the scores that are compared or by all others."""
    known = metrics_of(comparison, group)
    measured = {metric_info(metric).measure for metric in known}
    measures = [measure for measure in DETECTION_MEASURES if measure in measured]
    scores = _scores(metric for metric in known if is_secondary(metric) != compared)
    if not scores:
        return None
    blocks = {
        label: [(group, detection_key(measure, score, by_member=own)) for measure in measures]
        for label, score, own in scores
    }
    heads = ("Score", *(measure_heading(detection_key(m, scores[0][1])) for m in measures))
    title = group.title + ("" if compared else ", other scores")
    return block_table(comparison, title, basis(comparison, group), blocks, heads)


def _scores(metrics: Iterable[str]) -> list[tuple[str, str, bool]]:
    """List the OOD scores that metrics measure: label, key, and whether it is by member."""
    infos = [info for info in map(metric_info, metrics) if info.measure in DETECTION_MEASURES]
    infos.sort(key=lambda info: DETECTION_MEASURES.index(info.measure))
    return list(dict.fromkeys((info.score_label, info.score, info.by_member) for info in infos))


def measure_heading(metric: str) -> str:
    """Return a measure's heading, without the score: ``AUROC ↑``."""
    return metric_info(metric).measure_label + direction_arrow(metric)
