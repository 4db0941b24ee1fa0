"""What to deploy within a budget: what is affordable, what represents its family, and what wins.

Nothing is chosen on the test images. The best single model that a budget affords is the one of
lowest validation NLL; each family of ensembles is represented by its most expensive affordable
method.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from ...datasets.plain_data import parse_yaml
from ...metrics.core.catalogue import METRICS
from ..cost.axes import Axis, multiple_text
from .formatting import CANNOT_TELL, TOO_FEW
from .single_models import family_of, is_single, plain_single, validation_nll
from .verdicts import FEWEST_REPLICATES, Comparison, MethodSummary, Verdict

INCONCLUSIVE = "This data cannot tell which method to deploy: repeat the comparison on your own."
"""What is said there in place of a recommendation."""


@dataclass(frozen=True)
class Budget:
    """What can be had for an amount of the cost that an axis counts.

    Attributes:
        multiple: The amount in multiples of the plain single model.
        single: The best single model that is affordable; None where none is.
        by_validation: Whether it was chosen by validation NLL, or is the most expensive one since
            logs are missing.
        representatives: The most expensive affordable method of each family of ensembles.
    """

    axis: Axis
    amount: float
    multiple: float
    single: MethodSummary | None
    by_validation: bool
    representatives: tuple[MethodSummary, ...]

    @property
    def title(self) -> str:
        """The budget in words, such as ``4× (4 M)``."""
        return f"{multiple_text(self.multiple)} ({self.axis.text(self.amount)})"


@dataclass(frozen=True)
class Difference:
    """How a family's representative differs from the best single model by one metric.

    Attributes:
        verdict: On the representative and that single model, the same as everywhere.
    """

    method: MethodSummary
    verdict: Verdict

    @property
    def outcome(self) -> str:
        """The verdict's mark, or undefined."""
        return self.verdict.mark or "undefined"


@dataclass(frozen=True)
class Answer:
    """What to deploy within a budget, by one metric on one split.

    Attributes:
        differences: Of each family that has a verdict to the best single model.
        outcome: better if an ensemble is shown to be; else worse if the single model is shown to
            beat one; else not shown, undefined, or `TOO_FEW`; on data that cannot separate methods,
            `CANNOT_TELL`.
        winners: The ensembles that are shown to be better, the largest advantage first; none on
            data that cannot separate methods.
    """

    single: MethodSummary
    differences: tuple[Difference, ...]
    outcome: str
    winners: tuple[Difference, ...]

    @property
    def deploy(self) -> MethodSummary | None:
        """The single model, or an ensemble shown to be better; None where nothing can be said."""
        if self.outcome in (CANNOT_TELL, TOO_FEW, "undefined"):
            return None
        return self.winners[0].method if self.winners else self.single


def budgets_of(comparison: Comparison, axis: Axis) -> tuple[Budget, ...]:
    """List the budgets of one kind of cost, from small to large: what the own ensembles cost.

    Costs within the comparison's tolerance of each other are one budget, and within it is what
    costs at most so much more.
    There are none where the plain single model's cost is not known.
    """
    plain = plain_single(comparison.methods)
    if plain is None or not math.isfinite(axis.of(plain.cost)):
        return ()
    best_kept, tolerance = _keeps_best(comparison.configuration), comparison.cost_tolerance
    scores = {m.name: validation_nll(m, best_kept=best_kept) for m in comparison.methods}
    found: list[Budget] = []
    costs = sorted(axis.of(m.cost) for m in comparison.methods if not is_single(m))
    for amount in filter(math.isfinite, costs):
        if found and amount <= found[-1].amount * (1 + tolerance):
            continue
        affordable = [
            m for m in comparison.methods if is_affordable(axis.of(m.cost), amount, tolerance)
        ]
        single, by_validation = _best_single(affordable, axis, scores)
        kinds = _representatives(affordable, axis, scores, tolerance)
        multiple = amount / axis.of(plain.cost)
        found.append(Budget(axis, amount, multiple, single, by_validation, kinds))
    return tuple(found)


