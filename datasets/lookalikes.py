"""Images that look the same without being copies: encoded again, or changed in a pixel."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from scipy.spatial import KDTree
from torch import Tensor

ALIKE = 0.04
"""Root mean square distance of two outlines, relative to the contrast of one, up to which images
look the same. Encoded again as JPEG of quality 90, small photographs differ by 0.02 (of 75, by
0.03); the most similar of different images in MNIST by 0.06, and in CIFAR-10 by 0.10."""

_CELLS = 8
_PIXELS = 32  # a side that are looked at, or up to twice as many
_NEAREST = 3
_PART = 512


@dataclass(frozen=True, eq=False)
class Outlines:
    """Images as means over 8 x 8 cells, in each of their channels, and a tree of coarser ones."""

    cells: Float[Tensor, "samples _"]
    contrast: Float[Tensor, " samples"]
    coarse: Float[Tensor, "samples _"]
    tree: KDTree

    @classmethod
    def of(cls, images: UInt8[Tensor, "samples _ _ _"]) -> "Outlines":
        """The outlines of images in memory; of large ones, only some pixels are looked at."""
        steps = [max(1, side // _PIXELS) for side in images.shape[-2:]]
        seen = images[..., :: steps[0], :: steps[1]]
        down, across = (
            F.adaptive_avg_pool1d(torch.eye(side), _CELLS).mT for side in seen.shape[-2:]
        )
        cells = torch.cat([_means(part.movedim(1, -1), down, across) for part in seen.split(_PART)])
        coarse = F.avg_pool2d(cells.mean(-1), 2).flatten(1)
        flat = cells.flatten(1)
        return cls(flat, flat.std(1), coarse, KDTree(coarse.numpy()))

    def found_in(self, others: "Outlines") -> Bool[Tensor, " samples"]:
        """Which of these images look the same as one of the others.

        An image without contrast looks like none: such images tell nothing apart.

        Example:
            >>> import torch
            >>> from deepens.datasets.lookalikes import Outlines
            >>> images = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8)
            >>> Outlines.of(torch.cat([images + 1, images.flip(3)])).found_in(Outlines.of(images))
            tensor([ True, False])
        """
        return self._matching(others)

    def repeated(self, contents: Int64[Tensor, " samples"]) -> Bool[Tensor, " samples"]:
        """Which images look the same as another of them that has other contents."""
        return self._matching(self, contents)

    def _matching(self, others: "Outlines", contents: Tensor | None = None) -> Tensor:
        """Which images have a lookalike, of other contents where these are given."""
        # Means over cells are no farther apart than the cells are.
        radius = ALIKE * float(self.contrast.max()) * self.coarse.shape[1] ** 0.5
        number = min(_NEAREST, len(others.cells))
        _, places = others.tree.query(
            self.coarse.numpy(), k=range(1, number + 1), distance_upper_bound=max(radius, 1e-9)
        )
        found = torch.zeros(len(self.cells), dtype=torch.bool)
        for place in torch.from_numpy(places).unbind(1):
            (near,) = (place < len(others.cells)).nonzero(as_tuple=True)
            other = place[near]
            apart = (self.cells[near] - others.cells[other]).square().mean(1).sqrt()
            alike = (apart <= ALIKE * self.contrast[near]) & (self.contrast[near] > 0)
            if contents is not None:
                alike &= contents[near] != contents[other]
            found[near] |= alike
        return found


def _means(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Means over cells of images ``[samples, height, width, channels]``, by rows, then columns."""
    samples, height, width, channels = images.shape
    rows = down @ images.float().reshape(samples, height, width * channels)
    columns = across @ rows.reshape(-1, width, channels)
    return columns.view(samples, len(down), len(across), channels)
