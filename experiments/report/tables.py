"""The tables that give an overview: quality, OOD detection, shift and cost."""

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from ...metrics.core.catalogue import DETECTION_MEASURES, detection_key, metric_info
from ..comparison.verdicts import Comparison, MethodSummary
from .splits import (
    SplitGroup,
    count_range,
    directed_label,
    direction_arrow,
    higher_is_better,
    image_counts,
    is_single,
    kind_of,
    mean_and_spread,
    method_values,
    metrics_of,
    number,
    replicates_told,
    severity_groups,
    split_groups,
    spread_beside,
)

OOD_SCORES = (
    "Verdicts, histograms and ROC curves use scores that every method has (MSP, predictive "
    "entropy). The other scores, in the tables, are told as means over replicates, without "
    "intervals; those that compare members say nothing of a single model."
)
"""What a reader of the tables of OOD detection must know."""

_WORD = ' class="word"'


def quality_tables(comparison: Comparison) -> str:
    """Write the tables of the test images: mean ± sd over replicates, the best mean marked.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where no method was tested.
    """
    return "\n".join(
        _quality_table(comparison, group, directed=directed, note=note)
        for group in split_groups(comparison)
        if group.splits == ("test",)
        for directed, note in ((True, ""), (False, ", without a direction"))
    )


def has_own_table(metric: str) -> bool:
    """Tell whether a metric has a table of its own, beside the tables of quality."""
    return metric_info(metric).role in ("secondary", "diversity")


def is_compared(metric: str) -> bool:
    """Tell whether methods are compared by a metric: other OOD scores have tables of their own."""
    return not has_own_table(metric)


def shift_tables(comparison: Comparison) -> str:
    """Write the mean over all shifted splits and, folded, over those of each severity.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where there are no shifted splits.
    """
    means = [group for group in split_groups(comparison) if kind_of(group.splits[0]) == "shift"]
    tables = [_quality_table(comparison, group) for group in means]
    severities = severity_groups(comparison)
    if len(severities) > 1:
        parts = "\n".join(_quality_table(comparison, group) for group in severities)
        tables.append(_folded("Each severity, as a table", parts))
    return "\n".join(tables)


def detection_tables(comparison: Comparison) -> str:
    """Write OOD detection in rows of score and method; sets that a mean covers are folded.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where there are no OOD sets.
    """
    groups = [
        g for g in split_groups(comparison) if kind_of(g.splits[0]) in ("near_ood", "far_ood")
    ]
    means = {split for group in groups if len(group.splits) > 1 for split in group.splits}
    covered = [g for g in groups if len(g.splits) == 1 and g.splits[0] in means]
    shown = [g for g in groups if g not in covered]
    parts = [_detection_table(comparison, group, compared=True) for group in shown]
    more = [_detection_table(comparison, group, compared=False) for group in shown]
    if any(more):
        parts.append(_folded("Other scores", "\n".join(filter(None, more))))
    if covered:
        alone = _sets_table(comparison, covered, "auroc")
        parts.append(_folded(f"Each set alone <span>{len(covered)} sets</span>", alone))
    return "\n".join(parts)


def _folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n{body}\n</details>"


def _detection_table(comparison: Comparison, group: SplitGroup, *, compared: bool) -> str:
    """Write all measures of a group, by the scores that are compared or by all others."""
    found = metrics_of(comparison, group)
    infos = [metric_info(metric) for metric in found]
    measures = [m for m in DETECTION_MEASURES if any(info.measure == m for info in infos)]
    scores = _scores(metric for metric in found if is_compared(metric) == compared)
    if not scores:
        return ""
    rows = [
        row
        for score in scores
        for row in _score_rows(
            comparison, score, [(group, _key(measure, score)) for measure in measures]
        )
    ]
    heads = [_heading(_key(measure, scores[0])) for measure in measures]
    title = group.title + ("" if compared else ", other scores")
    return table_html(title, basis(comparison, group), ["Score", "Method", *heads], rows)


def _sets_table(comparison: Comparison, groups: Sequence[SplitGroup], measure: str) -> str:
    """Write one measure of each set, a column a set."""
    found = [metrics_of(comparison, group) for group in groups]
    scores = _scores(dict.fromkeys(metric for metrics in found for metric in metrics))
    rows = [
        row
        for score in scores
        for row in _score_rows(comparison, score, [(g, _key(measure, score)) for g in groups])
    ]
    heads = [group.title for group in groups]
    title = f"{_heading(_key(measure, scores[0]))} of each set"
    told = replicates_told(comparison.methods)
    return table_html(title, told, ["Score", "Method", *heads], rows)


_Score = tuple[str, bool]
"""An OOD score, and whether it is measured by member."""


