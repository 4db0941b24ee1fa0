"""Pointwise convolutions with a stride, computed on the subsampled images."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SubsampledConv2d", "to_channels_last"]


class SubsampledConv2d(nn.Conv2d):
    """A 1x1 convolution with stride s on every s-th row and column: what it reads, and no more.

    When to use it: in place of ``nn.Conv2d(in_channels, out_channels, 1, stride=s)``, as in the
    shortcuts of residual networks. Parameters, shapes and values are the same,

        y[b, :, i, j] = W x[b, :, s*i, s*j] + bias,

    at about the same speed. It avoids a fault of the oneDNN that comes with torch 2.14.1: on
    processors with AVX-512 the backward pass of such a layer with fewer than 16 input channels
    writes outside its memory for channels-last images of 62 pixels and more.

    Args:
        *arguments: Those of `torch.nn.Conv2d`; the kernel is 1x1, without padding.
        **options: Likewise.

    Raises:
        ValueError: The kernel is larger, or padding is asked for.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones.pointwise import SubsampledConv2d
        >>> layer = SubsampledConv2d(3, 8, 1, stride=2)
        >>> images = torch.rand(4, 3, 9, 9)
        >>> bool(torch.allclose(layer(images), torch.nn.Conv2d.forward(layer, images)))
        True
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not is_pointwise(self):
            raise ValueError(
                f"a subsampled convolution needs a 1x1 kernel and no padding, got kernel_size "
                f"{self.kernel_size} and padding {self.padding!r}; use torch.nn.Conv2d"
            )

    def forward(
        self, input: Float[Tensor, "*batch in_channels height width"]
    ) -> Float[Tensor, "*batch out_channels new_height new_width"]:
        """Return the convolution of every s-th row and column."""
        read = subsampled(input, self.stride)
        return F.conv2d(read, self.weight, self.bias, groups=self.groups)


def to_channels_last(model: nn.Module) -> int:
    """Store a network's weights channels-last, safely: strided pointwise convolutions subsample.

    When to use it: for any network that is to see channels-last images, in place of
    ``model.to(memory_format=torch.channels_last)``. Plain 1x1 convolutions with a stride become a
    `SubsampledConv2d`; subclasses of `torch.nn.Conv2d` are kept, read a subsampled input and have
    stride 1 from then on. Values stay the same, and so do the names of parameters.

    Args:
        model: A network or an ensemble; it is changed in place.

    Returns:
        How many layers were rewritten.
    """
    rewritten = 0
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or isinstance(module, SubsampledConv2d):
            continue
        if not is_pointwise(module) or max(module.stride) == 1:
            continue
        rewritten += 1
        if type(module) is nn.Conv2d:
            module.__class__ = SubsampledConv2d
        else:
            module.register_forward_pre_hook(_Subsample(module.stride))
            module.stride = (1, 1)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return rewritten


def is_pointwise(module: nn.Conv2d) -> bool:
    """Whether a convolution reads single places: a 1x1 kernel without padding."""
    return module.kernel_size == (1, 1) and module.padding in ((0, 0), "valid", "same")


def subsampled(images: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Every s-th row and column: pooling of single places, whose gradient keeps its layout."""
    return images if max(stride) == 1 else F.avg_pool2d(images, 1, stride)


class _Subsample:
    """A hook that hands a layer every s-th row and column of its input."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        self.stride = stride

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *others = inputs
        return (subsampled(images, self.stride), *others)
