"""The one table of all results, a row a method, split and metric, to be sorted and filtered."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape

from ..comparison.verdicts import SHIFT, Comparison, MethodSummary, Verdict
from .splits import (
    SplitGroup,
    directed_label,
    image_counts,
    kind_of,
    mean_and_spread,
    method_values,
    metrics_of,
    number,
    severity_groups,
    signed,
    split_groups,
    spread_beside,
)
from .tables import is_compared, says_nothing
from .verdict_list import BADGES, has_interval, outcome_of

_COLUMNS = (
    ("Method", ""),
    ("Split", ""),
    ("Metric", ""),
    ("Mean", "mean over replicates"),
    ("± sd", "standard deviation over replicates, ddof 1"),
    ("Replicates", "how many the mean is taken over"),
    ("n", "images a replicate; for OOD detection, test and OOD images"),
    ("Difference [95 % interval]", "ensemble minus the single model of equal cost"),
    ("Outcome", ""),
)
_WORDS = ("Method", "Split", "Metric", "Outcome")
_RANKS = {"better": 0, "undecided": 1, "worse": 2}


@dataclass(frozen=True)
class _Row:
    """What one row tells.

    Attributes:
        method: Who was measured.
        group: On which images.
        metric: By which metric.
        values: One a replicate, undefined ones left out.
        verdict: The judgement of this very method, split and metric, if there is one.
    """

    method: MethodSummary
    group: SplitGroup
    metric: str
    values: list[float]
    verdict: Verdict | None


def results_table(comparison: Comparison) -> str:
    """Write all results in long form, with the fields that filter them.

    The fields are hidden until the page's script shows them: without it the table stays whole.

    Args:
        comparison: What was measured and concluded.

    Returns:
        HTML, or nothing where nothing was measured.
    """
    rows = list(_rows(comparison))
    if not rows:
        return ""
    heads = "".join(_head(name, title) for name, title in _COLUMNS)
    counts = {row.group.splits: _images(comparison, row.group) for row in rows}
    body = "\n".join(_row_html(row, counts[row.group.splits]) for row in rows)
    return (
        f"{_filters(rows)}\n"
        '<div class="scroll tall" tabindex="0" role="region" aria-label="All results">\n'
        f'<table id="results-table">\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>\n</div>"
    )


def _head(name: str, title: str) -> str:
    kind = "" if name in _WORDS else ' class="number"'
    explained = f' title="{title}"' if title else ""
    return f'<th scope="col"{kind}{explained}>{name}</th>'


def _rows(comparison: Comparison) -> Iterator[_Row]:
    """Yield the rows split by split, so that the methods to compare stand below each other."""
    judged = {
        (verdict.challenger, verdict.split, verdict.metric): verdict
        for verdict in comparison.judgements
    }
    for group, judged_as in _groups(comparison):
        for metric in filter(is_compared, metrics_of(comparison, group)):
            for method in comparison.methods:
                if says_nothing(method, metric):
                    continue
                values = method_values(method, group, metric)
                verdict = judged.get((method.name, judged_as, metric))
                yield _Row(method, group, metric, values, verdict)


def _groups(comparison: Comparison) -> Iterator[tuple[SplitGroup, str]]:
    """Yield the groups of the other tables, and behind the mean over shifts its severities.

    Beside each stands the split by which verdicts know it, nothing where there are none.
    """
    groups = split_groups(comparison)
    shown = {group.splits for group in groups}
    for group in groups:
        if kind_of(group.splits[0]) == SHIFT:
            yield group, SHIFT
            yield from ((g, "") for g in severity_groups(comparison) if g.splits not in shown)
        else:
            yield group, group.splits[0] if len(group.splits) == 1 else ""


def _row_html(row: _Row, images: tuple[str, int]) -> str:
    mean, spread = mean_and_spread(row.values)
    missing = len(row.method.replicates) - len(row.values)
    count = f"{len(row.values)} of {len(row.method.replicates)}" if missing else len(row.values)
    cells = (
        _cell(escape(row.method.name)),
        _cell(escape(row.group.title)),
        _cell(escape(directed_label(row.metric))),
        _cell(number(mean), mean),
        _cell(spread_beside(mean, spread) if math.isfinite(spread) else "", spread),
        _cell(str(count), len(row.values)),
        _cell(*images),
        *_judgement(row.verdict),
    )
    return f"<tr>{''.join(cells)}</tr>"


def _judgement(verdict: Verdict | None) -> Iterator[str]:
    """Yield the cells of the difference, with its interval, and of the outcome."""
    if verdict is None:
        yield "<td></td><td></td>"
        return
    values = (verdict.estimate, verdict.low, verdict.high)
    if has_interval(verdict):
        estimate, low, high = signed(values)
        yield _cell(f"{estimate} <small>[{low}, {high}]</small>", verdict.estimate)
    else:
        yield "<td></td>"
    outcome = outcome_of(verdict)
    against = escape(f"against {verdict.baseline}")
    rank = f' data-v="{_RANKS[outcome]}"' if outcome in _RANKS else ""
    yield (
        f'<td class="{outcome}"{rank} title="{against}">'
        f'<span class="badge">{BADGES[outcome]}</span></td>'
    )


def _cell(text: str, value: int | float | None = None) -> str:
    if value is None:
        return f"<td>{text}</td>"
    if not math.isfinite(value):
        return f'<td class="number none">{text}</td>'
    return f'<td class="number" data-v="{value:.9g}">{text}</td>'


def _images(comparison: Comparison, group: SplitGroup) -> tuple[str, int]:
    """Return the number of images as it is written, and of all splits together to sort it by."""
    counts = [image_counts(comparison, group, key) for key in ("n", "n_id", "n_ood")]
    known = [sorted({min(found), max(found)}) for found in counts if found]
    text = " + ".join(" to ".join(f"{count:,}" for count in found) for found in known)
    times = (
        f"{len(group.splits)} \N{MULTIPLICATION SIGN} " if len(group.splits) > 1 and text else ""
    )
    return f"{times}{text}", len(group.splits) * sum(found[-1] for found in known)


def _filters(rows: list[_Row]) -> str:
    choices: tuple[tuple[str, Callable[[_Row], str]], ...] = (
        ("Method", lambda row: row.method.name),
        ("Split", lambda row: row.group.title),
        ("Metric", lambda row: directed_label(row.metric)),
    )
    selects = "".join(_select(name, (value(row) for row in rows)) for name, value in choices)
    return (
        '<form id="filters" hidden>'
        '<label>Contains <input type="search" autocomplete="off"></label>'
        f'{selects}<button type="reset">Reset</button>'
        f'<output aria-live="polite">{len(rows):,} of {len(rows):,} rows</output></form>'
    )


def _select(name: str, values: Iterable[str]) -> str:
    # The value is given: a browser would take it from the text with its spaces collapsed.
    options = "".join(
        f'<option value="{escape(value)}">{escape(value)}</option>'
        for value in dict.fromkeys(values)
    )
    return f'<label>{name} <select><option value="">all</option>{options}</select></label>'
