"""Verdicts in words: a scoreboard, then one sentence and one interval for each metric."""

import math
from collections import Counter
from collections.abc import Sequence
from html import escape

from ..comparison.sentences import verdict_sentence, why_undefined
from ..comparison.verdicts import Verdict, compares_members
from .splits import higher_is_better, kind_of, metric_label, number, split_title

_JUDGED = ("test", "shift", "near_ood", "far_ood")
BADGES = {
    "better": "✓ better",
    "worse": "✗ worse",
    "undecided": "○ undecided",
    "undefined": "— undefined",
}
"""Outcome -> how it is shown, by a sign and a word, so that colour is never needed."""
_SURVIVING = "surviving"
_SIGNS = {"better": "✓", "partly better": "✓", "worse": "✗", "undecided": "○", "mixed": "✓✗"}


def _counts(challenger: str, baseline: str, verdicts: Sequence[Verdict]) -> dict[str, Counter[str]]:
    """Count the outcomes of a pair, split by split."""
    counts: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        if (
            (verdict.challenger, verdict.baseline) == (challenger, baseline)
            and kind_of(verdict.split) in _JUDGED
            and higher_is_better(verdict.metric) is not None
            and not lacks_score(verdict)
        ):
            here = counts.setdefault(verdict.split, Counter())
            outcome = outcome_of(verdict)
            here[outcome] += 1
            here[_SURVIVING] += verdict.survives
            here[f"{outcome} {_SURVIVING}"] += verdict.survives
    return counts


def scoreboard(verdicts: Sequence[Verdict]) -> str:
    """Write which way each split points, a row a split and a column a pair, with the counts.

    Args:
        verdicts: All verdicts of a comparison.

    Returns:
        HTML, or nothing where no verdict counts.
    """
    pairs = dict.fromkeys((verdict.challenger, verdict.baseline) for verdict in verdicts)
    found = {pair: _counts(*pair, verdicts) for pair in pairs}
    splits = dict.fromkeys(split for counts in found.values() for split in counts)
    if not splits:
        return ""
    heads = "".join(
        f'<th scope="col">{escape(challenger)} <small>against {escape(baseline)}</small></th>'
        for challenger, baseline in pairs
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(split_title(split))}</th>'
        f"{''.join(_score(counts.get(split, Counter())) for counts in found.values())}</tr>"
        for split in splits
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Verdict by split">\n'
        f'<table class="scores">\n<thead><tr><th scope="col">Split</th>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table>\n</div>"
    )


def _score(counts: Counter[str]) -> str:
    if not counts:
        return "<td></td>"
    finding = _finding(counts)
    # As with better: the whole word only where more than half of the metrics say so.
    worse = counts[f"worse {_SURVIVING}"]
    half = 2 * worse <= counts["better"] + counts["worse"] + counts["undecided"]
    name = "partly worse" if finding == "worse" and half else finding
    told = ", ".join(f"{counts[each]} {each}" for each in BADGES if counts[each])
    if counts["better"] + counts["worse"]:
        told += f"; {counts[_SURVIVING]} after Holm's correction"
    return (
        f'<td class="{finding}"><span class="badge">{_SIGNS[finding]} {name}</span> '
        f"<small>{told}</small></td>"
    )


def _finding(counts: Counter[str]) -> str:
    """Say which way one split points, by what holds after Holm's correction."""
    better, worse = (counts[f"{outcome} {_SURVIVING}"] for outcome in ("better", "worse"))
    comparisons = counts["better"] + counts["worse"] + counts["undecided"]
    if better and worse:
        return "mixed"
    if better:
        return "better" if 2 * better > comparisons else "partly better"
    return "worse" if worse else "undecided"


