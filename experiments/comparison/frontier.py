"""Ensembles against the frontier of single models: gaps at equal cost, and where members differ.

Every function takes a comparison as it was measured and returns numbers, without drawing or
formatting any.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...metrics.core.catalogue import METRICS, detection_key
from ...metrics.statistics.draws import Draws, Evaluation, bootstrap_draws
from ...metrics.statistics.hypothesis_tests import holm_adjusted
from ...metrics.statistics.iso_compute import IsoComputeGaps, iso_compute_gaps
from ...metrics.suite import MeanEvaluation
from ..training.devices import threads
from .resampling import AT_TEMPERATURE, evaluation_of
from .single_models import ensembles_of, frontier_of
from .verdicts import (
    FEWEST_REPLICATES,
    LEVEL,
    SHIFT,
    Comparison,
    MethodSummary,
    Replicate,
    oriented,
    shown_copies,
)

_MEANS = ("accuracy", "nll", "brier", "ece")
_RANKS = ("aurc", "augrc", "coverage_at_5_risk")
_DETECTION = tuple(
    detection_key(measure, score)
    for measure in ("auroc", "aupr_out", "aupr_in", "fpr95")
    for score in ("msp", "entropy")
)
FRONTIER_METRICS = {
    "test": (*_MEANS, *_RANKS, *(AT_TEMPERATURE[name] for name in ("nll", "brier", "ece"))),
    SHIFT: _MEANS,
    **dict.fromkeys(("near_ood", "far_ood"), _DETECTION),
}
"""Kind of images -> the metrics by which methods are judged there and that single models have."""


@dataclass(frozen=True)
class Gap:
    """By how much an ensemble differs from single models of its cost, in one metric.

    Attributes:
        kind: Of images: test, shift, near_ood or far_ood; means over all splits of that kind.
        found: Gap, interval and number of replicates; None where the metric is undefined in some
            replicate of the ensemble, or not known of every single model.
        p_value: Of no gap, adjusted by Holm's method for all gaps of the ensemble; NaN where it is
            not known.
    """

    kind: str
    metric: str
    found: IsoComputeGaps | None
    p_value: float = math.nan

    @property
    def advantage(self) -> tuple[float, float, float]:
        """Gap and ends of its interval, positive where the ensemble is better; NaN if undefined."""
        if self.found is None:
            return math.nan, math.nan, math.nan
        return oriented(self.metric, self.found.estimate, self.found.low, self.found.high)

    @property
    def outcome(self) -> str:
        """Better or worse by the rule of a verdict's mark; else not shown, or undefined."""
        if self.found is None:
            return "undefined"
        if not self.p_value <= LEVEL or self.found.count < FEWEST_REPLICATES:
            return "not shown"
        higher = METRICS[self.metric].higher_is_better
        return "better" if (self.found.estimate > 0) == higher else "worse"


@dataclass(frozen=True)
class EnsembleGaps:
    """All gaps of one ensemble or cascade, by kind of images and metric.

    ``beyond`` says why there are none, in words that follow the method's name and "is".
    """

    method: MethodSummary
    gaps: tuple[Gap, ...]
    beyond: str = ""


Halves = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ConditionalDiversity:
    """How much members differ on test images that the ensemble gets right, and that it gets wrong.

    Disagreement and mutual information (nats) are means over the images got right, and over those
    got wrong; one for each replicate that has such images.
    """

    method: MethodSummary
    disagreement: Halves
    mutual_information: Halves


def splits_of(comparison: Comparison, kind: str) -> tuple[str, ...]:
    """List the splits of a kind, such as ``near_ood``; of OOD sets the copy that counts."""
    shown = shown_copies(comparison.splits)
    return tuple(split for split in shown if comparison.splits[split].kind == kind)


def frontier_gaps(
    comparison: Comparison, *, leave_out: Collection[str] = ()
) -> tuple[EnsembleGaps, ...]:
    """Compare each ensemble with what single models reach at its MACs, between their costs.

    By `iso_compute_gaps`, on the single models that `frontier_of` takes; an ensemble that costs
    over 2 % less than the cheapest of them, or over 2 % more than the most expensive, is compared
    with none: nothing is extrapolated. Where there is no single model, there is no entry at all.
    Where the values of single images were not kept of all these methods, gaps have no interval.
    Ensembles may be left out by name; it changes nothing of the others.
    """
    singles, tolerance = frontier_of(comparison.methods), comparison.cost_tolerance
    reasons = {
        m.name: _beyond(m, singles, tolerance) for m in ensembles_of(comparison.methods) if singles
    }
    left = reasons.keys() - set(leave_out)
    ensembles = [each for each in comparison.methods if each.name in left]
    compared = [each for each in ensembles if not reasons[each.name]]
    gaps_of: dict[str, list[Gap]] = {each.name: [] for each in ensembles}
    with threads(1):  # many small steps: more threads would wait for each other
        for kind, metrics in FRONTIER_METRICS.items() if compared else ():
            drawn = _draws(comparison, kind, metrics, [*compared, *singles])
            for method in compared:
                gaps_of[method.name] += _gaps(kind, metrics, method, singles, drawn, tolerance)
    found = []
    for method in ensembles:
        beyond, gaps = reasons[method.name], gaps_of[method.name]
        # NaN, of what has no interval, counts for nothing.
        raw = [math.nan if gap.found is None else gap.found.p_value for gap in gaps]
        adjusted = zip(gaps, holm_adjusted(raw), strict=True)
        corrected = tuple(replace(gap, p_value=p_value) for gap, p_value in adjusted)
        found.append(EnsembleGaps(method, corrected, beyond))
    return tuple(found)


