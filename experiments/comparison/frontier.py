"""Ensembles against the frontier of single models: gaps at equal cost, and where members differ.

Every function takes a comparison as it was measured and returns numbers, without drawing or
formatting any.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS
from ...metrics.statistics.hypothesis_tests import holm_adjusted
from ...metrics.statistics.iso_compute import IsoComputeGaps, iso_compute_gaps
from ..cost.measurement import COST_TOLERANCE
from ..evaluation.temperatures import JUDGED, SCALED
from .single_models import frontier_of, is_single
from .verdicts import LEVEL, SHIFT, Comparison, MethodSummary, Replicate

_MEANS = ("accuracy", "nll", "brier", "ece")
_RANKS = ("aurc", "augrc", "coverage_at_5_risk")
_AT_TEMPERATURE = tuple(f"{name}_{JUDGED}" for name in SCALED if name != "confidence")
_DETECTION = tuple(
    f"{measure}_{score}"
    for measure in ("auroc", "aupr_out", "aupr_in", "fpr95")
    for score in ("msp", "entropy")
)
FRONTIER_METRICS = {
    "test": (*_MEANS, *_RANKS, *_AT_TEMPERATURE),
    SHIFT: _MEANS,
    "near_ood": _DETECTION,
    "far_ood": _DETECTION,
}
"""Kind of images -> the metrics by which methods are judged there and that single models have."""


@dataclass(frozen=True)
class Gap:
    """By how much an ensemble differs from single models of its cost, in one metric.

    Attributes:
        kind: Of images: test, shift, near_ood or far_ood; means over all splits of that kind.
        metric: Its key in the suite.
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
    def outcome(self) -> str:
        """Better or worse where the gap still shows among all; else undecided, or undefined."""
        if self.found is None:
            return "undefined"
        if not self.p_value <= LEVEL:
            return "undecided"
        return "better" if (self.found.estimate > 0) == _higher(self.metric) else "worse"


@dataclass(frozen=True)
class EnsembleGaps:
    """All gaps of one ensemble or cascade.

    Attributes:
        method: The ensemble.
        gaps: In the order of kinds of images and metrics.
        beyond: Why there are none; nothing where there are.
    """

    method: MethodSummary
    gaps: tuple[Gap, ...]
    beyond: str = ""


@dataclass(frozen=True)
class ConditionalDiversity:
    """How much members differ on test images that the ensemble gets right, and that it gets wrong.

    Attributes:
        method: The ensemble.
        disagreement: Means over the images got right, and over those got wrong; one for each
            replicate that has such images.
        mutual_information: The same, in nats.
    """

    method: MethodSummary
    disagreement: tuple[tuple[float, ...], tuple[float, ...]]
    mutual_information: tuple[tuple[float, ...], tuple[float, ...]]


def single_models(comparison: Comparison) -> list[MethodSummary]:
    """List the methods that are one network."""
    return [method for method in comparison.methods if is_single(method)]


def ensembles_of(comparison: Comparison) -> list[MethodSummary]:
    """List the methods that are compared with single models: ensembles and cascades."""
    return [method for method in comparison.methods if not is_single(method)]


def splits_of(comparison: Comparison, kind: str) -> tuple[str, ...]:
    """List the splits of a kind; encoded copies of OOD sets hold no other images and are left out.

    Args:
        comparison: What was measured.
        kind: ``test``, ``shift``, ``near_ood`` or ``far_ood``.
    """
    found = {
        split: None
        for method in comparison.methods
        for replicate in method.replicates
        for split in replicate.metrics
        if (name := SplitName.parse(split)).kind == kind and not name.encoded
    }
    return tuple(found)


def frontier_gaps(comparison: Comparison) -> tuple[EnsembleGaps, ...]:
    """Compare each ensemble with what single models reach at its MACs, between their costs.

    By `iso_compute_gaps`, on the single models that `frontier_of` takes; an ensemble that costs
    over 2 % less than the cheapest of them, or over 2 % more than the most expensive, is compared
    with none: nothing is extrapolated.

    Args:
        comparison: What was measured.

    Returns:
        One entry per ensemble; none where there is no single model.
    """
    singles = frontier_of(comparison.methods)
    if not singles:
        return ()
    found = []
    for method in ensembles_of(comparison):
        beyond = _beyond(method, singles)
        gaps = () if beyond else tuple(_gaps(comparison, method, singles))
        # NaN, of what has no interval, counts for nothing.
        raw = [math.nan if gap.found is None else gap.found.p_value for gap in gaps]
        adjusted = zip(gaps, holm_adjusted(raw), strict=True)
        found.append(
            EnsembleGaps(method, tuple(replace(g, p_value=p) for g, p in adjusted), beyond)
        )
    return tuple(found)


