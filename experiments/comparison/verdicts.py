"""What a comparison found: its methods, their costs, and a verdict for each metric."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...metrics.core.catalogue import METRICS, metric_info
from ...metrics.samples import SampleValues
from ...metrics.statistics.bootstrap import (
    Draws,
    Evaluation,
    Interval,
    bootstrap_draws,
    paired_intervals,
)
from ...metrics.statistics.hypothesis_tests import holm_adjusted
from ...metrics.suite import MeanEvaluation, OODEvaluation, SplitEvaluation
from ..cost.measurement import COST_TOLERANCE, Cost
from ..evaluation.temperatures import JUDGED, SCALED
from .examples import Examples

LEVEL = 0.05
"""Of the intervals and tests."""

FEWEST_REPLICATES = 3
"""With fewer replicates than these, how much training itself varies is hardly known."""

SHIFT = "shift"
"""All shifted copies of the test split as one, by which methods are judged."""


@dataclass(frozen=True)
class Replicate:
    """One run of a method.

    Attributes:
        directory: The run directory, below the comparison's.
        metrics: ``{split: {metric: value}}``.
        values: Per-sample values of the splits whose logits were kept.
        log: Losses and validation metrics, a row an epoch; empty where there is no log.
        scaled: Per-sample values of the test split at the pooled temperature; None without one.
    """

    directory: str
    metrics: Mapping[str, Mapping[str, int | float]]
    values: Mapping[str, SampleValues]
    log: tuple[Mapping[str, int | float], ...] = ()
    scaled: SampleValues | None = None

    @property
    def shifted(self) -> list[str]:
        """The shift splits whose logits were kept."""
        return [split for split in self.values if split.startswith(f"{SHIFT}/")]

    def metric(self, split: str, name: str) -> float:
        """A metric's value on a split; on ``shift``, its mean over the shifted copies."""
        splits = self.shifted if split == SHIFT else [split]
        return statistics.fmean(self.metrics[each][name] for each in splits)


@dataclass(frozen=True)
class MethodSummary:
    """One method, what it costs and its runs.

    Attributes:
        name: As in ``--methods``.
        description: For people.
        cost: Of its first replicate.
        replicates: Its runs.
        family: What kind of method it is, such as ``deep ensemble``; ``single model`` for one
            network.
    """

    name: str
    description: str
    cost: Cost
    replicates: tuple[Replicate, ...]
    family: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger beats the baseline, by one metric on one split.

    Attributes:
        split: The split; ``shift`` for the mean over all shifted copies of the test split.
        metric: Its key in the suite.
        challenger: The ensemble.
        baseline: The single model that it is held against.
        estimate: Challenger minus baseline, of replicate means.
        low: Lower end of the 95 % interval, cut off at the largest difference that there can be.
        high: Upper end, likewise.
        agreeing: Replicates whose own difference has the estimate's sign.
        replicates: Of how many.
        n: Number of images: of the split, or of the ID and the OOD split together.
        outcome: better, worse, undecided (the interval holds zero), or undefined.
        p_value: Of there being no difference, by Holm's method adjusted for all verdicts on the
            same two methods; NaN where undefined.
        compared: How many verdicts these are.
        sentence: All of this in words.
        raw_p_value: Of there being no difference, not adjusted; NaN where undefined.
    """

    split: str
    metric: str
    challenger: str
    baseline: str
    estimate: float
    low: float
    high: float
    agreeing: int
    replicates: int
    n: int
    outcome: str
    p_value: float
    compared: int
    sentence: str
    raw_p_value: float = math.nan

    @property
    def survives(self) -> bool:
        """Whether the difference still shows, at 5 %, among all that were looked for."""
        return self.outcome in ("better", "worse") and self.p_value <= LEVEL


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that the report shows; two are equal only if they are the same object.

    Attributes:
        data: Name of the data set.
        caveat: What a reader of results on this data must know.
        methods: In the order asked for.
        verdicts: By split and metric.
        draws: Bootstrap draws behind each interval.
        notes: How far the methods' costs match, and the like.
        configuration: YAML.
        environment: Versions, hardware, git revision, wall time.
        command: What reproduces the comparison.
        examples: Pictures of test images, if there are any.
        conclusive: Whether the data can separate strong methods; the built-in digits cannot.
        cautions: What puts the results in doubt, such as test images that were trained on.
        data_notes: How the data came about: what was left out, cut or made.
        verdict_notes: Why an ensemble has no verdict.
        picture_notes: Why there are no pictures.
        against_singles: Every ensemble against every single model, whatever the two cost: what the
            best method within a budget is found by.
    """

    data: str
    caveat: str
    methods: tuple[MethodSummary, ...]
    verdicts: tuple[Verdict, ...]
    draws: int
    notes: tuple[str, ...]
    configuration: str
    environment: Mapping[str, object]
    command: str
    examples: Examples | None = None
    conclusive: bool = True
    cautions: tuple[str, ...] = ()
    data_notes: tuple[str, ...] = ()
    verdict_notes: tuple[str, ...] = ()
    picture_notes: tuple[str, ...] = ()
    against_singles: tuple[Verdict, ...] = ()


