"""Any classification network of torchvision, fresh or pre-trained."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision
from torch import nn

from .network import Network
from .published import (
    Task,
    adapt_stem,
    loads_weights,
    nearest,
    pre_trained,
    replace_input_channels,
)

SIDE_HEADS = ("googlenet", "inception_v3")


def torchvision_network(name: str, task: Task) -> Network:
    """Build a network of torchvision with a head for the task's classes.

    Freshly drawn (``resnet18``): the first convolution takes the task's channels, vision
    transformers take its image size, and for small images a ResNet-like stem is adapted (see
    :func:`~.published.adapt_stem`). Pre-trained (``resnet18@IMAGENET1K_V1``): the network stays as
    published, behind a :class:`~.preprocessing.Preprocessing` to its image size and normalisation.
    The head is a fresh ``nn.Linear``, or a pre-trained network's own where the number of classes
    agrees.

    Raises:
        ValueError: If the name or the weights are unknown (the nearest known are named), or the
            network does not end in a linear layer, or a stored file holds more than tensors.
        ConnectionError: If the weights are not on this machine and cannot be downloaded.

    Example:
        >>> from deepens.ensembles.backbones.published import Task
        >>> from deepens.ensembles.backbones.torchvision_models import torchvision_network
        >>> task = Task(num_classes=10, channels=1, image_size=32)
        >>> network = torchvision_network("resnet18", task)
        >>> network.body.conv1
        Conv2d(1, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    check_torchvision_name(name)
    model_name, _, weights_name = name.partition("@")
    if "@" in name:
        return _pre_trained(model_name, weights_name, task)
    model = torchvision.models.get_model(model_name, **_options(model_name, task))
    head_name, head = _last_linear(model, model_name)
    replace_input_channels(model, task.channels)
    adapt_stem(model, name=f"torchvision:{model_name}", image_size=task.image_size)
    model.set_submodule(head_name, nn.Identity())
    return Network(model, nn.Linear(head.in_features, task.num_classes))


def check_torchvision_name(name: str) -> None:
    """Refuse a name that `torchvision_network` does not know; nothing is built."""
    model_name, separator, weights_name = name.partition("@")
    models = torchvision.models.list_models(module=torchvision.models)
    if model_name not in models:
        raise ValueError(
            f"name must be a classification network of torchvision, "
            f"got 'torchvision:{model_name}'{nearest(model_name, models)}"
        )
    choices = torchvision.models.get_model_weights(model_name).__members__
    if separator and weights_name not in choices:
        raise ValueError(
            f"weights of torchvision:{model_name} must be one of {sorted(choices)}, "
            f"got {weights_name!r}"
        )


def _pre_trained(model_name: str, weights_name: str, task: Task) -> Network:
    """Load the weights, and put the preprocessing that they expect before them."""
    weights = torchvision.models.get_model_weights(model_name)[weights_name]
    options: dict[str, Any] = {"weights": weights if loads_weights() else None, "progress": False}
    if model_name in SIDE_HEADS:
        options |= {"aux_logits": False, "transform_input": True}
    try:
        with _tensors_only():
            model = torchvision.models.get_model(model_name, **options)
    except OSError as error:
        raise ConnectionError(
            f"weights {weights_name} of torchvision:{model_name} are not on this machine and "
            f"cannot be downloaded ({error}): fetch {weights.url} elsewhere and put it into "
            f"{torch.hub.get_dir()}/checkpoints"
        ) from error
    except UnpicklingError as error:
        raise ValueError(
            f"the stored weights {weights_name} of torchvision:{model_name} hold something other "
            f"than tensors; delete the file in {torch.hub.get_dir()}/checkpoints"
        ) from error
    head_name, head = _last_linear(model, model_name)
    model.set_submodule(head_name, nn.Identity())
    expected = weights.transforms()
    return pre_trained(
        model,
        head,
        task,
        features=head.in_features,
        mean=expected.mean,
        std=expected.std,
        size=expected.crop_size[0],
        interpolation=expected.interpolation.value,
    )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Let torch read tensors only: torchvision's files are pickles, and a pickle can run code."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _options(model_name: str, task: Task) -> dict[str, Any]:
    """Arguments of a freshly drawn network."""
    if model_name in SIDE_HEADS:
        return {"aux_logits": False, "init_weights": True}
    if model_name.startswith("vit_"):
        patch_size = int(model_name.rpartition("_")[2])
        if task.image_size % patch_size:
            raise ValueError(
                f"image_size must be a multiple of {patch_size} for torchvision:{model_name}, "
                f"got {task.image_size}"
            )
        return {"image_size": task.image_size}
    if model_name.startswith("maxvit_"):
        return {"input_size": (task.image_size, task.image_size)}
    return {}


def _last_linear(model: nn.Module, model_name: str) -> tuple[str, nn.Linear]:
    """Return the last linear layer: in torchvision's order of registration it is the head."""
    linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(
            f"name must be a network that ends in a linear layer, got 'torchvision:{model_name}'"
        )
    return linear[-1]
