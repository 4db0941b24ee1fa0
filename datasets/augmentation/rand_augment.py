"""RandAugment on whole batches of uint8 images, with torchvision's operations.

All images for which the same operation and strength were drawn are changed by one call of
torchvision's function. Adding an operation takes one line in :data:`OPERATIONS` and one case in
:func:`change`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .transforms import Images, memory_order

STRONGEST = 10
"""The largest magnitude."""


@dataclass(frozen=True)
class Strength:
    """The strengths of an operation at magnitudes 0 and 10, linear in between.

    They may be whole numbers, and ``signed``: negative in half of the draws.
    """

    weakest: int | float = 0.0
    strongest: int | float = 0.0
    signed: bool = False
    whole: bool = False

    def at(self, magnitude: int) -> float:
        """The strength at a magnitude from 0 to 10, without its sign."""
        value = self.weakest + (self.strongest - self.weakest) * magnitude / STRONGEST
        return float(round(value)) if self.whole else value


OPERATIONS = {
    "rotate": Strength(0, 30, signed=True),
    "shear_x": Strength(0, 0.3, signed=True),
    "shear_y": Strength(0, 0.3, signed=True),
    "translate_x": Strength(0, 150 / 331, signed=True),
    "translate_y": Strength(0, 150 / 331, signed=True),
    "identity": Strength(),
    "autocontrast": Strength(),
    "equalize": Strength(),
    "posterize": Strength(8, 4, whole=True),
    "solarize": Strength(1, 0),
    "brightness": Strength(0, 0.9, signed=True),
    "contrast": Strength(0, 0.9, signed=True),
    "saturation": Strength(0, 0.9, signed=True),
    "sharpness": Strength(0, 0.9, signed=True),
}
"""All operations, with torchvision's strengths for eleven bins; a draw is an index into them."""


def change(images: Images, name: str, strength: float) -> Images:
    """Apply one operation to all images, as torchvision's ``RandAugment`` does.

    Args:
        images: Images of 1 or 3 channels.
        name: Of the operation, from :data:`OPERATIONS`.
        strength: Degrees (rotate), a share of the side (translate), the tangent of the angle
            (shear), bits (posterize), a share of white (solarize), or what is added to the factor
            1 (brightness, contrast, saturation, sharpness).

    Returns:
        Changed images, by geometric operations of the nearest pixels, black outside.
    """
    from torchvision.transforms.v2 import functional as F  # takes a second

    height, width = images.shape[-2:]
    translate, shear, centre = [0, 0], [0.0, 0.0], None
    match name:
        case "identity":
            return images
        case "autocontrast" | "equalize":
            return getattr(F, name)(images)
        case "rotate":
            return F.rotate(images, strength)
        case "posterize":
            return F.posterize(images, int(strength))
        case "solarize":
            return F.solarize(images, 255 * strength)
        case "brightness" | "contrast" | "saturation" | "sharpness":
            return getattr(F, f"adjust_{name}")(images, 1 + strength)
        case "translate_x":
            translate[0] = int(strength * width)
        case "translate_y":
            translate[1] = int(strength * height)
        case "shear_x" | "shear_y":
            shear[name == "shear_y"] = math.degrees(math.atan(strength))
            centre = [0.0, 0.0]
    return F.affine(images, 0.0, translate, 1.0, shear, center=centre)


def draw_operations(
    num_samples: int, rounds: int, magnitude: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "samples rounds"], Float[Tensor, "samples rounds"]]:
    """Draw what happens to each image in each round, at one magnitude from 0 to 10, on the CPU.

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
    strengths = torch.tensor([each.at(magnitude) for each in OPERATIONS.values()])
    signed = torch.tensor([each.signed for each in OPERATIONS.values()])
    signs = torch.where(negative & signed[operations], -1.0, 1.0)
    return operations, signs * strengths[operations]


def rand_augment(
    images: Images,
    operations: Int64[Tensor, "batch rounds"],
    strengths: Float[Tensor, "batch rounds"],
) -> Images:
    """Apply to each image the operations drawn for it, one round after the other.

    The draws of :func:`draw_operations` stay on the CPU, so that no group waits for the device.
    Images have 1 or 3 channels; the result has their memory order.

    Example:
        >>> import torch
        >>> from deepens.datasets.augmentation.rand_augment import OPERATIONS, rand_augment
        >>> image = torch.tensor([[[[10, 200]]]], dtype=torch.uint8)
        >>> rounds = [[list(OPERATIONS).index(name) for name in ("solarize", "brightness")]]
        >>> rand_augment(image, torch.tensor(rounds), torch.tensor([[0.5, 1.0]])).tolist()
        [[[[20, 110]]]]

    Reference:
        Cubuk et al. (2019), arXiv:1909.13719.
    """
    layout, names = memory_order(images), list(OPERATIONS)
    images = images.contiguous()
    for drawn, strong in zip(operations.unbind(1), strengths.unbind(1), strict=True):
        groups: dict[tuple[int, float], list[int]] = {}
        for index, key in enumerate(zip(drawn.tolist(), strong.tolist(), strict=True)):
            groups.setdefault(key, []).append(index)
        order = torch.tensor([index for group in groups.values() for index in group])
        sizes = [len(group) for group in groups.values()]
        parts = images.index_select(0, _sent(order, images.device)).split(sizes)
        pairs = zip(groups, parts, strict=True)
        changed = [change(part, names[which], strength) for (which, strength), part in pairs]
        images = torch.cat(changed).index_select(0, _sent(order.argsort(), images.device))
    return images.contiguous(memory_format=layout)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device, without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
