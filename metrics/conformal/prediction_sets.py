"""Conformal prediction sets: sets of classes that hold the label with a chosen probability.

A threshold on a nonconformity score is fitted on validation data that nothing else was fitted on,
the temperature included, and stays as it is under shift, where nothing is promised. If calibration
and new samples are exchangeable, ``P(label in set) >= 1 - alpha``.

With ``p_(1) >= p_(2) >= ...`` the sorted probabilities and r the rank of class y:

=======  ==================================================================
lac      ``s = 1 - p_y``, compared as ``log(1 - p_y) - log p_y``
aps      ``s = p_(1) + ... + p_(r-1) + u p_(r)``
raps     ``s = aps + penalty max(0, r - free)``
=======  ==================================================================

where u is uniform in [0, 1), one per *sample*; or 1 for all, without randomization.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ..core.mixture import (
    mixture_log_probs,
    validate_choice,
    validate_finite,
    validate_share,
    validate_targets,
)
from ..core.shapes import LogProbs, PerSample
from ..io.arrays import read_logits, read_targets
from ..io.logit_source import Kind, Layout
from .sure import log_odds, log_rest

Nonconformity = Literal["lac", "aps", "raps"]


@dataclass(frozen=True)
class ConformalSets:
    """A fitted threshold, and the sets below it.

    Args:
        score: ``"lac"``, ``"aps"`` or ``"raps"``.
        threshold: Largest score of a class in the set; infinite where calibration data were too
            few, and then every set holds all classes.
        alpha: Share of labels that may be missed.
        randomized: Whether aps and raps draw u, or take 1.
        penalty: Of raps, for each rank beyond the free ones.
        free: Of raps, ranks without a penalty.
        seed: Of u, a function of it and of a sample's place.
        log_odds: Of lac, ``log(threshold / (1 - threshold))`` before rounding, by which classes are
            compared where it is given: thresholds of 0 and 1 do not tell sure predictions apart.
        log_rest: Of aps and raps, `log_rest` of the threshold's sample, for the same reason.
    """

    score: Nonconformity
    threshold: float
    alpha: float
    randomized: bool = True
    penalty: float = 0.01
    free: int = 5
    seed: int = 0
    log_odds: float | None = None
    log_rest: float | None = None

    def sets(
        self,
        log_probs: Any,
        *,
        first: int = 0,
        layout: Layout = "MNC",
        kind: Kind = "log_probs",
    ) -> Bool[Tensor, "samples classes"]:
        """Return which classes are in each sample's set: those that score at most the threshold.

        Args:
            log_probs: Log-probabilities of the mixture, or whatever `evaluate` takes; others are a
                ``ValueError``.
            first: Place of the first sample, where a data set comes in batches: u depends on the
                place, and not on how the samples are cut into batches.
            layout: As for `evaluate`.
            kind: As for `evaluate`.
        """
        log_probs = _mixture(log_probs, layout, kind)
        if self.score == "lac" and self.log_odds is not None:
            return log_odds(_probs(log_probs), log_probs) <= self.log_odds
        scores, rest = self.scores_and_rest(log_probs, first=first)
        inside = scores <= self.threshold
        if rest is None or self.log_rest is None:
            return inside
        return inside & ((scores < self.threshold) | (rest >= self.log_rest))

    def scores(self, log_probs: LogProbs, *, first: int = 0) -> Float64[Tensor, "samples classes"]:
        """Return every class's nonconformity score, were it the label; higher is less plausible.

        Arguments and errors as `sets`.
        """
        return self.scores_and_rest(log_probs, first=first)[0]

    def scores_and_rest(
        self, log_probs: LogProbs, *, first: int = 0
    ) -> tuple[Float64[Tensor, "samples classes"], Float64[Tensor, "samples classes"] | None]:
        """Return `scores`, and of aps and raps `log_rest`, which orders equal ones."""
        probs = _probs(log_probs)
        if self.score == "lac":
            return 1.0 - probs, None
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        place = torch.arange(first, first + len(probs), device=probs.device)
        u = uniform(place, seed=self.seed) if self.randomized else probs.new_ones(len(probs))
        mass = ordered.cumsum(-1) - (1.0 - u[:, None]) * ordered
        rest = log_rest(log_probs.double().gather(1, order), u)
        mass = torch.where(rest < 0, 1.0 - rest.exp(), mass)
        if self.score == "raps":
            ranks = torch.arange(1, probs.shape[1] + 1, device=probs.device).double()
            mass = mass + self.penalty * (ranks - self.free).clamp(min=0)
        placed, rest_placed = (
            torch.empty_like(each).scatter_(1, order, each) for each in (mass, rest)
        )
        return placed, rest_placed


def least_samples(alpha: float) -> int:
    """Return how many calibration samples sets need: ``1 / alpha - 1``, 9 at an alpha of 0.1."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def fit_conformal(
    log_probs: Any,
    targets: Any,
    *,
    layout: Layout = "MNC",
    kind: Kind = "log_probs",
    alpha: float = 0.1,
    score: Nonconformity = "lac",
    randomized: bool = True,
    raps: tuple[float, int] = (0.01, 5),
    seed: int = 0,
) -> ConformalSets:
    """Return sets that miss the label of an exchangeable sample with probability at most alpha.

    The threshold is the ``ceil((n + 1) (1 - alpha))``-th smallest score of the n calibration
    labels, and infinite if that is beyond n: fewer than ``1 / alpha - 1`` samples promise nothing,
    and are warned of.

    Args:
        log_probs: Log-probabilities of the mixture on calibration data, or whatever `evaluate`
            takes, such as the members' logits.
        targets: Class indices.
        layout: As for `evaluate`.
        kind: As for `evaluate`.
        alpha: Share of labels that may be missed.
        score: ``"lac"`` gives the smallest sets on average, and may leave some empty; ``"aps"``
            adapts them to the sample; ``"raps"`` keeps those from growing long.
        randomized: Whether aps and raps draw u, or take 1, which gives larger sets.
        raps: Penalty, and the number of ranks without it.
        seed: Of u.

    Raises:
        ValueError: If ``log_probs`` are not log-probabilities, ``targets`` do not fit them, or an
            option is unknown or out of range.

    Example:
        >>> import torch
        >>> from deepens.metrics import fit_conformal
        >>> log_probs = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]]).log()
        >>> fitted = fit_conformal(log_probs, torch.tensor([0, 0, 1]), alpha=0.3)
        >>> round(fitted.threshold, 4)
        0.5
        >>> fitted.sets(torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log())
        tensor([[ True,  True],
                [ True, False]])

    Reference: Sadinle et al. (2019), arXiv:1609.00451; Romano et al. (2020), arXiv:2006.02544;
    Angelopoulos et al. (2021), arXiv:2009.14193
    """
    validate_choice(score, "score", get_args(Nonconformity))
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be in [0, 2**31), got {seed}")
    validate_share(alpha, "alpha", "(0, 1)")
    penalty, free = raps
    if not 0 <= penalty < math.inf or free < 0:
        raise ValueError(f"raps must hold a penalty and a number of ranks >= 0, got {raps}")
    given, log_probs = log_probs, _mixture(log_probs, layout, kind)
    samples, classes = log_probs.shape
    targets = read_targets(targets, log_probs[None], like=given)
    validate_targets(targets, num_samples=samples, num_classes=classes)
    unfitted = ConformalSets(score, math.inf, alpha, randomized, penalty, free, seed)
    # Slightly less, since 1 - 0.1 times 20, say, may round to just above a whole number.
    rank = max(1, math.ceil((samples + 1) * (1 - alpha) - 1e-9))

    def of_label(scores: Tensor) -> Tensor:
        return scores.gather(1, targets.long()[:, None]).squeeze(1)

    scores, rest = unfitted.scores_and_rest(log_probs)
    if rank > samples:
        warnings.warn(
            f"alpha={alpha:g} needs >= {least_samples(alpha)} calibration samples, got {samples}: "
            "every set holds all classes",
            RuntimeWarning,
            stacklevel=2,
        )
        return unfitted
    own = of_label(scores)
    if rest is None:
        odds = of_label(log_odds(_probs(log_probs), log_probs)).sort().values[rank - 1].item()
        return replace(unfitted, threshold=own.sort().values[rank - 1].item(), log_odds=odds)
    rest = of_label(rest)
    order = rest.sort(descending=True, stable=True).indices
    last = order[own[order].sort(stable=True).indices[rank - 1]]
    return replace(unfitted, threshold=own[last].item(), log_rest=rest[last].item())


