"""A search for the windows of a cascade within a budget of average cost."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from ...metrics.io.arrays import read_logits, read_targets
from .calibration import (
    FEWEST,
    Calibration,
    Logits,
    OutOfReachError,
    Task,
    TooFewImagesError,
    assess,
    calibrate,
)
from .cascade import replay

OFFSETS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Shares of images below and above the threshold that the search for windows tries."""
Offsets = tuple[tuple[float, float], ...]
Attempt = tuple[float, float, Calibration, Offsets]
"""Loss, cost, calibration and the shares below and above the threshold of each stage's window."""


def search_windows(
    logits: Logits,
    targets: Any,
    task: Task,
    *,
    macs: Sequence[int] | Sequence[float],
    budget: float,
    confidence: str = "msp",
    pool: str = "mean",
    seed: int = 0,
) -> tuple[Calibration, Calibration]:
    """Search the windows of all stages for the least loss within a budget of average MACs.

    Shares below and above the threshold come from `OFFSETS`; of equal losses the cheaper wins. Of
    two stages all pairs are tried. Of more, one stage's pair is chosen after the other until
    nothing is gained (coordinate descent), from empty windows and from the best windows of one
    width within the budget; a global optimum is not guaranteed. Windows are chosen on one half of
    the images, drawn at random, and reported on the other.

    Other arguments are those of `calibrate`; the task must be selective classification or accuracy,
    whose loss needs no OOD images. ``macs`` are those of each stage alone, ``budget`` bounds their
    average per image, in multiples of the first stage's, and ``seed`` draws the halves.

    Returns:
        The calibration on one half, and the policy's results on the other.

    Raises:
        ValueError: If the budget is below 1 or a half has fewer than 50 images; or see `calibrate`.
    """
    if not budget >= 1:
        raise ValueError(f"budget must be >= 1, the cost of the first stage alone, got {budget}")
    given, logits = logits, [read_logits(each) for each in logits]
    targets = read_targets(targets, logits[0], like=given[0])
    chosen_on, other = halves(len(targets), seed)
    if len(other) < FEWEST:
        raise TooFewImagesError(
            f"a budget needs >= {2 * FEWEST} images, one half to choose on and one to report on, "
            f"got {len(targets)}; set the window's width instead"
        )
    here = [each[:, chosen_on] for each in logits]
    labels = targets[chosen_on]
    stages = len(logits)

    def attempt(offsets: Offsets) -> Attempt:
        found = calibrate(here, labels, task, width=offsets, confidence=confidence, pool=pool)
        answers = replay(found.policy, here, pool=pool)
        cost = found.average_macs(macs) / macs[0]
        return task.loss(answers, answers.predicted == labels), cost, found, offsets

    @cache  # a descent comes by the same windows again and again
    def within(offsets: Offsets) -> Attempt | None:
        with suppress(OutOfReachError, TooFewImagesError):
            if (tried := attempt(offsets))[1] <= budget:
                return tried
        return None

    alone = ((0.0, 0.0),) * (stages - 1)
    if stages == 2:
        ends = list(filter(None, (within((pair,)) for pair in _pairs())))
    else:
        uniform = filter(None, (within(((width, width),) * (stages - 1)) for width in OFFSETS[1:]))
        starts = filter(None, (within(alone), min(uniform, key=_worth, default=None)))
        ends = [_descend(start, within) for start in starts]
    if not ends:
        attempt(alone)  # which says what is out of reach
        raise OutOfReachError(f"no cascade within a budget of {budget} keeps the target")
    best = min(ends, key=_worth)
    rest = [each[:, other] for each in logits]
    return best[2], assess(best[2].policy, rest, targets[other], pool=pool)


def _pairs() -> Iterator[tuple[float, float]]:
    return ((below, above) for below in OFFSETS for above in OFFSETS)


def _worth(attempt: Attempt) -> tuple[float, float]:
    return attempt[:2]


def _descend(best: Attempt, within: Callable[[Offsets], Attempt | None]) -> Attempt:
    """Better one stage's window after the other until nothing is gained."""
    improved = True
    while improved:
        improved = False
        for stage in range(len(best[3])):
            for pair in _pairs():
                offsets = best[3]
                found = within((*offsets[:stage], pair, *offsets[stage + 1 :]))
                if found is not None and _worth(found) < _worth(best):
                    best, improved = found, True
    return best


def halves(images: int, seed: int) -> tuple[Int64[Tensor, "half"], Int64[Tensor, "other"]]:
    """Return the indices of two random halves of images: to choose on, and to report on."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    first, second = order.tensor_split(2)
    return first.sort().values, second.sort().values
