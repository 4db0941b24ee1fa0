"""The sizes in which a network's family comes: ResNet-8, -14, -20; EfficientNet-B0 to -B7."""

import re

from . import known
from .airbench import AIRBENCH
from .convolutional import LAYERS, NARROW_LAYERS

PUBLISHED = (
    r"(resnet|densenet)\d+([a-z]?)",
    r"(resnext)\d+_\d+x\d+d",
    r"(wide_resnet)\d+_(\d+)",
    r"(vgg)\d+(_bn)?",
    r"((?:tf_)?efficientnet_b)\d",
    r"((?:tf_)?efficientnet_?v2)_(?:s|m|l|xl)",
    r"(convnext|convnextv2)_[a-z]+",
    r"(regnet_?[xy])_\w+",
    r"(mnasnet)\d_\d+",
    r"(shufflenet_v2)_x\d_\d",
    r"(mobilenet_v3)_(?:small|large)",
    r"(mobilenetv2|mobilenetv3_small|mobilenetv3_large)_\d+",
    r"(swin|swin_v2)_[tsb]",
    r"(swin)_[a-z]+_(patch\d+_window\d+_\d+)",
    r"(vit)_[blh]_(\d+)",
    r"(vit|deit|deit3|beit)_[a-z]+_(patch\d+_\d+)",
)
"""Names of torchvision and timm that match one pattern with the same groups are a family."""


def family_steps(name: str) -> tuple[str, ...]:
    """Return the names of a network and of all other sizes of its architecture.

    Vision transformers keep the patch size; published networks are those of the library's
    installed version and keep the weights behind ``@``, which may not exist for every size.

    Args:
        name: As for :func:`~deepens.ensembles.backbones.build`.

    Raises:
        ValueError: If no other size of the network is known.

    Example:
        >>> from deepens.ensembles.backbones.family_steps import family_steps
        >>> family_steps("resnet18")
        ('resnet18', 'resnet34', 'resnet50')
        >>> family_steps("vit-tiny/4")
        ('vit-micro/4', 'vit-tiny/4', 'vit-small/4')
        >>> family_steps("torchvision:efficientnet_b3")[-1]
        'torchvision:efficientnet_b7'
    """
    library, separator, published = name.partition(":")
    steps = _published(library, published) if separator else _own(name)
    if len(steps) < 2:
        raise ValueError(
            f"name must be a network whose family comes in several sizes, got {name!r}; choose "
            "another, such as resnet20, resnet18, vit-micro/4 or torchvision:efficientnet_b0"
        )
    return steps


def _own(name: str) -> tuple[str, ...]:
    families = [
        tuple(f"resnet{layers}" for layers in NARROW_LAYERS),
        tuple(f"resnet{layers}" for layers in LAYERS),
        tuple(each for each in known() if each.startswith("wrn-")),
        tuple(f"airbench{accuracy}" for accuracy in AIRBENCH),
    ]
    if name.startswith("vit-"):
        _, _, patch = name.partition("/")
        shapes = dict.fromkeys(n.partition("/")[0] for n in known() if n.startswith("vit-"))
        families.append(tuple(f"{shape}/{patch}" for shape in shapes))
    return next((family for family in families if name in family), ())


def _published(library: str, name: str) -> tuple[str, ...]:
    model, at, weights = name.partition("@")
    for pattern in PUBLISHED:
        if own := re.fullmatch(pattern, model):
            found = ((each, re.fullmatch(pattern, each)) for each in _models(library))
            alike = [each for each, match in found if match and match.groups() == own.groups()]
            return tuple(f"{library}:{each}{at}{weights}" for each in alike)
    return ()


def _models(library: str) -> list[str]:
    """A library is imported only now: torchvision and timm take seconds."""
    if library == "torchvision":
        import torchvision

        return torchvision.models.list_models(module=torchvision.models)
    if library == "timm":
        import timm

        return timm.list_models()
    return []
