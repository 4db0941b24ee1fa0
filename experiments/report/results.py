"""The one table of all results, a row per method, split and metric, to be sorted and filtered."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..comparison.formatting import number, spread_beside
from ..comparison.verdicts import SHIFT, Comparison, MethodSummary, Verdict
from .model import Cell, Long, Row, Table
from .splits import (
    SplitGroup,
    directed_label,
    image_counts,
    kind_of,
    mean_and_spread,
    method_values,
    severity_groups,
    split_groups,
)
from .tables import basis, best_mean, compared_metrics, quality_cell, says_nothing
from .verdict_view import WORDS, difference_text, sign_key

_HEADS = (
    ("Method", ""),
    ("Split", ""),
    ("Metric", ""),
    ("Mean", "mean over replicates"),
    ("± sd", "standard deviation over replicates, ddof 1"),
    ("Replicates", "how many the mean is taken over"),
    ("n", "images per replicate; for OOD detection, test and OOD images"),
    ("Difference [95 % interval]", "ensemble minus the compute-matched single model"),
    ("Outcome", "after Holm's correction"),
)
_RANKS = {"better": 0, "undecided": 1, "worse": 2}


@dataclass(frozen=True)
class _Result:
    """A method on one split, by one metric, with the verdict on just that if there is one."""

    method: MethodSummary
    group: SplitGroup
    metric: str
    values: list[float]
    verdict: Verdict | None


def results_table(comparison: Comparison) -> Long | None:
    """Collect all results in long form; None where nothing was measured."""
    results = list(_results(comparison))
    if not results:
        return None
    choices = {
        "Method": [result.method.name for result in results],
        "Split": [result.group.title for result in results],
        "Metric": [directed_label(result.metric) for result in results],
    }
    images = {group.splits: _images(comparison, group) for group, _ in _groups(comparison)}
    return Long(
        _HEADS,
        tuple(_row(result, images[result.group.splits]) for result in results),
        {name: tuple(dict.fromkeys(values)) for name, values in choices.items()},
        tuple(_wide(comparison, group) for group, _ in _groups(comparison)),
    )


def _results(comparison: Comparison) -> Iterator[_Result]:
    """Yield the rows split by split, so that the methods to compare stand below each other."""
    judged = {
        (verdict.challenger, verdict.split, verdict.metric): verdict
        for verdict in comparison.judgements
    }
    for group, judged_as in _groups(comparison):
        for metric in compared_metrics(comparison, group):
            for method in comparison.methods:
                if not says_nothing(method, metric):
                    values = method_values(method, group, metric)
                    verdict = judged.get((method.name, judged_as, metric))
                    yield _Result(method, group, metric, values, verdict)


def _groups(comparison: Comparison) -> Iterator[tuple[SplitGroup, str]]:
    """Yield the groups of splits, and behind the mean over shifts its severities.

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


def _row(result: _Result, images: Cell) -> tuple[Cell, ...]:
    mean, spread = mean_and_spread(result.values)
    count, total = len(result.values), len(result.method.replicates)
    return (
        Cell(result.method.name),
        Cell(result.group.title),
        Cell(directed_label(result.metric)),
        Cell(number(mean), value=mean, mark="" if result.values else "missing"),
        Cell(spread_beside(mean, spread) if math.isfinite(spread) else "", value=spread),
        Cell(str(count) if count == total else f"{count} of {total}", value=count),
        images,
        *_judgement(result.verdict),
    )


def _judgement(verdict: Verdict | None) -> tuple[Cell, Cell]:
    """Make the cells of the difference, with its interval, and of the outcome."""
    if verdict is None:
        return Cell(""), Cell("")
    difference, interval = difference_text(verdict)
    mark = sign_key(verdict.mark)
    return (
        Cell(difference, interval, value=verdict.estimate if difference else math.nan),
        Cell(WORDS[mark], mark=mark, value=_RANKS.get(mark), title=f"against {verdict.baseline}"),
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
    metrics = compared_metrics(comparison, group)
    best = {metric: best_mean(comparison, group, metric) for metric in metrics}
    rows = tuple(
        Row(
            directed_label(metric),
            tuple(quality_cell(m, group, metric, best[metric]) for m in comparison.methods),
        )
        for metric in metrics
    )
    heads = ("Metric", *(method.name for method in comparison.methods))
    return Table(group.title, basis(comparison, group), heads, rows)
