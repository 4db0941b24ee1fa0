"""Random colour and shape operations on whole batches of uint8 images.

The fourteen operations of torchvision's ``RandAugment``, at its strengths for eleven bins. Images
are grouped by the operation that was drawn for them, and each operation runs once on its group.

Adding an operation takes one function and one line in :data:`OPERATIONS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from .transforms import memory_order

Images = UInt8[Tensor, "batch channels height width"]
Strengths = Float[Tensor, " batch"]

STRONGEST = 10
"""The largest magnitude."""


def autocontrast(images: Images, strengths: Strengths) -> Images:
    """Stretch each channel to the whole range; the strength has no meaning."""
    floats = images.float()
    low, high = floats.amin((-2, -1), keepdim=True), floats.amax((-2, -1), keepdim=True)
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return _levels((floats - torch.where(flat, 0.0, low)) / scale)


def equalize(images: Images, strengths: Strengths) -> Images:
    """Flatten each channel's histogram, as Pillow does; the strength has no meaning."""
    values = images.flatten(-2).long()
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(-1, values, torch.ones_like(values))
    brightest = values.amax(-1, keepdim=True)
    # Pillow's step: the pixels below the brightest level, shared among 255 levels.
    step = (values.shape[-1] - histogram.gather(-1, brightest)) // 255
    darker = histogram.cumsum(-1) - histogram
    table = ((darker + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(-1, values).to(torch.uint8).view(images.shape)


def posterize(images: Images, strengths: Strengths) -> Images:
    """Keep only the highest bits of each value, as many as the strength says."""
    return images & (256 - 2 ** (8 - strengths)).to(torch.uint8)[:, None, None, None]


def solarize(images: Images, strengths: Strengths) -> Images:
    """Invert the values at or above a threshold, a share of white."""
    return torch.where(images >= 255 * strengths[:, None, None, None], 255 - images, images)


def brightness(images: Images, strengths: Strengths) -> Images:
    """Multiply each value by 1 + strength."""
    return _levels(images * (1 + strengths)[:, None, None, None])


def contrast(images: Images, strengths: Strengths) -> Images:
    """Move each value away from the image's mean grey by the factor 1 + strength."""
    return _away(images, _grey(images).mean((-3, -2, -1), keepdim=True), strengths)


def saturation(images: Images, strengths: Strengths) -> Images:
    """Move each colour away from its grey by the factor 1 + strength; grey images stay."""
    return images if images.shape[1] == 1 else _away(images, _grey(images), strengths)


def sharpness(images: Images, strengths: Strengths) -> Images:
    """Move each value away from its smoothed one by the factor 1 + strength; the border stays."""
    if min(images.shape[-2:]) <= 2:
        return images
    floats = images.float()
    columns = floats[..., :-2] + floats[..., 1:-1] + floats[..., 2:]
    around = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    # The kernel is 1, with 5 in the middle, over 13.
    smooth = ((around + 4 * floats[..., 1:-1, 1:-1]) / 13).round_()
    result = images.clone()
    result[..., 1:-1, 1:-1] = _away(floats[..., 1:-1, 1:-1], smooth, strengths)
    return result


def rotate(strengths: Strengths, size: tuple[int, int]) -> Float[Tensor, "batch 2 3"]:
    """Turn about the middle, anticlockwise by the strength in degrees."""
    cosine, sine = strengths.deg2rad().cos(), strengths.deg2rad().sin()
    zero = torch.zeros_like(strengths)
    return _matrices((cosine, -sine, zero), (sine, cosine, zero))


def shear_x(strengths: Strengths, size: tuple[int, int]) -> Float[Tensor, "batch 2 3"]:
    """Move each row to the left by the strength times its distance from the upper border."""
    one, zero = torch.ones_like(strengths), torch.zeros_like(strengths)
    return _matrices((one, strengths, strengths * size[0] / 2), (zero, one, zero))


def shear_y(strengths: Strengths, size: tuple[int, int]) -> Float[Tensor, "batch 2 3"]:
    """Move each column up by the strength times its distance from the left border."""
    one, zero = torch.ones_like(strengths), torch.zeros_like(strengths)
    return _matrices((one, zero, zero), (strengths, one, strengths * size[1] / 2))


def translate_x(strengths: Strengths, size: tuple[int, int]) -> Float[Tensor, "batch 2 3"]:
    """Move to the right by the strength, a share of the width, cut to whole pixels."""
    one, zero = torch.ones_like(strengths), torch.zeros_like(strengths)
    return _matrices((one, zero, -(strengths * size[1]).trunc()), (zero, one, zero))


def translate_y(strengths: Strengths, size: tuple[int, int]) -> Float[Tensor, "batch 2 3"]:
    """Move down by the strength, a share of the height, cut to whole pixels."""
    one, zero = torch.ones_like(strengths), torch.zeros_like(strengths)
    return _matrices((one, zero, zero), (zero, one, -(strengths * size[0]).trunc()))


@dataclass(frozen=True)
class Operation:
    """One operation: what it does, and how strongly at each magnitude.

    Args:
        weakest: The strength at magnitude 0; in between it is linear.
        strongest: The strength at magnitude 10.
        signed: Whether every second strength, drawn at random, is negative.
        change: Images and their strengths to images; None for a geometric operation.
        matrix: Strengths and (height, width) to matrices that take a pixel of the result,
            seen from the middle, to where its value comes from; only of a geometric operation.
        whole: Whether strengths are whole numbers.
    """

    weakest: int | float = 0.0
    strongest: int | float = 0.0
    signed: bool = False
    change: Callable[[Tensor, Tensor], Tensor] | None = None
    matrix: Callable[[Tensor, tuple[int, int]], Tensor] | None = None
    whole: bool = False

    def strength(self, magnitude: int) -> float:
        """The strength at a magnitude from 0 to 10, without its sign."""
        value = self.weakest + (self.strongest - self.weakest) * magnitude / STRONGEST
        return float(round(value)) if self.whole else value


# The geometric operations come first: they share one resampling.
OPERATIONS: dict[str, Operation] = {
    "rotate": Operation(0, 30, signed=True, matrix=rotate),
    "shear_x": Operation(0, 0.3, signed=True, matrix=shear_x),
    "shear_y": Operation(0, 0.3, signed=True, matrix=shear_y),
    "translate_x": Operation(0, 150 / 331, signed=True, matrix=translate_x),
    "translate_y": Operation(0, 150 / 331, signed=True, matrix=translate_y),
    "identity": Operation(),
    "autocontrast": Operation(change=autocontrast),
    "equalize": Operation(change=equalize),
    "posterize": Operation(8, 4, whole=True, change=posterize),
    "solarize": Operation(1, 0, change=solarize),
    "brightness": Operation(0, 0.9, signed=True, change=brightness),
    "contrast": Operation(0, 0.9, signed=True, change=contrast),
    "saturation": Operation(0, 0.9, signed=True, change=saturation),
    "sharpness": Operation(0, 0.9, signed=True, change=sharpness),
}
"""All operations, by name; a draw is an index into them."""

_GEOMETRIC = sum(operation.matrix is not None for operation in OPERATIONS.values())


def draw_operations(
    num_samples: int, rounds: int, magnitude: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "samples rounds"], Float[Tensor, "samples rounds"]]:
    """Draw what happens to each image in each round.

    Args:
        num_samples: Number of images.
        rounds: Operations an image, one after the other.
        magnitude: 0 to 10, the same for all.
        generator: On the CPU.

    Returns:
        Indices into :data:`OPERATIONS`, uniform and with repetition, and the strengths.

    Example:
        >>> import torch
        >>> from deepens.datasets.augmentation.rand_augment import OPERATIONS, draw_operations
        >>> operations, strengths = draw_operations(1, 2, 5, torch.Generator().manual_seed(0))
        >>> [list(OPERATIONS)[index] for index in operations[0]], strengths[0].tolist()
        (['translate_y', 'translate_x'], [-0.22658610343933105, -0.22658610343933105])
    """
    operations = torch.randint(len(OPERATIONS), (num_samples, rounds), generator=generator)
    negative = torch.rand(num_samples, rounds, generator=generator) <= 0.5
    strengths = torch.tensor([each.strength(magnitude) for each in OPERATIONS.values()])
    signed = torch.tensor([each.signed for each in OPERATIONS.values()])
    signs = torch.where(negative & signed[operations], -1.0, 1.0)
    return operations, signs * strengths[operations]


def rand_augment(
    images: UInt8[Tensor, "batch channels height width"],
    operations: Int64[Tensor, "batch rounds"],
    strengths: Float[Tensor, "batch rounds"],
) -> UInt8[Tensor, "batch channels height width"]:
    """Apply to each image the operations drawn for it, one round after the other.

    Images are resampled at the nearest pixel; what comes from outside is black.

    ==========  ==============================  ===========================================
    argument    shape                           unit
    ==========  ==============================  ===========================================
    images      [batch channels height width]   uint8, 1 or 3 channels
    operations  [batch rounds]                  index into :data:`OPERATIONS`; on the CPU
    strengths   [batch rounds]                  the operation's own; on the CPU
    returned    [batch channels height width]   uint8
    ==========  ==============================  ===========================================

    Args:
        images: Images.
        operations: From :func:`draw_operations`. On the CPU, so that the groups are known without
            waiting for the device.
        strengths: From :func:`draw_operations`.

    Returns:
        Changed images, in the memory order of ``images``.

    Example:
        >>> import torch
        >>> from deepens.datasets.augmentation.rand_augment import OPERATIONS, rand_augment
        >>> image = torch.tensor([[[[10, 200]]]], dtype=torch.uint8)
        >>> rounds = [[list(OPERATIONS).index(name) for name in ("solarize", "brightness")]]
        >>> rand_augment(image, torch.tensor(rounds), torch.tensor([[0.5, 1.0]])).tolist()
        [[[[20, 110]]]]

    Reference:
        Cubuk et al. (2019), arXiv:1909.13719. Operations and strengths are torchvision's.
    """
    layout = memory_order(images)
    images = images.contiguous()
    for now in range(operations.shape[1]):
        images = _one_round(images, operations[:, now], strengths[:, now])
    return images.contiguous(memory_format=layout)


def _one_round(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    by_operation = operations.argsort(stable=True)
    counts = operations.bincount(minlength=len(OPERATIONS)).tolist()
    order = _sent(by_operation, images.device)
    strong = _sent(strengths[by_operation], images.device).split(counts)
    size = images.shape[-2], images.shape[-1]
    geometric = sum(counts[:_GEOMETRIC])
    moved, *rest = images.index_select(0, order).split([geometric, *counts[_GEOMETRIC:]])
    groups = []
    if geometric:
        matrices = [
            operation.matrix(own, size)
            for operation, own in zip(OPERATIONS.values(), strong, strict=True)
            if operation.matrix is not None and len(own)
        ]
        groups.append(_resampled(moved, torch.cat(matrices)))
    changes = list(OPERATIONS.values())[_GEOMETRIC:]
    for operation, group, own in zip(changes, rest, strong[_GEOMETRIC:], strict=True):
        if len(group):
            groups.append(group if operation.change is None else operation.change(group, own))
    return torch.cat(groups).index_select(0, order.argsort())


def _resampled(images: Tensor, matrices: Tensor) -> Tensor:
    """Each pixel's value from the nearest one to where its matrix sends it, black outside."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    column, row = (
        (line[:, :1, None] * x + line[:, 1:2, None] * y[:, None] + line[:, 2:, None])
        .add_((side - 1) / 2)
        .round_()
        for line, side in zip(matrices.unbind(1), (width, height), strict=True)
    )
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = row.clamp_(0, height - 1).mul_(width).add_(column.clamp_(0, width - 1)).long()
    taken = images.flatten(-2).gather(
        -1, source.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    )
    return taken.view(images.shape).mul_(inside[:, None])


def _matrices(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device, without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def _away(images: Tensor, other: Tensor, strengths: Tensor) -> Tensor:
    """Images moved from the other values: other + (1 + strength) (images - other)."""
    factor = (1 + strengths)[:, None, None, None]
    return _levels(images * factor + other * (1 - factor))


def _levels(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)
