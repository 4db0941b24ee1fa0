"""The format of a data set's images: what networks are built for, and how images are scaled."""

from dataclasses import dataclass

from .splits import Splits


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
