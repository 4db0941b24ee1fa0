"""Sentences on what to deploy, and the splits and metrics that overviews of budgets show."""

import math
import statistics
from collections.abc import Mapping, Sequence

from ...datasets import SplitName
from ..comparison.budgets import CANNOT_TELL, INCONCLUSIVE, TOO_FEW, Answer
from ..comparison.formatting import listed, p_value_text, signed
from ..comparison.verdicts import FEWEST_REPLICATES, MethodSummary
from .splits import directed_label, metric_label, split_title

_TOO_FEW = f"Too few replicates to say: a claim needs at least {FEWEST_REPLICATES}."
_TEST = ("accuracy", "nll", "ece", "aurc", "coverage_at_5_risk")
_DETECTION = "auroc_entropy"

Place = tuple[str, str]


def recommendation(answer: Answer, metric: str) -> str:
    """Say in one or two sentences what to deploy, and why.

    Args:
        answer: By one metric on one split.
        metric: Its key.

    Returns:
        Sentences with the difference, its interval and its p-value.
    """
    single, label = answer.single.name, metric_label(metric)
    if answer.winners:
        first, *others = answer.winners
        verdict = first.verdict
        difference, low, high = signed((verdict.estimate, verdict.low, verdict.high))
        names = ", ".join(other.method.name for other in others)
        also = f" Also shown to beat it: {names}; ensembles are not compared with each other."
        return (
            f"Deploy {first.method.name}: by {label} it beats {single}, the best single model, by "
            f"{difference} (95 % interval [{low}, {high}], Holm p {p_value_text(first.p_value)})."
            f"{also if others else ''}"
        )
    if answer.outcome == "worse":
        beaten = ", ".join(d.method.name for d in answer.differences if d.outcome == "worse")
        return (
            f"Deploy {single}, the best single model: by {label} it is shown to beat {beaten}, and "
            "no ensemble is shown to beat it."
        )
    if answer.outcome == "undecided":
        return (
            f"Deploy {single}, the best single model: by {label} no ensemble is shown to be better."
        )
    if answer.outcome == CANNOT_TELL:
        return INCONCLUSIVE
    return _TOO_FEW if answer.outcome == TOO_FEW else f"There is no verdict by {label} here."


def listed_summary(found: Mapping[Place, Answer], single: MethodSummary) -> str:
    """Say in one sentence what to deploy by each of the main metrics of one budget.

    Args:
        found: ``(split, metric)`` -> answer.
        single: The best single model of the budget.

    Returns:
        Which method by which metrics, those of ensembles first.
    """
    if any(answer.outcome == CANNOT_TELL for answer in found.values()):
        return INCONCLUSIVE
    by: dict[str, list[str]] = {}
    for place in main_places(list(found)):
        winners = found[place].winners
        label = place_label(place, arrow=False)
        by.setdefault(winners[0].method.name if winners else "", []).append(label)
    if all(answer.outcome in (TOO_FEW, "undefined") for answer in found.values()):
        return _TOO_FEW
    rest = by.pop("", [])
    parts = [f"{name} for {listed(labels)}" for name, labels in by.items()]
    if not parts:
        return (
            f"Deploy {single.name}, the best single model: by none of the main metrics is an "
            "ensemble shown to be better."
        )
    they = "it is" if len(parts) == 1 else "they are"
    said = f"Deploy {'; '.join(parts)}, where {they} shown to beat {single.name}"
    if not rest:
        return f"{said}, the best single model."
    return f"{said}; for {listed(rest)} no ensemble is shown to beat this best single model."


def main_places(found: Sequence[Place]) -> list[Place]:
    """Choose the splits and metrics that overviews show.

    Args:
        found: All ``(split, metric)`` with an answer.

    Returns:
        The main metrics of the test images, the AUROC of the first near and the first far OOD set
        (encoded as the training images are, if there is such), and the NLL under shift.
    """
    wanted = [("test", metric) for metric in _TEST]
    for kind in ("near_ood/", "far_ood/"):
        sets = [split for split, metric in found if split.startswith(kind) and metric == _DETECTION]
        encoded = [split for split in sets if SplitName.parse(split).encoded]
        wanted += [(split, _DETECTION) for split in (encoded or sets)[:1]]
    return [place for place in (*wanted, ("shift", "nll")) if place in found]


def place_label(place: Place, *, arrow: bool = True) -> str:
    """Write a metric and its split, which is left out for the test images."""
    split, metric = place
    where = "" if split == "test" else f" ({split_title(split)})"
    return (directed_label if arrow else metric_label)(metric) + where


def place_values(method: MethodSummary, place: Place) -> list[float]:
    """Return a method's finite values of a metric on a split, one per replicate."""
    values = []
    for replicate in method.replicates:
        try:
            values.append(replicate.metric(*place))
        except (KeyError, statistics.StatisticsError):  # measured on other splits
            continue
    return [value for value in values if math.isfinite(value)]


def method_mean(method: MethodSummary, place: Place) -> float:
    """Return the mean over replicates of a metric on a split, NaN where it is not known."""
    values = place_values(method, place)
    return statistics.fmean(values) if values else math.nan
