"""Multiply-accumulates and parameters, counted."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .passes import ImageShape, check_image_shape, device_of, evaluating, random_images

__all__ = ["count_macs", "count_parameters"]

FREE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.ReLU, nn.GELU, nn.SiLU)
"""Layers that count as nothing and whose output has the form of their input."""


def count_parameters(model: nn.Module) -> int:
    """Return the number of entries of all parameters, each shared one counted once.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.macs import count_parameters
        >>> count_parameters(nn.Linear(64, 10))
        650
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_shape: ImageShape) -> int:
    """Count the multiply-accumulates (MACs) of one image's way through a model in evaluation mode.

    A convolution costs ``out_height * out_width * out_channels * in_channels / groups *
    kernel_height * kernel_width``, a linear map ``rows * in * out``, attention ``2 L² D`` beside
    its projections. Norms, activations, pooling and biases count as nothing, as is customary.

    The pass runs on the meta device, on a copy that holds no weights; a model that cannot run there
    is passed one image for real. Attention runs in its mathematical form, of plain matrix products:
    fused kernels have formulas of their own, which are missing for some devices.

    Args:
        model: Any module that takes images.
        image_shape: Channels, height and width of an image, each >= 1 or a ``ValueError``.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.macs import count_macs
        >>> count_macs(nn.Conv2d(64, 128, 3, padding=1, groups=4), (64, 32, 32))
        18874368
    """
    check_image_shape(image_shape)
    try:
        return _count(_on_meta(model), torch.empty(1, *image_shape, device="meta"))
    except (NotImplementedError, RuntimeError):
        return _count(model, random_images(1, image_shape, device_of(model)))


def _count(model: nn.Module, images: Tensor) -> int:
    """Count one pass, with every matrix product in the open."""
    from torch.utils.flop_counter import FlopCounterMode  # imports a compiler

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating([model]), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(images)  # what a model does at its first pass alone is no part of its cost
            with FlopCounterMode(display=False) as counter:
                model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops() // 2


def _on_meta(model: nn.Module) -> nn.Module:
    """Copy a model without its weights; what is shared stays shared.

    Layers that count as nothing pass their input on: on the meta device they take most of the time.
    """
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        kept = nn.Parameter(empty, requires_grad=False)
        memo[id(tensor)] = kept if isinstance(tensor, nn.Parameter) else empty
    empty_model = copy.deepcopy(model, memo)
    for module in empty_model.modules():
        if type(module) in FREE:
            module.forward = nn.Identity().forward  # type: ignore[method-assign]
    return empty_model