@dataclass(frozen=True)
class SetQuality:
    """What conformal sets are worth on labelled data.

    Attributes:
        coverage: Share of samples whose set holds the label; ``1 - alpha`` was asked for.
        mean_size: Mean number of classes in a set; less is more informative.
        empty: Share of empty sets.
        size_coverage: Coverage among the sets of each size, from 0 to the number of classes; NaN
            where no set has the size.
        size_counts: Number of sets of each size.
        class_coverage: Coverage among the samples of each class; NaN without any.
    """

    coverage: float
    mean_size: float
    empty: float
    size_coverage: Float64[Tensor, "sizes"]
    size_counts: Int64[Tensor, "sizes"]
    class_coverage: Float64[Tensor, "classes"]


def evaluate_sets(sets: Bool[Tensor, "samples classes"], targets: Any) -> SetQuality:
    """Return coverage and size of prediction sets, overall, by size and by class.

    ``sets`` are as `ConformalSets.sets` gives them. No sample, or ``targets`` that do not fit, are
    a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics import evaluate_sets
        >>> found = evaluate_sets(torch.tensor([[True, True], [True, False]]), torch.tensor([0, 1]))
        >>> found.coverage, found.mean_size, found.size_coverage.tolist()
        (0.5, 1.5, [nan, 0.0, 1.0])

    Reference: Angelopoulos & Bates (2023), arXiv:2107.07511
    """
    samples, classes = sets.shape
    if samples < 1:
        raise ValueError("sets must hold >= 1 sample, got 0")
    targets = read_targets(targets, sets[None])
    validate_targets(targets, num_samples=samples, num_classes=classes)
    labels = targets.long()
    hit = sets.gather(1, labels[:, None]).squeeze(1)
    sizes = sets.sum(1)
    by_size = torch.bincount(sizes, minlength=classes + 1)
    by_class = torch.bincount(labels, minlength=classes)
    return SetQuality(
        coverage=hit.double().mean().item(),
        mean_size=sizes.double().mean().item(),
        empty=(sizes == 0).double().mean().item(),
        size_coverage=torch.bincount(sizes[hit], minlength=classes + 1) / by_size.double(),
        size_counts=by_size,
        class_coverage=torch.bincount(labels[hit], minlength=classes) / by_class.double(),
    )


