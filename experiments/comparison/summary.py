"""What a reader sees first of a comparison: the answer, one row per method, what to deploy."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS
from ..cost.axes import AXES
from .budgets import INCONCLUSIVE, TOO_FEW, Answer, Budget, answers, budgets_of
from .formatting import counted_text, listed
from .headlines import Headline, counted, has_encoded_copy, headlines
from .single_models import family_of, plain_single
from .verdicts import FEWEST_REPLICATES, SHIFT, Comparison, MethodSummary, Replicate, Verdict

MARKS = {"better": "\N{CHECK MARK}", "worse": "\N{BALLOT X}", "not shown": "\N{WHITE CIRCLE}"}
"""Mark of a cell -> the sign that stands for it."""


@dataclass(frozen=True)
class Column:
    """One measure of the table of methods.

    Attributes:
        key: Short name, under which a row has its cell.
        label: The heading.
        kind: The split, or the kind of splits over whose sets the measure is averaged.
        metric: Its key in the suite.
    """

    key: str
    label: str
    kind: str
    metric: str

    @property
    def higher_is_better(self) -> bool:
        """Which way is better."""
        return METRICS[self.metric].higher_is_better is True


@dataclass(frozen=True)
class Cell:
    """A method by one measure.

    Attributes:
        mean: Over replicates; NaN where the measure is undefined.
        sd: Standard deviation over replicates (ddof 1); NaN with fewer than two.
        replicates: In how many the measure is defined.
        mark: ``better``, ``worse`` or ``not shown`` against the compute-matched single model after
            Holm's correction; empty where there is none to compare with. With several sets of a
            kind, all of them have to agree.
        best: Whether the mean is the best of the column; no test stands behind it.
    """

    mean: float
    sd: float
    replicates: int
    mark: str
    best: bool


@dataclass(frozen=True)
class MethodRow:
    """A method in the table.

    Attributes:
        name: As in ``--methods``.
        family: What kind of method it is.
        cost: Multiply-accumulates per image.
        multiple: The same over those of the plain single model; NaN where there is none.
        partner: The compute-matched single model that it is compared with, or None.
        cells: By a column's key.
    """

    name: str
    family: str
    cost: int
    multiple: float
    partner: str | None
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Summary:
    """The first screen of a report, and what the terminal prints.

    Attributes:
        headlines: The answer for each ensemble that has a compute-matched single model.
        columns: Measures that at least one method has.
        rows: Every method, in the order asked for.
        deploy: Sentences on the best affordable method for each budget.
        cautions: What puts the results in doubt.
    """

    headlines: tuple[Headline, ...]
    columns: tuple[Column, ...]
    rows: tuple[MethodRow, ...]
    deploy: tuple[str, ...]
    cautions: tuple[str, ...]


COLUMNS = (
    Column("accuracy", "Accuracy", "test", "accuracy"),
    Column("nll", "NLL", "test", "nll"),
    Column("ece", "ECE", "test", "ece"),
    Column("aurc", "AURC", "test", "aurc"),
    Column("near_ood", "Near-OOD AUROC", "near_ood", "auroc_msp"),
    Column("far_ood", "Far-OOD AUROC", "far_ood", "auroc_msp"),
    Column("shift", "Shifted accuracy", SHIFT, "accuracy"),
)
"""Measures of the table; the OOD score is the maximum softmax probability, which all have."""


def summarize(comparison: Comparison) -> Summary:
    """Summarize a comparison for its first screen, whatever draws it.

    Args:
        comparison: With its verdicts.

    Returns:
        The answer, the table of methods, what to deploy, and cautions.
    """
    splits = _splits(comparison)
    judged = {(v.challenger, v.split, v.metric): v for v in counted(comparison.judgements)}
    partners = {verdict.challenger: verdict.baseline for verdict in comparison.judgements}
    values = {
        (method.name, column.key): _values(method, splits[column.kind], column.metric)
        for method in comparison.methods
        for column in COLUMNS
        if splits[column.kind]
    }
    columns = tuple(
        c for c in COLUMNS if any(values.get((m.name, c.key)) for m in comparison.methods)
    )
    best = {
        column.key: _best([values[m.name, column.key] for m in comparison.methods], column)
        for column in columns
    }
    plain = plain_single(comparison.methods)
    return Summary(
        headlines=headlines(comparison),
        columns=columns,
        rows=tuple(
            MethodRow(
                name=method.name,
                family=family_of(method),
                cost=method.cost.macs,
                multiple=method.cost.macs / plain.cost.macs if plain else math.nan,
                partner=partners.get(method.name),
                cells={
                    column.key: _cell(
                        values[method.name, column.key],
                        _mark(judged, method.name, splits[column.kind], column),
                        best[column.key],
                    )
                    for column in columns
                },
            )
            for method in comparison.methods
        ),
        deploy=_deploy(comparison, {column: splits[column.kind] for column in columns}),
        cautions=_cautions(comparison),
    )


def _splits(comparison: Comparison) -> dict[str, list[str]]:
    """Splits by kind; of OOD sets that have an encoded copy, the copy alone."""
    found = dict.fromkeys(
        split
        for method in comparison.methods
        for replicate in method.replicates
        for split in replicate.metrics
    )
    kinds: dict[str, list[str]] = {column.kind: [] for column in COLUMNS}
    for split in found:
        kind = SplitName.parse(split).kind
        if kind in kinds and not has_encoded_copy(split, found.keys()):
            kinds[kind].append(split)
    return kinds


def _values(method: MethodSummary, splits: Sequence[str], metric: str) -> list[float]:
    """The mean over splits of each replicate that has them all."""
    values = [_mean_over(replicate, splits, metric) for replicate in method.replicates]
    return [value for value in values if math.isfinite(value)]


def _mean_over(replicate: Replicate, splits: Sequence[str], metric: str) -> float:
    return statistics.fmean(
        replicate.metrics.get(split, {}).get(metric, math.nan) for split in splits
    )


def _best(values: Sequence[Sequence[float]], column: Column) -> float:
    """The best mean; NaN where fewer than two methods differ."""
    means = {statistics.fmean(each) for each in values if each}
    if len(means) < 2:
        return math.nan
    return max(means) if column.higher_is_better else min(means)


def _cell(values: Sequence[float], mark: str, best: float) -> Cell:
    mean = statistics.fmean(values) if values else math.nan
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return Cell(mean, sd, len(values), mark, mean == best)


def _mark(
    judged: Mapping[tuple[str, str, str], Verdict],
    method: str,
    splits: Sequence[str],
    column: Column,
) -> str:
    """One rule for all cells: what holds after Holm's correction, on every set of the kind."""
    places = [SHIFT] if column.kind == SHIFT else splits
    verdicts = [judged.get((method, split, column.metric)) for split in places]
    if None in verdicts:
        return ""
    shown = {verdict.mark for verdict in verdicts if verdict is not None}
    return shown.pop() if len(shown) == 1 else "not shown"