def _beyond(method: MethodSummary, singles: Sequence[MethodSummary], tolerance: float) -> str:
    """Say why an ensemble cannot be compared at equal cost; nothing where it can."""
    cheapest = min(singles, key=lambda single: single.cost.macs)
    dearest = max(singles, key=lambda single: single.cost.macs)
    if cheapest.cost.macs == dearest.cost.macs:
        reason = "all single models cost the same: add some of another size, such as wide"
        return f"not compared, since {reason}"
    macs = method.cost.macs
    for end, outside, word in (
        (cheapest, macs < cheapest.cost.macs * (1 - tolerance), "cheapest"),
        (dearest, macs > dearest.cost.macs * (1 + tolerance), "most expensive"),
    ):
        if outside:
            return (
                f"beyond the single models: {macs / 1e6:.4g} M MACs per image, and the {word}, "
                f"{end.name}, takes {end.cost.macs / 1e6:.4g} M; add one of its cost"
            )
    return ""


def _gaps(
    kind: str,
    metrics: Sequence[str],
    method: MethodSummary,
    singles: Sequence[MethodSummary],
    drawn: Mapping[str, Draws],
    tolerance: float,
) -> Iterator[Gap]:
    ours = drawn[method.name]
    measured = [m for m in metrics if not ours.observed[m].isnan().all()]
    everyone = [ours, *(drawn[single.name] for single in singles)]
    known = [m for m in measured if all(d.observed[m].isfinite().all() for d in everyone)]
    found = iso_compute_gaps(
        method.cost.macs,
        ours.only(known),
        [(single.cost.macs, drawn[single.name].only(known)) for single in singles],
        tolerance=tolerance,
    )
    yield from (Gap(kind, metric, found.get(metric)) for metric in measured)


def _draws(
    comparison: Comparison, kind: str, metrics: Sequence[str], methods: Sequence[MethodSummary]
) -> dict[str, Draws]:
    """Resample the images of a kind; of methods whose values were not kept, draws are NaN."""
    splits = splits_of(comparison, kind)
    sets = ("test",) if kind == SHIFT else tuple(dict.fromkeys(["test", *splits]))
    kept: dict[str, dict[str, int]] = {
        m.name: _sizes(m, {*sets, *splits}) if splits else {} for m in methods
    }
    lengths = next(filter(None, kept.values()), dict.fromkeys(sets, 1))
    sizes = tuple(lengths[split] for split in sets)
    found = {}
    for method in methods:
        observed = {
            m: torch.tensor([r.mean(splits, m) for r in method.replicates], dtype=torch.float64)
            for m in metrics
        }
        nothing = torch.full((comparison.draws, len(method.replicates)), math.nan).double()
        resampled = dict.fromkeys(metrics, nothing)
        # Copies of the test images are resampled together, and so are as many.
        if kept[method.name] and (kind != SHIFT or len({*lengths.values()}) == 1):
            scaled = all(each.scaled is not None for each in method.replicates)
            evaluations = [_evaluation(r, kind, splits, scaled) for r in method.replicates]
            own = bootstrap_draws(evaluations, sizes=sizes, draws=comparison.draws)
            resampled |= {m: own.resampled[m] for m in metrics if m in own.resampled}
        found[method.name] = Draws(observed, resampled, sizes, comparison.draws, 0, method.networks)
    return found


def _sizes(method: MethodSummary, splits: Iterable[str]) -> dict[str, int]:
    """Return the number of images of each split; nothing if a replicate did not keep its values."""
    values = [replicate.values for replicate in method.replicates]
    if not all(split in each for split in splits for each in values):
        return {}
    return {split: len(values[0][split]) for split in splits}


def _evaluation(replicate: Replicate, kind: str, splits: Sequence[str], scaled: bool) -> Evaluation:
    """The metrics of all splits of a kind, means over several of them."""
    if kind == SHIFT:
        return MeanEvaluation([replicate.values[split] for split in splits])
    each = [evaluation_of(replicate, split, scaled) for split in splits]
    if kind == "test":
        return each[0]

    def mean(id_weights: Tensor, *ood_weights: Tensor) -> dict[str, Tensor]:
        found = [own(id_weights, weights) for own, weights in zip(each, ood_weights, strict=True)]
        return {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}

    return mean


def conditional_diversity(comparison: Comparison) -> tuple[ConditionalDiversity, ...]:
    """Average how much members differ over the test images got right, and over those got wrong.

    Right and wrong is the pooled prediction. Members that differ where the ensemble errs give its
    errors away; where they differ on images that it gets right, pooling has put them right. There
    is an entry per ensemble of which the values of single test images are known.
    """
    found = []
    for method in ensembles_of(comparison.methods):
        tests = [r.values["test"] for r in method.replicates if "test" in r.values]
        labelled = [(values, values.correct) for values in tests if values.correct is not None]
        # Of a cascade the members that ran differ by image, and what they say each is not kept.
        if labelled and not method.over:
            differs = [(values.disagreement, correct) for values, correct in labelled]
            informs = [(values.mutual_information, correct) for values, correct in labelled]
            found.append(ConditionalDiversity(method, _halves(differs), _halves(informs)))
    return tuple(found)


def _halves(replicates: Sequence[tuple[Tensor, Tensor]]) -> Halves:
    """Average each replicate's values where it is right, and where it is wrong."""
    right = [values[correct].mean().item() for values, correct in replicates if correct.any()]
    wrong = [values[~correct].mean().item() for values, correct in replicates if not correct.all()]
    return tuple(right), tuple(wrong)