def judge(
    challenger: MethodSummary, baseline: MethodSummary, *, draws: int, seed: int
) -> tuple[Verdict, ...]:
    """Compare two methods by every metric that has a direction, on test, shift and OOD splits.

    By the mean over the shifted copies of the test split where their logits were kept, unless they
    differ in length and so cannot be resampled together; metrics by rank are left out there.

    Args:
        challenger: The ensemble.
        baseline: The single model of equal cost.
        draws: Bootstrap draws.
        seed: Seed of the resampling.

    Returns:
        Verdicts in the order of splits and metrics. With a single replicate of either method none
        of them is better or worse.

    Raises:
        ValueError: The replicates do not hold the same splits.
    """
    _check_splits((*challenger.replicates, *baseline.replicates))
    (found,) = _compare_pairs([challenger, baseline], [(0, 1)], draws=draws, seed=seed)
    return _verdicts(challenger, baseline, found)


def judge_all(
    challengers: Sequence[MethodSummary],
    baselines: Sequence[MethodSummary],
    *,
    draws: int,
    seed: int,
) -> tuple[Verdict, ...]:
    """Compare every challenger with every baseline, each method resampled once a split.

    The numbers are those that `judge` finds for the pair; the sentences tell by how much the costs
    differ. Methods may hold different splits: a pair is compared on those that both hold, and on
    ``shift`` where both hold the same shifted copies.

    Args:
        challengers: The ensembles.
        baselines: The single models, whatever they cost.
        draws: Bootstrap draws.
        seed: Seed of the resampling.

    Returns:
        The verdicts of the first challenger against each baseline, then those of the next.

    Raises:
        ValueError: Replicates of one method do not hold the same splits, or test images differ.
    """
    methods = [*challengers, *baselines]
    for method in methods:
        _check_splits(method.replicates)
    ours, theirs = range(len(challengers)), range(len(challengers), len(methods))
    pairs = list(itertools.product(ours, theirs))
    verdicts: list[Verdict] = []
    found = _compare_pairs(methods, pairs, draws=draws, seed=seed)
    for pair, differences in zip(pairs, found, strict=True):
        challenger, baseline = (methods[place] for place in pair)
        ratio = challenger.cost.macs / baseline.cost.macs
        verdicts += _verdicts(challenger, baseline, differences, ratio=ratio)
    return tuple(verdicts)


def _check_splits(replicates: Sequence[Replicate]) -> None:
    for replicate in replicates:
        if replicate.values.keys() != replicates[0].values.keys():
            raise ValueError(
                f"{replicate.directory} has predictions of other splits than "
                f"{replicates[0].directory}; run `deepens evaluate RUN --predict` on it"
            )


@dataclass(frozen=True)
class _Difference:
    """What resampling found of a pair, before p-values are adjusted."""

    split: str
    metric: str
    interval: Interval
    n: int
    outcome: str

    @property
    def p_value(self) -> float:
        return math.nan if self.outcome == "undefined" else self.interval.p_value


def _compare_pairs(
    methods: Sequence[MethodSummary], pairs: Sequence[tuple[int, int]], *, draws: int, seed: int
) -> list[list[_Difference]]:
    """Compare each pair, which is two places among the methods."""
    splits = [_judged(method.replicates[0]) for method in methods]
    found: list[list[_Difference]] = [[] for _ in pairs]
    for split in sorted({each for held in splits for each in held}, key=_order):
        wanted = {
            place for pair in pairs if all(split in splits[p] for p in pair) for place in pair
        }
        # One split's draws at a time: those of all splits would be hundreds of megabytes.
        drawn = {place: _draws(methods[place], split, draws, seed) for place in sorted(wanted)}
        for differences, pair in zip(found, pairs, strict=True):
            ours, theirs = (methods[place] for place in pair)
            if wanted.issuperset(pair) and _same_copies(ours, theirs, split):
                first, second = (drawn[place] for place in pair)
                differences += _differences(ours, theirs, split, first, second)
    return found