def _deploy(comparison: Comparison, places: Mapping[Column, Sequence[str]]) -> tuple[str, ...]:
    """Recommend a method for each budget in MACs; budgets of one kind of answer share a sentence.

    An ensemble is recommended by a measure where it is shown to be better than the best affordable
    single model on every set of the kind, after Holm's correction for all that the budget compares.
    """
    if not comparison.conclusive:
        return (INCONCLUSIVE,)
    budgets = [each for each in budgets_of(comparison, AXES[0]) if each.single is not None]
    if not budgets:
        return ()
    lines: list[str] = []
    plain: list[str] = []
    undecidable = 0
    for budget in budgets:
        found = answers(comparison, budget)
        if all(answer.outcome in (TOO_FEW, "undefined") for answer in found.values()):
            undecidable += 1
        elif winners := _winners(found, places):
            lines.append(_recommendation(budget, winners))
        elif budget.single is not None:
            plain.append(f"{budget.single.name} at {budget.title}")
    if undecidable == len(budgets):
        return (f"Too few replicates to recommend a method: use at least {FEWEST_REPLICATES}.",)
    if plain:
        lines.append(
            f"Deploy the best affordable single model: {', '.join(plain)}; there no ensemble is "
            "shown to be better on every set, by these columns."
        )
    return tuple(lines)


def _winners(
    found: Mapping[tuple[str, str], Answer], places: Mapping[Column, Sequence[str]]
) -> dict[str, list[str]]:
    """Ensembles to deploy -> the measures by which they are."""
    winners: dict[str, list[str]] = {}
    for column, splits in places.items():
        here = [SHIFT] if column.kind == SHIFT else splits
        all_answers = [found.get((split, column.metric)) for split in here]
        names = [
            [d.method.name for d in answer.winners] if answer is not None else []
            for answer in all_answers
        ]
        if chosen := next((n for n in names[0] if all(n in each for each in names)), None):
            winners.setdefault(chosen, []).append(column.label)
    return winners


def _recommendation(budget: Budget, winners: Mapping[str, Sequence[str]]) -> str:
    single = budget.single.name if budget.single else ""
    parts = [f"{name} for {listed(labels)}" for name, labels in winners.items()]
    return (
        f"Within {budget.title} deploy {'; '.join(parts)}; by the other columns no ensemble is "
        f"shown to beat {single}, the best affordable single model, on every set."
    )


def _cautions(comparison: Comparison) -> tuple[str, ...]:
    fewest = min((len(method.replicates) for method in comparison.methods), default=0)
    few = (
        f"Only {counted_text(fewest, 'replicate')}: how much training varies is hardly "
        f"known, so no interval can be relied on. Use at least {FEWEST_REPLICATES}."
    )
    return (
        *filter(None, [comparison.caveat]),
        *([few] if fewest < FEWEST_REPLICATES else []),
        *comparison.cautions,
        *comparison.verdict_notes,
    )
