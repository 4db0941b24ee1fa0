"""The one shared sort: tie blocks and cumulative counts that every ranking metric reads.

A metric of a ranking (AUROC, average precision, AURC, ...) depends on the data only through how
many samples, and how many flagged ones (errors, or OOD images), lie at or above each distinct
score. `Ranking` sorts once; `Ranking.cumulate` counts, for the data as it is or for any number of
bootstrap draws given as integer weights.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from .mixture import validate_flags, validate_values, validate_weights
from .shapes import Flags, PerDraw, Scores, Weights

PerBlock = Float64[Tensor, "*draws blocks"]


@dataclass(frozen=True)
class CumulativeCounts:
    """Numbers of samples at or above the score of each tie block, from the highest score down.

    Whole numbers held as float64 (exact up to 2^53), so that no later product or quotient needs a
    conversion.

    Attributes:
        total: All samples up to and including each block.
        flagged: The flagged ones among them.
    """

    total: PerBlock
    flagged: PerBlock

    @cached_property
    def unflagged(self) -> PerBlock:
        """The samples that are not flagged, up to and including each block."""
        return self.total - self.flagged

    @cached_property
    def block_total(self) -> PerBlock:
        """All samples of each block alone."""
        return increments(self.total)

    @cached_property
    def block_flagged(self) -> PerBlock:
        """The flagged samples of each block alone."""
        return increments(self.flagged)

    @cached_property
    def block_unflagged(self) -> PerBlock:
        """The samples of each block alone that are not flagged."""
        return self.block_total - self.block_flagged


@dataclass(frozen=True)
class Ranking:
    """An order of samples from the highest score to the lowest, cut into blocks of equal scores.

    Attributes:
        order: Sample indices, highest score first; the order within a block carries no meaning.
        block_ends: Position in ``order`` of the last sample of each block.
    """

    order: Int64[Tensor, "samples"]
    block_ends: Int64[Tensor, "blocks"]

    def cumulate(self, flagged: Flags, weights: Weights | None = None) -> CumulativeCounts:
        """Count samples and flagged samples from the top of the ranking down to each block's end.

        Flagged are the samples of interest (errors, or OOD). A sample of weight ``w`` counts as
        ``w`` samples of the same score, and one of weight 0 as absent, so a metric of weighted
        counts equals the metric of the literally repeated data. A block whose samples all have
        weight 0 repeats the counts of the block before it.

        Raises:
            ValueError: If ``flagged`` or ``weights`` do not belong to the ranked samples, or
                ``weights`` are not whole numbers >= 0 with a positive sum.

        Example:
            >>> import torch
            >>> from deepens.metrics import rank
            >>> ranking = rank(torch.tensor([0.9, 0.5, 0.5, 0.1]))
            >>> flagged = torch.tensor([True, False, True, False])
            >>> ranking.cumulate(flagged).total
            tensor([1., 3., 4.], dtype=torch.float64)
            >>> ranking.cumulate(flagged, weights=torch.tensor([[0, 2, 1, 1]])).flagged
            tensor([[0., 1., 1.]], dtype=torch.float64)
        """
        validate_flags(flagged, name="flagged", num_samples=self.order.shape[0])
        ranked = flagged.gather(0, self.order)
        if weights is None:
            flags = ranked.cumsum(-1, dtype=torch.float64)
            return CumulativeCounts(
                total=(self.block_ends + 1).double(), flagged=self._at_block_ends(flags)
            )
        validate_weights(weights, num_samples=self.order.shape[0])
        # a third of the time that indexing by a vector takes
        counts = weights.double().gather(-1, self.order.expand_as(weights))
        return CumulativeCounts(
            total=self._at_block_ends(counts.cumsum(-1)),
            flagged=self._at_block_ends((counts * ranked).cumsum(-1)),
        )

    def _at_block_ends(self, cumulative: Tensor) -> Tensor:
        if self.block_ends.shape[0] == self.order.shape[0]:  # no ties: every sample ends a block
            return cumulative
        return cumulative.gather(-1, self.block_ends.expand(*cumulative.shape[:-1], -1))


def rank(scores: Scores) -> Ranking:
    """Sort samples by score, highest first, and find the blocks of equal scores.

    Scores that are empty, NaN or infinite are a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics import rank
        >>> rank(torch.tensor([0.2, 0.7, 0.2])).block_ends
        tensor([0, 2])
    """
    validate_values(scores, name="scores")
    order = _descending(scores)
    ranked = scores.gather(0, order)
    last = ranked.new_ones(1, dtype=torch.bool)
    is_end = torch.cat([ranked[:-1] != ranked[1:], last])
    return Ranking(order=order, block_ends=is_end.nonzero().squeeze(-1))


def _descending(scores: Tensor) -> Tensor:
    if scores.device.type != "cpu":
        return scores.argsort(descending=True)
    # NumPy's sort is several times faster, as it uses the processor's vector instructions.
    return torch.from_numpy(np.argsort(-scores.detach().double().numpy()))


def area_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return the chance that a flagged sample scores higher than another, ties counting half.

    ``sum_b n_b (F_b - f_b / 2) / (N F)``, n and f being a block's own unflagged and flagged samples
    and F_b the flagged ones down to it. NaN where either kind is missing.
    """
    dot = torch.linalg.vecdot
    pairs = dot(counts.block_unflagged, counts.flagged)
    ties = dot(counts.block_unflagged, counts.block_flagged)
    return (pairs - 0.5 * ties) / (counts.unflagged[..., -1] * counts.flagged[..., -1])


def where_both(value: PerDraw, counts: CumulativeCounts, warning: str) -> PerDraw:
    """Return NaN, with a warning, where no sample is flagged, or all are."""
    missing = (counts.flagged[..., -1] == 0) | (counts.unflagged[..., -1] == 0)
    if missing.any():
        warnings.warn(f"{warning}: NaN is returned", RuntimeWarning, stacklevel=4)
    return value.masked_fill(missing, torch.nan)


def increments(cumulative: PerBlock) -> PerBlock:
    """Return what each block adds to a cumulative count; the first block all of it."""
    blocks = torch.empty_like(cumulative)
    blocks[..., :1] = cumulative[..., :1]
    torch.sub(cumulative[..., 1:], cumulative[..., :-1], out=blocks[..., 1:])
    return blocks