def _draws(method: MethodSummary, split: str, draws: int, seed: int) -> Draws:
    """Resample a method on a split, by the metrics that have a direction."""
    scaled = all(each.scaled is not None for each in method.replicates)
    evaluations = [_evaluation(replicate, split, scaled) for replicate in method.replicates]
    values = method.replicates[0].values
    sizes = [len(values["test"])]
    if split not in ("test", SHIFT):
        sizes.append(len(values[split]))
    found = bootstrap_draws(evaluations, sizes=sizes, draws=draws, seed=seed)
    return found.only([n for n in found.observed if METRICS[n].higher_is_better is not None])


def _same_copies(first: MethodSummary, second: MethodSummary, split: str) -> bool:
    """Tell whether means over the shifted copies are means over the same ones."""
    ours, theirs = (set(method.replicates[0].shifted) for method in (first, second))
    return split != SHIFT or ours == theirs


def _differences(
    challenger: MethodSummary, baseline: MethodSummary, split: str, first: Draws, second: Draws
) -> list[_Difference]:
    """Compare a pair by the metrics that both have."""
    common = [metric for metric in first.observed if metric in second.observed]
    intervals = paired_intervals(first.only(common), second.only(common))
    return [
        _Difference(
            split,
            metric,
            interval,
            sum(first.sizes),
            _outcome(interval, metric, (challenger, baseline)),
        )
        for metric, interval in intervals.items()
    ]


def _verdicts(
    challenger: MethodSummary,
    baseline: MethodSummary,
    differences: Sequence[_Difference],
    *,
    ratio: float = 1.0,
) -> tuple[Verdict, ...]:
    """Write the verdicts of a pair; ``ratio`` is the challenger's cost by the baseline's."""
    adjusted = holm_adjusted([difference.p_value for difference in differences])
    compared = sum(not math.isnan(value) for value in adjusted)
    return tuple(
        _verdict(challenger, baseline, difference, p_value, compared, ratio=ratio)
        for difference, p_value in zip(differences, adjusted, strict=True)
    )


def _judged(replicate: Replicate) -> list[str]:
    splits = {split for split in replicate.values if not split.startswith(("val/", f"{SHIFT}/"))}
    lengths = {len(replicate.values[split]) for split in ("test", *replicate.shifted)}
    if replicate.shifted and len(lengths) == 1:
        splits.add(SHIFT)
    return sorted(splits, key=_order)


def _order(split: str) -> tuple[int, str]:
    """The test split first, then its shifted copies, then near and far OOD."""
    return ["test", SHIFT, "near_ood", "far_ood"].index(split.partition("/")[0]), split


def _evaluation(replicate: Replicate, split: str, scaled: bool) -> Evaluation:
    if split == "test":
        return _raw_and_scaled(replicate, scaled)
    if split == SHIFT:
        return MeanEvaluation([replicate.values[each] for each in replicate.shifted])
    return OODEvaluation(replicate.values["test"], replicate.values[split])


def _raw_and_scaled(replicate: Replicate, scaled: bool) -> Evaluation:
    """All metrics of the test split, and with them those at the temperature."""
    raw = SplitEvaluation(replicate.values["test"])
    if replicate.scaled is None or not scaled:
        return raw
    at_temperature = MeanEvaluation([replicate.scaled])

    def both(weights: Tensor) -> dict[str, Tensor]:
        found = at_temperature(weights)
        return raw(weights) | {f"{name}_{JUDGED}": found[name] for name in SCALED}

    return both


