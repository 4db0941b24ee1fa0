"""Sentences on what to deploy, and the splits and metrics that overviews of budgets show."""

import math
from collections.abc import Mapping, Sequence

from ...datasets import SplitName
from ..comparison.budgets import INCONCLUSIVE, Answer, undecidable
from ..comparison.formatting import CANNOT_TELL, TOO_FEW, listed, p_value_text
from ..comparison.sentences import difference_text
from ..comparison.verdicts import FEWEST_REPLICATES, MethodSummary, shown_copies
from .splits import directed_label, metric_label, split_title

NONE_AFFORDABLE = "No single model is affordable, so there is nothing to compare ensembles with."
_TOO_FEW = f"Too few replicates to say: a claim needs at least {FEWEST_REPLICATES}."
_TEST = ("accuracy", "nll", "ece", "aurc", "coverage_at_5_risk")
_DETECTION = "auroc_entropy"

Place = tuple[str, str]


def recommendation(answer: Answer, metric: str) -> str:
    """Say what to deploy by one metric on one split, and why: the difference and how sure it is."""
    single, label = answer.single.name, metric_label(metric)
    if answer.winners:
        first, *others = answer.winners
        difference, interval = difference_text(first.verdict)
        p_value = p_value_text(first.verdict.p_value)
        names = ", ".join(other.method.name for other in others)
        also = f" Also shown to beat it: {names}; ensembles are not compared with each other."
        return (
            f"Deploy {first.method.name}: by {label} it beats {single}, the best single model, by "
            f"{difference} (95 % interval {interval}, Holm p {p_value})."
            f"{also if others else ''}"
        )
    beaten = ", ".join(d.method.name for d in answer.differences if d.outcome == "worse")
    why = {
        "worse": f"it is shown to beat {beaten}, and no ensemble is shown to beat it",
        "not shown": "no ensemble is shown to be better",
    }
    if answer.outcome in why:
        return f"Deploy {single}, the best single model: by {label} {why[answer.outcome]}."
    unclear = {CANNOT_TELL: INCONCLUSIVE, TOO_FEW: _TOO_FEW}
    return unclear.get(answer.outcome, f"There is no verdict by {label} here.")


def listed_summary(found: Mapping[Place, Answer], single: MethodSummary) -> str:
    """Say in one sentence what to deploy by each of the main metrics of one budget.

    Args:
        found: ``(split, metric)`` -> answer.
        single: The best single model of the budget.
    """
    if any(answer.outcome == CANNOT_TELL for answer in found.values()):
        return INCONCLUSIVE
    if undecidable(found):
        return _TOO_FEW
    by: dict[str, list[str]] = {}
    for place in main_places(list(found)):
        winners = found[place].winners
        label = place_label(place, arrow=False)
        by.setdefault(winners[0].method.name if winners else "", []).append(label)
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
    """Choose the splits and metrics, of those with an answer, that overviews show.

    The main metrics of the test images, the AUROC of the first near and the first far OOD set (of
    its copies the one that counts), and the NLL under shift.
    """
    wanted = [("test", metric) for metric in _TEST]
    shown = shown_copies(split for split, metric in found if metric == _DETECTION)
    for kind in ("near_ood", "far_ood"):
        sets = [split for split in shown if SplitName.parse(split).kind == kind]
        wanted += [(split, _DETECTION) for split in sets[:1]]
    return [place for place in (*wanted, ("shift", "nll")) if place in found]


def place_label(place: Place, *, arrow: bool = True) -> str:
    """Write a metric and its split, which is left out for the test images."""
    split, metric = place
    where = "" if split == "test" else f" ({split_title(split)})"
    return (directed_label if arrow else metric_label)(metric) + where


def place_values(method: MethodSummary, place: Place) -> list[float]:
    """Return a method's finite values of a metric on a split, one per replicate."""
    values = [replicate.metric(*place) for replicate in method.replicates]
    return [value for value in values if math.isfinite(value)]
