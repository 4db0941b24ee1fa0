"""The section that holds ensembles against the frontier of single models."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from ...metrics.statistics.gain_correlation import CorrelationInterval
from ..comparison.frontier import (
    FRONTIER_METRICS,
    ConditionalDiversity,
    EnsembleGaps,
    Gap,
    Robustness,
    conditional_diversity,
    ensembles_of,
    frontier_gaps,
    robustness,
    single_models,
    splits_of,
)
from ..comparison.gains import GainTable, gain_table
from ..comparison.verdicts import Comparison
from .splits import (
    directed_label,
    mean_and_spread,
    metric_label,
    number,
    replicates_told,
    signed,
    split_title,
    spread_beside,
)
from .tables import method_cell, table_html

GAPS = (
    "Is an ensemble better than one network of its cost? Its metric less what single models reach "
    "at the same MACs, drawn as a straight line, in log MACs, between the single models next "
    "cheaper and next dearer (those of one cost count by their mean). In brackets is the 95 % "
    "interval, from the spread of replicates, not of images. ✓ the ensemble is better and ✗ worse, "
    "at 5 % by Holm's method for all its gaps; ○ neither is shown."
)
"""What the gaps at equal cost are, on the page and in Markdown."""

GAINS = (
    "Does an ensemble improve the same images as a larger network of its cost? A gain is the loss "
    "on one test image less that of a base network. Ensemble and large is the correlation of the "
    "two gains over images; beside it stands what two ensembles reach, and two large networks, "
    "trained apart: as much means the same images, near 0 means others. 95 % intervals are of the "
    "bootstrap over images."
)
ROBUSTNESS = (
    "Is an ensemble more accurate under shift than its accuracy on test images lets expect? "
    "Accuracy under shift less that of the line through the single models, in logits; above 0 is "
    "more robust. The 95 % interval, of the bootstrap over single models, says how sure the line "
    "is, ± how replicates differ."
)
FEW_SINGLES = (
    "With fewer than about ten single models these intervals are too short: do not rely on them."
)
CONDITIONAL = (
    "Do members differ where it helps? Their disagreement and mutual information on the test "
    "images that the ensemble gets right, and on those that it gets wrong: the further apart the "
    "two, the better differing gives errors away."
)
_SIGNS = {"better": "✓", "worse": "✗", "undecided": "○"}
_ENOUGH_SINGLES = 10


def analysis_html(comparison: Comparison) -> str:
    """Write the tables: gaps at equal cost, gains, robustness, and where members differ.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where there are no ensembles or no single models.
    """
    if not ensembles_of(comparison) or not single_models(comparison):
        return ""
    parts = (
        ("At equal cost", GAPS, _gaps_html(comparison)),
        ("Gains on the same images", GAINS, _gains_html(gain_table(comparison))),
        ("Effective robustness", ROBUSTNESS, _robustness_html(robustness(comparison))),
        (
            "Members on right and wrong answers",
            CONDITIONAL,
            _conditional_html(conditional_diversity(comparison)),
        ),
    )
    return "\n".join(
        f"<h3>{title}</h3>\n<p>{escape(introduction)}</p>\n{body}"
        for title, introduction, body in parts
        if body
    )


def gap_tables(
    comparison: Comparison, found: Sequence[EnsembleGaps]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Lay out the gaps as plain text, a table a kind of images with a row a metric.

    Args:
        comparison: What was measured.
        found: Its gaps.

    Returns:
        Titles, heads and rows.
    """
    tables = []
    for kind, metrics in FRONTIER_METRICS.items():
        held = [
            (each, {gap.metric: gap for gap in each.gaps if gap.kind == kind}) for each in found
        ]
        here = [(each, gaps) for each, gaps in held if gaps]
        rows = [
            [directed_label(metric), *(_gap_text(gaps.get(metric)) for _, gaps in here)]
            for metric in metrics
            if any(metric in gaps for _, gaps in here)
        ]
        if rows:
            heads = ["Metric", *(each.method.name for each, _ in here)]
            tables.append((_title(kind, splits_of(comparison, kind)), heads, rows))
    return tables


def gap_notes(found: Iterable[EnsembleGaps]) -> list[str]:
    """Say which ensembles are compared with nothing, and why."""
    return [f"{each.method.name} is {_not_compared(each.beyond)}" for each in found if each.beyond]


def _not_compared(reason: str) -> str:
    return f"{reason}." if reason.startswith("beyond") else f"not compared, since {reason}."


