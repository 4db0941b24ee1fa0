"""The water of spatter, in relief: drops are shaded by the distance to their edges.

The published generator builds this of OpenCV's functions; here they are, on batches of layers
[batch, height, width] of whole grey levels. Reference: Hendrycks & Dietterich (2019),
arXiv:1903.12261; edges by Canny (1986); distances by Borgefors (1986), 5 x 5.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

Layer = Float64[Tensor, "batch height width"]

_WEAK, _STRONG = 50, 150
_FARTHEST = 20.0
_RELIEF = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
_TANGENT, _SHIFT = 13573, 15
"""The tangent of 22.5 degrees, in fixed point of so many bits."""
_SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_STEPS = {
    1.0: ((0, 1), (0, -1), (1, 0), (-1, 0)),
    1.4: _SIGNS,
    2.1969: tuple(pair for y, x in _SIGNS for pair in ((y, 2 * x), (2 * y, x))),
}
"""Steps of a length."""


def relief(levels: Layer) -> Layer:
    """Shade drops by their relief, 0 to 255: bright on one side of an edge, dark on the other."""
    distance = _distances(_edges(levels))
    equal = _equalised(torch.floor(_blurred(distance).float().double()))
    kernel = torch.tensor(_RELIEF, dtype=torch.float64, device=levels.device)
    padded = F.pad(equal[:, None], (1,) * 4, mode="reflect")
    shaded = F.conv2d(padded, kernel[None, None])[:, 0].clamp(0, 255)
    return _blurred(shaded).round()


def _edges(levels: Layer) -> Tensor:
    """Canny's edges, as a mask: ridges of the gradient's L1 norm that lead to a strong one."""
    padded = F.pad(levels[:, None], (1,) * 4, mode="replicate")[:, 0]
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across, down = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    steep = across.abs() + down.abs()
    flat = across.abs() * _TANGENT
    height = down.abs() * 2**_SHIFT

    beside = _neighbours(steep, 0.0)
    rising = torch.where(across * down < 0, -1, 1)
    slanted = torch.where(
        rising > 0,
        (steep > beside(-1, -1)) & (steep > beside(1, 1)),
        (steep > beside(-1, 1)) & (steep > beside(1, -1)),
    )
    upright = (steep > beside(-1, 0)) & (steep >= beside(1, 0))
    level = (steep > beside(0, -1)) & (steep >= beside(0, 1))
    steeper = height > flat + across.abs() * 2 ** (_SHIFT + 1)
    ridge = torch.where(height < flat, level, torch.where(steeper, upright, slanted))
    weak = ridge & (steep > _WEAK)
    edges = weak & (steep > _STRONG)
    while True:
        near = F.max_pool2d(edges[:, None].double(), 3, stride=1, padding=1)[:, 0] > 0
        grown = near & weak
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _distances(edges: Tensor) -> Layer:
    """Distances to the nearest edge along steps of 5 x 5 neighbours, at most 20."""
    distance = torch.where(edges, 0.0, _FARTHEST)
    while True:
        nearer, beside = distance, _neighbours(distance, _FARTHEST)
        for step, offsets in _STEPS.items():
            nearest = functools.reduce(torch.minimum, (beside(y, x) for y, x in offsets))
            nearer = torch.minimum(nearer, nearest + step)
        if torch.equal(nearer, distance):
            return distance.double()
        distance = nearer


def _neighbours(layer: Tensor, outside: float) -> Callable[[int, int], Tensor]:
    """What gives the neighbours at an offset; ``outside`` where there are none."""
    height, width = layer.shape[-2:]
    padded = F.pad(layer, (2,) * 4, value=outside)
    return lambda y, x: padded[:, 2 + y : 2 + y + height, 2 + x : 2 + x + width]


def _blurred(layer: Layer) -> Layer:
    """Means of 3 x 3 neighbours, mirrored beyond the edges."""
    padded = F.pad(layer[:, None], (1,) * 4, mode="reflect")[:, 0]
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) * (1 / 9)


def _equalised(layer: Layer) -> Layer:
    """Spread grey levels so that they are about equally frequent; one level alone stays."""
    whole = layer.flatten(1).long()
    count = torch.zeros(len(layer), 256, dtype=torch.float64, device=layer.device)
    count.scatter_add_(1, whole, torch.ones_like(whole, dtype=torch.float64))
    below = count.cumsum(1)
    first = count.gather(1, (count > 0).long().argmax(1, keepdim=True))
    left = whole.shape[1] - first
    table = ((below - first).float() * (255 / left.clamp(min=1)).float()).round().double()
    spread = table.clamp(0, 255).gather(1, whole)
    return torch.where(left > 0, spread, whole.double()).reshape(layer.shape)
