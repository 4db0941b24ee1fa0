"""Effective robustness of ensembles: accuracy under shift against single models as accurate."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...metrics.statistics.effective_robustness import effective_robustness
from .formatting import listed
from .shared_methods import shares_with
from .single_models import ensembles_of, single_models
from .verdicts import SHIFT, Comparison, MethodSummary


@dataclass(frozen=True)
class EnsembleRobustness:
    """How much more accurate under shift an ensemble is than single models as accurate without.

    Attributes:
        estimate: Accuracy under shift less the line's, at the mean accuracies of the replicates;
            the interval from ``low`` to ``high`` holds 0 for 95 % of ensembles that are as robust
            as single models; NaN with fewer than 5 of these.
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
        ensembles: One entry each; none where no line can be fitted, for the reason that is given.
        note: What must be known where ensembles have members in common with a single model.
    """

    singles: int
    splits: int
    ensembles: tuple[EnsembleRobustness, ...] = ()
    reason: str = ""
    note: str = ""


def robustness(comparison: Comparison) -> Robustness | None:
    """Estimate effective robustness at matched in-distribution accuracy.

    Each ensemble's accuracy under shift is compared with the line through the single models, by
    `effective_robustness`. A single model is one point, its mean over replicates, and so is the
    ensemble: points that scatter alike. (As points of their own, replicates of one single model
    would count as models that have nothing in common.)
    There is nothing to return without ensembles or shifted splits.
    """
    shifted = [split for split, name in comparison.splits.items() if name.kind == SHIFT]
    ensembles = ensembles_of(comparison.methods)
    if not shifted or not ensembles:
        return None
    points = [
        tuple(map(statistics.fmean, accuracies))
        for method in single_models(comparison.methods)
        if (accuracies := _accuracies(method, shifted))
    ]
    count = len({accuracy for accuracy, _ in points})
    if count < 3:
        reason = f"A line needs >= 3 single models of different accuracy, and there are {count}."
        return Robustness(len(points), len(shifted), reason=reason)
    line = torch.tensor(points, dtype=torch.float64).unbind(1)
    found = tuple(_robustness(each, shifted, line) for each in ensembles)
    return Robustness(len(points), len(shifted), found, note=_note(ensembles, comparison))


def _note(ensembles: Sequence[MethodSummary], comparison: Comparison) -> str:
    """Say where the point of an ensemble and one of the line's are not independent."""
    singles = single_models(comparison.methods)
    shared = {each.name: shares_with(each, singles) for each in ensembles}
    if not any(shared.values()):
        return ""
    bases = listed(list(dict.fromkeys(name for names in shared.values() for name in names)))
    return (
        f"{listed([name for name, names in shared.items() if names])} and {bases}, one of the "
        "models of the line, have members in common, which intervals take for independent: they "
        "are a little too wide."
    )


def _robustness(
    method: MethodSummary, shifted: Sequence[str], line: tuple[Tensor, ...]
) -> EnsembleRobustness:
    accuracies = _accuracies(method, shifted)
    if accuracies is None:
        return EnsembleRobustness(method, reason="not measured on every shifted split")
    ours, theirs = (
        torch.tensor([statistics.fmean(each), *each], dtype=torch.float64) for each in accuracies
    )
    try:
        found = effective_robustness(
            ours, theirs, single_id_accuracy=line[0], single_ood_accuracy=line[1]
        )
    except ValueError as error:  # an accuracy of 0 or 1, whose logit is infinite
        return EnsembleRobustness(method, reason=str(error))
    mean, *replicates = found.estimate.tolist()
    ends = found.low[0].item(), found.high[0].item()
    return EnsembleRobustness(method, mean, *ends, tuple(replicates))


def _accuracies(
    method: MethodSummary, shifted: Sequence[str]
) -> tuple[list[float], list[float]] | None:
    """Accuracies on the test images and under shift; None unless all replicates have both."""
    ours, theirs = (method.values(splits, "accuracy") for splits in (["test"], shifted))
    known = len(ours) == len(theirs) == len(method.replicates)
    return (ours, theirs) if known else None
