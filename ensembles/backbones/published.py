"""What adapting the networks of torchvision and timm has in common."""

import difflib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from .network import Network, initialise_convolutions
from .preprocessing import Normalisation, Preprocessing

SMALL_IMAGE = 64
"""Images up to this side, in pixels, are small: stems made for 224 pixels are adapted."""


@dataclass(frozen=True)
class Task:
    """What a network is built for; without a normalisation, images in [0, 1]."""

    num_classes: int
    channels: int
    image_size: int
    normalisation: Normalisation | None = None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known names most like an unknown one, as the end of an error message.

    Example:
        >>> from deepens.ensembles.backbones.published import nearest
        >>> nearest("resnet19", ["resnet18", "vgg11"])
        "; nearest known: 'resnet18'"
    """
    alike = difflib.get_close_matches(name, list(known), n=3)
    return f"; nearest known: {', '.join(map(repr, alike))}" if alike else ""


_LOADING: ContextVar[bool] = ContextVar("loading", default=True)


@contextmanager
def architecture_only() -> Iterator[None]:
    """Build pre-trained networks without loading their weights, which then come from a run.

    Their preprocessing is included, their weights are drawn freshly, and nothing is downloaded.

    Example:
        >>> from deepens.ensembles.backbones import architecture_only, build
        >>> name = "torchvision:resnet18@IMAGENET1K_V1"
        >>> with architecture_only():
        ...     network = build(name, num_classes=10, channels=3, image_size=32)
        >>> network.head
        Linear(in_features=512, out_features=10, bias=True)
    """
    token = _LOADING.set(False)
    try:
        yield
    finally:
        _LOADING.reset(token)


def loads_weights() -> bool:
    """Return whether named weights are to be loaded."""
    return _LOADING.get()


def replace_input_channels(model: nn.Module, channels: int) -> None:
    """Redraw the first convolution where it has another number of image channels, in place."""
    name, first = _convolutions(model)[0]
    if first.in_channels != channels:
        _replace(model, name, first, channels=channels)


def adapt_stem(model: nn.Module, *, name: str, image_size: int) -> None:
    """Adapt a freshly drawn network's stem to images of up to 64 pixels, in place.

    A first convolution of 7x7 and stride 2 that is followed by a max pooling of stride 2 before the
    next convolution (ResNet, ResNeXt, wide ResNet, DenseNet, GoogLeNet) becomes a freshly drawn 3x3
    convolution of stride 1, and the pooling is removed. Any other stem stays as published, with a
    warning by the network's name if its first convolution has a stride above 1.
    """
    if image_size > SMALL_IMAGE:
        return
    name_of_first, first = _convolutions(model)[0]
    pooling = _pooling_before_second_convolution(model)
    if first.kernel_size == (7, 7) and first.stride == (2, 2) and pooling is not None:
        _replace(model, name_of_first, first, channels=first.in_channels, small=True)
        model.set_submodule(pooling, nn.Identity())
    elif max(first.stride) > 1:
        warnings.warn(
            f"{name} has no rule for small images: only its head and input channels are adapted, "
            f"and its stem of stride {max(first.stride)} sees images of {image_size} pixels",
            UserWarning,
            stacklevel=2,
        )


def _convolutions(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]


def _pooling_before_second_convolution(model: nn.Module) -> str | None:
    seen = 0
    for name, part in model.named_modules():
        seen += isinstance(part, nn.Conv2d)
        if seen > 1:
            return None
        if seen == 1 and isinstance(part, nn.MaxPool2d) and part.stride in (2, (2, 2)):
            return name
    return None


def _replace(
    model: nn.Module, name: str, old: nn.Conv2d, *, channels: int, small: bool = False
) -> None:
    """Replace a convolution by a freshly drawn one."""
    shape: tuple[Any, ...] = (old.kernel_size, old.stride, old.padding)
    kernel_size, stride, padding = (3, 1, 1) if small else shape
    new = nn.Conv2d(
        channels, old.out_channels, kernel_size, stride, padding, bias=old.bias is not None
    )
    initialise_convolutions(new)
    model.set_submodule(name, new)


def pre_trained(
    model: nn.Module,
    head: nn.Module,
    task: Task,
    *,
    features: int,
    mean: Iterable[float],
    std: Iterable[float],
    size: int,
    interpolation: str,
) -> Network:
    """Put the preprocessing that a published body expects before it, and a head behind it.

    The published head stays if it is linear and has the task's number of classes.
    """
    if not isinstance(head, nn.Linear) or head.out_features != task.num_classes:
        head = nn.Linear(features, task.num_classes)
    preprocessing = Preprocessing(
        task.normalisation,
        Normalisation(mean=tuple(mean), std=tuple(std)),
        channels=task.channels,
        size=size,
        interpolation=interpolation,
    )
    return Network(nn.Sequential(preprocessing, model), head)
