"""The answer for each ensemble in one word and one sentence, from what holds after correction."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS
from .formatting import counted_text
from .verdicts import FEWEST_REPLICATES, Comparison, Verdict

YES, IN_PART, NO, MIXED = "Yes", "In part", "No", "Mixed"
NOT_SHOWN = "Not shown"
CANNOT_TELL = "Cannot tell on this data"
"""The answer where the data cannot separate methods."""
TOO_FEW_REPLICATES = "Too few replicates"
"""The answer where it is hardly known how much training varies."""

JUDGED = ("test", "shift", "near_ood", "far_ood")
"""Kinds of splits that count, in the order in which they are shown."""

_POWER = (1.96 + 0.84) / 1.96
"""Least detectable difference over the half width of a 95 % interval: a two-sided test at 5 %
finds a difference of (1.96 + 0.84) standard errors with a power of 80 %."""
_POWERED = ("accuracy", "nll")


@dataclass(frozen=True)
class Headline:
    """The short answer for an ensemble and its compute-matched single model.

    Attributes:
        answer: ``Yes``, ``In part``, ``No``, ``Mixed``, ``Not shown``, ``Too few replicates`` or
            ``Cannot tell on this data``.
        sentence: The answer in full, with the counts behind it.
        subject: Which two methods it is about.
        tally: The counts split by split; empty where nothing was compared.
    """

    answer: str
    sentence: str
    subject: str = ""
    tally: str = ""


def headlines(comparison: Comparison) -> tuple[Headline, ...]:
    """Answer the question once for each ensemble that has a compute-matched single model.

    Use it wherever the outcome is shown first. Only differences that hold after Holm's correction
    count: ``Yes`` where some on the test images are better and none anywhere is worse, ``In part``
    where some are better on OOD or shifted images only and none is worse, ``No`` where some are
    worse and none is better, ``Mixed`` where there are both, and ``Not shown`` where there are
    none. Then the sentence names the least difference that a test at 5 %, before correction for
    multiple comparisons, would have detected with 80 % power,

    ``(z_0.975 + z_0.8) * standard error = (1.96 + 0.84) / 1.96 * (half width of the interval)``.

    Args:
        comparison: With its verdicts.

    Returns:
        Headlines in the order in which the pairs appear; none where no pair was judged.
    """
    pairs = dict.fromkeys((each.challenger, each.baseline) for each in comparison.judgements)
    return tuple(
        _headline(
            [each for each in comparison.judgements if (each.challenger, each.baseline) == pair],
            conclusive=comparison.conclusive,
        )
        for pair in pairs
    )


def counted(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Select the verdicts that a summary counts.

    Those by a metric with a direction, on the test images, under shift or on OOD images, that are
    defined. Of an OOD set that also went through the training images' encoder only the encoded
    copy counts: both show the same images, and only the copy hides their file format.

    Args:
        verdicts: Any verdicts.

    Returns:
        Those that count, in their order.
    """
    held = list(verdicts)
    splits = {verdict.split for verdict in held}
    return [
        verdict
        for verdict in held
        if SplitName.parse(verdict.split).kind in JUDGED
        and not has_encoded_copy(verdict.split, splits)
        and METRICS[verdict.metric].higher_is_better is not None
        and verdict.outcome in ("better", "worse", "undecided")
    ]


def has_encoded_copy(split: str, splits: Set[str]) -> bool:
    """Tell whether an OOD set also went through the training images' encoder.

    Args:
        split: Its name.
        splits: The names of all splits.

    Returns:
        Whether its encoded copy is among them.
    """
    name = SplitName.parse(split)
    return name.is_ood and str(dataclasses.replace(name, encoded=True)) in splits - {split}


def _headline(verdicts: Sequence[Verdict], *, conclusive: bool) -> Headline:
    first = verdicts[0]
    pair = f"{first.baseline}, the compute-matched single model"
    subject = f"{first.challenger} against {pair}."
    here = counted(verdicts)
    shown = Counter(each.mark for each in here)
    better, worse, total = shown["better"], shown["worse"], len(here)
    comparisons = counted_text(total, "comparison")
    fewest = min(each.replicates for each in verdicts)
    if not conclusive:
        answer = CANNOT_TELL
        reason = "these images are too few or too easy to separate methods"
        sentence = f"{first.challenger} against {pair}: {reason}."
    elif fewest < FEWEST_REPLICATES:
        answer = TOO_FEW_REPLICATES
        sentence = (
            f"{first.challenger} against {pair}: {counted_text(fewest, 'replicate')} cannot show "
            f"how much training varies; a claim needs at least {FEWEST_REPLICATES}."
        )
    elif better and worse:
        answer = MIXED
        sentence = (
            f"{first.challenger} is better than {pair}, on {better} and worse on {worse} of "
            f"{comparisons} after Holm's correction."
        )
    elif better or worse:
        way, other = ("better", "worse") if better else ("worse", "better")
        on_test = any(each.mark == way and each.split == "test" for each in here)
        answer = NO if worse else YES if on_test else IN_PART
        where = "" if on_test else ", on OOD or shifted images only,"
        sentence = (
            f"{first.challenger} is {way} than {pair}, on {better + worse} of {comparisons}{where} "
            f"after Holm's correction, and {other} on none."
        )
    else:
        answer = NOT_SHOWN
        sentence = (
            f"No difference between {first.challenger} and {pair}, is shown on {comparisons} after "
            f"Holm's correction{_power(verdicts)}."
        )
    return Headline(answer, sentence, subject, _tally(here))


def _power(verdicts: Iterable[Verdict]) -> str:
    """State the differences on the test images that would have been detected, if known."""
    parts = [
        f"{least_detectable(each):.2g} in {METRICS[each.metric].label}"
        for each in verdicts
        if each.split == "test"
        and each.metric in _POWERED
        and math.isfinite(least_detectable(each))
    ]
    if not parts:
        return ""
    return (
        f"; a difference of {' or '.join(parts)} would have been detected at 80 % power, before "
        "correction for multiple comparisons"
    )


def least_detectable(verdict: Verdict) -> float:
    """Return the difference that a single two-sided test at 5 % detects with 80 % power.

    Use it to say what a verdict without a difference could have missed. The standard error is
    taken from the interval. This is before correction for multiple comparisons: after Holm's
    correction the least detectable difference is larger.

    Args:
        verdict: With its interval.

    Returns:
        The difference, in the metric's unit; NaN without an interval.
    """
    return _POWER * (verdict.high - verdict.low) / 2


def _tally(verdicts: Iterable[Verdict]) -> str:
    """Count split by kind of split, such as ``test images 3 better of 9; shift none of 4``."""
    kinds: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        here = kinds.setdefault(SplitName.parse(verdict.split).kind, Counter())
        here["all"] += 1
        here[verdict.mark] += 1
    parts = []
    for kind in (kind for kind in JUDGED if kind in kinds):
        here = kinds[kind]
        shown = [f"{here[way]} {way}" for way in ("better", "worse") if here[way]]
        parts.append(f"{KIND_TITLES[kind]}: {' and '.join(shown) or 'none shown'} of {here['all']}")
    return f"{'; '.join(parts)}." if parts else ""


KIND_TITLES = {
    "test": "Test images",
    "shift": "Shift",
    "near_ood": "Near OOD",
    "far_ood": "Far OOD",
}
"""Kind of split -> its title."""
