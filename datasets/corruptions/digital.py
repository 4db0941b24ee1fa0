"""Digital corruptions: of colour, shape and file format."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .blur import smoothing_matrix, whole_levels
from .draws import Draws, Images


def brightness(images: Images, level: float, draws: Draws) -> Images:
    """Add ``level`` to the value: V of HSV for three channels, the grey value for one."""
    if images.shape[1] == 1:
        return images + level
    hue, saturation, value = _rgb_to_hsv(images)
    return _hsv_to_rgb(hue, saturation, (value + level).clamp(0, 1))


def contrast(images: Images, level: float, draws: Draws) -> Images:
    """Shrink the distance to each channel's mean over the image by the factor ``level``."""
    means = images.mean(dim=(-2, -1), keepdim=True)
    return torch.lerp(means, images, level)


def pixelate(images: Images, level: float, draws: Draws) -> Images:
    """Shrink to ``level`` of the sides with a box filter and enlarge again, in whole grey levels.

    Sides become int(side * level), where the original has int(32 * level). On small images
    neighbouring severities coincide (8 pixels: 1 and 2, 3 and 4).
    """
    height, width = images.shape[-2:]
    levels = (images * 255).round()
    # Pillow's order: columns before rows, each rounded to whole grey levels.
    for rows, columns in ((int(height * level), int(width * level)), (height, width)):
        levels = _box(_box(levels, columns).mT, rows).mT
    return levels / 255


def saturate(images: Images, level: tuple[float, float], draws: Draws) -> Images:
    """Make saturation S of HSV ``S level[0] + level[1]``; grey images have none and stay."""
    if images.shape[1] == 1:
        return images
    hue, saturation, value = _rgb_to_hsv(images)
    return _hsv_to_rgb(hue, (saturation * level[0] + level[1]).clamp(0, 1), value)


def jpeg_compression(images: Images, level: int, draws: Draws) -> Images:
    """Encode as JPEG of quality ``level``, and decode."""
    levels = (images * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    back = np.empty_like(levels)
    for image, decoded in zip(levels, back, strict=True):
        encoded = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            encoded, "JPEG", quality=level
        )
        decoded[:] = np.asarray(Image.open(encoded)).reshape(image.shape)
    values = torch.from_numpy(back).permute(0, 3, 1, 2).double() / 255
    return whole_levels(values).to(images.device)


def elastic_transform(images: Images, level: tuple[float, float, float], draws: Draws) -> Images:
    """Shift three points of the image at random, then every pixel by a smooth random field.

    ``level`` holds, in shares of the image's smaller side, the size of the field, its smoothness,
    and how far the points are shifted. The affine map mirrors the image at the middles of its
    outermost pixels, the field at their edges, as the published generator's do.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    size, smoothness, reach = (side * share for share in level)
    moved = _affine(images, reach, draws)
    field = 2.0 * draws.stage(1).uniform((2, height, width)).to(images.device) - 1.0
    down, across = (
        smoothing_matrix(n, smoothness, "reflect", 3.0).to(images.device) for n in (height, width)
    )
    shift = size * (down @ field @ across.T)
    rows = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] + shift[:, 1]
    columns = torch.arange(width, dtype=torch.float64, device=images.device) + shift[:, 0]
    # Coordinates from -1 to 1 between the outer edges.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(moved, grid, padding_mode="reflection", align_corners=False)


def _affine(images: Images, reach: float, draws: Draws) -> Images:
    """Move three points, each by up to ``reach`` pixels both ways, and all the others with them."""
    height, width = images.shape[-2:]
    centre = torch.tensor([height // 2, width // 2], dtype=torch.float64)
    arm = min(height, width) // 3
    points = torch.stack(
        [centre + arm, torch.stack([centre[0] + arm, centre[1] - arm]), centre - arm]
    )
    targets = points + reach * (2.0 * draws.uniform((3, 2)) - 1.0)
    # target @ map = point: each pixel looks up where it came from.
    targets = F.pad(targets, (0, 1), value=1.0)
    back = torch.linalg.solve(targets, points.expand(len(images), 3, 2))
    sides = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    y, x = torch.meshgrid(*sides, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    source = torch.einsum("hwk,bkc->bhwc", places, back)
    # Coordinates from -1 to 1 between the middles of the outermost pixels.
    scale = torch.tensor([width - 1, height - 1], dtype=torch.float64)
    grid = (2 * source / scale - 1).to(images.device)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)


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
    channels_by_sector = (
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    choice = (sector.long() % 6).unsqueeze(0)
    return torch.stack([torch.stack(c).gather(0, choice)[0] for c in channels_by_sector], 1)


def _box(levels: Tensor, size: int) -> Tensor:
    """Resize the last axis as Pillow's BOX: the mean of the pixels whose centre is in the box."""
    pixels = torch.arange(levels.shape[-1], dtype=torch.float64)[:, None]
    scale = levels.shape[-1] / size
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    # In Pillow's order of operations: where a centre lies on the edge of a box, rounding decides.
    width = max(scale, 1.0)
    distance = (pixels - centres + 0.5) * (1.0 / width)
    inside = (distance > -0.5) & (distance <= 0.5)
    inside &= pixels >= torch.floor(centres - 0.5 * width + 0.5)
    inside &= pixels < torch.floor(centres + 0.5 * width + 0.5)
    boxes = inside.to(levels)
    # Sums of whole grey levels are exact, so that halves round up as they do there.
    return torch.floor(levels @ boxes / boxes.sum(0) + 0.5)
