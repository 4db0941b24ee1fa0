"""Plain networks by name, of which an ensemble's members are built."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .airbench import AIRBENCH, airbench
from .convolutional import LAYERS, NARROW_LAYERS, narrow_resnet, resnet, small_cnn, wide_resnet
from .multi_exit import MultiExitNetwork
from .network import Network
from .preprocessing import Normalisation, Preprocessing
from .published import Task, architecture_only, nearest
from .vision_transformer import SHAPES, vision_transformer

__all__ = [
    "MultiExitNetwork",
    "Network",
    "Normalisation",
    "Preprocessing",
    "architecture_only",
    "build",
    "build_multi_exit",
    "known",
    "register_backbone",
]

_CONVOLUTIONAL: dict[str, Callable[..., Network]] = {
    "small-cnn": small_cnn,
    **{f"resnet{layers}": partial(narrow_resnet, layers) for layers in NARROW_LAYERS},
    **{f"resnet{layers}": partial(resnet, layers) for layers in LAYERS},
    **{
        f"wrn-{layers}-{widening}": partial(wide_resnet, layers, widening)
        for layers, widening in ((16, 4), (28, 2), (28, 10), (40, 2))
    },
    **{f"airbench{accuracy}": partial(airbench, accuracy) for accuracy in AIRBENCH},
}
_PATCH_SIZES = (2, 4, 8)
_TRANSFORMER = re.compile(rf"({'|'.join(SHAPES)})/([1-9][0-9]*)")

_REGISTERED: dict[str, Callable[..., Network]] = {}


def register_backbone(name: str, make: Callable[..., Network]) -> None:
    """Add an architecture of another package to those of :func:`build`.

    Args:
        name: Its name, as in ``--backbone``.
        make: ``make(num_classes=, channels=, image_size=, width=, depth=)`` returns a new network,
            initialised from torch's global random generator.

    Raises:
        ValueError: The name is taken, or has a colon, which names of other libraries have.

    Example:
        >>> from deepens.ensembles.backbones import register_backbone
        >>> register_backbone("resnet18", lambda **sizes: None)
        Traceback (most recent call last):
        ValueError: the backbone 'resnet18' is known already; choose another name
    """
    if name in known():
        raise ValueError(f"the backbone {name!r} is known already; choose another name")
    if not name or ":" in name:
        raise ValueError(f"the name of a backbone must have no colon, got {name!r}")
    _REGISTERED[name] = make


def known() -> tuple[str, ...]:
    """Return the names of our own networks; :func:`build` also takes those of other libraries.

    The number behind a ``vit-`` name is the patch size; any that divides the image size works.

    Example:
        >>> from deepens.ensembles.backbones import known
        >>> "resnet18" in known()
        True
    """
    return (
        *_CONVOLUTIONAL,
        *(f"{shape}/{size}" for shape in SHAPES for size in _PATCH_SIZES),
        *_REGISTERED,
    )


PUBLISHED = ("torchvision", "timm")
"""Libraries whose networks are named ``LIBRARY:NAME``."""


def build(
    name: str,
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    width: float = 1.0,
    depth: float = 1.0,
    normalisation: Normalisation | None = None,
) -> Network:
    """Build a plain network by its name, freshly drawn from torch's global random generator.

    ================================  ==========================================================
    name                              network
    ================================  ==========================================================
    ``small-cnn``                     three convolutions, for digits of 8x8 pixels
    ``resnet8``, ``14``, ``20``, ...  He et al.'s narrow CIFAR networks of 6n + 2 layers
    ``resnet18``, ``34``, ``50``      their ImageNet networks with a stem for small images
    ``wrn-28-10``, ...                wide residual networks
    ``airbench94``, ``95``, ``96``    Jordan's networks for ``--recipe fast``
    ``vit-micro/P``, ``tiny``, ...    vision transformers with patches of P pixels
    ``torchvision:NAME[@WEIGHTS]``    any classification network of torchvision
    ``timm:NAME[@pretrained]``        any network of timm
    ================================  ==========================================================

    Args:
        name: The network's name, as in the table and in :func:`known`.
        num_classes: Number of classes, >= 2.
        channels: Channels of the images, 1 or 3.
        image_size: Side of the images in pixels.
        width: Multiplies every width, each rounded to a whole number (vision transformers: the
            head size; the number of heads stays). Only for our own networks.
        depth: Multiplies every stage's number of blocks, each rounded to a whole number >= 1.
            Only for our own networks.
        normalisation: That of the images, None for images in [0, 1]; for pre-trained networks,
            which expect a normalisation of their own.

    Raises:
        ValueError: If the name is unknown (the nearest known are named), a size is out of bounds,
            or a published network is to be widened or deepened.

    Example:
        >>> from deepens.ensembles.backbones import build
        >>> network = build("small-cnn", num_classes=10, channels=1, image_size=8, width=1.5)
        >>> network.head
        Linear(in_features=48, out_features=10, bias=True)
    """
    _check(num_classes, channels)
    if image_size < 1:
        raise ValueError(f"image_size must be >= 1, got {image_size}")
    factors: dict[str, Any] = {"width": width, "depth": depth}
    check_name(name, **factors)
    library, _, published_name = name.partition(":")
    if library in PUBLISHED:
        task = Task(num_classes, channels, image_size, normalisation)
        return _published(library, published_name, task)
    sizes = factors | {"num_classes": num_classes, "channels": channels}
    if name in _CONVOLUTIONAL:
        return _CONVOLUTIONAL[name](**sizes)
    sizes["image_size"] = image_size
    if name in _REGISTERED:
        return _REGISTERED[name](**sizes)
    if match := _TRANSFORMER.fullmatch(name):
        return vision_transformer(SHAPES[match[1]], patch_size=int(match[2]), **sizes)
    raise _unknown(name)


def check_name(name: str, *, width: float = 1.0, depth: float = 1.0) -> None:
    """Refuse a name that `build` does not know, or factors that its network cannot be scaled by.

    Nothing is built.
    """
    factors = {"width": width, "depth": depth}
    for argument, factor in factors.items():
        if not 0 < factor < math.inf:
            raise ValueError(f"{argument} must be > 0, got {factor}")
    library, separator, published_name = name.partition(":")
    if not (separator and library in PUBLISHED):
        if not (name in _CONVOLUTIONAL or name in _REGISTERED or _TRANSFORMER.fullmatch(name)):
            raise _unknown(name)
        return
    for argument, factor in factors.items():
        if factor != 1:
            raise ValueError(
                f"{argument} must be 1 for the published network {name}, got {factor}: choose "
                "a larger network of its family, or one of our own (resnet18, wrn-28-10, ...)"
            )
    if library == "torchvision":
        from .torchvision_models import check_torchvision_name as check
    else:
        from .timm_models import check_timm_name as check
    check(published_name)


def _unknown(name: str) -> ValueError:
    return ValueError(f"name must be a known network, got {name!r}{nearest(name, known())}")


def build_multi_exit(
    name: str,
    *,
    num_exits: int,
    num_classes: int,
    channels: int,
    image_size: int = 32,
    width: float = 1.0,
    depth: float = 1.0,
) -> MultiExitNetwork:
    """Build a `MultiExitNetwork` by the name of a network that has places for exits, freshly drawn.

    These are the residual networks, with three stages (``resnet8`` and the like) or four
    (``resnet18``), the three blocks of ``airbench94`` and its like, and registered networks with
    ``exit_places``. Arguments are as for :func:`build`.

    Raises:
        ValueError: If the network has no exits, or a size is out of bounds.

    Example:
        >>> from deepens.ensembles.backbones import build_multi_exit
        >>> len(build_multi_exit("resnet14", num_exits=2, num_classes=10, channels=3).stages())
        2
    """
    plain = build(
        name,
        num_classes=num_classes,
        channels=channels,
        image_size=image_size,
        width=width,
        depth=depth,
    )
    return MultiExitNetwork(plain, num_exits)


def _check(num_classes: int, channels: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")


def _published(library: str, name: str, task: Task) -> Network:
    """A library is imported only now: torchvision and timm take seconds."""
    if library == "torchvision":
        from .torchvision_models import torchvision_network as make
    else:
        from .timm_models import timm_network as make
    network = make(name, task)
    if "@" in name:  # behind a preprocessing that resizes, every image fits
        return network
    images = torch.zeros(2, task.channels, task.image_size, task.image_size)
    try:
        with torch.no_grad():
            network.eval()(images.to(next(network.parameters()).device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{library}:{name} cannot take images of {task.image_size} x {task.image_size} pixels "
            f"({str(error).splitlines()[0]}); choose a network for small images, or larger images"
        ) from error
    return network.train()
