"""The answer for each ensemble in one word and one sentence, from what holds after correction."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS
from .formatting import counted_text, listed
from .sentences import partner_text
from .verdicts import FEWEST_REPLICATES, Between, Comparison, Verdict, shown_copies

YES, IN_PART, NO, MIXED = "Yes", "In part", "No", "Mixed"
NOT_SHOWN = "Not shown"
CANNOT_TELL = "Cannot tell on this data"
"""The answer where the data cannot separate methods."""
TOO_FEW_REPLICATES = "Too few replicates"
"""The answer where it is hardly known how much training varies."""

KIND_TITLES = {
    **{"test": "Test images", "shift": "Shift"},
    **{"near_ood": "Near OOD", "far_ood": "Far OOD"},
}
"""Kinds of splits that count, in the order in which they are shown -> their titles."""


@dataclass(frozen=True)
class Headline:
    """The short answer for an ensemble and its partner.

    Attributes:
        answer: ``Yes``, ``In part``, ``No``, ``Mixed``, ``Not shown``, ``Too few replicates`` or
            ``Cannot tell on this data``.
        sentence: The answer in full, with the counts behind it.
        tally: The counts split by split; empty where nothing was compared.
        counts: The same over all splits, such as ``3 better, 1 worse of 9``; empty where the data
            or the replicates are too few.
        between: As of the verdicts: of an interpolated baseline the two single models around it.
        unjudged: Titles of the kinds of images, such as ``Shift``, on which the two have results
            and no verdict.
        reason: Why there is no answer, where the data or the replicates are too few; the sentence
            says nothing more but which methods it is about.
    """

    answer: str
    sentence: str
    challenger: str
    baseline: str
    between: Between = ()
    tally: str = ""
    counts: str = ""
    unjudged: tuple[str, ...] = ()
    reason: str = ""

    @property
    def subject(self) -> str:
        """Which two methods it is about."""
        return f"{self.challenger} against {partner_text(self.baseline, self.between)}."


def headlines(comparison: Comparison) -> tuple[Headline, ...]:
    """Answer the question once for each ensemble that has a partner: a single model or two.

    Use it wherever the outcome is shown first. Only differences that hold after Holm's correction
    count: ``Yes`` where some on the test images are better and none anywhere is worse, ``In part``
    where some are better on OOD or shifted images only and none is worse, ``No`` where some are
    worse and none is better, ``Mixed`` where there are both, and ``Not shown`` where there are
    none. What is shown follows by kind of images, with the kinds that have results and no verdict.
    Where nothing is shown, the sentence names the verdicts' least detectable differences.
    """
    found = []
    for verdicts in comparison.pairs.values():
        headline = _headline(verdicts, conclusive=comparison.conclusive)
        if unjudged := _unjudged(comparison, verdicts):
            words = f"Not judged: {listed(unjudged)}."
            headline = replace(
                headline,
                sentence=f"{headline.sentence} {words}",
                tally=f"{headline.tally} {words}".strip(),
                unjudged=unjudged,
            )
        found.append(headline)
    return tuple(found)


def merged(found: Sequence[Headline]) -> list[Headline]:
    """Say once what is said of several ensembles alike: that the data or replicates are too few."""
    alike: dict[tuple[object, ...], list[Headline]] = {}
    for each in found:
        same = (each.answer, each.baseline, each.between, each.reason, each.unjudged)
        alike.setdefault(same if each.reason else (each,), []).append(each)
    merged = []
    for group in alike.values():
        first, names = group[0], listed([each.challenger for each in group])
        sentence = names + first.sentence.removeprefix(first.challenger)
        merged.append(replace(first, challenger=names, sentence=sentence))
    return merged


def _unjudged(comparison: Comparison, verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Kinds of images on which all compared have results, and no verdict is defined."""
    first = verdicts[0]
    singles = [name for name, _ in first.between] or [first.baseline]
    names = (first.challenger, *singles)
    here = [method for method in comparison.methods if method.name in names]
    judged = {SplitName.parse(verdict.split).kind for verdict in verdicts if verdict.mark}
    return tuple(
        title
        for kind, title in KIND_TITLES.items()
        if kind not in judged
        and all(
            any(comparison.splits[split].kind == kind for split in replicate.metrics)
            for method in here
            for replicate in method.replicates
        )
    )