def _scores(metrics: Iterable[str]) -> list[_Score]:
    """List the OOD scores that metrics measure."""
    infos = [metric_info(metric) for metric in metrics]
    return list(
        dict.fromkeys(
            (info.score, info.by_member)
            for measure in DETECTION_MEASURES
            for info in infos
            if info.measure == measure
        )
    )


def _key(measure: str, score: _Score) -> str:
    return detection_key(measure, score[0], by_member=score[1])


def _score_rows(
    comparison: Comparison, score: _Score, columns: Sequence[tuple[SplitGroup, str]]
) -> Iterator[list[str]]:
    """Yield the methods' rows for one score, the first of which names it."""
    best = [best_mean(comparison, group, metric) for group, metric in columns]
    methods = [m for m in comparison.methods if not says_nothing(m, columns[0][1])]
    name = metric_info(columns[0][1]).score_label
    for index, method in enumerate(methods):
        first = f'<th scope="rowgroup" rowspan="{len(methods)}">{escape(name)}</th>'
        cells = [
            quality_cell(method, group, metric, top)
            for (group, metric), top in zip(columns, best, strict=True)
        ]
        yield [*([] if index else [first]), method_cell(method), *cells]


def _heading(metric: str) -> str:
    """Return a measure's heading, without the score: ``AUROC ↑``."""
    return metric_info(metric).measure_label + direction_arrow(metric)


def _quality_table(
    comparison: Comparison, group: SplitGroup, *, directed: bool = True, note: str = ""
) -> str:
    """Write the metrics that have a direction, or those that have none and no other table."""
    metrics = [
        metric
        for metric in metrics_of(comparison, group)
        if (higher_is_better(metric) is not None) == directed and not has_own_table(metric)
    ]
    return metrics_table(comparison, group, metrics, note) if metrics else ""


def metrics_table(
    comparison: Comparison, group: SplitGroup, metrics: Sequence[str], note: str
) -> str:
    """Write one row a method and one column a metric, the best mean of each column marked."""
    best = {metric: best_mean(comparison, group, metric) for metric in metrics}
    rows = []
    for method in comparison.methods:
        cells = [quality_cell(method, group, metric, best[metric]) for metric in metrics]
        rows.append([method_cell(method), *cells])
    heads = [directed_label(metric) for metric in metrics]
    return table_html(group.title + note, basis(comparison, group), ["Method", *heads], rows)


def basis(comparison: Comparison, group: SplitGroup) -> str:
    """Write on how many images and replicates a table rests."""
    return f"{_images(comparison, group)}, {replicates_told(comparison.methods)}"