def _verdict(
    challenger: MethodSummary,
    baseline: MethodSummary,
    found: _Difference,
    p_value: float,
    compared: int,
    *,
    ratio: float,
) -> Verdict:
    split, metric, interval = found.split, found.metric, found.interval
    lowest, highest = METRICS[metric].bounds
    reach = highest - lowest
    pairs = zip(challenger.replicates, baseline.replicates, strict=False)
    differences = [a.metric(split, metric) - b.metric(split, metric) for a, b in pairs]
    sign = math.copysign(1.0, interval.estimate)
    agreeing = sum(difference * sign > 0 for difference in differences)
    verdict: dict[str, Any] = {
        "split": split,
        "metric": metric,
        "challenger": challenger.name,
        "baseline": baseline.name,
        "estimate": interval.estimate,
        "low": max(interval.low, -reach),
        "high": min(interval.high, reach),
        "agreeing": agreeing,
        "replicates": len(differences),
        "n": found.n,
        "outcome": found.outcome,
        "p_value": p_value,
        "compared": compared,
        "raw_p_value": found.p_value,
    }
    return Verdict(**verdict, sentence=_sentence(verdict, ratio))


def _outcome(interval: Interval, metric: str, methods: Sequence[MethodSummary]) -> str:
    single = any(
        all(_lacks_members(replicate) for replicate in method.replicates) for method in methods
    )
    if math.isnan(interval.low) or (compares_members(metric) and single):
        return "undefined"
    one = min(len(method.replicates) for method in methods) < 2
    sides = {value > 0 for value in (interval.low, interval.estimate, interval.high)}
    if one or interval.low <= 0 <= interval.high or len(sides) > 1:
        return "undecided"
    return "better" if (interval.low > 0) == METRICS[metric].higher_is_better else "worse"


def compares_members(metric: str) -> bool:
    """Tell whether a metric of OOD detection rests on a score that compares members."""
    info = metric_info(metric)
    return info.scope == "detection" and info.needs_members


def _lacks_members(replicate: Replicate) -> bool:
    """Tell whether there are no members to compare: of one network, or of a cascade (NaN)."""
    found = replicate.metrics["test"].get("mutual_information")
    return found is not None and not found > 0


def why_undefined(metric: str) -> str:
    """Say why a verdict by a metric is undefined, where it is.

    Args:
        metric: Its key in the suite.

    Returns:
        The reason, in words that follow "since".
    """
    if compares_members(metric):
        return "one network has no mutual information"
    return "the metric has no value in some bootstrap draw"


def _decimals(low: float, high: float) -> int:
    """Decimals that show an interval's width with two digits, and at least four."""
    width = high - low
    return 4 if width <= 0 else max(4, 1 - math.floor(math.log10(width)))


def _holm(p_value: float, compared: int) -> str:
    shown = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    return f"{shown} by Holm's method for {compared} verdicts"


def _claim(outcome: str, ours: str, theirs: str, ratio: float) -> str:
    """Say who beats whom, and at how many times the other's cost if costs differ."""
    if abs(ratio - 1) <= COST_TOLERANCE:
        single = f"{theirs}, the single model of equal cost"
        return {
            "better": f"{ours} beats {single}",
            "worse": f"{single}, beats {ours}",
            "undecided": f"no difference between {ours} and {single}, shown",
        }[outcome]
    return {
        "better": f"{ours} beats {theirs} (at {ratio:.3g} times its MACs)",
        "worse": f"{theirs} beats {ours} (at {1 / ratio:.3g} times its MACs)",
        "undecided": (
            f"no difference shown between {ours}, at {ratio:.3g} times the MACs, and {theirs}"
        ),
    }[outcome]


def _sentence(verdict: Mapping[str, Any], ratio: float) -> str:
    split, metric = str(verdict["split"]), str(verdict["metric"])
    where = f"{METRICS[metric].label} ({split})"
    if verdict["outcome"] == "undefined":
        return f"{where}: no verdict, since {why_undefined(metric)}."
    estimate, low, high = verdict["estimate"], verdict["low"], verdict["high"]
    zero = "includes" if low <= 0 <= high else "excludes"
    shown, lowest, highest = (
        f"{value:+.{_decimals(low, high)}f}" for value in (estimate, low, high)
    )
    facts = (
        f"{shown}, 95 % interval [{lowest}, {highest}] {zero} zero; same sign in "
        f"{verdict['agreeing']} of {verdict['replicates']} replicates; n = {verdict['n']}"
    )
    outcome = str(verdict["outcome"])
    claim = _claim(outcome, verdict["challenger"], verdict["baseline"], ratio)
    if verdict["replicates"] < 2:
        claim = "no claim, since one replicate says nothing about the spread of training"
    elif outcome != "undecided":
        if not verdict["p_value"] <= LEVEL:
            claim = f"by its own interval {claim}"
        facts += f"; {_holm(verdict['p_value'], verdict['compared'])}"
    return f"{where}: {claim} ({facts})."
