"""How many independent members each method is worth, and whether more of them follow a law."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...metrics.statistics.draws import Draws, bootstrap_draws
from ...metrics.statistics.ensemble_size import (
    Equivalent,
    Extrapolation,
    deep_ensemble_equivalent,
    extrapolate_power_law,
)
from ...metrics.suite import MeanEvaluation
from ..training.devices import threads
from .resampling import AT_TEMPERATURE
from .single_models import plain_single
from .verdicts import Comparison, MethodSummary

MEASURE = AT_TEMPERATURE["nll"]
"""The NLL at the temperature by which methods are judged."""

DEEP = "deep ensemble"


@dataclass(frozen=True)
class EnsembleSizes:
    """Deep-ensemble equivalents of all other methods, and the law of the deep ensembles.

    Attributes:
        sizes: Number of members -> mean NLL at the temperature of the deep ensemble of this size.
        equivalents: By method.
        law: Of ensembles of at most half as many members as the largest, which it predicts; None
            of fewer than three such sizes.
        largest: Members of the largest deep ensemble.
        left_out: Methods without a temperature.
    """

    sizes: Mapping[int, float]
    equivalents: Mapping[str, Equivalent]
    law: Extrapolation | None
    largest: int
    left_out: tuple[str, ...] = ()


def ensemble_sizes(comparison: Comparison) -> EnsembleSizes | None:
    """Put all methods on the scale of deep ensembles by size, where there are two sizes or more.

    By `deep_ensemble_equivalent` and `extrapolate_power_law`, in NLL at the pooled temperature on
    the test images; deep ensembles are those whose members cost what ``single`` does.
    """
    deep = deep_ensembles(comparison)
    others = [each for each in comparison.methods if each not in deep.values()]
    usable = {m.name for m in (*deep.values(), *others) if _identified(m)}
    deep = {size: method for size, method in deep.items() if method.name in usable}
    if 1 not in deep or len(deep) < 2:
        return None
    with threads(1):  # many small steps: more threads would wait for each other
        drawn = {
            method.name: _draws(method, comparison.draws)
            for method in (*deep.values(), *others)
            if method.name in usable
        }
    curve = [(size, drawn[method.name]) for size, method in sorted(deep.items())]
    largest, law = max(deep), None
    small = [each for each in curve if each[0] <= largest / 2]
    if len(small) >= 3:
        law = extrapolate_power_law(small, curve[-1])["nll"]
    return EnsembleSizes(
        {size: draws.observed["nll"].mean().item() for size, draws in curve},
        {
            each.name: deep_ensemble_equivalent(drawn[each.name], curve)["nll"]
            for each in others
            if each.name in usable
        },
        law,
        largest,
        tuple(each.name for each in others if each.name not in usable),
    )


def deep_ensembles(comparison: Comparison) -> dict[int, MethodSummary]:
    """Deep ensembles of the comparison's network by their number of members, ``single`` being 1."""
    single = plain_single(comparison.methods)
    if single is None or single.name != "single":
        return {}
    found = {1: single}
    for method in comparison.methods:
        members = method.cost.macs / single.cost.macs
        if method.family == DEEP and not method.over and members.is_integer():
            found[int(members)] = method
    return found


def _identified(method: MethodSummary) -> bool:
    return all(
        each.scaled is not None and math.isfinite(each.metric("test", MEASURE))
        for each in method.replicates
    )


def _draws(method: MethodSummary, draws: int) -> Draws:
    scaled = [each.scaled for each in method.replicates if each.scaled is not None]
    evaluations = [MeanEvaluation([each]) for each in scaled]
    sizes, networks = [len(scaled[0])], method.networks
    found = bootstrap_draws(evaluations, sizes=sizes, draws=draws, networks=networks)
    return found.only(["nll"])
