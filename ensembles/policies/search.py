"""A search for the windows of a cascade within a budget of average cost."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from jaxtyping import Int64, Integer
from torch import Tensor

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


def search_windows(
    logits: Logits,
    targets: Integer[Tensor, "images"],
    task: Task,
    *,
    macs: Sequence[int] | Sequence[float],
    budget: float,
    confidence: str = "msp",
    pool: str = "mean",
    seed: int = 0,
) -> tuple[Calibration, Calibration]:
    """Search the windows of all stages for the least loss within a budget of average MACs.

    Shares below and above the threshold are chosen from `OFFSETS`, of equal losses the cheaper. Of
    two stages all pairs are tried. Of more, pairs are chosen for each stage in turn, the others as
    they are, until nothing is gained: from empty windows, and again from the best windows of one
    width that the budget allows, since a later stage can then gain before the one before it does.
    That need not be the best of all. Windows are chosen on one half of the images, drawn at random,
    and reported on the other.

    Args:
        logits: As for `calibrate`.
        targets: As for `calibrate`.
        task: Selective classification or accuracy, whose loss needs no OOD images.
        macs: Multiply-accumulates of each stage alone.
        budget: Average multiply-accumulates an image at most, in multiples of the first stage's.
        confidence: As for `calibrate`.
        pool: As for `calibrate`.
        seed: Of the halves.

    Returns:
        The calibration on the one half, and what its policy does on the other.

    Raises:
        ValueError: If the budget is below 1, a half holds fewer than 50 images, or as for
            `calibrate`.
    """
    if not budget >= 1:
        raise ValueError(f"budget must be >= 1, the cost of the first stage alone, got {budget}")
    chosen_on, other = halves(len(targets), seed)
    if len(other) < FEWEST:
        raise TooFewImagesError(
            f"a budget needs >= {2 * FEWEST} images, one half to choose on and one to report on, "
            f"got {len(targets)}; set the window's width instead"
        )
    here = [each[:, chosen_on] for each in logits]
    labels = targets[chosen_on]
    stages = len(logits)

    def attempt(offsets: list[tuple[float, float]]) -> tuple[float, float, Calibration]:
        found = calibrate(here, labels, task, width=offsets, confidence=confidence, pool=pool)
        answers = replay(found.policy, here, pool=pool)
        cost = found.average_macs(macs) / macs[0]
        return task.loss(answers, answers.predicted == labels), cost, found

    tried: dict[tuple[tuple[float, float], ...], Attempt | None] = {}

    def within(offsets: list[tuple[float, float]]) -> Attempt | None:
        key = tuple(offsets)
        if key not in tried:  # a descent comes by the same windows again and again
            tried[key] = None
            with suppress(OutOfReachError, TooFewImagesError):
                loss, cost, found = attempt(offsets)
                if cost <= budget:
                    tried[key] = (loss, cost, found, offsets)
        return tried[key]

    alone = [(0.0, 0.0)] * (stages - 1)
    if stages == 2:
        every = (within([(below, above)]) for below, above in itertools.product(OFFSETS, repeat=2))
        ends = list(filter(None, every))
    else:
        uniform = filter(None, (within([(width, width)] * (stages - 1)) for width in OFFSETS[1:]))
        starts = filter(None, (within(alone), min(uniform, key=_worth, default=None)))
        ends = [_descend(start, within) for start in starts]
    if not ends:
        attempt(alone)  # which says what is out of reach
        raise OutOfReachError(f"no cascade within a budget of {budget} keeps the target")
    best = min(ends, key=_worth)
    return best[2], assess(
        best[2].policy, [each[:, other] for each in logits], targets[other], pool=pool
    )


Attempt = tuple[float, float, Calibration, list[tuple[float, float]]]


def _worth(attempt: Attempt) -> tuple[float, float]:
    return attempt[:2]


def _descend(
    best: Attempt, within: Callable[[list[tuple[float, float]]], Attempt | None]
) -> Attempt:
    """Better one stage's window after the other until nothing is gained."""
    improved = True
    while improved:
        improved = False
        for stage in range(len(best[3])):
            for below, above in itertools.product(OFFSETS, repeat=2):
                offsets = best[3]
                found = within([*offsets[:stage], (below, above), *offsets[stage + 1 :]])
                if found is not None and _worth(found) < _worth(best):
                    best, improved = found, True
    return best


def halves(images: int, seed: int) -> tuple[Int64[Tensor, "half"], Int64[Tensor, "other"]]:
    """Return the places of two halves, drawn at random: to choose on, and to report on.

    Args:
        images: How many there are.
        seed: Of the draw.
    """
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    first, second = order.tensor_split(2)
    return first.sort().values, second.sort().values
