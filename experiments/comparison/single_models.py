"""Which methods are single models, which of them costs refer to, and how well each validates."""

import math
import statistics
from collections.abc import Iterable

from .method_names import SINGLE
from .verdicts import MethodSummary

_AS_LONG = 0.1


def is_single(method: MethodSummary) -> bool:
    """Tell whether a method is one network, by its family or, in early comparisons, its name."""
    if method.family:
        return method.family == SINGLE
    return method.name == "single" or method.name.startswith("wide")


def family_of(method: MethodSummary) -> str:
    """Return a method's family, or its own name where none is known."""
    return SINGLE if is_single(method) else method.family or method.name


def single_models(methods: Iterable[MethodSummary]) -> list[MethodSummary]:
    """List the methods that are one network."""
    return [method for method in methods if is_single(method)]


def ensembles_of(methods: Iterable[MethodSummary]) -> list[MethodSummary]:
    """List the methods that are compared with single models: ensembles and cascades."""
    return [method for method in methods if not is_single(method)]


def plain_single(methods: Iterable[MethodSummary]) -> MethodSummary | None:
    """Return the single model that costs are multiples of: ``single``, or that of fewest MACs."""
    singles = single_models(methods)
    return min(singles, key=lambda m: (m.name != "single", m.cost.macs), default=None)


def frontier_of(methods: Iterable[MethodSummary]) -> list[MethodSummary]:
    """Return the single models that differ in size alone: those trained as long as the plain one.

    Use it for what a single model of some size reaches: one that was trained longer than the others
    would lift the frontier at its own cost and nowhere else. Training is as long where training
    compute over MACs agrees within 10 %; of unknown training compute, all are returned.
    """
    singles = single_models(methods)
    plain = plain_single(singles)
    if plain is None or plain.cost.training_macs is None:
        return singles
    once = plain.cost.training_macs / plain.cost.macs
    return [
        method
        for method in singles
        if method.cost.training_macs is None
        or abs(method.cost.training_macs / method.cost.macs / once - 1) <= _AS_LONG
    ]


def validation_nll(method: MethodSummary, *, best_kept: bool = False) -> float:
    """Return the mean NLL on ``val/select`` of the weights, last or best, that replicates kept.

    It is NaN where one of the replicates has no log of it.
    """
    kept = []
    for replicate in method.replicates:
        rows = [row["val/nll"] for row in replicate.log if "val/nll" in row]
        finite = [value for value in rows if math.isfinite(value)]
        if not finite:
            return math.nan
        kept.append(min(finite) if best_kept else rows[-1])
    return statistics.fmean(kept) if kept else math.nan
