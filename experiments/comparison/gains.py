"""Do ensembles improve the same test images as a larger network of the same cost does?"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...metrics.statistics.gain_correlation import GainCorrelations, Gains, gain_correlations
from .formatting import listed
from .shared_methods import shares_with
from .single_models import ensembles_of, frontier_of
from .verdicts import Comparison, MethodSummary, Replicate

BASE = "single"
"""The method whose replicates are the base networks that gains are taken from."""


@dataclass(frozen=True)
class EnsembleGains:
    """Correlation of an ensemble's gains with those of the larger network of its cost.

    Attributes:
        big: The single model whose MACs are nearest to the ensemble's, within the tolerance.
        loss: ``nll`` or ``brier``.
        replicates: How many ensembles and how many large networks.
        found: The correlations; None where there are none, for the reason that is given.
    """

    ensemble: MethodSummary
    big: MethodSummary
    loss: str
    replicates: tuple[int, int]
    found: GainCorrelations | None
    reason: str = ""


@dataclass(frozen=True)
class GainTable:
    """Gain correlations, a row per loss and ensemble that has a single model of its cost.

    ``reason`` says why there are none, ``note`` what must be known of the bases.
    """

    rows: tuple[EnsembleGains, ...] = ()
    reason: str = ""
    note: str = ""


def gain_table(comparison: Comparison) -> GainTable:
    """Correlate the gains of ensembles and of large networks over the test images.

    By `gain_correlations`. The gain of a replicate is its loss less that of a base network, a
    replicate of ``single``. A base that two gains shared would correlate them by itself, so every
    replicate has one of its own: the first half of the bases is the ensembles', the other half the
    large networks', and replicates beyond these halves are left out. Where methods share members,
    the base of an ensemble is its own first member, and still no two gains have a network in
    common: those of the large networks' bases are in ensembles that are left out.
    """
    base = next((m for m in comparison.methods if m.name == BASE), None)
    bases = base.replicates if base else ()
    if base is None or len(bases) < 4:
        return GainTable(
            reason=(
                f"It needs at least 4 replicates of {BASE}, two for ensembles and two others for "
                f"large networks, so that no two gains share one; there are {len(bases)}."
            )
        )
    tolerance = comparison.cost_tolerance
    larger = [
        single
        for single in frontier_of(comparison.methods)
        if single.cost.macs > base.cost.macs * (1 + tolerance)
    ]
    ensembles = ensembles_of(comparison.methods)
    pairs = [(m, big) for m in ensembles if (big := _big_of(m, larger, tolerance))]
    if not pairs:
        within = f"within {100 * tolerance:g} %"
        return GainTable(reason=f"No ensemble has a larger single model of its cost, {within}.")
    half = len(bases) // 2
    own = [ensemble.name for ensemble, _ in pairs if shares_with(ensemble, [base])]
    note = (
        f"The base network of {listed(own)} is its own first member: what the two have in common "
        "cancels, so that its gains vary less than those over another network."
    )
    return GainTable(
        note=note if own else "",
        rows=tuple(
            row
            for ensemble, big in pairs
            for row in _rows(ensemble, big, bases[:half], bases[half : 2 * half], comparison.draws)
        ),
    )


def _big_of(
    method: MethodSummary, larger: Sequence[MethodSummary], tolerance: float
) -> MethodSummary | None:
    """The single model, larger than a base, of an ensemble's cost; None without one."""

    def distance(single: MethodSummary) -> float:
        return abs(single.cost.macs / method.cost.macs - 1)

    near = [single for single in larger if distance(single) <= tolerance]
    return min(near, key=distance, default=None)


def _rows(
    ensemble: MethodSummary,
    big: MethodSummary,
    ensemble_bases: Sequence[Replicate],
    big_bases: Sequence[Replicate],
    draws: int,
) -> Iterator[EnsembleGains]:
    for loss in ("nll", "brier"):
        ours, theirs = (
            _gains(method.replicates, bases, loss)
            for method, bases in ((ensemble, ensemble_bases), (big, big_bases))
        )
        if ours is None or theirs is None:
            why = "the losses of single test images were not kept"
            yield EnsembleGains(ensemble, big, loss, (0, 0), None, why)
            continue
        counts = len(ours.losses), len(theirs.losses)
        try:
            with warnings.catch_warnings():
                # A gain that is the same on all images has no correlation, which NaN says.
                warnings.filterwarnings("ignore", "gain correlation", RuntimeWarning)
                found = gain_correlations(ours, theirs, metric=loss, draws=draws)
        except ValueError as error:  # one replicate, or two that are the same network
            yield EnsembleGains(ensemble, big, loss, counts, None, str(error))
            continue
        yield EnsembleGains(ensemble, big, loss, counts, found)


def _gains(replicates: Sequence[Replicate], bases: Sequence[Replicate], loss: str) -> Gains | None:
    """Put each replicate beside a base of its own, as far as there are both."""
    pairs = list(zip(replicates, bases, strict=False))
    tests = [pair[place].values.get("test") for place in (0, 1) for pair in pairs]
    losses: list[Tensor | None] = [getattr(values, loss, None) for values in tests]
    known = [each for each in losses if each is not None]
    if not pairs or len(known) < len(losses) or len({len(each) for each in known}) > 1:
        return None
    return Gains(torch.stack(known[: len(pairs)]), torch.stack(known[len(pairs) :]))
