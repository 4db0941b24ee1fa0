"""What the report says of budgets: sentences, and the numbers that its script draws."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...metrics.core.catalogue import METRICS
from ..comparison.budgets import (
    Answer,
    Budget,
    answers,
    budgets_of,
    family_of,
    frontier_of,
    is_single,
    plain_single,
)
from ..comparison.verdicts import FEWEST_REPLICATES, Comparison, MethodSummary
from ..cost.axes import AXES
from ..evaluation.predictions import is_encoded
from .splits import directed_label, mean_and_spread, metric_label, signed, split_title

PHRASES: Mapping[str, str] = {
    "better": "Deploy {method}: by {metric} it beats {single}, the best single model, by "
    "{difference} (95 % interval [{low}, {high}], Holm p {p}).",
    "others": "Also shown to beat it: {others}; ensembles are not compared with each other.",
    "worse": "Deploy {single}, the best single model: by {metric} it is shown to beat {others}, "
    "and no ensemble is shown to beat it.",
    "undecided": "Deploy {single}, the best single model: by {metric} no ensemble is shown to be "
    "better.",
    "too few": f"Too few replicates to say: a claim needs at least {FEWEST_REPLICATES}.",
    "undefined": "There is no verdict by {metric} here.",
}
"""Answer -> its sentence; the page's script fills in the same ones."""

OUTCOMES = ("better", "worse", "undecided", "undefined", "too few")
"""Outcomes in the order of their numbers in the script's data."""

_TEST = ("accuracy", "nll", "ece", "aurc", "coverage_at_5_risk")
_DETECTION = "auroc_entropy"


def recommendation(answer: Answer, metric: str) -> str:
    """Say in one or two sentences what to deploy, and why.

    Args:
        answer: By one metric on one split.
        metric: Its key.

    Returns:
        Sentences with the difference, its interval and its p-value.
    """
    told = {"single": answer.single.name, "metric": metric_label(metric), "others": ""}
    if answer.winners:
        first, *others = answer.winners
        verdict = first.verdict
        numbers = signed((verdict.estimate, verdict.low, verdict.high))
        told |= dict(zip(("difference", "low", "high"), numbers, strict=True))
        told |= {"method": first.method.name, "p": told_p(first.p_value)}
        told["others"] = ", ".join(other.method.name for other in others)
    elif answer.outcome == "worse":
        beaten = [d.method.name for d in answer.differences if d.outcome == "worse"]
        told["others"] = ", ".join(beaten)
    kinds = [answer.outcome, *(["others"] if answer.winners[1:] else [])]
    return " ".join(PHRASES[kind].format(**told) for kind in kinds)


