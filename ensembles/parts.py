"""The part of each batch that one of several processes computes."""

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One of ``count`` equal parts of a batch, in order; by default the whole batch.

    Example:
        >>> from deepens.ensembles.parts import Part
        >>> Part(1, 2).rows(3)
        slice(3, 6, None)
    """

    rank: int = 0
    count: int = 1

    def rows(self, own: int) -> slice:
        """Where the part's ``own`` images stand in the whole batch."""
        return slice(self.rank * own, (self.rank + 1) * own)

    def gathered(self, values: Shaped[Tensor, "..."], dim: int) -> Shaped[Tensor, "..."]:
        """The parts of all processes behind each other, without gradients; all have to call it."""
        if self.count == 1:
            return values
        own = values.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        torch.distributed.all_gather(parts, own)
        return torch.cat(parts, dim)
