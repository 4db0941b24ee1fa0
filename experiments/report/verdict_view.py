"""Verdicts as a forest plot: one line per metric with difference, interval and mark."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from ..comparison.formatting import SIGNS, counted_text, p_value_text
from ..comparison.sentences import (
    difference_text,
    partner_text,
    verdict_sentence,
    why_undefined,
)
from ..comparison.verdicts import FEWEST_REPLICATES, Comparison, Verdict, compares_members
from .model import Cell, Forest, Heading, Interval, Row, Table, Text
from .splits import directed_label, higher_is_better, split_title

INTERVALS = (
    "Numbers are the ensemble's advantage over the single model, or over two of them interpolated "
    "at its cost, in the metric's unit: positive, and right of the line, where the ensemble is "
    "better, also by metrics of which less is better (↓). The 95 % interval comes from a paired "
    "bootstrap over test images ({draws} draws, all methods on the same images) and from the "
    "spread of the replicates, with Student's quantile at Welch's degrees of freedom. Each "
    "interval stands for itself. A difference is marked ✓ (the ensemble is better) or ✗ (worse) "
    "only if it holds at 5 % after Holm's correction for all verdicts of the two and rests on at "
    f"least {FEWEST_REPLICATES} replicates; ○ means that no difference is shown. Metrics on one "
    "split overlap, so they are not independent results."
)
"""How to read a verdict."""


def verdict_blocks(comparison: Comparison) -> Iterator[Heading | Forest | Table | Text]:
    """Yield a scoreboard, then the verdicts of each pair of methods, split by split."""
    if comparison.judgements:
        yield Text(INTERVALS.format(draws=comparison.draws))
    if board := scoreboard(comparison):
        yield board
    for (challenger, baseline), verdicts in comparison.pairs.items():
        yield Heading(f"{challenger} against {baseline}", f"+: {challenger} is better")
        if between := verdicts[0].between:
            yield Text(f"{challenger} is judged against {partner_text(baseline, between)}.")
        yield from _forests(verdicts)


def _forests(verdicts: Sequence[Verdict]) -> Iterator[Forest]:
    for split in dict.fromkeys(verdict.split for verdict in verdicts):
        here = [verdict for verdict in verdicts if verdict.split == split]
        # One network has no mutual information, so that there can be no verdict.
        lacking = [each for each in here if compares_members(each.metric) and not each.mark]
        remark = ""
        if lacking:
            count = counted_text(len(lacking), "comparison")
            remark = f"{count} without a verdict, since {why_undefined(lacking[0].metric)}."
        shown = [verdict for verdict in here if verdict not in lacking]
        counts = Counter(verdict.mark or "undefined" for verdict in shown)
        note = ", ".join(f"{counts[mark]} {mark}" for mark in SIGNS if counts[mark])
        intervals = tuple(map(_interval, shown))
        unfolded = split == "test" or bool(counts["better"] or counts["worse"])
        yield Forest(split_title(split), note, intervals, remark, unfolded)


def _interval(verdict: Verdict) -> Interval:
    places: list[float] = []
    if difference_text(verdict)[0]:
        estimate, low, high = verdict.advantage
        reach = max(map(abs, verdict.advantage)) or 1.0
        places = [round(value / reach, 4) for value in (low, estimate, high)]
    return Interval(
        directed_label(verdict.metric),
        *difference_text(verdict),
        verdict.mark or "undefined",
        p_text(verdict.p_value),
        verdict_sentence(verdict),
        tuple(places),
    )


def p_text(p_value: float) -> str:
    """Write a p-value; nothing where there is none."""
    return p_value_text(p_value).removeprefix("= ") if math.isfinite(p_value) else ""


def scoreboard(comparison: Comparison) -> Table | None:
    """Count which way each split points, with a row per split and a column per pair."""
    counts: dict[str, dict[tuple[str, str], Counter[str]]] = {}
    for pair, verdicts in comparison.pairs.items():
        for each in verdicts:
            if each.mark and higher_is_better(each.metric) is not None:
                here = counts.setdefault(each.split, {p: Counter() for p in comparison.pairs})
                here[pair][each.mark] += 1
    rows = tuple(
        Row(split_title(split), tuple(map(_score, here.values()))) for split, here in counts.items()
    )
    heads = ("Split", *(f"{ours} against {theirs}" for ours, theirs in comparison.pairs))
    return Table("", "", heads, rows, label="Verdicts by split", kind="words") if rows else None


def _score(counts: Counter[str]) -> Cell:
    better, worse, total = counts["better"], counts["worse"], counts.total()
    if not total:
        return Cell("")
    if better and worse:
        return Cell("mixed", f"{better} {SIGNS['better']}, {worse} {SIGNS['worse']} of {total}")
    mark = "better" if better else "worse" if worse else "not shown"
    return Cell(mark, f"{better or worse or total} of {total}", mark)
