"""What training images undergo: which changes, and the random numbers for a whole epoch.

Random numbers are drawn beforehand on the CPU. Each change has a stream of its own, a function of
(seed, epoch): switching one on leaves the others as they were.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .rand_augment import STRONGEST, draw_operations, rand_augment
from .transforms import Images, cutout, flip, random_crop, resized_crop

_ORDER, _CROP_AND_FLIP, _RESIZED_CROP, _RAND_AUGMENT, _CUTOUT, _ALTERNATE = range(6)
_ON_THE_CPU = ("operations", "strengths")


def draw_order(num_samples: int, *, seed: int, epoch: int) -> Int64[Tensor, " samples"]:
    """Draw the permutation in which a member sees the training images in an epoch (from 0)."""
    return torch.randperm(num_samples, generator=_stream(seed, epoch, _ORDER))


@dataclass(frozen=True)
class AugmentationDraws:
    """Random draws of some images, to be used by :meth:`Augmentation.apply`.

    ==========  ================  ====================================================
    field       shape             unit
    ==========  ================  ====================================================
    offsets     [samples 2]       pixels: for :func:`random_crop`
    flips       [samples]         for :func:`flip`
    boxes       [samples 4]       pixels: for :func:`resized_crop`; None when it is off
    operations  [samples rounds]  for ``rand_augment``, on the CPU; None when it is off
    strengths   [samples rounds]  for ``rand_augment``, on the CPU; None when it is off
    centres     [samples 2]       pixels: for :func:`cutout`; None when it is off
    ==========  ================  ====================================================
    """

    offsets: Int64[Tensor, "samples 2"]
    flips: Bool[Tensor, " samples"]
    boxes: Int64[Tensor, "samples 4"] | None = None
    operations: Int64[Tensor, "samples rounds"] | None = None
    strengths: Float[Tensor, "samples rounds"] | None = None
    centres: Int64[Tensor, "samples 2"] | None = None

    def __len__(self) -> int:
        return len(self.flips)

    def __getitem__(self, chosen: slice | Int64[Tensor, " _"]) -> "AugmentationDraws":
        """The draws of some of the images."""
        return self._each(lambda name, values: values[chosen])

    def to(self, device: torch.device | str) -> "AugmentationDraws":
        """The draws on the device of the images."""
        return self._each(lambda name, values: values if name in _ON_THE_CPU else values.to(device))

    @staticmethod
    def joined(parts: Sequence["AugmentationDraws"]) -> "AugmentationDraws":
        """Put the draws of several sets of images behind each other."""
        return parts[0]._each(lambda name, _: torch.cat([getattr(part, name) for part in parts]))

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> "AugmentationDraws":
        drawn = {name: each for name, each in vars(self).items() if each is not None}
        return AugmentationDraws(**{name: change(name, each) for name, each in drawn.items()})


@dataclass(frozen=True)
class Augmentation:
    """Which random changes training images undergo, in this order; by default none.

    Args:
        resized_crop: Least share of the image's area that a random box keeps before it is enlarged
            to the image's size; None is no such crop. As torchvision's ``RandomResizedCrop``: the
            share is uniform up to 1, the aspect log-uniform in [3/4, 4/3].
        crop_padding: Pixels on every side before a random crop to the original size; 0 is no crop.
        flip: Mirror every second image at random, or ("alternate") half of the images in the first
            epoch and then each image in every second epoch. Not for digits or letters.
        rand_augment: Number of random operations on colour and shape per image.
        magnitude: Their strength, 0 to 10.
        cutout: Side of a square blacked out in each image, in pixels, its middle uniform over the
            image; 0 is none.
        crop_fill: The pixels around a crop are black, or reflect the image.

    Raises:
        ValueError: If a value is out of range.

    Reference:
        Alternating flips: Jordan (2024), arXiv:2404.00498, section 3.6.

    Example:
        >>> from deepens.datasets import Augmentation
        >>> augmentation = Augmentation(crop_padding=4, flip=True)
        >>> draws = augmentation.draw(100, (32, 32), seed=0, epoch=0)
        >>> draws.offsets.min().item(), draws.offsets.max().item(), draws.flips.dtype
        (0, 8, torch.bool)
    """

    crop_padding: int = 0
    flip: bool | Literal["alternate"] = False
    resized_crop: int | float | None = None
    rand_augment: int = 0
    magnitude: int = 5
    cutout: int = 0
    crop_fill: Literal["black", "reflect"] = "black"

    def __post_init__(self) -> None:
        for name in ("crop_padding", "rand_augment", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.crop_fill not in ("black", "reflect"):
            raise ValueError(f"crop_fill must be 'black' or 'reflect', got {self.crop_fill!r}")
        if self.flip not in (False, True, "alternate"):
            raise ValueError(f"flip must be true, false or 'alternate', got {self.flip!r}")
        if not 0 <= self.magnitude <= STRONGEST:
            raise ValueError(f"magnitude must be in [0, {STRONGEST}], got {self.magnitude}")
        if self.resized_crop is not None and not 0 < self.resized_crop <= 1:
            raise ValueError(f"resized_crop must be in (0, 1], got {self.resized_crop}")

    def draw(
        self, num_samples: int, image_size: tuple[int, int], *, seed: int, epoch: int
    ) -> AugmentationDraws:
        """Draw the random numbers of an epoch (from 0) for each image of a member, on the CPU."""
        stream = _stream(seed, epoch, _CROP_AND_FLIP)
        offsets = torch.randint(0, 2 * self.crop_padding + 1, (num_samples, 2), generator=stream)
        flips = torch.rand(num_samples, generator=stream) < 0.5
        if self.flip == "alternate":
            stream = _stream(seed, 0, _ALTERNATE)
            mirrored = torch.rand(num_samples, generator=stream) < 0.5
            order = draw_order(num_samples, seed=seed, epoch=epoch)
            flips = mirrored[order] ^ bool(epoch % 2)
        boxes = operations = strengths = centres = None
        if self.resized_crop is not None:
            stream = _stream(seed, epoch, _RESIZED_CROP)
            boxes = _draw_boxes(num_samples, image_size, self.resized_crop, stream)
        if self.rand_augment:
            stream = _stream(seed, epoch, _RAND_AUGMENT)
            how = self.rand_augment, self.magnitude
            operations, strengths = draw_operations(num_samples, *how, stream)
        if self.cutout:
            stream = _stream(seed, epoch, _CUTOUT)
            drawn = [torch.randint(side, (num_samples,), generator=stream) for side in image_size]
            centres = torch.stack(drawn, dim=1)
        return AugmentationDraws(offsets, flips, boxes, operations, strengths, centres)

    def apply(self, images: Images, draws: AugmentationDraws) -> Images:
        """Change images by draws on their device; the result has the memory order of ``images``."""
        if draws.boxes is not None:
            images = resized_crop(images, draws.boxes)
        if self.crop_padding:
            reflect = self.crop_fill == "reflect"
            images = random_crop(images, draws.offsets, padding=self.crop_padding, reflect=reflect)
        if self.flip:
            images = flip(images, draws.flips)
        if draws.operations is not None and draws.strengths is not None:
            images = rand_augment(images, draws.operations, draws.strengths)
        if draws.centres is not None:
            images = cutout(images, draws.centres, side=self.cutout)
        return images


def _stream(seed: int, epoch: int, purpose: int) -> torch.Generator:
    """The generator of one purpose, on the CPU: a function of the arguments alone."""
    state = np.random.SeedSequence((seed, epoch, purpose)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _draw_boxes(
    num_samples: int, image_size: tuple[int, int], least: float, stream: torch.Generator
) -> Tensor:
    """Boxes as torchvision's RandomResizedCrop draws them: ten tries, then the middle."""
    height, width = image_size
    tries = torch.rand(num_samples, 10, 2, generator=stream, dtype=torch.float64)
    places = torch.rand(num_samples, 2, generator=stream, dtype=torch.float64)
    areas = height * width * (least + (1 - least) * tries[..., 0])
    aspects = ((2 * tries[..., 1] - 1) * math.log(4 / 3)).exp()
    widths = (areas * aspects).sqrt().round().long()
    heights = (areas / aspects).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    # No try fitted: the whole image, or the middle of one longer than 4 : 3.
    fallback = torch.tensor([min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))])
    found = torch.cat([heights.gather(1, first), widths.gather(1, first)], dim=1)
    sizes = torch.where(fits.any(1, keepdim=True), found, fallback)
    room = torch.tensor(image_size) - sizes
    corners = torch.where(fits.any(1, keepdim=True), (places * (room + 1)).long(), room // 2)
    return torch.cat([corners, sizes], dim=1)
