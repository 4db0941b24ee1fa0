"""Two methods of a comparison beside each other, whatever each of them costs."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from ...metrics.core.catalogue import METRICS
from ..training.devices import threads
from .formatting import counted_text, signed
from .judging import judge
from .verdicts import Comparison, MethodSummary, Verdict

SINGLE = "single"


def find_pairs(names: Sequence[str], methods: Mapping[str, MethodSummary]) -> list[tuple[str, str]]:
    """Read ``FIRST:SECOND`` names of the methods."""
    pairs = []
    for name in names:
        first, separator, second = name.partition(":")
        missing = [each for each in (first, second) if each not in methods]
        if not separator or missing or first == second:
            raise ValueError(
                f"pairs must be FIRST:SECOND with two of {', '.join(methods)}, got {name!r}"
            )
        pairs.append((first, second))
    return pairs


def describe_pairs(
    comparison: Comparison, names: Sequence[str], *, backbones: Mapping[str, str], seed: int
) -> Iterator[str]:
    """Lines that compare pairs of methods on every split, metric by metric.

    Each is a verdict of :func:`~.judging.judge`: its advantage, positive where the first is better,
    with its interval, called better or worse by its mark. The share of the
    gain is ``(single - first) / (single - second)``, of means over replicates, with the range of
    the shares of single replicates. It is stated only where the second is better than ``single`` in
    all replicates and all three have one backbone.

    Args:
        comparison: As read from its directory.
        names: ``FIRST:SECOND``, names of methods.
        backbones: The network of each method.
        seed: Of the resampling.

    Raises:
        ValueError: A name of another kind, or of a method that the comparison lacks.
    """
    methods = {method.name: method for method in comparison.methods}
    for first, second in find_pairs(names, methods):
        ours, theirs = methods[first], methods[second]
        ratio = ours.cost.macs / theirs.cost.macs
        yield f"{first} against {second}, at {ratio:.3g} times its MACs (+: {first} is better):"
        with threads(1):  # many small steps: more threads would wait for each other
            found = judge(
                ours,
                theirs,
                draws=comparison.draws,
                seed=seed,
                tolerance=comparison.cost_tolerance,
            )
        for verdict in found:
            if verdict.mark:
                alike = len({backbones.get(each) for each in (first, second, SINGLE)}) == 1
                share = _share(verdict, ours, theirs, methods.get(SINGLE)) if alike else ""
                yield f"  {_difference(verdict)}{share}"


def _difference(verdict: Verdict) -> str:
    label = f"{METRICS[verdict.metric].label} ({verdict.split})"
    word = "no difference shown" if verdict.mark == "not shown" else verdict.mark
    estimate, low, high = signed(verdict.advantage)
    return (
        f"{label}: {estimate} [{low}, {high}], {word}, "
        f"{counted_text(verdict.replicates, 'replicate')}, n = {verdict.n}"
    )


def _share(
    verdict: Verdict, first: MethodSummary, second: MethodSummary, single: MethodSummary | None
) -> str:
    if single is None or SINGLE in (first.name, second.name):
        return ""
    first_values, second_values, base = (
        [r.metric(verdict.split, verdict.metric) for r in method.replicates]
        for method in (first, second, single)
    )
    sign = 1 if METRICS[verdict.metric].higher_is_better else -1
    gains = [y - z for y, z in zip(second_values, base, strict=False)]
    if min(sign * gain for gain in gains) <= 0:
        return ""
    mean = statistics.fmean(base)
    share = (mean - statistics.fmean(first_values)) / (mean - statistics.fmean(second_values))
    each = [(x - z) / gain for x, z, gain in zip(first_values, base, gains, strict=False)]
    spread = f" (replicates {min(each):.0%} to {max(each):.0%})" if len(each) > 1 else ""
    return f"; {share:.0%}{spread} of {second.name}'s gain over {SINGLE}"