def _title(kind: str, splits: Sequence[str]) -> str:
    if len(splits) == 1:
        return split_title(splits[0])
    return f"{split_title(kind)} (mean of {len(splits)})"


def _gap_text(gap: Gap | None) -> str:
    if gap is None:
        return "not measured"
    if gap.found is None:
        return "undefined"
    estimate, low, high = gap.found.estimate, gap.found.low, gap.found.high
    if not math.isfinite(low):
        return f"○ {signed([estimate])[0]}, interval unknown"
    shown, *ends = signed([estimate, low, high])
    return f"{_SIGNS[gap.outcome]} {shown} [{', '.join(ends)}]"


def _gaps_html(comparison: Comparison) -> str:
    found = frontier_gaps(comparison)
    told = replicates_told(comparison.methods)
    parts = []
    for title, heads, rows in gap_tables(comparison, found):
        body = [
            [f'<th scope="row">{escape(metric)}</th>', *map(_cell, cells)]
            for metric, *cells in rows
        ]
        parts.append(table_html(f"{title}, gap at equal MACs", told, heads, body))
    notes = "".join(f"<li>{escape(note)}</li>" for note in gap_notes(found))
    return "\n".join([*parts, *([f"<ul>{notes}</ul>"] if notes else [])])


def _cell(text: str) -> str:
    absent = ' class="none"' if text in ("undefined", "not measured") else ""
    shown, bracket, interval = text.partition(" [")
    below = f"<small>[{escape(interval)}</small>" if bracket else ""
    return f"<td{absent}>{escape(shown)}{below}</td>"


def _gains_html(table: GainTable) -> str:
    if table.reason:
        return f"<p>{escape(table.reason)}</p>"
    rows = []
    for row in table.rows:
        names = [method_cell(row.ensemble), f"<td>{escape(row.big.name)}</td>"]
        told = [f"<td>{escape(metric_label(row.loss))}</td>"]
        if row.found is None:
            told.append(f'<td class="none" colspan="4">{escape(row.reason)}</td>')
        else:
            found = (row.found.ensemble_big, row.found.ensemble_ensemble, row.found.big_big)
            told += [_cell(_correlation(each)) for each in found]
            told.append(f"<td>{row.replicates[0]} and {row.replicates[1]}</td>")
        rows.append([*names, *told])
    heads = ["Method", "Large network", "Loss", "Ensemble and large", "Two ensembles"]
    heads += ["Two large", "Replicates"]
    return table_html("Correlation of gains", "test images", heads, rows)


def _correlation(found: CorrelationInterval) -> str:
    values = (found.estimate, found.low, found.high)
    if not all(map(math.isfinite, values)):
        return "undefined"
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _robustness_html(found: Robustness | None) -> str:
    if found is None:
        return ""
    if found.reason:
        return f"<p>{escape(found.reason)}</p>"
    rows = []
    for each in found.ensembles:
        cell = f'<td class="none" colspan="2">{escape(each.reason)}</td>'
        if not each.reason:
            shown, *ends = signed([each.estimate, each.low, each.high])
            spread = mean_and_spread(each.replicates)[1]
            beside = f" ± {spread_beside(each.estimate, spread)}" if math.isfinite(spread) else ""
            cell = _cell(f"{shown}{beside} [{', '.join(ends)}]")
            cell += f"<td>{len(each.replicates)}</td>"
        rows.append([method_cell(each.method), cell])
    shifts = f"mean of {found.splits} shifted split{'' if found.splits == 1 else 's'}"
    basis = f"line of {found.singles} single models, {shifts}"
    table = table_html(
        "Accuracy beyond the line", basis, ["Method", "Effective robustness", "Replicates"], rows
    )
    few = found.singles < _ENOUGH_SINGLES
    return f"{table}\n<p>{escape(FEW_SINGLES)}</p>" if few else table


def _conditional_html(found: Sequence[ConditionalDiversity]) -> str:
    if not found:
        return ""
    rows = [
        [
            method_cell(each.method),
            *(
                _cell(_mean(half))
                for of in (each.disagreement, each.mutual_information)
                for half in of
            ),
        ]
        for each in found
    ]
    heads = [
        f"{metric_label(metric)}, {answer}"
        for metric in ("disagreement", "mutual_information")
        for answer in ("right", "wrong")
    ]
    told = f"test images, {replicates_told([each.method for each in found])}"
    return table_html("Diversity by the pooled answer", told, ["Method", *heads], rows)


def _mean(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    if not values:
        return "undefined"
    return number(mean) + (f" ± {spread_beside(mean, spread)}" if math.isfinite(spread) else "")
