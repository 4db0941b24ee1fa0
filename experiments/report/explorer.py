"""What the page's script needs to show any budget by any metric: finished text and places."""

import math
from collections.abc import Sequence
from typing import Any

from ..comparison.budgets import Budget, answers, budgets_of, is_affordable
from ..comparison.formatting import SIGNS, mean_and_sd
from ..comparison.sentences import difference_text
from ..comparison.single_models import family_of, frontier_of, is_single, plain_single
from ..comparison.verdicts import Comparison, MethodSummary
from ..cost.axes import AXES, Axis, multiple_text
from .budget_text import NONE_AFFORDABLE, Place, place_values, recommendation
from .diagram_specs import explorer_spec
from .model import Explorer
from .splits import directed_label, higher_is_better, mean_and_spread, metric_label, split_title
from .verdict_view import p_text


def explorer(comparison: Comparison) -> Explorer | None:
    """Collect every budget, metric and answer; None where no budget can be set.

    Budgets that afford the same methods share one entry of ``scenes``.
    """
    plain = plain_single(comparison.methods)
    # The splits and metrics with a direction that have a verdict at all.
    places = list(
        dict.fromkeys(
            (verdict.split, verdict.metric)
            for verdict in comparison.against_singles
            if higher_is_better(verdict.metric) is not None and verdict.outcome != "undefined"
        )
    )
    budgets = [(axis, found) for axis in AXES if (found := budgets_of(comparison, axis))]
    if plain is None or not places or not budgets:
        return None
    scenes = _Scenes(comparison, places)
    splits = list(dict.fromkeys(split for split, _ in places))
    methods, frontier = comparison.methods, frontier_of(comparison.methods)
    tolerance = comparison.cost_tolerance
    families = list(dict.fromkeys(map(family_of, methods)))

    def budget(axis: Axis, found: Budget) -> list[Any]:
        within = [int(is_affordable(axis.of(m.cost), found.amount, tolerance)) for m in methods]
        return [_rounded(found.multiple), found.title, within, scenes.of(found)]

    return Explorer(
        {
            "plain": plain.name,
            "marks": [(mark.replace(" ", "-"), f"{sign} {mark}") for mark, sign in SIGNS.items()],
            "methods": [
                [m.name, family_of(m), int(is_single(m)), int(m in frontier)] for m in methods
            ],
            "axes": [
                {
                    "label": axis.label,
                    "costs": [_rounded(axis.of(m.cost) / axis.of(plain.cost)) for m in methods],
                    "texts": [_cost_text(axis, m, plain) for m in methods],
                    "budgets": [budget(axis, each) for each in found],
                }
                for axis, found in budgets
            ],
            "splits": [split_title(split) for split in splits],
            "metrics": [
                [splits.index(split), metric_label(metric), directed_label(metric)]
                for split, metric in places
            ],
            "values": [[_value(method, place) for method in methods] for place in places],
            "scenes": scenes.scenes,
            "pairs": scenes.pairs,
            "spec": explorer_spec(comparison.names, families),
        }
    )


def _value(method: MethodSummary, place: Place) -> list[Any] | None:
    """Return mean, mean less and plus one sd, and the text of both; None without any value."""
    values = place_values(method, place)
    if not values:
        return None
    mean, spread = mean_and_spread(values)
    half = spread if math.isfinite(spread) else 0.0
    return [*map(_rounded, (mean, mean - half, mean + half)), mean_and_sd(mean, spread)]


def _cost_text(axis: Axis, method: MethodSummary, plain: MethodSummary) -> str:
    amount = axis.of(method.cost)
    if not math.isfinite(amount):
        return "not measured"
    return f"{axis.text(amount)} ({multiple_text(amount / axis.of(plain.cost))})"


class _Scenes:
    """What budgets that afford the same methods have in common."""

    def __init__(self, comparison: Comparison, places: Sequence[Place]) -> None:
        self._comparison, self._places = comparison, places
        self._known: dict[tuple[str | None, ...], int] = {}
        self.scenes: list[dict[str, Any]] = []
        self.pairs: dict[str, list[tuple[str, str] | None]] = {}

    def of(self, budget: Budget) -> int:
        """Return the number of a budget's scene, made where there is none yet."""
        single = None if budget.single is None else budget.single.name
        key = (single, *(method.name for method in budget.representatives))
        if key not in self._known:
            self._known[key] = len(self.scenes)
            self.scenes.append(self._scene(budget))
        return self._known[key]

    def _index(self, method: MethodSummary) -> int:
        return self._comparison.names.index(method.name)

    def _scene(self, budget: Budget) -> dict[str, Any]:
        if budget.single is None:
            return {"single": None, "methods": [], "text": NONE_AFFORDABLE}
        found = answers(self._comparison, budget)
        here = [found.get(place) for place in self._places]
        marks, p_values = [], []
        for method in budget.representatives:
            differences = [
                next((d for d in answer.differences if d.method is method), None)
                if answer
                else None
                for answer in here
            ]
            outcomes = [d.outcome if d else "undefined" for d in differences]
            marks.append("".join(str([*SIGNS].index(outcome)) for outcome in outcomes))
            p_values.append([p_text(d.verdict.p_value) if d else "" for d in differences])
            pair = f"{self._index(method)},{self._index(budget.single)}"
            self.pairs[pair] = [difference_text(d.verdict) if d else None for d in differences]
        return {
            "single": self._index(budget.single),
            "methods": [self._index(method) for method in budget.representatives],
            "marks": marks,
            "p": p_values,
            "deploy": [
                self._index(answer.deploy) if answer and answer.deploy else None for answer in here
            ],
            "sentences": [
                recommendation(answer, metric) if answer else f"There is no verdict by {metric}."
                for answer, (_, metric) in zip(here, self._places, strict=True)
            ],
        }


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
