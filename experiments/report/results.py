"""The one table of all results, a row per method, split and metric, to be sorted and filtered."""

import math
from collections.abc import Iterator

from ..comparison.formatting import number, plus_minus
from ..comparison.sentences import difference_text
from ..comparison.verdicts import SHIFT, Comparison, MethodSummary, Verdict
from .model import Cell, Long, Row, Table
from .splits import (
    SplitGroup,
    directed_label,
    image_counts,
    mean_and_spread,
    severity_groups,
    split_groups,
)
from .tables import basis, best_mean, compared_metrics, quality_cell, says_nothing

_HEADS = (
    *(("Method", ""), ("Split", ""), ("Metric", ""), ("Mean", "mean over replicates")),
    ("± sd", "standard deviation over replicates, ddof 1"),
    ("Replicates", "how many the mean is taken over"),
    ("n", "images per replicate; for OOD detection, test and OOD images"),
    (
        "Advantage [95 % interval]",
        "over the compute-matched single model, or single models interpolated at equal cost: "
        "positive where the ensemble is better, whichever way the metric points",
    ),
    ("Outcome", "after Holm's correction"),
)
_RANKS = {"better": 0, "not shown": 1, "worse": 2}


def results_table(comparison: Comparison) -> Long | None:
    """Collect all results in long form; None where nothing was measured."""
    rows = tuple(_rows(comparison))
    if not rows:
        return None
    return Long(
        _HEADS,
        rows,
        {
            head: tuple(dict.fromkeys(row[column].text for row in rows))
            for column, (head, _) in enumerate(_HEADS[:3])
        },
        tuple(_wide(comparison, group) for group, _ in _groups(comparison)),
    )


def _rows(comparison: Comparison) -> Iterator[tuple[Cell, ...]]:
    """Yield the rows split by split, so that the methods to compare stand below each other."""
    judged = {(v.challenger, v.split, v.metric): v for v in comparison.judgements}
    for group, judged_as in _groups(comparison):
        images = _images(comparison, group)
        for metric in compared_metrics(comparison, group):
            for method in comparison.methods:
                if not says_nothing(method, metric):
                    verdict = judged.get((method.name, judged_as, metric))
                    yield (
                        *(Cell(method.name), Cell(group.title), Cell(directed_label(metric))),
                        *_values(method, group, metric),
                        images,
                        *_judgement(verdict),
                    )


def _groups(comparison: Comparison) -> Iterator[tuple[SplitGroup, str]]:
    """Yield the groups of splits, and behind the mean over shifts its severities.

    Beside each stands the split by which verdicts know it, nothing where there are none.
    """
    groups = split_groups(comparison)
    shown = {group.splits for group in groups}
    for group in groups:
        if group.kind == SHIFT:
            yield group, SHIFT
            yield from ((g, "") for g in severity_groups(comparison) if g.splits not in shown)
        else:
            yield group, group.splits[0] if len(group.splits) == 1 else ""


def _values(method: MethodSummary, group: SplitGroup, metric: str) -> Iterator[Cell]:
    """Yield the cells of mean, standard deviation and number of replicates."""
    values = method.values(group.splits, metric)
    mean, spread = mean_and_spread(values)
    yield Cell(number(mean), value=mean, mark="" if values else "missing")
    yield Cell(plus_minus(mean, spread).removeprefix("± "), value=spread)
    count, total = len(values), len(method.replicates)
    yield Cell(str(count) if count == total else f"{count} of {total}", value=count)


def _judgement(verdict: Verdict | None) -> tuple[Cell, Cell]:
    """Make the cells of the advantage, with its interval, and of the outcome."""
    if verdict is None:
        return Cell(""), Cell("")
    difference, interval = difference_text(verdict)
    mark = verdict.mark or "undefined"
    return (
        Cell(difference, interval, value=verdict.advantage[0] if difference else math.nan),
        Cell(mark, mark=mark, value=_RANKS.get(mark), title=f"against {verdict.baseline}"),
    )


def _images(comparison: Comparison, group: SplitGroup) -> Cell:
    """Write the number of images; they are sorted by the sum over splits."""
    counts = [image_counts(comparison, group, key) for key in ("n", "n_id", "n_ood")]
    known = [sorted({min(each), max(each)}) for each in counts if each]
    text = " + ".join(" to ".join(f"{count:,}" for count in each) for each in known)
    splits = len(group.splits)
    times = f"{splits} \N{MULTIPLICATION SIGN} " if splits > 1 and text else ""
    return Cell(f"{times}{text}", value=splits * sum(each[-1] for each in known))


def _wide(comparison: Comparison, group: SplitGroup) -> Table:
    """Make a table with a row per metric and a column per method, for Markdown."""
    rows = []
    for metric in compared_metrics(comparison, group):
        best = best_mean(comparison, group, metric)
        cells = (quality_cell(method, group, metric, best) for method in comparison.methods)
        rows.append(Row(directed_label(metric), tuple(cells)))
    return Table(group.title, basis(comparison, group), ("Metric", *comparison.names), tuple(rows))
