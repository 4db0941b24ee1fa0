"""Blur: every value of an image becomes a mean over others."""

import functools
import math

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from .draws import Draws, Images


def gaussian_blur(images: Images, level: float, draws: Draws) -> Images:
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


def defocus_blur(images: Images, level: tuple[float, float], draws: Draws) -> Images:
    """Blur with a disk of ``level[0]`` pixels, smoothed by a Gaussian of ``level[1]``.

    The image is mirrored beyond its edges, the outermost pixels not repeated.
    """
    radius, softness = level
    reach = math.floor(radius) + 1
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).double()
    bell = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]).double() / softness) ** 2)
    bell /= bell.sum()
    soft = F.conv2d((disk / disk.sum())[None, None], (bell[:, None] * bell)[None, None], padding=1)
    padded = F.pad(images, (reach,) * 4, mode="reflect").flatten(0, 1).unsqueeze(1)
    return F.conv2d(padded, soft.to(images.device)).reshape(images.shape)


def glass_blur(images: Images, level: tuple[float, int, int], draws: Draws) -> Images:
    """Blur, let every pixel take the place of its upper left neighbours at random, blur again.

    ``level`` is the deviation of the Gaussian, the reach of a pixel, which is 1 throughout, and how
    often. As in the published generator, a pixel takes the value of its neighbour, which keeps its
    own, and the two first rows and columns stay.
    """
    sigma, _, times = level
    height, width = images.shape[-2:]
    levels = torch.floor(gaussian_blur(images, sigma, draws) * 255)
    chances = draws.uniform((times, 2, height - 2, width - 2)).to(images.device)
    rows = torch.arange(2, height, device=images.device)[:, None]
    columns = torch.arange(2, width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    for time in range(times):
        left, up = (chances[:, time] < 0.5).long().unbind(1)
        # A pixel's neighbours come after it in the generator's order, and are unchanged by then.
        taken = levels.permute(0, 2, 3, 1)[batch, rows - up, columns - left]
        levels = levels.clone()
        levels[..., 2:, 2:] = taken.permute(0, 3, 1, 2)
    return gaussian_blur(levels / 255, sigma, draws)


def motion_blur(images: Images, level: tuple[int, float], draws: Draws) -> Images:
    """Blur along a line, at an angle of -45 to 45 degrees, as a camera that moves away.

    ``level`` is the radius and the deviation of the half Gaussian along the line (`streak`).
    """
    angles = 90.0 * draws.uniform((1,)).squeeze(1) - 45.0
    return streak(images, radius=level[0], sigma=level[1], degrees=angles.to(images.device))


def streak(
    images: Images, *, radius: int, sigma: float, degrees: Float64[Tensor, "batch"]
) -> Images:
    """Smear each image along a line, in whole grey levels, edges repeated.

    ``x'(p) = sum_i w_i x(p + round_half_down(i (cos a, sin a)))`` for i = 0 to 2 radius, ``w_i``
    proportional to ``exp(-i² / (2 sigma²))``: ImageMagick's motion blur, which the published
    generator calls. The angle a, in degrees, runs from the x axis downwards.
    """
    weights = torch.exp(-0.5 * (torch.arange(2 * radius + 1).double() / sigma) ** 2)
    weights /= weights.sum()
    radians = torch.deg2rad(degrees)
    height, width = images.shape[-2:]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    pixels = images.permute(0, 2, 3, 1)
    smeared = torch.zeros_like(pixels)
    for step, weight in enumerate(weights.tolist()):
        if weight < 1e-7:  # of no grey level
            break
        across, down = (
            torch.ceil(step * part - 0.5).long()[:, None, None]
            for part in (torch.cos(radians), torch.sin(radians))
        )
        places = (rows + down).clamp(0, height - 1), (columns + across).clamp(0, width - 1)
        smeared += weight * pixels[batch, *places]
    return whole_levels(smeared.permute(0, 3, 1, 2))


def zoom_blur(images: Images, level: float, draws: Draws) -> Images:
    """Average the image with its enlargements by 1, 1.01, 1.02, ... up to ``level``."""
    height, width = images.shape[-2:]
    factors = np.arange(1, level, 0.01)
    total = images.clone()
    for factor in factors.tolist():
        down, across = (zoom_matrix(side, factor).to(images.device) for side in (height, width))
        total += down @ images @ across.T
    return total / (len(factors) + 1)


@functools.cache
def zoom_matrix(size: int, factor: float) -> Float64[Tensor, "size size"]:
    """Return the linear map of one axis that enlarges its middle to the whole, as SciPy's zoom."""
    kept = math.ceil(size / factor)
    first = (size - kept) // 2
    enlarged = scipy.ndimage.zoom(np.eye(size)[first : first + kept], (factor, 1), order=1)
    trim = (len(enlarged) - size) // 2
    return torch.from_numpy(enlarged[trim : trim + size].copy())


@functools.cache
def smoothing_matrix(
    size: int, sigma: float, mode: str = "nearest", truncate: float = 4.0
) -> Float64[Tensor, "size size"]:
    """Return the linear map of one axis that is SciPy's Gaussian filter."""
    if sigma == 0:
        return torch.eye(size, dtype=torch.float64)
    return torch.from_numpy(
        scipy.ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode=mode, truncate=truncate)
    )


def whole_levels(images: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Round to whole grey levels, a whisker above so that they stay whole when truncated."""
    return (images * 255).round() / 255 * (1 + 1e-12)