def summary(found: Mapping[tuple[str, str], Answer], single: MethodSummary) -> str:
    """Say in one sentence what to deploy by each of the main metrics.

    Args:
        found: ``(split, metric)`` -> answer, of one budget.
        single: Its best single model.

    Returns:
        Which method by which metrics, those of ensembles first.
    """
    by: dict[str, list[str]] = {}
    for place in main_places(list(found)):
        answer, told = found[place], told_place(place, arrow=False)
        by.setdefault(answer.winners[0].method.name if answer.winners else "", []).append(told)
    if all(answer.outcome in ("too few", "undefined") for answer in found.values()):
        return PHRASES["too few"]
    rest = by.pop("", [])
    parts = [f"{name} for {_listed(told)}" for name, told in by.items()]
    if not parts:
        return (
            f"Deploy {single.name}, the best single model: by none of the main metrics is an "
            "ensemble shown to be better."
        )
    they = "it is" if len(parts) == 1 else "they are"
    said = f"Deploy {'; '.join(parts)}, where {they} shown to beat {single.name}"
    if not rest:
        return f"{said}, the best single model."
    return f"{said}; for {_listed(rest)} no ensemble is shown to beat this best single model."


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def told_p(p_value: float) -> str:
    """Write a p-value with its relation: ``< 0.001``, or ``= 0.012``."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def main_places(found: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
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
        encoded = [split for split in sets if is_encoded(split)]
        wanted += [(split, _DETECTION) for split in (encoded or sets)[:1]]
    return [place for place in (*wanted, ("shift", "nll")) if place in found]


def told_place(place: tuple[str, str], *, arrow: bool = True) -> str:
    """Write a split and a metric; the test images are a matter of course."""
    split, metric = place
    where = "" if split == "test" else f" ({split_title(split)})"
    return (directed_label if arrow else metric_label)(metric) + where


def script_data(comparison: Comparison) -> str:
    """Write as JSON what the page's script needs to draw any budget by any metric.

    Budgets that afford the same methods share one entry of ``scenes``. Numbers have six
    significant digits, p-values three.

    Args:
        comparison: With verdicts of every ensemble against every single model.

    Returns:
        The JSON text; empty where no budget can be set.
    """
    plain = plain_single(comparison.methods)
    places = _places(comparison)
    budgets = [(axis, found) for axis in AXES if (found := budgets_of(comparison, axis))]
    if plain is None or not places or not budgets:
        return ""
    scenes = _Scenes(comparison, places)
    axes = [
        {
            "label": axis.label,
            "costs": [_rounded(axis.of(m.cost) / axis.of(plain.cost)) for m in comparison.methods],
            "told": [_told(axis.of(m.cost), axis.text) for m in comparison.methods],
            "budgets": [[_rounded(b.multiple), b.title, scenes.of(b)] for b in found],
        }
        for axis, found in budgets
    ]
    splits = list(dict.fromkeys(split for split, _ in places))
    frontier = frontier_of(comparison.methods)
    content = {
        "plain": plain.name,
        "phrases": PHRASES,
        "methods": [
            [m.name, family_of(m), int(is_single(m)), len(m.replicates), int(m in frontier)]
            for m in comparison.methods
        ],
        "axes": axes,
        "splits": [split_title(split) for split in splits],
        "metrics": [
            [splits.index(split), metric_label(metric), int(bool(METRICS[metric].higher_is_better))]
            for split, metric in places
        ],
        "values": [[_mean(m, *place) for m in comparison.methods] for place in places],
        "scenes": scenes.scenes,
        "pairs": scenes.pairs,
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class _Scenes:
    """What budgets that afford the same methods have in common."""

    def __init__(self, comparison: Comparison, places: Sequence[tuple[str, str]]) -> None:
        self._comparison, self._places = comparison, places
        self._names = [method.name for method in comparison.methods]
        self._known: dict[tuple[str | None, ...], int] = {}
        self.scenes: list[dict[str, Any]] = []
        self.pairs: dict[str, list[list[float | int | None] | None]] = {}

    def of(self, budget: Budget) -> int:
        """Return the number of a budget's scene, made where there is none yet."""
        single = budget.single
        name = None if single is None else single.name
        key = (name, *(method.name for method in budget.representatives))
        if key not in self._known:
            self._known[key] = len(self.scenes)
            self.scenes.append(self._scene(budget))
        return self._known[key]

    def _scene(self, budget: Budget) -> dict[str, Any]:
        found = answers(self._comparison, budget)
        outcomes, p_values = [], []
        for method in budget.representatives:
            each = {
                place: difference
                for place, answer in found.items()
                for difference in answer.differences
                if difference.method is method
            }
            here = [each.get(place) for place in self._places]
            outcomes.append(
                "".join(str(OUTCOMES.index(d.outcome if d else "undefined")) for d in here)
            )
            p_values.append([_rounded(d.p_value, 3) if d else None for d in here])
            if budget.single is not None:
                pair = f"{self._index(method)},{self._index(budget.single)}"
                self.pairs[pair] = [
                    None
                    if d is None or d.outcome == "undefined"
                    else [_rounded(x) for x in (d.verdict.estimate, d.verdict.low, d.verdict.high)]
                    for d in here
                ]
        return {
            "single": None if budget.single is None else self._index(budget.single),
            "chosen": int(budget.by_validation),
            "methods": [self._index(method) for method in budget.representatives],
            "outcomes": outcomes,
            "p": p_values,
        }

    def _index(self, method: MethodSummary) -> int:
        return self._names.index(method.name)


def _places(comparison: Comparison) -> list[tuple[str, str]]:
    """List the splits and metrics with a direction that have a verdict at all."""
    return list(
        dict.fromkeys(
            (verdict.split, verdict.metric)
            for verdict in comparison.against_singles
            if METRICS[verdict.metric].higher_is_better is not None
            and verdict.outcome != "undefined"
        )
    )


def _mean(method: MethodSummary, split: str, metric: str) -> list[float | int | None] | None:
    """Return mean, standard deviation and number of a method's values, None without any."""
    values = []
    for replicate in method.replicates:
        try:
            value = replicate.metric(split, metric)
        except (KeyError, statistics.StatisticsError):  # measured on other splits
            continue
        if math.isfinite(value):
            values.append(value)
    mean, spread = mean_and_spread(values)
    return [_rounded(mean), _rounded(spread), len(values)] if values else None


def method_mean(method: MethodSummary, place: tuple[str, str]) -> float:
    """Return the mean over replicates of a metric on a split, NaN where it is not known."""
    found = _mean(method, *place)
    return math.nan if found is None or found[0] is None else float(found[0])


def _rounded(value: float, digits: int = 6) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e6 else rounded


def _told(amount: float, told: Callable[[float], str]) -> str:
    return told(amount) if math.isfinite(amount) else "not measured"
