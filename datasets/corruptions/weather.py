"""Weather: snow, frost, fog and spatter in front of an image."""

import torch
from jaxtyping import Float64
from torch import Tensor

from .blur import smoothing_matrix, streak, whole_levels, zoom_matrix
from .draws import Draws, Images
from .water import relief

Layer = Float64[Tensor, "batch height width"]

_GREY = (0.299, 0.587, 0.114)  # of red, green and blue
_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_ICE = (0.82, 0.92, 1.0)


def fog(images: Images, level: tuple[float, float], draws: Draws) -> Images:
    """Add ``level[0]`` of a plasma of decay ``level[1]``; darken so that the maximum stays."""
    thickness, decay = level
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    height, width = images.shape[-2:]
    plasma = _plasma(max(height, width), decay, draws)[:, None, :height, :width]
    misty = images + thickness * plasma.to(images.device)
    return misty * brightest / (brightest + thickness)


def frost(images: Images, level: tuple[float, float], draws: Draws) -> Images:
    """Lay procedural frost over the image: ``level[0] x + level[1] frost``.

    The published generator takes photographs of frost, which are not shipped. Here the frost is
    made: ridges of two plasmas, bright along lines as ice crystals are, and bluish white.
    """
    height, width = images.shape[-2:]
    size = max(height, width)
    ridges = [1.0 - (2.0 * _plasma(size, 1.9, draws.stage(part)) - 1.0).abs() for part in (1, 2)]
    crystals = torch.maximum(*ridges)[:, None, :height, :width] ** 2
    tint = _colour(_ICE, images)
    return level[0] * images + level[1] * crystals.to(images.device) * tint


def snow(images: Images, level: tuple[float, ...], draws: Draws) -> Images:
    """Whiten the image and let flakes fall, smeared by the wind.

    ``level`` is mean and deviation of the flakes' noise, its enlargement, the threshold below which
    there is none, radius and deviation of the smear, and how much of the image is not whitened.
    """
    mean, deviation, factor, threshold, radius, sigma, kept = level
    height, width = images.shape[-2:]
    noise = mean + deviation * draws.normal((height, width)).to(images.device)
    down, across = (zoom_matrix(size, factor).to(images.device) for size in (height, width))
    flakes = down @ noise @ across.T
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = whole_levels(torch.floor(flakes * 255) / 255)
    angles = -135.0 + 90.0 * draws.stage(1).uniform((1,)).squeeze(1).to(images.device)
    flakes = streak(flakes[:, None], radius=int(radius), sigma=sigma, degrees=angles)
    grey = images
    if images.shape[1] == 3:
        weights = torch.tensor(_GREY, dtype=torch.float64, device=images.device)
        grey = (images * weights[:, None, None]).sum(1, keepdim=True)
    whitened = kept * images + (1 - kept) * torch.maximum(images, grey * 1.5 + 0.5)
    return whitened + flakes + flakes.flip(-2, -1)


def spatter(images: Images, level: tuple[float, ...], draws: Draws) -> Images:
    """Splash water (severities 1 to 3) or mud (4 and 5) on the lens.

    ``level`` is mean and deviation of the liquid's noise, its smoothing, the threshold below which
    there is none, its strength (or the smoothing of mud's edges), and 0 for water or 1 for mud.
    As in the published generator, water is in relief: bright at the edges of its drops
    (:mod:`.water`).
    """
    mean, deviation, smoothing, threshold, strength, muddy = level
    height, width = images.shape[-2:]
    noise = mean + deviation * draws.normal((height, width)).to(images.device)
    liquid = _smoothed(noise, smoothing)
    if muddy:
        covered = _smoothed((liquid >= threshold).double(), strength)[:, None]
        covered = torch.where(covered < 0.8, 0.0, covered)
        return images * (1 - covered) + covered * _colour(_MUD, images)
    levels = torch.floor(torch.where(liquid < threshold, 0.0, liquid) * 255).remainder(256)
    drops = levels * relief(levels)
    highest = drops.amax(dim=(1, 2), keepdim=True)
    drops = strength * drops / torch.where(highest > 0, highest, 1.0)
    return images + drops[:, None] * _colour(_WATER, images)


def _smoothed(layer: Layer, sigma: float) -> Layer:
    down, across = (smoothing_matrix(size, sigma).to(layer.device) for size in layer.shape[-2:])
    return down @ layer @ across.T


def _colour(colour: tuple[float, float, float], images: Images) -> Float64[Tensor, "channels 1 1"]:
    """The colour for three channels, its grey for one."""
    values = torch.tensor(colour, dtype=torch.float64, device=images.device)
    if images.shape[1] == 1:
        values = (values * torch.tensor(_GREY).to(values)).sum(0, keepdim=True)
    return values[:, None, None]


def _plasma(size: int, decay: float, draws: Draws) -> Layer:
    """Make a plasma in [0, 1] by the diamond-square algorithm on a torus.

    Every midpoint is the mean of its four neighbours and a uniform draw in ``±wobble²``; the wobble
    begins at 100 and falls by ``decay`` with every halving of the step.
    """
    side = 1 << (size - 1).bit_length()
    draw = 2.0 * draws.uniform((side, side)) - 1.0
    field = torch.zeros_like(draw)
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        around = corners + corners.roll(-1, 1)
        around = around + around.roll(-1, 2)
        field[:, half::step, half::step] = around / 4 + wobble**2 * draw[:, half::step, half::step]
        middles = field[:, half::step, half::step]
        beside = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        field[:, ::step, half::step] = beside / 4 + wobble**2 * draw[:, ::step, half::step]
        beside = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, half::step, ::step] = beside / 4 + wobble**2 * draw[:, half::step, ::step]
        step, wobble = half, wobble / decay
    field = field - field.amin(dim=(1, 2), keepdim=True)
    return field / field.amax(dim=(1, 2), keepdim=True)
