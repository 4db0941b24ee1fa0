"""What a reader sees first of a comparison: the answer, one row per method, what to deploy."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...metrics.core.catalogue import METRICS
from ..cost.axes import AXES
from .budgets import INCONCLUSIVE, Answer, answers, budgets_of, undecidable
from .formatting import counted_text, listed
from .headlines import KIND_TITLES, Headline, counted, headlines
from .sentences import difference_text
from .single_models import family_of, plain_single
from .verdicts import FEWEST_REPLICATES, SHIFT, Comparison, Verdict, shown_copies


@dataclass(frozen=True)
class Column:
    """One measure of the table of methods: a metric on a kind of splits, averaged over its sets.

    A row has its cell under the short name ``key``.
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
        mark: ``better``, ``worse`` or ``not shown`` against the method's partner after
            Holm's correction; empty where there is none to compare with. With several sets of a
            kind, all of them have to agree.
        best: Whether the mean is the best of the column; no test stands behind it.
        verdict: What the mark is of; None without one, or where it is of several sets.
    """

    mean: float
    sd: float
    replicates: int
    mark: str
    best: bool
    verdict: Verdict | None = None

    @property
    def interval(self) -> str:
        """Of the advantage, where it is marked better or worse; else empty."""
        shown = self.verdict is not None and self.mark in ("better", "worse")
        return difference_text(self.verdict)[1] if self.verdict and shown else ""


@dataclass(frozen=True)
class MethodRow:
    """A method in the table.

    Attributes:
        cost: Multiply-accumulates per image.
        multiple: The same over those of the plain single model; NaN where there is none.
        partner: What it is judged against: a single model of its cost, or the name of what lies
            between two; None without.
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

    The answer for each ensemble that has a partner; every method by the
    measures that some method has; sentences on what to deploy; and what puts results in doubt.
    """

    headlines: tuple[Headline, ...]
    columns: tuple[Column, ...]
    rows: tuple[MethodRow, ...]
    deploy: tuple[str, ...]
    cautions: tuple[str, ...]


COLUMNS = (
    *(Column(m, METRICS[m].label, "test", m) for m in ("accuracy", "nll", "ece", "aurc")),
    Column("near_ood", "Near-OOD AUROC", "near_ood", "auroc_msp"),
    Column("far_ood", "Far-OOD AUROC", "far_ood", "auroc_msp"),
    Column("shift", "Shifted accuracy", SHIFT, "accuracy"),
)
"""Measures of the table; the OOD score is the maximum softmax probability, which all have."""


UNMEASURED_SHIFT = (
    "Corrupted copies of the test images were not measured (--evaluate quick): `deepens compare` "
    "with --evaluate full measures them, and trains nothing again."
)
UNJUDGED_SHIFT = (
    "Results under shift are shown, but not judged for every ensemble: that needs values of single "
    "images of each run. Runs of earlier versions get them by `deepens evaluate RUN --predict`, "
    "then `deepens report`; a cascade needs an ensemble that was run with --keep-logits true."
)


def summarize(comparison: Comparison) -> Summary:
    """Summarize a comparison, with its verdicts, for its first screen, whatever draws it."""
    places = _places(comparison)
    judged = {(v.challenger, v.split, v.metric): v for v in counted(comparison.judgements)}
    partners = {challenger: baseline for challenger, baseline in comparison.pairs}
    values = {
        (method.name, column.key): method.values(splits, column.metric)
        for method in comparison.methods
        for column, splits in places.items()
    }
    columns = [c for c in places if any(values[name, c.key] for name in comparison.names)]
    best = {c.key: _best([values[name, c.key] for name in comparison.names], c) for c in columns}
    plain, answered = plain_single(comparison.methods), headlines(comparison)
    return Summary(
        headlines=answered,
        columns=tuple(columns),
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
                        _judged(judged, method.name, places[column], column),
                        best[column.key],
                    )
                    for column in columns
                },
            )
            for method in comparison.methods
        ),
        deploy=_deploy(comparison, {column: places[column] for column in columns}),
        cautions=_cautions(comparison, answered),
    )


def _places(comparison: Comparison) -> dict[Column, list[str]]:
    """The splits of each column that has some; of OOD sets the copy that counts."""
    shown = shown_copies(comparison.splits)
    found = {c: [s for s in shown if comparison.splits[s].kind == c.kind] for c in COLUMNS}
    return {column: splits for column, splits in found.items() if splits}


def _best(values: Sequence[Sequence[float]], column: Column) -> float:
    """The best mean; NaN where fewer than two methods differ."""
    means = {statistics.fmean(each) for each in values if each}
    if len(means) < 2:
        return math.nan
    return max(means) if column.higher_is_better else min(means)


def _cell(values: Sequence[float], verdicts: Sequence[Verdict | None], best: float) -> Cell:
    mean = statistics.fmean(values) if values else math.nan
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    only = verdicts[0] if len(verdicts) == 1 else None
    return Cell(mean, sd, len(values), _mark(verdicts), mean == best, only)


def _judged(
    judged: Mapping[tuple[str, str, str], Verdict],
    method: str,
    splits: Sequence[str],
    column: Column,
) -> list[Verdict | None]:
    places = [SHIFT] if column.kind == SHIFT else splits
    return [judged.get((method, split, column.metric)) for split in places]


def _mark(verdicts: Sequence[Verdict | None]) -> str:
    """One rule for all cells: what holds after Holm's correction, on every set of the kind."""
    shown = {verdict.mark if verdict else "" for verdict in verdicts}
    return "" if "" in shown else shown.pop() if len(shown) == 1 else "not shown"


