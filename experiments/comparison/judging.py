"""Judging an ensemble against a single model: paired bootstrap, outcome and correction."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ...metrics.core.catalogue import METRICS
from ...metrics.statistics.bootstrap import Interval, contrast_intervals
from ...metrics.statistics.draws import Draws
from ...metrics.statistics.hypothesis_tests import holm_adjusted
from ..config import COST_TOLERANCE
from ..store.progress import Display
from .partners import Partner
from .resampling import draws_of, judged_splits, split_order
from .verdicts import LEVEL, SHIFT, MethodSummary, Replicate, Verdict, compares_members


def judge(
    challenger: MethodSummary,
    baseline: MethodSummary,
    *,
    draws: int,
    seed: int,
    tolerance: float = COST_TOLERANCE,
) -> tuple[Verdict, ...]:
    """Compare two methods by every metric that has a direction, on test, shift and OOD splits.

    By the mean over the shifted copies of the test split where their values are known of every
    replicate, unless they differ in length and so cannot be resampled together; metrics by rank are
    left out there.

    Args:
        challenger: The ensemble.
        baseline: The compute-matched single model.
        draws: Bootstrap draws.
        seed: Of the resampling.
        tolerance: Relative difference in MACs up to which costs count as equal.

    Returns:
        Verdicts in the order of splits and metrics. With a single replicate of either method none
        of them is better or worse.

    Raises:
        ValueError: The replicates do not hold the same splits.
    """
    _check_splits((*challenger.replicates, *baseline.replicates))
    return judge_all([challenger], [baseline], draws=draws, seed=seed, tolerance=tolerance)


def judge_all(
    challengers: Sequence[MethodSummary],
    baselines: Sequence[MethodSummary],
    *,
    draws: int,
    seed: int,
    tolerance: float = COST_TOLERANCE,
    partners: Mapping[str, Partner | None] | None = None,
    display: Display | None = None,
) -> tuple[Verdict, ...]:
    """Compare every challenger with every baseline, each method resampled once per split.

    Use it for budgets, where costs differ; the numbers are those that `judge` finds for the pair.
    Methods may hold different splits: a pair is compared on those that both hold, and on
    ``shift`` where both hold the same shifted copies. A challenger whose partner lies between two
    baselines is also compared with that: the difference is the contrast of the three methods'
    draws, with the weights 1, ``-(1 - t)`` and ``-t``.

    Args:
        challengers: The ensembles.
        baselines: The single models.
        draws: Bootstrap draws.
        seed: Of the resampling.
        tolerance: Relative difference in MACs up to which costs count as equal.
        partners: By a challenger's name, as `partner_of` finds them.
        display: Where progress is shown; nowhere by default.

    Returns:
        The verdicts of the first challenger against each baseline, and against its partner where
        that is interpolated, then those of the next.

    Raises:
        ValueError: Replicates of one method do not hold the same splits, or test images differ.
    """
    pairs = []
    for ours in challengers:
        pairs += [(ours, Partner(((1.0, single),))) for single in baselines]
        partner = (partners or {}).get(ours.name)
        pairs += [(ours, partner)] if partner is not None and partner.between else []
    methods = {id(each): each for ours, theirs in pairs for each in (ours, *theirs.singles)}
    for method in methods.values():
        _check_splits(method.replicates)
    splits = {key: judged_splits(method) for key, method in methods.items()}
    found: list[list[_Difference]] = [[] for _ in pairs]
    judged = {
        split: [pair for pair in range(len(pairs)) if _hold(pairs[pair], split, splits)]
        for split in sorted({each for held in splits.values() for each in held}, key=split_order)
    }
    display, total = display or Display(quiet=True), sum(map(len, judged.values()))
    with display.task("compare methods by paired bootstrap", total) as task:
        for split, chosen in judged.items():
            # One split's draws at a time: those of all splits would be hundreds of megabytes.
            drawn: dict[int, Draws] = {}
            for ours, theirs, differences in ((*pairs[pair], found[pair]) for pair in chosen):
                for each in (ours, *theirs.singles):
                    if id(each) not in drawn:
                        drawn[id(each)] = draws_of(each, split, draws, seed)
                differences += _differences(ours, theirs, split, drawn)
                task.advance(split)
    return tuple(
        verdict
        for (ours, theirs), differences in zip(pairs, found, strict=True)
        for verdict in _verdicts(ours, theirs, differences, tolerance)
    )


def _hold(
    pair: tuple[MethodSummary, Partner], split: str, splits: Mapping[int, Sequence[str]]
) -> bool:
    """Whether all methods of a pair can be compared on a split.

    Means over the shifted copies have to be means over the same ones.
    """
    ours, theirs = pair
    sides = (ours, *theirs.singles)
    copies = {frozenset(each.replicates[0].shifted) for each in sides}
    return all(split in splits[id(each)] for each in sides) and (split != SHIFT or len(copies) == 1)


def _check_splits(replicates: Sequence[Replicate]) -> None:
    def others(replicate: Replicate) -> set[str]:
        return set(replicate.values) - set(replicate.shifted)

    for replicate in replicates:
        if others(replicate) != others(replicates[0]):
            raise ValueError(
                f"{replicate.directory} has predictions of other splits than "
                f"{replicates[0].directory}; run `deepens evaluate RUN --predict` on it"
            )


class _Difference(NamedTuple):
    """What resampling shows of a pair, before p-values are adjusted."""

    split: str
    metric: str
    interval: Interval
    n: int
    outcome: str

    @property
    def p_value(self) -> float:
        return math.nan if self.outcome == "undefined" else self.interval.p_value


def _differences(
    ours: MethodSummary, theirs: Partner, split: str, drawn: Mapping[int, Draws]
) -> Iterator[_Difference]:
    """Compare a pair by the metrics that all of its methods have."""
    parts = [(1.0, drawn[id(ours)])]
    parts += [(-weight, drawn[id(single)]) for weight, single in theirs.parts]
    common = [m for m in parts[0][1].observed if all(m in each.observed for _, each in parts)]
    intervals = contrast_intervals([(weight, each.only(common)) for weight, each in parts])
    for metric, interval in intervals.items():
        outcome = _outcome(interval, metric, (ours, *theirs.singles))
        yield _Difference(split, metric, interval, sum(parts[0][1].sizes), outcome)


def _verdicts(
    ours: MethodSummary, theirs: Partner, found: Sequence[_Difference], tolerance: float
) -> Iterator[Verdict]:
    """Make the verdicts of a pair, p-values adjusted for all of them."""
    adjusted = holm_adjusted([each.p_value for each in found])
    compared = sum(not math.isnan(value) for value in adjusted)
    still_open = sum(value > LEVEL for value in adjusted)
    rows = list(zip(*(each.replicates for each in (ours, *theirs.singles)), strict=False))
    weights = [1.0, *(-weight for weight, _ in theirs.parts)]
    ratio = 1.0 if theirs.between else ours.cost.macs / theirs.singles[0].cost.macs
    for each, p_value in zip(found, adjusted, strict=True):
        split, metric, interval = each.split, each.metric, each.interval
        reach = METRICS[metric].bounds[1] - METRICS[metric].bounds[0]
        sign = math.copysign(1.0, interval.estimate)
        own = [
            sum(w * run.metric(split, metric) for w, run in zip(weights, row, strict=True))
            for row in rows
        ]
        yield Verdict(
            split=split,
            metric=metric,
            challenger=ours.name,
            baseline=theirs.name,
            estimate=interval.estimate,
            low=max(interval.low, -reach),
            high=min(interval.high, reach),
            agreeing=sum(difference * sign > 0 for difference in own),
            replicates=len(own),
            n=each.n,
            outcome=each.outcome,
            p_value=p_value,
            compared=compared,
            raw_p_value=each.p_value,
            cost_ratio=1.0 if abs(ratio - 1) <= tolerance else ratio,
            between=theirs.between,
            error=interval.error,
            freedom=interval.freedom,
            open=still_open,
        )


def _outcome(interval: Interval, metric: str, methods: Sequence[MethodSummary]) -> str:
    single = any(all(map(_lacks_members, method.replicates)) for method in methods)
    if math.isnan(interval.low) or (compares_members(metric) and single):
        return "undefined"
    one = min(len(method.replicates) for method in methods) < 2
    sides = {value > 0 for value in (interval.low, interval.estimate, interval.high)}
    if one or interval.low <= 0 <= interval.high or len(sides) > 1:
        return "undecided"
    return "better" if (interval.low > 0) == METRICS[metric].higher_is_better else "worse"


def _lacks_members(replicate: Replicate) -> bool:
    """Tell whether there are no members to compare: of one network, or of a cascade (NaN)."""
    found = replicate.metrics["test"].get("mutual_information")
    return found is not None and not found > 0