def _beyond(method: MethodSummary, singles: Sequence[MethodSummary]) -> str:
    """Say why an ensemble cannot be compared at equal cost; nothing where it can."""
    cheapest = min(singles, key=lambda single: single.cost.macs)
    dearest = max(singles, key=lambda single: single.cost.macs)
    if cheapest.cost.macs == dearest.cost.macs:
        return "all single models cost the same: add some of another size, such as wide"
    macs = method.cost.macs
    for end, outside, word in (
        (cheapest, macs < cheapest.cost.macs * (1 - COST_TOLERANCE), "cheapest"),
        (dearest, macs > dearest.cost.macs * (1 + COST_TOLERANCE), "most expensive"),
    ):
        if outside:
            return (
                f"beyond the single models: {macs / 1e6:.4g} M MACs per image, and the {word}, "
                f"{end.name}, takes {end.cost.macs / 1e6:.4g} M; add one of its cost"
            )
    return ""


def _gaps(
    comparison: Comparison, method: MethodSummary, singles: Sequence[MethodSummary]
) -> Iterator[Gap]:
    for kind, metrics in FRONTIER_METRICS.items():
        splits = splits_of(comparison, kind)
        for metric in metrics:
            ours = [mean_value(replicate, splits, metric) for replicate in method.replicates]
            if not splits or all(map(math.isnan, ours)):
                continue
            theirs = [
                (single.cost.macs, mean_value(replicate, splits, metric))
                for single in singles
                for replicate in single.replicates
            ]
            found = None
            if all(map(math.isfinite, [*ours, *(value for _, value in theirs)])):
                costs, values = torch.tensor(theirs, dtype=torch.float64).unbind(1)
                found = iso_compute_gaps(
                    method.cost.macs,
                    torch.tensor(ours, dtype=torch.float64),
                    costs,
                    values,
                    tolerance=COST_TOLERANCE,
                )
            yield Gap(kind, metric, found)


def conditional_diversity(comparison: Comparison) -> tuple[ConditionalDiversity, ...]:
    """Average how much members differ over the test images got right, and over those got wrong.

    Right and wrong is the pooled prediction. Members that differ where the ensemble errs give its
    errors away; where they differ on images that it gets right, pooling has put them right.

    Args:
        comparison: What was measured.

    Returns:
        One entry per ensemble of which the values of single test images are known; cascades have
        none.
    """
    found = []
    for method in ensembles_of(comparison):
        tests = [r.values["test"] for r in method.replicates if "test" in r.values]
        labelled = [(values, values.correct) for values in tests if values.correct is not None]
        # Of a cascade the members that ran differ by image, and what they say each is not kept.
        if labelled and "cascade" not in method.family:
            differs = [(values.disagreement, correct) for values, correct in labelled]
            informs = [(values.mutual_information, correct) for values, correct in labelled]
            found.append(ConditionalDiversity(method, _halves(differs), _halves(informs)))
    return tuple(found)


def _halves(
    replicates: Sequence[tuple[Tensor, Tensor]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Average each replicate's values where it is right, and where it is wrong."""
    right = tuple(values[correct].mean().item() for values, correct in replicates if correct.any())
    wrong = tuple(
        values[~correct].mean().item() for values, correct in replicates if not correct.all()
    )
    return right, wrong


def _higher(metric: str) -> bool | None:
    return METRICS[metric].higher_is_better


def mean_value(replicate: Replicate, splits: tuple[str, ...], metric: str) -> float:
    """The metric's unweighted mean over splits, NaN if any of them lacks it, or there is none."""
    values = [replicate.metrics.get(split, {}).get(metric, math.nan) for split in splits]
    return statistics.fmean(values) if values else math.nan
