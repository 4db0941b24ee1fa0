"""Effective robustness of ensembles: accuracy under shift against single models as accurate."""

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from ...metrics.statistics.effective_robustness import effective_robustness
from .frontier import ensembles_of, mean_value, single_models, splits_of
from .verdicts import SHIFT, Comparison, MethodSummary


@dataclass(frozen=True)
class EnsembleRobustness:
    """How much more accurate under shift an ensemble is than single models as accurate without.

    Attributes:
        method: The ensemble.
        estimate: Accuracy under shift less the line's, at the mean accuracies of the replicates.
        low: Lower end of the interval, which says how sure the line is.
        high: Its upper end.
        replicates: The same of each replicate by itself.
        reason: Why there is none of this.
    """

    method: MethodSummary
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    replicates: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Robustness:
    """Effective robustness of all ensembles against one line.

    Attributes:
        singles: Number of single models that the line is fitted on.
        splits: Number of shifted splits, over which accuracies are means.
        ensembles: One entry each; none where no line can be fitted.
        reason: Why none can.
    """

    singles: int
    splits: int
    ensembles: tuple[EnsembleRobustness, ...] = ()
    reason: str = ""


def robustness(comparison: Comparison) -> Robustness | None:
    """Estimate effective robustness at matched in-distribution accuracy.

    Each ensemble's accuracy under shift is compared with the line through the single models, by
    `effective_robustness`. A single model is one point, its mean over replicates, since the
    bootstrap over models would take replicates of one for models that have nothing in common.

    Args:
        comparison: What was measured.

    Returns:
        Estimates with intervals, or why there are none; None without ensembles or shifted splits.
    """
    shifted, ensembles = splits_of(comparison, SHIFT), ensembles_of(comparison)
    if not shifted or not ensembles:
        return None
    points = [
        (statistics.fmean(ours), statistics.fmean(theirs))
        for method in single_models(comparison)
        if all(map(math.isfinite, (ours := _accuracies(method, ("test",)))))
        and all(map(math.isfinite, (theirs := _accuracies(method, shifted))))
    ]
    count = len({accuracy for accuracy, _ in points})
    if count < 3:
        reason = f"A line needs >= 3 single models of different accuracy, and there are {count}."
        return Robustness(len(points), len(shifted), reason=reason)
    line = torch.tensor(points, dtype=torch.float64).unbind(1)
    found = tuple(_robustness(each, shifted, line, comparison.draws) for each in ensembles)
    return Robustness(len(points), len(shifted), found)


def _robustness(
    method: MethodSummary,
    shifted: tuple[str, ...],
    line: tuple[Tensor, ...],
    draws: int,
) -> EnsembleRobustness:
    ours, theirs = _accuracies(method, ("test",)), _accuracies(method, shifted)
    if not all(map(math.isfinite, [*ours, *theirs])):
        return EnsembleRobustness(method, reason="not measured on every shifted split")
    try:
        found = effective_robustness(
            torch.tensor([statistics.fmean(ours), *ours], dtype=torch.float64),
            torch.tensor([statistics.fmean(theirs), *theirs], dtype=torch.float64),
            single_id_accuracy=line[0],
            single_ood_accuracy=line[1],
            draws=draws,
        )
    except ValueError as error:  # an accuracy of 0 or 1, whose logit is infinite
        return EnsembleRobustness(method, reason=str(error))
    mean, *replicates = found.estimate.tolist()
    return EnsembleRobustness(
        method, mean, found.low[0].item(), found.high[0].item(), tuple(replicates)
    )


def _accuracies(method: MethodSummary, splits: tuple[str, ...]) -> list[float]:
    return [mean_value(replicate, splits, "accuracy") for replicate in method.replicates]