def uniform(place: Int64[Tensor, "samples"], *, seed: int) -> PerSample:
    """Return a number in [0, 1) per place, as a function of seed and place alone.

    The hash is SplitMix64's (Steele et al., 2014), whose upper 53 bits are taken.
    """
    golden = -7046029254386353131  # 0x9E3779B97F4A7C15 in two's complement: 64-bit sums wrap around
    mixed = (place + 1 + (seed << 32)) * golden
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 11).double() / 2**53


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, as for numbers without a sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mixture(source: Any, layout: Layout, kind: Kind) -> Tensor:
    """Return the mixture's log-probabilities of whatever holds them, or the members'."""
    if isinstance(source, Tensor) and source.ndim == 2 and kind == "log_probs":
        return source
    return mixture_log_probs(
        read_logits(source, layout=layout, kind=kind, name="log_probs").double()
    )


def _probs(log_probs: Tensor) -> Tensor:
    probs = log_probs.double().exp()
    if probs.shape[0] < 1:
        raise ValueError("log_probs must hold >= 1 sample, got 0")
    validate_finite(probs, "exp(log_probs)")
    sums = probs.sum(-1)
    if not torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-3):
        worst = int((sums - 1).abs().argmax())
        raise ValueError(
            f"log_probs must be log-probabilities that sum to 1, got {sums[worst].item():.4g} in "
            f"row {worst}"
        )
    return probs
