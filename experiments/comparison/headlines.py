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

YES, NO, MIXED = "Yes", "No", "Mixed"
NOT_SHOWN = "Not shown"
CANNOT_TELL = "Cannot tell on this data"
"""The answer where the data or the number of replicates cannot separate methods."""

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
        answer: ``Yes``, ``No``, ``Mixed``, ``Not shown`` or ``Cannot tell on this data``.
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
    count: ``Yes`` where some are better and none is worse, ``No`` where some are worse and none is
    better, ``Mixed`` where there are both, and ``Not shown`` where there are none. Then the
    sentence names the least difference that a test of 80 % power would have detected,

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
    shown = Counter(each.outcome for each in here if each.survives)
    better, worse, total = shown["better"], shown["worse"], len(here)
    metrics = counted_text(total, "metric")
    fewest = min(each.replicates for each in verdicts)
    if not conclusive:
        answer = CANNOT_TELL
        reason = "these images are too few or too easy to separate methods"
        sentence = f"{first.challenger} against {pair}: {reason}."
    elif fewest < FEWEST_REPLICATES:
        answer = CANNOT_TELL
        sentence = (
            f"{first.challenger} against {pair}: {counted_text(fewest, 'replicate')} cannot show "
            f"how much training varies; a claim needs at least {FEWEST_REPLICATES}."
        )
    elif better and worse:
        answer = MIXED
        sentence = (
            f"{first.challenger} is better than {pair}, on {better} and worse on {worse} of "
            f"{metrics} after Holm's correction."
        )
    elif better or worse:
        answer = YES if better else NO
        way, other = ("better", "worse") if better else ("worse", "better")
        sentence = (
            f"{first.challenger} is {way} than {pair}, on {better + worse} of {metrics} after "
            f"Holm's correction, and {other} on none."
        )
    else:
        answer = NOT_SHOWN
        sentence = (
            f"No difference between {first.challenger} and {pair}, is shown on {metrics} after "
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
    return f"; a difference of {' or '.join(parts)} would have been detected with 80 % power"


def least_detectable(verdict: Verdict) -> float:
    """Return the difference that a two-sided test at 5 % detects with 80 % power.

    Use it to say what a verdict without a difference could have missed. The standard error is
    taken from the interval; no correction for multiple comparisons is made.

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
        if verdict.survives:
            here[verdict.outcome] += 1
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