def best_mean(comparison: Comparison, group: SplitGroup, metric: str) -> float:
    """Return the best of the methods' means, NaN where there is none."""
    direction = higher_is_better(metric)
    means = [
        mean_and_spread(method_values(method, group, metric))[0]
        for method in comparison.methods
        if not says_nothing(method, metric)
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    if direction is None or len(set(finite)) < 2:  # none, one, or all alike: there is no best
        return math.nan
    return max(finite) if direction else min(finite)


def quality_cell(method: MethodSummary, group: SplitGroup, metric: str, best: float) -> str:
    """Write mean ± sd over a method's replicates, marked where the mean is the best one."""
    values = method_values(method, group, metric)
    mean, spread = mean_and_spread(values)
    if not values:
        return '<td class="none">undefined</td>'
    text = number(mean)
    if math.isfinite(spread):
        text += f" <small>± {spread_beside(mean, spread)}</small>"
    missing = len(method.replicates) - len(values)
    if missing:
        text += f" <small>({missing} undefined)</small>"
    if mean == best:
        return f'<td class="best"><span title="best mean">★</span> {text}</td>'
    return f"<td>{text}</td>"


def says_nothing(method: MethodSummary, metric: str) -> bool:
    """Tell whether a value says nothing of one network, which has no others to differ from.

    Its OOD score by mutual information is a constant, as is how much its members differ, and what
    is told by member is told of the whole already.

    Args:
        method: The method.
        metric: The metric's key.

    Returns:
        Whether the value is to be left out.
    """
    info = metric_info(metric)
    several = info.role == "diversity" or (info.scope == "detection" and info.needs_members)
    return several and is_single(method)


def _images(comparison: Comparison, group: SplitGroup) -> str:
    """State how many images each replicate's values rest on."""
    kinds = (("n", "images"), ("n_id", "test images"), ("n_ood", "OOD images"))
    found = {kind: image_counts(comparison, group, key) for key, kind in kinds}
    told = " and ".join(f"{count_range(counts)} {kind}" for kind, counts in found.items() if counts)
    each = " in each" if len(group.splits) > 1 else ""
    return f"n = {told}{each}" if told else "number of images unknown"


def cost_table(comparison: Comparison) -> str:
    """Write what each method costs, and how much that is relative to the reference.

    The reference is the method called ``single``, or else the one with the fewest MACs. Energy and
    what training computed have columns where they are known of at least one method.

    Args:
        comparison: What was measured.

    Returns:
        HTML.
    """
    if not comparison.methods:
        return ""
    named = [method for method in comparison.methods if method.name == "single"]
    reference = named[0] if named else min(comparison.methods, key=lambda m: m.cost.macs)
    costs = {method.name: _costs(method) for method in comparison.methods}
    known = {
        column
        for told in costs.values()
        for column, (amount, _) in told.items()
        if column not in _OPTIONAL or math.isfinite(amount)
    }
    base = {column: told for column, told in costs[reference.name].items() if column in known}
    rows = []
    for method in comparison.methods:
        cells = []
        for name in base:
            amount, text = costs[method.name][name]
            if not math.isfinite(amount):
                cells.append(f'<td class="none">not {_HOW_KNOWN.get(name, "measured")}</td>')
                continue
            reference_amount = base[name][0]
            relative = f" <small>&times; {amount / reference_amount:.2f}</small>"
            compared = math.isfinite(reference_amount) and reference_amount > 0
            cells.append(f"<td>{text}{relative if compared else ''}</td>")
        rows.append([method_cell(method), *cells])
    basis = f"\N{MULTIPLICATION SIGN} relative to {reference.name}"
    table = table_html("Cost of each method", basis, ["Method", *base], rows)
    told = ENERGY_TOLD if known & set(_ENERGY) else ENERGY_UNKNOWN
    return f"{table}\n<p>{escape(told)}</p>"


ENERGY_TOLD = (
    "Energy is what the machine's processor packages, or its GPU with them, used meanwhile, by "
    "their own counters: also for other work, and when idle."
)
ENERGY_UNKNOWN = (
    "There is no energy here: the counters of the machine that was measured cannot be read, or an "
    "earlier version made these files."
)
_ENERGY = ("Training energy", "Energy per image")
_OPTIONAL = ("Training MACs", *_ENERGY)
"""Columns that are left out where nothing is known."""
_HOW_KNOWN = {"Training MACs": "counted"}
"""What is not measured."""


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
    return {
        "MACs per image": (float(cost.macs), _scaled(float(cost.macs))),
        "Parameters": (float(cost.parameters), _scaled(float(cost.parameters))),
        "Latency, batch 1": (cost.latency_ms_batch1, f"{cost.latency_ms_batch1:.3g} ms"),
        "Latency per image, batch 256": (
            cost.latency_ms_batch256,
            f"{cost.latency_ms_batch256:.3g} ms",
        ),
        "Peak memory": (
            float(cost.peak_memory_bytes),
            f"{cost.peak_memory_bytes / 2**20:,.1f} MiB",
        ),
        "Training time": (seconds, _duration(seconds)),
        "Training MACs": (macs, _scaled(macs)),
        "Training energy": (joules, _energy(joules)),
        "Energy per image": (joules_per_image, f"{1e3 * joules_per_image:.3g} mJ"),
    }


def _scaled(amount: float) -> str:
    """Write a count with three digits and a unit: 12.3 M."""
    units = (" E", " P", " T", " G", " M", " k")
    for size, unit in zip((1e18, 1e15, 1e12, 1e9, 1e6, 1e3), units, strict=True):
        if abs(amount) >= size:
            return f"{amount / size:.3g}{unit}"
    return f"{amount:g}"


def _energy(joules: float) -> str:
    return f"{joules:.3g} J" if joules < 1e3 else f"{_scaled(joules)}J"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def method_cell(method: MethodSummary) -> str:
    """Write a method's name as the head of its row."""
    return f'<th scope="row" title="{escape(method.description)}">{escape(method.name)}</th>'


def table_html(title: str, basis: str, heads: list[str], rows: list[list[str]]) -> str:
    """Write a table that scrolls sideways in its own frame, where keyboards reach it too."""
    head = "".join(
        f'<th scope="col"{_WORD if cell == "Method" else ""}>{escape(cell)}</th>' for cell in heads
    )
    lines = []
    for row in rows:
        begins = ' class="begins"' if 'scope="rowgroup"' in row[0] else ""
        lines.append(f"<tr{begins}>{''.join(row)}</tr>")
    body = "\n".join(lines)
    named = escape(title)
    return (
        f"<h3>{named} <span>{escape(basis)}</span></h3>\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{named}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n</div>"
    )
