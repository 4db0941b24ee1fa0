"""Corruptions of the CIFAR-10-C kind, made in batches on tensors.

Constants and order of operations follow the generator that Hendrycks & Dietterich published for
CIFAR (``make_cifar_c.py``; its constants differ from ImageNet's). Results are not to be compared
with numbers on the published files: the random draws are other ones, a filter may round to another
grey level, and frost is made instead of photographed.
On grey images, which are not in the original, what is about colour takes its grey.

Adding a corruption takes one function and one line in :data:`CORRUPTIONS`.

Reference: Hendrycks & Dietterich (2019), arXiv:1903.12261
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from .blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from .digital import brightness, contrast, elastic_transform, jpeg_compression, pixelate, saturate
from .draws import Draws, gaussian_noise, impulse_noise, shot_noise, speckle_noise
from .weather import fog, frost, snow, spatter

# Values in double precision at once: 1 MB per working copy, which stays in the cache.
VALUES_AT_ONCE = 2**17


@dataclass(frozen=True)
class Corruption:
    """A corruption and the constant of each severity.

    Args:
        apply: Maps images [batch, channels, height, width] in [0, 1], the constant and the draws
            to images of the same shape; values outside [0, 1] are clipped afterwards.
        levels: The constants of severities 1 to 5.
    """

    apply: Callable[[Tensor, Any, Draws], Tensor]
    levels: tuple[Any, Any, Any, Any, Any]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500.0, 250.0, 100.0, 75.0, 50.0)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Corruption(
        defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
    ),
    "glass_blur": Corruption(
        glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
    ),
    "motion_blur": Corruption(motion_blur, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))),
    "zoom_blur": Corruption(zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.2, 1.0, 0.6, 8.0, 3.0, 0.95),
            (0.1, 0.2, 1.0, 0.5, 10.0, 4.0, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10.0, 4.0, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12.0, 6.0, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8),
        ),
    ),
    "frost": Corruption(frost, ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Corruption(fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Corruption(
        elastic_transform,
        (
            (0.0, 0.0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40)),
    "speckle_noise": Corruption(speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "spatter": Corruption(
        spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0.0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0.0),
            (0.65, 0.3, 1.0, 0.69, 0.5, 0.0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1.0),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1.0),
        ),
    ),
    "saturate": Corruption(saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))),
}
"""Every corruption, by the name it has in ``shift/<corruption>/<severity>``: 15, then 4 extra."""


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

    Raises:
        ValueError: If the name is unknown, a number out of range, or not one index per image.

    Example:
        >>> import torch
        >>> from deepens.datasets import corrupt
        >>> grey = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
        >>> corrupt(grey, "brightness", severity=5, seed=0).unique().tolist()
        [176]
    """
    if name not in CORRUPTIONS:
        nearest = difflib.get_close_matches(name, CORRUPTIONS, n=1, cutoff=0.0)[0]
        known = ", ".join(CORRUPTIONS)
        raise ValueError(f"name must be one of {known}, got {name!r}; the nearest is {nearest!r}")
    if severity not in range(1, 6):
        raise ValueError(f"severity must be in 1 to 5, got {severity}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    numbers = range(len(images)) if indices is None else [int(index) for index in indices]
    if len(numbers) != len(images):
        bound = f"one entry per image ({len(images)})"
        raise ValueError(f"indices must have {bound}, got {len(numbers)}")
    corruption = CORRUPTIONS[name]
    step = max(1, VALUES_AT_ONCE // max(1, math.prod(images.shape[1:])))
    corrupted = torch.empty_like(images)
    for start in range(0, len(images), step):
        batch = images[start : start + step].to(torch.float64).div_(255)
        draws = Draws(seed, name, severity, tuple(numbers[start : start + step]))
        changed = corruption.apply(batch, corruption.levels[severity - 1], draws)
        corrupted[start : start + step] = changed.clamp_(0, 1).mul_(255)  # cut to whole levels
    return corrupted
