r"""Convolution and batch normalisation whose gradients by the images are cheap to differentiate.

When to use it: where a loss contains gradients by the images, as with input-gradient repulsion.
Inside `cheap_second_derivatives` both compute what torch does; their second derivatives, equal up
to rounding, are written out, where torch composes that of batch normalisation of some thirty
operations on whole feature maps, and that of a convolution's weights of a convolution whose kernels
are as large as the images. A training step with FoRDE then takes about two thirds of the time.

With :math:`v` the gradient by an input gradient :math:`g_x`: a convolution has
:math:`g_x = W^T g_y`, so that :math:`\partial v \cdot g_x = (W v)` by :math:`g_y`, and by W it is
the weights' gradient of the images v. Batch normalisation has, with means over a channel's n values
and :math:`\hat x = r (x - \mu)`,

.. math::
    g_x = \gamma r \,[g_y - \overline{g_y} - \hat x\, \overline{g_y \hat x}]

.. math::
    \partial_{g_y} (v \cdot g_x) &= \gamma r \,[v - \bar v - \hat x\, \overline{v \hat x}]

    \partial_\gamma (v \cdot g_x) &= n r \,[\overline{v g_y} - \bar v\, \overline{g_y} -
    \overline{v \hat x}\, \overline{g_y \hat x}]

    \partial_x (v \cdot g_x) &= -\gamma r^2 \,[\hat x\, (\overline{v g_y} - \bar v\, \overline{g_y}
    - 3\, \overline{v \hat x}\, \overline{g_y \hat x}) + v\, \overline{g_y \hat x} + g_y\,
    \overline{v \hat x} - \bar v\, \overline{g_y \hat x} - \overline{g_y}\, \overline{v \hat x}]

Gradients by the parameters can be taken, but not differentiated again.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.overrides import TorchFunctionMode

__all__ = ["cheap_second_derivatives"]

_BACKWARD = torch.ops.aten.convolution_backward.default
_NORM = torch.ops.aten.native_batch_norm.default
_NORM_BACKWARD = torch.ops.aten.native_batch_norm_backward.default


class cheap_second_derivatives(TorchFunctionMode):  # noqa: N801, a context as torch names them
    """Inside, 2-D convolutions and batch normalisation in training mode are those of this file.

    All others, and those under autocast, are torch's own.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.second_derivatives import cheap_second_derivatives
        >>> layer, images = torch.nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2, requires_grad=True)
        >>> with cheap_second_derivatives():
        ...     outputs = layer(images)
        >>> (by_images,) = torch.autograd.grad(outputs.sum(), images, create_graph=True)
        >>> torch.autograd.grad(by_images.sum(), layer.weight)[0].item()  # sum = 4 w
        4.0
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace the two functions where they can be."""
        given = kwargs or {}
        if (ours := _REPLACED.get(function)) is not None:
            found = ours(*args, **given)
            if found is not None:
                return found
        return function(*args, **given)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if isinstance(padding, str) or not _plain(input, weight, bias):
        return None
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    with torch.no_grad():
        outputs = F.conv2d(input, weight, bias, *geometry)
    path: Tensor = _Parameters.apply(outputs, input.detach(), weight, bias, geometry)
    found: Tensor = _Convolution.apply(outputs, path, input, weight, geometry)
    return found


class _Parameters(Function):
    """A tensor that stands for the outputs as a function of the parameters alone.

    Autograd then computes the parameters' gradients only where they are asked for, which within one
    function it cannot know. It has the outputs' shape, and no memory.
    """

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, input: Tensor, weight: Tensor, bias: Any, geometry: Any
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry, ctx.bias = geometry, None if bias is None else list(bias.shape)
        return outputs.new_empty(()).expand(outputs.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        mask = [False, ctx.needs_input_grad[2], ctx.needs_input_grad[3]]
        _, by_weight, by_bias = _convolution_backward(
            gradient, input, weight, ctx.geometry, mask, ctx.bias
        )
        return None, None, by_weight, by_bias, None


class _Convolution(Function):
    """The outputs as a function of the images; of the parameters by `_Parameters`."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, path: Tensor, input: Tensor, weight: Tensor, geometry: Any
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry = geometry
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        by_input = None
        if ctx.needs_input_grad[2]:
            by_input = _InputGradient.apply(gradient, weight, input.detach(), ctx.geometry)
        return None, gradient, by_input, None, None


