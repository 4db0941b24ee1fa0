"""Corruptions of the CIFAR-10-C kind, made in batches on tensors.

Constants and order of operations follow the generator that Hendrycks & Dietterich published for
CIFAR (``make_cifar_c.py``; its constants differ from ImageNet's). What is made here is called
"CIFAR-10-C-like" and is not compared with numbers on the published files: the random draws are
other ones, and a mean or a filter may round differently in the last bit before the truncation to
uint8 (one grey level). Grey images are not in the original: brightness adds to their value.

Adding a corruption takes one function and one line in :data:`CORRUPTIONS`.

Reference: Hendrycks & Dietterich (2019), arXiv:1903.12261
"""

import difflib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

# Values held in double precision at once: 32 MB a working copy.
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Draws:
    """Random draws of some images, each image's own whatever batch it is in.

    The stream of an image is keyed on (seed, corruption, severity, index), and begins anew with
    every call, so that a corruption which draws twice takes both from one call.

    Args:
        seed: Seed of the whole shifted set.
        corruption: Name of the corruption.
        severity: 1 to 5.
        indices: Index of each image in its split.

    Example:
        >>> from deepens.datasets import Draws
        >>> three = Draws(0, "gaussian_noise", 1, (7, 8, 9)).normal((2,))
        >>> one = Draws(0, "gaussian_noise", 1, (8,)).normal((2,))
        >>> (three[1] == one[0]).all().item()
        True
    """

    seed: int
    corruption: str
    severity: int
    indices: tuple[int, ...]

    def normal(self, shape: tuple[int, ...]) -> Float64[Tensor, "batch ..."]:
        """Draw standard normal values.

        Args:
            shape: Shape of one image's draws.

        Returns:
            Values of shape [batch, *shape].
        """
        return self._stack(lambda stream: stream.standard_normal(shape))

    def uniform(self, shape: tuple[int, ...]) -> Float64[Tensor, "batch ..."]:
        """Draw values uniform in [0, 1).

        Args:
            shape: Shape of one image's draws.

        Returns:
            Values of shape [batch, *shape].
        """
        return self._stack(lambda stream: stream.random(shape))

    def _stack(self, draw: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([draw(stream) for stream in self._streams()]))

    def _streams(self) -> Iterator[np.random.Generator]:
        kind = zlib.crc32(self.corruption.encode())
        for index in self.indices:
            yield np.random.default_rng((self.seed, kind, self.severity, index))


@dataclass(frozen=True)
class Corruption:
    """A corruption and the constant of each severity.

    Args:
        apply: Maps images [batch, channels, height, width] in [0, 1], the constant and the draws
            to images of the same shape; values outside [0, 1] are clipped afterwards.
        levels: The constants of severities 1 to 5.
    """

    apply: Callable[[Tensor, float, Draws], Tensor]
    levels: tuple[float, float, float, float, float]


def gaussian_noise(
    images: Float64[Tensor, "batch channels height width"], level: float, draws: Draws
) -> Float64[Tensor, "batch channels height width"]:
    """Add normal noise of standard deviation ``level``, independent for every value."""
    return images + level * draws.normal(tuple(images.shape[1:])).to(images.device)


def impulse_noise(
    images: Float64[Tensor, "batch channels height width"], level: float, draws: Draws
) -> Float64[Tensor, "batch channels height width"]:
    """Set a fraction ``level`` of the values to 0 or 1, each equally often, channels apart."""
    # One uniform decides both: below level / 2 is pepper, from there to level is salt.
    chance = draws.uniform(tuple(images.shape[1:])).to(images.device)
    salted = torch.where(chance < level, 1.0, images)
    return torch.where(chance < level / 2, 0.0, salted)


def gaussian_blur(
    images: Float64[Tensor, "batch channels height width"], level: float, draws: Draws
) -> Float64[Tensor, "batch channels height width"]:
    """Blur with a Gaussian of ``level`` pixels, cut at 4 sigma, edges repeated."""
    radius = int(4.0 * level + 0.5)
    positions = torch.arange(radius + 1, dtype=torch.float64)
    bell = torch.exp(-0.5 * (positions / level) ** 2)
    weights = (bell / (2 * bell.sum() - bell[0])).tolist()
    blurred = images
    for dim in (-2, -1):
        margin = (0, 0, radius, radius) if dim == -2 else (radius, radius, 0, 0)
        size = images.shape[dim]
        padded = F.pad(blurred, margin, mode="replicate")
        blurred = weights[0] * padded.narrow(dim, radius, size)
        for offset in range(1, radius + 1):
            before = padded.narrow(dim, radius - offset, size)
            after = padded.narrow(dim, radius + offset, size)
            blurred = blurred + weights[offset] * (before + after)
    return blurred


def brightness(
    images: Float64[Tensor, "batch channels height width"], level: float, draws: Draws
) -> Float64[Tensor, "batch channels height width"]:
    """Add ``level`` to the value: V of HSV for three channels, the grey value for one."""
    if images.shape[1] == 1:
        return images + level
    hue, saturation, value = _rgb_to_hsv(images)
    return _hsv_to_rgb(hue, saturation, (value + level).clamp(0, 1))


