"""Judging an ensemble against a single model: paired bootstrap, outcome and correction."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS, metrics_with
from ...metrics.statistics.bootstrap import Interval, paired_intervals
from ...metrics.statistics.draws import Draws, Evaluation, bootstrap_draws
from ...metrics.statistics.hypothesis_tests import holm_adjusted
from ...metrics.suite import MeanEvaluation, OODEvaluation, SplitEvaluation
from ..evaluation.temperatures import JUDGED
from .verdicts import LEVEL, SHIFT, MethodSummary, Replicate, Verdict, compares_members

AT_TEMPERATURE = {
    METRICS[name].measure: name
    for name in metrics_with(scope="temperature", way=JUDGED)
    if METRICS[name].measure != "temperature"
}
"""Metric -> the same at the temperature by which methods are compared."""


def judge(
    challenger: MethodSummary, baseline: MethodSummary, *, draws: int, seed: int
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

    Returns:
        Verdicts in the order of splits and metrics. With a single replicate of either method none
        of them is better or worse.

    Raises:
        ValueError: The replicates do not hold the same splits.
    """
    _check_splits((*challenger.replicates, *baseline.replicates))
    return judge_all([challenger], [baseline], draws=draws, seed=seed)


def judge_all(
    challengers: Sequence[MethodSummary],
    baselines: Sequence[MethodSummary],
    *,
    draws: int,
    seed: int,
) -> tuple[Verdict, ...]:
    """Compare every challenger with every baseline, each method resampled once per split.

    Use it for budgets, where costs differ; the numbers are those that `judge` finds for the pair.
    Methods may hold different splits: a pair is compared on those that both hold, and on
    ``shift`` where both hold the same shifted copies.

    Returns:
        The verdicts of the first challenger against each baseline, then those of the next.

    Raises:
        ValueError: Replicates of one method do not hold the same splits, or test images differ.
    """
    methods = [*challengers, *baselines]
    for method in methods:
        _check_splits(method.replicates)
    splits = [_judged(method) for method in methods]
    copies = [set(method.replicates[0].shifted) for method in methods]
    ours, theirs = range(len(challengers)), range(len(challengers), len(methods))
    # The two places of each pair -> its differences.
    found: dict[tuple[int, int], list[_Difference]] = {
        p: [] for p in itertools.product(ours, theirs)
    }
    for split in sorted({each for held in splits for each in held}, key=_order):
        here = [pair for pair in found if all(split in splits[place] for place in pair)]
        # One split's draws at a time: those of all splits would be hundreds of megabytes.
        drawn = {
            place: _draws(methods[place], split, draws, seed) for place in sorted({*sum(here, ())})
        }
        for first, second in here:
            # Means over the shifted copies have to be means over the same ones.
            if split != SHIFT or copies[first] == copies[second]:
                pair = (methods[first], methods[second])
                found[first, second] += _differences(pair, split, drawn[first], drawn[second])
    return tuple(
        verdict
        for (first, second), differences in found.items()
        for verdict in _verdicts(methods[first], methods[second], differences)
    )


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


def _draws(method: MethodSummary, split: str, draws: int, seed: int) -> Draws:
    """Resample a method on a split, by the metrics that have a direction."""
    scaled = all(each.scaled is not None for each in method.replicates)
    evaluations = [evaluation_of(replicate, split, scaled) for replicate in method.replicates]
    values = method.replicates[0].values
    sizes = [len(values[each]) for each in dict.fromkeys(["test", split]) if each != SHIFT]
    found = bootstrap_draws(evaluations, sizes=sizes, draws=draws, seed=seed)
    return found.only([n for n in found.observed if METRICS[n].higher_is_better is not None])


def _differences(
    pair: tuple[MethodSummary, MethodSummary], split: str, first: Draws, second: Draws
) -> Iterator[_Difference]:
    """Compare a pair by the metrics that both have."""
    common = [metric for metric in first.observed if metric in second.observed]
    intervals = paired_intervals(first.only(common), second.only(common))
    for metric, interval in intervals.items():
        outcome = _outcome(interval, metric, pair)
        yield _Difference(split, metric, interval, sum(first.sizes), outcome)


def _judged(method: MethodSummary) -> list[str]:
    replicate = method.replicates[0]
    names = {split: SplitName.parse(split) for split in replicate.values}
    splits = {s for s, name in names.items() if not (name.is_validation or name.is_shift)}
    lengths = {len(replicate.values[split]) for split in ("test", *replicate.shifted)}
    alike = all(set(each.shifted) == set(replicate.shifted) for each in method.replicates)
    if replicate.shifted and alike and len(lengths) == 1:
        splits.add(SHIFT)
    return sorted(splits, key=_order)


def _order(split: str) -> tuple[int, str]:
    """The test split first, then its shifted copies, then near and far OOD."""
    return ["test", SHIFT, "near_ood", "far_ood"].index(SplitName.parse(split).kind), split


def evaluation_of(replicate: Replicate, split: str, scaled: bool) -> Evaluation:
    """All metrics of a split; of the test split, where wanted, also those at the temperature."""
    if split == SHIFT:
        return MeanEvaluation([replicate.values[each] for each in replicate.shifted])
    if split != "test":
        return OODEvaluation(replicate.values["test"], replicate.values[split])
    raw = SplitEvaluation(replicate.values["test"])
    if replicate.scaled is None or not scaled:
        return raw
    at_temperature = MeanEvaluation([replicate.scaled])

    def both(weights: Tensor) -> dict[str, Tensor]:
        found = at_temperature(weights)
        return raw(weights) | {name: found[measure] for measure, name in AT_TEMPERATURE.items()}

    return both


def _verdicts(
    challenger: MethodSummary, baseline: MethodSummary, found: Sequence[_Difference]
) -> Iterator[Verdict]:
    """Make the verdicts of a pair, p-values adjusted for all of them."""
    adjusted = holm_adjusted([each.p_value for each in found])
    compared = sum(not math.isnan(value) for value in adjusted)
    still_open = sum(value > LEVEL for value in adjusted)
    pairs = list(zip(challenger.replicates, baseline.replicates, strict=False))
    for each, p_value in zip(found, adjusted, strict=True):
        split, metric, interval = each.split, each.metric, each.interval
        reach = METRICS[metric].bounds[1] - METRICS[metric].bounds[0]
        sign = math.copysign(1.0, interval.estimate)
        own = [a.metric(split, metric) - b.metric(split, metric) for a, b in pairs]
        yield Verdict(
            split=split,
            metric=metric,
            challenger=challenger.name,
            baseline=baseline.name,
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
            cost_ratio=challenger.cost.macs / baseline.cost.macs,
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