def _deploy(comparison: Comparison, places: Mapping[Column, Sequence[str]]) -> tuple[str, ...]:
    """Recommend a method for each budget in MACs; budgets of one kind of answer share a sentence.

    An ensemble is recommended by a measure where it is shown to be better than the best affordable
    single model on every set of the kind, after Holm's correction for all that the budget compares.
    """
    if not comparison.conclusive:
        return (INCONCLUSIVE,)
    budgets = [each for each in budgets_of(comparison, AXES[0]) if each.single is not None]
    found = [(budget, answers(comparison, budget)) for budget in budgets]
    decided = [(budget, here) for budget, here in found if not undecidable(here)]
    if budgets and not decided:
        return (f"Too few replicates to recommend a method: use at least {FEWEST_REPLICATES}.",)
    lines, plain = [], []
    for budget, here in decided:
        single = budget.single.name if budget.single else ""
        if winners := _winners(here, places):
            parts = [f"{name} for {listed(labels)}" for name, labels in winners.items()]
            lines.append(
                f"Within {budget.title} deploy {'; '.join(parts)}; by the other columns no "
                f"ensemble is shown to beat {single}, the best affordable single model, on every "
                "set."
            )
        else:
            plain.append(f"{single} at {budget.title}")
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
        names = [
            [d.method.name for d in answer.winners] if answer is not None else []
            for answer in (found.get((split, column.metric)) for split in here)
        ]
        if chosen := next((n for n in names[0] if all(n in each for each in names)), None):
            winners.setdefault(chosen, []).append(column.label)
    return winners


def _cautions(comparison: Comparison, found: Sequence[Headline]) -> tuple[str, ...]:
    fewest = min((len(method.replicates) for method in comparison.methods), default=0)
    few = (
        f"Only {counted_text(fewest, 'replicate')}: how much training varies is hardly "
        f"known, so no interval can be relied on. Use at least {FEWEST_REPLICATES}."
    )
    return (
        *filter(None, [comparison.caveat]),
        *([few] if fewest < FEWEST_REPLICATES else []),
        *comparison.cautions,
        *([UNJUDGED_SHIFT] if any(KIND_TITLES[SHIFT] in each.unjudged for each in found) else []),
        *comparison.verdict_notes,
        *([UNMEASURED_SHIFT] if SHIFT in comparison.unmeasured else []),
    )
