"""The format of a data set's images: what networks are built for, and how images are scaled."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from .splits import Splits

_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True)
class ImageFormat:
    """What networks are built for, and how images are handed to them.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        channels: K, 1 or 3.
        size: H and W, in pixels.
        mean: Per channel, of the training images scaled to [0, 1].
        std: Likewise.
    """

    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, splits: Splits) -> "ImageFormat":
        """The format of a data set."""
        return cls(splits.classes, splits.channels, splits.image_size, splits.mean, splits.std)

    @property
    def shape(self) -> tuple[int, int, int]:
        """K, H, W."""
        return (self.channels, *self.size)


def channel_moments(
    images: UInt8[Tensor, "samples channels height width"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (ddof 0) of each channel on the scale 0 to 1, from exact sums.

    Example:
        >>> import torch
        >>> from deepens.datasets import channel_moments
        >>> channel_moments(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
        ((0.5,), (0.5,))
    """
    totals, squares = torch.zeros(2, images.shape[1], dtype=torch.int64)
    for part in images.split(max(1, _VALUES_AT_ONCE // images[0].numel())):
        values = part.to(torch.int64)
        totals += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    sums = list(zip(totals.tolist(), squares.tolist(), strict=True))
    return (
        tuple(total / count / 255 for total, _ in sums),
        tuple(math.sqrt(count * square - total * total) / count / 255 for total, square in sums),
    )