def contrast(
    images: Float64[Tensor, "batch channels height width"], level: float, draws: Draws
) -> Float64[Tensor, "batch channels height width"]:
    """Shrink the distance to each channel's mean over the image by the factor ``level``."""
    means = images.mean(dim=(-2, -1), keepdim=True)
    return (images - means) * level + means


def pixelate(
    images: Float64[Tensor, "batch channels height width"], level: float, draws: Draws
) -> Float64[Tensor, "batch channels height width"]:
    """Shrink to ``level`` of the sides with a box filter and enlarge again, in whole grey levels.

    Sides become int(side * level), where the original has int(32 * level). On small images
    neighbouring severities coincide (8 pixels: 1 and 2, 3 and 4).
    """
    height, width = images.shape[-2:]
    small_height, small_width = int(height * level), int(width * level)
    levels = (images * 255).round()
    # Pillow's order: columns before rows, each rounded to whole grey levels.
    levels = _box(levels, small_width)
    levels = _box(levels.mT, small_height).mT
    levels = _box(levels, width)
    return _box(levels.mT, height).mT / 255


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
}
"""Every corruption, by the name it has in ``shift/<corruption>/<severity>``."""


def corrupt(
    images: UInt8[Tensor, "samples channels height width"],
    name: str,
    *,
    severity: int,
    seed: int,
    indices: Int64[Tensor, " samples"] | Sequence[int] | None = None,
) -> UInt8[Tensor, "samples channels height width"]:
    """Corrupt images as CIFAR-10-C does, every image with its own random draws.

    x' = floor(255 clip(corruption(x / 255), 0, 1)), in double precision.

    Args:
        images: Clean images, 0 to 255.
        name: A key of :data:`CORRUPTIONS`.
        severity: 1 (slight) to 5 (strong).
        seed: Seed of the whole shifted set.
        indices: Index of each image in its split: an image's corruption depends on it and not on
            the images beside it. By default 0, 1, 2, and so on.

    Returns:
        Corrupted images, on the device of the clean ones.

    Raises:
        ValueError: If the name is unknown, the severity outside 1 to 5, the seed negative, or
            there is not one index an image.

    Example:
        >>> import torch
        >>> from deepens.datasets import corrupt
        >>> grey = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
        >>> corrupt(grey, "brightness", severity=5, seed=0).unique().tolist()
        [176]
    """
    if name not in CORRUPTIONS:
        nearest = difflib.get_close_matches(name, CORRUPTIONS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}; "
            f"the nearest is {nearest!r}"
        )
    if severity not in range(1, 6):
        raise ValueError(f"severity must be in 1 to 5, got {severity}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    numbers = range(len(images)) if indices is None else [int(index) for index in indices]
    if len(numbers) != len(images):
        raise ValueError(
            f"indices must have one entry an image ({len(images)}), got {len(numbers)}"
        )
    corruption = CORRUPTIONS[name]
    step = max(1, _VALUES_AT_ONCE // max(1, math.prod(images.shape[1:])))
    corrupted = torch.empty_like(images)
    for start in range(0, len(images), step):
        batch = images[start : start + step].to(torch.float64) / 255
        draws = Draws(seed, name, severity, tuple(numbers[start : start + step]))
        changed = corruption.apply(batch, corruption.levels[severity - 1], draws)
        corrupted[start : start + step] = (changed.clamp(0, 1) * 255).to(torch.uint8)
    return corrupted


def _rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    spread = value - images.amin(1)
    grey = spread == 0
    safe = torch.where(grey, 1.0, spread)
    saturation = torch.where(grey, 0.0, spread / torch.where(grey, 1.0, value))
    hue = torch.where(red == value, (green - blue) / safe, 0.0)
    hue = torch.where(green == value, 2.0 + (blue - red) / safe, hue)
    hue = torch.where(blue == value, 4.0 + (red - green) / safe, hue)
    return torch.where(grey, 0.0, (hue / 6.0) % 1.0), saturation, value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    sector = torch.floor(hue * 6.0)
    within = hue * 6.0 - sector
    low = value * (1.0 - saturation)
    falling = value * (1.0 - within * saturation)
    rising = value * (1.0 - (1.0 - within) * saturation)
    by_sector = (
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    )
    choice = (sector.long() % 6).unsqueeze(0)
    return torch.stack(
        [torch.stack(channel).gather(0, choice)[0] for channel in zip(*by_sector, strict=True)], 1
    )


def _box(levels: Tensor, size: int) -> Tensor:
    """Resize the last axis as Pillow's BOX: the mean of the pixels whose centre is in the box."""
    pixels = torch.arange(levels.shape[-1], dtype=torch.float64)
    scale = levels.shape[-1] / size
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    # In Pillow's order of operations: where a centre lies on the edge of a box, rounding decides.
    width = max(scale, 1.0)
    distance = (pixels[:, None] - centres + 0.5) * (1.0 / width)
    inside = (distance > -0.5) & (distance <= 0.5)
    inside &= pixels[:, None] >= torch.floor(centres - 0.5 * width + 0.5)
    inside &= pixels[:, None] < torch.floor(centres + 0.5 * width + 0.5)
    boxes = inside.to(levels)
    # Sums of whole grey levels are exact, so that halves round up as they do there.
    return torch.floor(levels @ boxes / boxes.sum(0) + 0.5)