class _InputGradient(Function):
    """A convolution's gradient by its images, linear in that of the outputs and in the weights."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, input: Tensor, geometry: Any) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.geometry = geometry
        mask = [True, False, False]
        by_input: Tensor = _convolution_backward(gradient, input, weight, geometry, mask)[0]
        return by_input

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight = ctx.saved_tensors
        by_gradient, by_weight = None, None
        if ctx.needs_input_grad[0]:
            by_gradient = F.conv2d(outer, weight, None, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            mask = [False, True, False]
            by_weight = _convolution_backward(gradient, outer, weight, ctx.geometry, mask)[1]
        return by_gradient, by_weight, None, None


def _convolution_backward(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    geometry: tuple[list[int], list[int], list[int], int],
    mask: list[bool],
    bias: list[int] | None = None,
) -> Any:
    stride, padding, dilation, groups = geometry
    none = [0] * len(stride)
    return _BACKWARD(
        gradient, input, weight, bias, stride, padding, dilation, False, none, groups, mask
    )


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    known = _plain(input, weight, bias) and input.numel() > input.shape[1]
    if not training or not known:
        return None
    found: Tensor = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return found


class _BatchNorm(Function):
    """Batch normalisation by the batch's own statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        outputs, mean, scale = _NORM(
            input, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(input, weight, mean, scale)
        ctx.eps = eps
        found: Tensor = outputs
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, scale = ctx.saved_tensors
        found = _NormGradient.apply(gradient, input, weight, mean, scale, ctx.eps)
        needed = zip(found, ctx.needs_input_grad[:3], strict=True)
        return *(each if asked else None for each, asked in needed), None, None, None, None


class _NormGradient(Function):
    """Batch normalisation's gradients by images, weights and bias, as functions of the images."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        input: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_input, by_weight, by_bias = _norm_backward(gradient, input, weight, mean, scale, eps)
        ctx.save_for_backward(gradient, input, weight, mean, scale, by_weight, by_bias)
        ctx.mark_non_differentiable(by_weight, by_bias)
        ctx.eps = eps
        return by_input, by_weight, by_bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradient, input, weight, mean, scale, dots, sums = ctx.saved_tensors
        by_gradient, outer_dots, outer_sums = _norm_backward(
            outer, input, weight, mean, scale, ctx.eps
        )
        count = input.numel() // input.shape[1]
        g, gx, v, vx = (each / count for each in (sums, dots, outer_sums, outer_dots))
        # The kernel's other sum, of a product, with no mean to subtract and no scale.
        none, one = torch.zeros_like(mean), torch.ones_like(scale)
        product = _norm_backward(outer, gradient, None, none, one, 0.0)[1] / count
        rest = product - v * g
        by_weight = None if weight is None else count * scale * (rest - vx * gx)
        factor = -scale.square() if weight is None else -weight * scale.square()
        slope = factor * (rest - 3 * vx * gx) * scale
        offset = -factor * (v * gx + g * vx) - slope * mean
        by_input = torch.addcmul(_channels(offset), input, _channels(slope))
        by_input.addcmul_(outer, _channels(factor * gx)).addcmul_(gradient, _channels(factor * vx))
        return by_gradient, by_input, by_weight, None, None, None


def _norm_backward(
    gradient: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = _NORM_BACKWARD(
        gradient, input, weight, None, None, mean, scale, True, eps, [True, True, True]
    )
    return found


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]


def _plain(input: Tensor, *parameters: Tensor | None) -> bool:
    """Whether the images are four-dimensional, of the parameters' type, and no transform is on."""
    alike = all(each is None or each.dtype == input.dtype for each in parameters)
    mixed = torch.is_autocast_enabled(input.device.type)
    transformed = torch._C._are_functorch_transforms_active()
    return input.ndim == 4 and alike and not mixed and not transformed


def _pair(values: int | tuple[int, ...] | list[int]) -> list[int]:
    return [values, values] if isinstance(values, int) else list(values)


_REPLACED: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.conv2d: _conv2d,
    F.batch_norm: _batch_norm,
}
