"""Verdicts as a forest plot: one line per metric with difference, interval and mark."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from ..comparison.formatting import p_value_text, signed
from ..comparison.sentences import verdict_sentence, why_undefined
from ..comparison.verdicts import FEWEST_REPLICATES, Comparison, Verdict, compares_members
from .model import SIGNS, Cell, Forest, Heading, Interval, Notes, Row, Table, Text
from .splits import directed_label, higher_is_better, split_title

INTERVALS = (
    "Differences are ensemble minus single model. The 95 % interval comes from a paired bootstrap "
    "over test images ({draws} draws, both methods on the same images) and from the spread of the "
    "replicates, with Student's quantile at Welch's degrees of freedom. Each interval stands for "
    "itself. A difference is marked ✓ (the ensemble is better) or ✗ (worse) only if it holds at "
    "5 % after Holm's correction for all verdicts on the same two methods and rests on at least "
    f"{FEWEST_REPLICATES} replicates; ○ means that no difference is shown. Metrics on "
    "one split overlap, so they are not independent results."
)
"""How to read a verdict."""

WORDS = {"better": "better", "worse": "worse", "undecided": "not shown", "undefined": "undefined"}
"""Mark -> the word beside its sign."""


def sign_key(mark: str) -> str:
    """Return the key of `SIGNS` for a verdict's mark, whose words no style sheet could name."""
    return {"not shown": "undecided", "": "undefined"}.get(mark, mark)


def has_interval(verdict: Verdict) -> bool:
    """Tell whether a verdict's difference and interval can be shown."""
    values = (verdict.estimate, verdict.low, verdict.high)
    return verdict.mark != "" and all(map(math.isfinite, values))


def difference_text(verdict: Verdict) -> tuple[str, str]:
    """Write a difference and its interval, with the decimals that tell its ends apart."""
    if not has_interval(verdict):
        return "", ""
    estimate, low, high = signed((verdict.estimate, verdict.low, verdict.high))
    return estimate, f"[{low}, {high}]"


def verdict_blocks(comparison: Comparison) -> Iterator[Heading | Forest | Notes | Table | Text]:
    """Yield a scoreboard, then the verdicts of each pair of methods, split by split."""
    verdicts = comparison.judgements
    if verdicts:
        yield Text(INTERVALS.format(draws=comparison.draws))
    if board := scoreboard(verdicts):
        yield board
    pairs = dict.fromkeys((each.challenger, each.baseline) for each in verdicts)
    for challenger, baseline in pairs:
        yield Heading(f"{challenger} against {baseline}", "ensemble minus single model")
        here = [
            each for each in verdicts if (each.challenger, each.baseline) == (challenger, baseline)
        ]
        yield from _forests(here)
    if comparison.verdict_notes:
        yield Notes(tuple(comparison.verdict_notes))


def _forests(verdicts: Sequence[Verdict]) -> Iterator[Forest]:
    for split in dict.fromkeys(verdict.split for verdict in verdicts):
        here = [verdict for verdict in verdicts if verdict.split == split]
        lacking = [verdict for verdict in here if _lacks_score(verdict)]
        remark = ""
        if lacking:
            count = f"{len(lacking)} comparison{'' if len(lacking) == 1 else 's'}"
            remark = f"{count} without a verdict, since {why_undefined(lacking[0].metric)}."
        shown = [verdict for verdict in here if verdict not in lacking]
        counts = Counter(sign_key(verdict.mark) for verdict in shown)
        note = ", ".join(f"{counts[mark]} {word}" for mark, word in WORDS.items() if counts[mark])
        intervals = tuple(map(_interval, shown))
        yield Forest(split_title(split), note, intervals, remark, split == "test")


def _lacks_score(verdict: Verdict) -> bool:
    """Tell whether there can be no verdict: one network has no mutual information."""
    return compares_members(verdict.metric) and not verdict.mark


def _interval(verdict: Verdict) -> Interval:
    mark = sign_key(verdict.mark)
    places: tuple[float, ...] = ()
    if has_interval(verdict):
        values = (verdict.low, verdict.estimate, verdict.high)
        reach = max(map(abs, values)) or 1.0
        sign = -1 if higher_is_better(verdict.metric) is False else 1
        places = tuple(sorted(round(sign * value / reach, 4) for value in values))
    return Interval(
        directed_label(verdict.metric),
        *difference_text(verdict),
        mark,
        WORDS[mark],
        p_text(verdict.p_value),
        verdict_sentence(verdict),
        places,
    )


def p_text(p_value: float) -> str:
    """Write a p-value; nothing where there is none."""
    return p_value_text(p_value).removeprefix("= ") if math.isfinite(p_value) else ""


def scoreboard(verdicts: Sequence[Verdict]) -> Table | None:
    """Count which way each split points, with a row per split and a column per pair."""
    pairs = dict.fromkeys((verdict.challenger, verdict.baseline) for verdict in verdicts)
    counts: dict[str, dict[tuple[str, str], Counter[str]]] = {}
    for verdict in verdicts:
        if verdict.mark and higher_is_better(verdict.metric) is not None:
            here = counts.setdefault(verdict.split, {pair: Counter() for pair in pairs})
            here[verdict.challenger, verdict.baseline][sign_key(verdict.mark)] += 1
    rows = tuple(
        Row(split_title(split), tuple(map(_score, here.values()))) for split, here in counts.items()
    )
    heads = ("Split", *(f"{challenger} against {baseline}" for challenger, baseline in pairs))
    return Table("", "", heads, rows, label="Verdicts by split", kind="words") if rows else None


def _score(counts: Counter[str]) -> Cell:
    better, worse = counts["better"], counts["worse"]
    total = better + worse + counts["undecided"]
    if not total:
        return Cell("")
    if better and worse:
        return Cell("mixed", f"{better} {SIGNS['better']}, {worse} {SIGNS['worse']} of {total}")
    mark = "better" if better else "worse" if worse else "undecided"
    return Cell(WORDS[mark], f"{better or worse or total} of {total}", mark)