def verdict_list(verdicts: Sequence[Verdict]) -> str:
    """Write every verdict, in one part a split that opens and folds; the test images are open.

    Args:
        verdicts: All verdicts of a comparison.

    Returns:
        HTML.
    """
    parts = []
    for split, (here, remark) in verdicts_by_split(verdicts).items():
        counts = Counter(outcome_of(verdict) for verdict in here)
        tally = ", ".join(f"{counts[outcome]} {outcome}" for outcome in BADGES if counts[outcome])
        items = "\n".join(_item(verdict) for verdict in here)
        parts.append(
            f"<details{' open' if split == 'test' else ''}>"
            f"<summary>{escape(split_title(split))} <span>{tally}</span></summary>\n"
            f'<ul class="verdicts">\n{items}\n</ul>'
            f"{f'<p>{escape(remark)}</p>' if remark else ''}</details>"
        )
    return "\n".join(parts)


def verdicts_by_split(verdicts: Sequence[Verdict]) -> dict[str, tuple[list[Verdict], str]]:
    """Sort verdicts by split, without those that cannot be had: a remark counts them.

    Args:
        verdicts: All verdicts of a comparison.

    Returns:
        Split -> its verdicts, and one sentence on those left out, empty where none is.
    """
    found: dict[str, tuple[list[Verdict], str]] = {}
    for split in dict.fromkeys(verdict.split for verdict in verdicts):
        here = [verdict for verdict in verdicts if verdict.split == split]
        lacking = [verdict for verdict in here if lacks_score(verdict)]
        remark = ""
        if lacking:
            count = f"{len(lacking)} comparison{'' if len(lacking) == 1 else 's'}"
            remark = f"{count} without a verdict, since {why_undefined(lacking[0].metric)}."
        found[split] = ([verdict for verdict in here if not lacks_score(verdict)], remark)
    return found


def lacks_score(verdict: Verdict) -> bool:
    """Tell whether there can be no verdict: one network has no mutual information.

    Args:
        verdict: The verdict.

    Returns:
        Whether it is undefined whatever the images are.
    """
    return compares_members(verdict.metric) and outcome_of(verdict) == "undefined"


def outcome_of(verdict: Verdict) -> str:
    """Return a verdict's outcome, ``undefined`` where it is none that has a badge."""
    return verdict.outcome if verdict.outcome in BADGES else "undefined"


def has_interval(verdict: Verdict) -> bool:
    """Tell whether a verdict's difference and interval are to be shown.

    Args:
        verdict: The verdict.

    Returns:
        Whether it is defined, and all three numbers are finite.
    """
    values = (verdict.estimate, verdict.low, verdict.high)
    return outcome_of(verdict) != "undefined" and all(map(math.isfinite, values))


def _item(verdict: Verdict) -> str:
    outcome = outcome_of(verdict)
    return (
        f'<li class="{outcome}"><span class="badge">{BADGES[outcome]}</span>'
        f'<span class="sentence">{escape(verdict_sentence(verdict))}</span>'
        f"{_interval_bar(verdict)}</li>"
    )


def _interval_bar(verdict: Verdict) -> str:
    """Draw zero, the interval and the estimate, with the challenger's side always on the right."""
    low, estimate, high = verdict.low, verdict.estimate, verdict.high
    name = escape(metric_label(verdict.metric))
    if not has_interval(verdict):
        return ""
    sign = -1 if higher_is_better(verdict.metric) is False else 1
    reach = max(abs(low), abs(high), abs(estimate)) or 1.0
    left, dot, right = (100 + 92 * sign * value / reach for value in (low, estimate, high))
    described = f"{name}: difference {number(estimate)}, interval {number(low)} to {number(high)}"
    return (
        f'<svg class="bar" viewBox="0 0 200 24" role="img" aria-label="{described}">'
        f"<title>{described}</title>"
        f'<line class="zero" x1="100" x2="100" y1="1" y2="23"/>'
        f'<line class="interval" x1="{min(left, right):.1f}" x2="{max(left, right):.1f}"'
        ' y1="12" y2="12"/>'
        f'<circle cx="{dot:.1f}" cy="12" r="5"/></svg>'
    )
