"""Augmentation and normalisation of whole batches, on the device where the images are.

Random numbers are drawn beforehand on the CPU, from an explicit generator; the transforms
themselves are pure functions of images and draws, and keep the memory layout of their input.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor


def random_crop(
    images: UInt8[Tensor, "batch channels height width"],
    offsets: Int64[Tensor, "batch 2"],
    *,
    padding: int,
) -> UInt8[Tensor, "batch channels height width"]:
    """Cut a window of the image's own size out of each image after padding it with black.

    out[b, k, y, x] = padded[b, k, y + offsets[b, 0], x + offsets[b, 1]]

    ========  ================================  ================================================
    argument  shape                             unit
    ========  ================================  ================================================
    images    [batch channels height width]     uint8
    offsets   [batch 2]                         pixels: top and left, each in [0, 2 padding]
    returned  [batch channels height width]     uint8
    ========  ================================  ================================================

    Args:
        images: Images.
        offsets: Top left corner of each window in the padded image.
        padding: Black pixels added on every side.

    Returns:
        The windows; offsets equal to ``padding`` give the images back.

    Raises:
        IndexError: If an offset is outside [0, 2 padding] (on a CPU).

    Example:
        >>> import torch
        >>> from deepens.datasets import random_crop
        >>> image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
        >>> random_crop(image, torch.tensor([[0, 1]]), padding=1).tolist()
        [[[[0, 0], [1, 2]]]]
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    # [batch channels top left height width]: a view, so that only the windows taken are copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    batch = torch.arange(len(images), device=images.device)
    return windows[batch, :, offsets[:, 0], offsets[:, 1]]


def flip(
    images: UInt8[Tensor, "batch channels height width"], flips: Bool[Tensor, " batch"]
) -> UInt8[Tensor, "batch channels height width"]:
    """Mirror the chosen images left to right.

    Args:
        images: Images.
        flips: Which of them to mirror.

    Returns:
        The images, mirrored or not.

    Example:
        >>> import torch
        >>> from deepens.datasets import flip
        >>> images = torch.tensor([[[[1, 2]]], [[[3, 4]]]], dtype=torch.uint8)
        >>> flip(images, torch.tensor([False, True])).flatten().tolist()
        [1, 2, 4, 3]
    """
    return torch.where(flips[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class Augmentation:
    """Which random changes training images undergo; by default none.

    Args:
        crop_padding: Black pixels on every side before a random crop to the original size;
            0 is no crop.
        flip: Mirror every second image. Not for digits or letters.

    Raises:
        ValueError: If ``crop_padding`` is negative.

    Example:
        >>> import torch
        >>> from deepens.datasets import Augmentation
        >>> augmentation = Augmentation(crop_padding=4, flip=True)
        >>> offsets, flips = augmentation.draw(100, torch.Generator().manual_seed(0))
        >>> offsets.min().item(), offsets.max().item(), flips.dtype
        (0, 8, torch.bool)
    """

    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding must be >= 0, got {self.crop_padding}")

    def draw(
        self, num_samples: int, generator: torch.Generator
    ) -> tuple[Int64[Tensor, "samples 2"], Bool[Tensor, " samples"]]:
        """Draw the random numbers for some images.

        Args:
            num_samples: Number of images.
            generator: On the CPU.

        Returns:
            Offsets for :func:`random_crop` and choices for :func:`flip`.
        """
        offsets = torch.randint(0, 2 * self.crop_padding + 1, (num_samples, 2), generator=generator)
        flips = torch.rand(num_samples, generator=generator) < 0.5
        return offsets, flips

    def apply(
        self,
        images: UInt8[Tensor, "batch channels height width"],
        offsets: Int64[Tensor, "batch 2"],
        flips: Bool[Tensor, " batch"],
    ) -> UInt8[Tensor, "batch channels height width"]:
        """Change images as drawn: crop, then mirror, whichever is switched on.

        Args:
            images: Images.
            offsets: From :meth:`draw`, moved to the images' device.
            flips: From :meth:`draw`, moved to the images' device.

        Returns:
            Changed images.
        """
        if self.crop_padding:
            images = random_crop(images, offsets, padding=self.crop_padding)
        return flip(images, flips) if self.flip else images


def normalize(
    images: UInt8[Tensor, "*leading channels height width"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Float[Tensor, "*leading channels height width"]:
    """Bring images to mean 0 and standard deviation 1.

    (x / 255 - mean) / std, as x a + b with a = 1 / (255 std) and b = -mean / std. The product and
    the sum are rounded one after the other, so that a value never depends on the batch it is in.

    ========  ========================================  ===============================
    argument  shape                                     unit
    ========  ========================================  ===============================
    images    [batch channels height width], or with    uint8
              a leading axis of members
    returned  the same                                  standard deviations
    ========  ========================================  ===============================

    Args:
        images: Images.
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        dtype: Floating type of the result.
        channels_last: Return memory in channels-last order (each member's batch on its own);
            images already in that order are not copied for it.

    Returns:
        Normalised images, the channels in their usual axis whatever the memory order.

    Raises:
        ValueError: If mean and std do not have one value a channel.

    Example:
        >>> import torch
        >>> from deepens.datasets import normalize
        >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
        >>> normalize(images, mean=(0.5,), std=(0.25,)).flatten().tolist()
        [-2.0, 2.0]
    """
    channels, _, width = images.shape[-3:]
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std must have one value a channel ({channels}), "
            f"got {len(mean)} and {len(std)}"
        )
    if channels_last:
        # A row of pixels as one vector: broadcasting over an innermost axis of three is 20 times
        # slower (measured).
        rows = images.movedim(-3, -1).contiguous().flatten(-2)
        scale, shift = _coefficients(tuple(mean), tuple(std), width, dtype, images.device)
        floats = rows.to(dtype).mul_(scale).add_(shift)
        return floats.unflatten(-1, (width, channels)).movedim(-1, -3)
    scale, shift = _coefficients(tuple(mean), tuple(std), 1, dtype, images.device)
    floats = images.contiguous().to(dtype)
    return floats.mul_(scale[:, None, None]).add_(shift[:, None, None])


# Kept, so that the training loop copies nothing to the device.
@functools.lru_cache(maxsize=64)
def _coefficients(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    repeats: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    # Validation runs in inference mode, and what is made there cannot be used in training.
    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * s) for s in std], dtype=dtype, device=device)
        shift = torch.tensor(
            [-m / s for m, s in zip(mean, std, strict=True)], dtype=dtype, device=device
        )
        return scale.repeat(repeats), shift.repeat(repeats)
