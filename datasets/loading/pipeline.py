"""What happens to images between the uint8 tensor and the network."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..augmentation.augmentations import Augmentation
from ..augmentation.transforms import normalize
from ..splits import Split


@dataclass(frozen=True)
class Pipeline:
    """What happens to images between the uint8 tensor and the network.

    Args:
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        augmentation: Random changes of training images.
        channels_last: Hand out memory in channels-last order.
        device: Where the images sit and the batches are made.

    Raises:
        ValueError: If mean and std differ in length, or a standard deviation is not positive.

    Example:
        >>> from deepens.datasets import Augmentation, Pipeline
        >>> pipeline = Pipeline((0.5,), (0.25,), Augmentation(crop_padding=1))
        >>> pipeline.device, pipeline.channels_last
        ('cpu', False)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    channels_last: bool = False
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            found = f"{len(self.mean)} and {len(self.std)}"
            raise ValueError(f"mean and std must have equal lengths, got {found}")
        if not self.std or min(self.std) <= 0:
            raise ValueError(f"std must be > 0 for each channel, got {self.std}")

    def check(self, split: Split) -> None:
        """Refuse a split of another number of channels, by a ``ValueError``."""
        channels = split.images.shape[1]
        if len(self.mean) != channels:
            raise ValueError(
                f"pipeline.mean must have one value per channel ({channels}), got {len(self.mean)}"
            )

    def normalized(
        self, images: UInt8[Tensor, "*leading channels height width"]
    ) -> Float[Tensor, "*leading channels height width"]:
        """What the network sees of images on the device, in the memory order asked for."""
        return normalize(images, mean=self.mean, std=self.std, channels_last=self.channels_last)
