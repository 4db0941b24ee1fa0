"""Verdicts in words: the one place where a sentence is made of their numbers."""

import math

from ...metrics.core.catalogue import METRICS
from .formatting import listed, p_value_text, signed
from .verdicts import FEWEST_REPLICATES, Between, Verdict, compares_members


def verdict_sentence(verdict: Verdict) -> str:
    """Say what a verdict concludes, with the numbers that it rests on.

    Use it where a reader asks for the full statement; tables and plots show the numbers. They are
    the verdict's `advantage`: positive where the challenger is better.
    """
    where = f"{METRICS[verdict.metric].label} ({verdict.split})"
    if verdict.outcome == "undefined":
        return f"{where}: no verdict, since {why_undefined(verdict.metric)}."
    shown, low, high = signed(verdict.advantage)
    zero = "includes" if verdict.low <= 0 <= verdict.high else "excludes"
    facts = (
        f"advantage of {verdict.challenger} {shown}, 95 % interval [{low}, {high}] {zero} zero; "
        f"same sign in {verdict.agreeing} of {verdict.replicates} replicates; n = {verdict.n}"
    )
    claim = _claim(verdict)
    if verdict.replicates < 2:
        claim = "no claim, since one replicate gives no estimate of training variance"
    else:
        facts += (
            f"; p {p_value_text(verdict.p_value)} by Holm's method for {verdict.compared} verdicts"
        )
        if verdict.replicates < FEWEST_REPLICATES:
            facts += f"; a claim needs at least {FEWEST_REPLICATES} replicates"
        elif verdict.mark == "not shown":
            facts += _unseen(verdict)
    return f"{where}: {claim} ({facts})."


def partner_text(baseline: str, between: Between) -> str:
    """Say in full what an ensemble is judged against, in words that a comma may follow.

    Example:
        >>> from deepens.experiments.comparison.sentences import partner_text
        >>> partner_text("wide", ())
        'wide, the compute-matched single model'
        >>> partner_text("single to wide-4, interpolated", (("single", 0.5), ("wide-4", 2.0)))[:51]
        'single models of equal cost, interpolated linearly '
    """
    if not between:
        return f"{baseline}, the compute-matched single model"
    (low, less), (high, more) = between
    return (
        f"single models of equal cost, interpolated linearly in log MACs between {low} ({less:.3g} "
        f"times the MACs) and {high} ({more:.3g} times)"
    )


def difference_text(verdict: Verdict) -> tuple[str, str]:
    """Write an advantage and its interval; nothing where they cannot be shown."""
    values = verdict.advantage
    if not verdict.mark or not all(map(math.isfinite, values)):
        return "", ""
    estimate, low, high = signed(values)
    return estimate, f"[{low}, {high}]"


def _unseen(verdict: Verdict) -> str:
    """Say which differences may be there without having been seen."""
    least = verdict.least_detectable
    if math.isinf(least):
        return "; no difference at all would have been shown with a probability of 80 %"
    return f"; {least:.2g} would have been shown with a probability of 80 %" if least > 0 else ""


def _claim(verdict: Verdict) -> str:
    """Say by its mark which method is better, and at how many times the other's cost."""
    ours, theirs, ratio = verdict.challenger, verdict.baseline, verdict.cost_ratio
    if verdict.between:
        ends = listed([name for name, _ in verdict.between])
        singles = f"single models of equal cost, interpolated between {ends}"
        return {
            "better": f"{ours} beats {singles}",
            "worse": f"{singles}, beat {ours}",
            "not shown": f"no difference between {ours} and {singles}, shown",
        }[verdict.mark]
    if ratio == 1:
        single = f"{theirs}, the compute-matched single model"
        return {
            "better": f"{ours} beats {single}",
            "worse": f"{single}, beats {ours}",
            "not shown": f"no difference between {ours} and {single}, shown",
        }[verdict.mark]
    shown = f"no difference shown between {ours}, at {ratio:.3g} times the MACs, and {theirs}"
    return {
        "better": f"{ours} beats {theirs} (at {ratio:.3g} times its MACs)",
        "worse": f"{theirs} beats {ours} (at {1 / ratio:.3g} times its MACs)",
        "not shown": shown,
    }[verdict.mark]


def why_undefined(metric: str) -> str:
    """Say why a verdict by a metric is undefined where it is, in words that follow "since"."""
    if compares_members(metric):
        return "this score needs several members"
    return "the metric has no value in some bootstrap draw"