def counted(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Select the verdicts that a summary counts.

    Those by a metric with a direction, on the test images, under shift or on OOD images, that are
    defined; of an OOD set the copy that `shown_copies` keeps.
    """
    held = list(verdicts)
    splits = set(shown_copies(dict.fromkeys(verdict.split for verdict in held)))
    return [
        verdict
        for verdict in held
        if SplitName.parse(verdict.split).kind in KIND_TITLES
        and verdict.split in splits
        and METRICS[verdict.metric].higher_is_better is not None
        and verdict.mark
    ]


def _headline(verdicts: Sequence[Verdict], *, conclusive: bool) -> Headline:
    ours, theirs, between = verdicts[0].challenger, verdicts[0].baseline, verdicts[0].between
    pair = partner_text(theirs, between)
    here = counted(verdicts)
    shown = Counter(each.mark for each in here)
    better, worse, total = shown["better"], shown["worse"], len(here)
    comparisons = counted_text(total, "comparison")
    fewest, counts, why = min(each.replicates for each in verdicts), _ways(shown, ", "), ""
    if not conclusive:
        answer, counts = CANNOT_TELL, ""
        why = "these images are too few or too easy to separate methods"
        sentence = f"{ours} against {pair}: {why}."
    elif fewest < FEWEST_REPLICATES:
        answer, counts = TOO_FEW_REPLICATES, ""
        why = (
            f"{counted_text(fewest, 'replicate')} cannot show how much training varies; a claim "
            f"needs at least {FEWEST_REPLICATES}"
        )
        sentence = f"{ours} against {pair}: {why}."
    elif better and worse:
        answer = MIXED
        sentence = (
            f"{ours} is better than {pair}, on {better} and worse on {worse} of {comparisons} "
            "after Holm's correction."
        )
    elif better or worse:
        way, other = ("better", "worse") if better else ("worse", "better")
        on_test = any(each.mark == way and each.split == "test" for each in here)
        answer = NO if worse else YES if on_test else IN_PART
        where = "" if on_test else ", on OOD or shifted images only,"
        sentence = (
            f"{ours} is {way} than {pair}, on {better + worse} of {comparisons}{where} after "
            f"Holm's correction, and {other} on none."
        )
    else:
        answer = NOT_SHOWN
        sentence = (
            f"No difference between {ours} and {pair}, is shown on {comparisons} after Holm's "
            f"correction{_power(verdicts)}."
        )
    tally = _tally(here)
    if answer in (YES, IN_PART, NO, MIXED):
        sentence = f"{sentence} {tally}"
    return Headline(answer, sentence, ours, theirs, between, tally, counts, reason=why)


def _power(verdicts: Iterable[Verdict]) -> str:
    """State the differences on the test images that would have been detected, if known."""
    least = {
        METRICS[each.metric].label: each.least_detectable
        for each in verdicts
        if each.split == "test" and each.metric in ("accuracy", "nll")
    }
    parts = [f"{value:.2g} in {label}" for label, value in least.items() if math.isfinite(value)]
    if not parts:
        return ""
    return (
        f"; a difference of {' or '.join(parts)} would have been shown with a probability of 80 % "
        "under the same correction, smaller ones less often"
    )


def _tally(verdicts: Sequence[Verdict]) -> str:
    """Count split by kind of split, such as ``Test images: 3 better of 9; Shift: ...``."""
    kinds: dict[str, Counter[str]] = {kind: Counter() for kind in KIND_TITLES}
    for verdict in verdicts:
        kinds[SplitName.parse(verdict.split).kind][verdict.mark] += 1
    parts = [f"{KIND_TITLES[kind]}: {_ways(here, ' and ')}" for kind, here in kinds.items() if here]
    return f"{'; '.join(parts)}." if parts else ""


def _ways(counts: Counter[str], joint: str) -> str:
    shown = [f"{counts[way]} {way}" for way in ("better", "worse") if counts[way]]
    return f"{joint.join(shown) or 'none shown'} of {counts.total()}"