def is_affordable(cost: float, budget: float, tolerance: float) -> bool:
    """Tell whether a cost is within a budget and a tolerance above; one not known never is."""
    return cost <= budget * (1 + tolerance)


def _keeps_best(configuration: str) -> bool:
    try:
        found = parse_yaml(configuration)
    except yaml.YAMLError:
        return False
    return isinstance(found, Mapping) and found.get("keep") == "best"


def _best_single(
    affordable: Sequence[MethodSummary], axis: Axis, scores: Mapping[str, float]
) -> tuple[MethodSummary | None, bool]:
    """Choose by validation NLL; where that is not known of all, the most expensive one."""
    singles = [method for method in affordable if is_single(method)]
    known = bool(singles) and all(math.isfinite(scores[method.name]) for method in singles)
    if known:
        return min(singles, key=lambda method: scores[method.name]), True
    return max(singles, key=lambda m: axis.of(m.cost), default=None), False


def _representatives(
    affordable: Sequence[MethodSummary],
    axis: Axis,
    scores: Mapping[str, float],
    tolerance: float,
) -> tuple[MethodSummary, ...]:
    """Choose the most expensive of each family; among those of equal cost, by validation NLL."""
    families: dict[str, list[MethodSummary]] = {}
    for method in affordable:
        if not is_single(method):
            families.setdefault(family_of(method), []).append(method)
    chosen = []
    for members in families.values():
        dearest = max(axis.of(m.cost) for m in members)
        equal = [m for m in members if is_affordable(dearest, axis.of(m.cost), tolerance)]
        ordered = sorted(equal, key=lambda m: (math.isnan(scores[m.name]), scores[m.name]))
        known = math.isfinite(scores[ordered[0].name])
        chosen.append(ordered[0] if known else max(equal, key=lambda m: axis.of(m.cost)))
    return tuple(chosen)


def answers(comparison: Comparison, budget: Budget) -> dict[tuple[str, str], Answer]:
    """Answer what to deploy within a budget, by every metric on every split.

    Of the families whose verdict against the best single model is better, the one with the largest
    advantage; if there is none, the single model. Data that cannot separate methods have no answer.

    Returns:
        ``(split, metric)`` -> the answer, in the order of the verdicts; nothing where no single
        model is affordable.
    """
    if budget.single is None:
        return {}
    single = budget.single
    methods = {method.name: method for method in budget.representatives}
    verdicts = [
        verdict
        for verdict in comparison.against_singles
        if verdict.baseline == single.name
        and verdict.challenger in methods
        and METRICS[verdict.metric].higher_is_better is not None
    ]
    found: dict[tuple[str, str], list[Difference]] = {}
    for verdict in verdicts:
        difference = Difference(methods[verdict.challenger], verdict)
        found.setdefault((verdict.split, verdict.metric), []).append(difference)
    if not comparison.conclusive:
        return {at: Answer(single, tuple(here), CANNOT_TELL, ()) for at, here in found.items()}
    return {at: _answer(single, here) for at, here in found.items()}


def undecidable(found: Mapping[tuple[str, str], Answer]) -> bool:
    """Tell whether no answer of a budget says which method to deploy, for want of replicates."""
    return all(answer.outcome in (TOO_FEW, "undefined") for answer in found.values())


def _answer(single: MethodSummary, differences: Sequence[Difference]) -> Answer:
    # Of all outcomes the first that is there: one better ensemble is enough to deploy it.
    order = ("better", "worse", "not shown", "undefined")
    outcome = min((each.outcome for each in differences), key=order.index)
    defined = [each.verdict for each in differences if each.outcome != "undefined"]
    if defined and all(verdict.replicates < FEWEST_REPLICATES for verdict in defined):
        outcome = TOO_FEW
    better = [each for each in differences if each.outcome == "better"]
    winners = sorted(better, key=lambda difference: -difference.verdict.advantage[0])
    return Answer(single, tuple(differences), outcome, tuple(winners))
