"""Equal-width bins of confidence ``(a, b]``, 0 in the first, and what is summed over each."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from .mixture import validate_flags, validate_values, validate_weights
from .shapes import Flags, Scores, Weights

DEFAULT_BINS = 15
MOST_COUNTED = 32
"""Bins up to which edges are compared one after the other, which costs less than a search."""


@dataclass(frozen=True)
class BinSums:
    """Numbers of samples and of correct ones, and sums of confidences, of each bin.

    They add up over batches and processes. The last axis is the bins; before it may stand classes,
    or bootstrap draws.
    """

    counts: Int64[Tensor, "*rows bins"]
    correct: Int64[Tensor, "*rows bins"]
    confidence: Float64[Tensor, "*rows bins"]

    def __add__(self, other: "BinSums") -> "BinSums":
        return BinSums(
            self.counts + other.counts,
            self.correct + other.correct,
            self.confidence + other.confidence,
        )

    @property
    def gaps(self) -> Float64[Tensor, "*rows bins"]:
        """Sum of ``confidence - correct`` in each bin."""
        return self.confidence - self.correct


def bin_sums(
    confidence: Scores,
    correct: Flags,
    *,
    bins: int = DEFAULT_BINS,
    weights: Weights | None = None,
    precision: torch.dtype | None = None,
) -> BinSums:
    """Sum counts, correct predictions and confidences over equal-width bins ``(a, b]``.

    Errors as `expected_calibration_error`, ``precision`` as `bin_index`.
    """
    index = bin_index(confidence, bins=bins, precision=precision)
    validate_flags(correct, name="correct", num_samples=confidence.shape[0])
    if weights is None:
        return sums_by_index(index, confidence, correct, rows=(bins,))
    validate_weights(weights, num_samples=confidence.shape[0])
    members = torch.nn.functional.one_hot(index, bins).double()
    columns = [members, members * correct[:, None], members * confidence.double()[:, None]]
    counts, hits, total = (weights.double() @ torch.cat(columns, dim=1)).split(bins, dim=-1)
    return BinSums(counts.round().long(), hits.round().long(), total)


def sums_by_index(
    index: Int64[Tensor, "samples"], confidence: Scores, correct: Flags, *, rows: tuple[int, ...]
) -> BinSums:
    """Sum over the samples of each cell of a table, given each sample's place in it."""
    cells = math.prod(rows)
    by_outcome = torch.bincount(2 * index + correct, minlength=2 * cells).reshape(*rows, 2)
    total = torch.bincount(index, confidence.double(), minlength=cells).reshape(rows)
    return BinSums(by_outcome.sum(-1), by_outcome[..., 1], total)


def bin_index(
    confidence: Scores, *, bins: int, precision: torch.dtype | None = None
) -> Int64[Tensor, "samples"]:
    """Return the bin ``(b / bins, (b + 1) / bins]`` of each confidence; 0 is in the first.

    Edges are rounded to the type of the confidences, in which 9/15 may be above 0.6. Where they
    have been through a softmax since they were given, in ``precision``, what is within its rounding
    of an edge is on it.
    """
    validate_bins(bins)
    validate_confidence(confidence)
    # quotients, so that an edge such as 3/15 is the float64 nearest to 0.2
    inner_edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    if precision is None:
        inner_edges = inner_edges.to(confidence.dtype).double()
    else:  # of float64 the softmax itself leaves a few units of the last place
        inner_edges += torch.finfo(precision).eps * (4 if precision == torch.float64 else 1)
    values = confidence.double()
    if bins > MOST_COUNTED or values.device.type != "cpu":
        return torch.bucketize(values, inner_edges)
    below = torch.zeros_like(values, dtype=torch.uint8)
    for edge in inner_edges.tolist():  # half of the time of a search for each value
        below += (values > edge).view(torch.uint8)
    return below.long()


def validate_bins(bins: int) -> None:
    """Refuse a number of bins below 1."""
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")


def validate_confidence(confidence: Tensor) -> None:
    """Refuse confidences that are empty, no vector, not finite, or outside ``[0, 1]``."""
    validate_values(confidence, name="confidence")
    low, high = confidence.aminmax()
    if low < 0 or high > 1:
        worst = low if low < 0 else high
        raise ValueError(f"confidence must lie in [0, 1], got {worst.item()}")
