"""Layers that hold several members' weights and keep the members apart.

Channels stand member after member: images are ``[B, m*C, H, W]``, tokens ``[B, L, m*D]``.
Convolutions, BatchNorm and GroupNorm have such a form already; here are the layers that lack one.
Each keeps the names of the parameters of the layer it stands for, joined along the first axis.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["GroupedAttention", "GroupedLayerNorm", "GroupedLinear", "GroupedPReLU"]


def _joined(parameter: Tensor | None, num_members: int) -> Any:
    """Room for the members' parameters, one after the other along the first axis, if any."""
    if parameter is None:
        return None
    shape = (num_members * parameter.shape[0], *parameter.shape[1:])
    return nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device="meta"))


class GroupedLinear(nn.Module):
    r"""One linear map per member, each on its own slice of the last axis.

    :math:`y_m = W_m x_m + b_m`. Where the input has one member's width, as flattened images have,
    every member reads the whole of it.

    Args:
        linear: One member's layer, for its sizes.
        num_members: m, the number of members.
        parts: 3 for a joint projection to queries, keys and values, which are separated next. The
            result is then part after part, and member after member inside a part.
    """

    def __init__(self, linear: nn.Linear, num_members: int, *, parts: int = 1) -> None:
        super().__init__()
        self.num_members = num_members
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.parts = parts
        self.weight = _joined(linear.weight, num_members)
        self.bias = _joined(linear.bias, num_members)

    def forward(self, values: Float[Tensor, "*leading _"]) -> Float[Tensor, "*leading _"]:
        """Each member's map of its own slice."""
        if values.shape[-1] == self.in_features:
            result = F.linear(values, self.weight, self.bias)
        else:
            result = grouped_linear(values, self.weight, self.bias, self.num_members)
        if self.parts == 1:
            return result
        by_part = result.unflatten(-1, (self.num_members, self.parts, -1)).transpose(-3, -2)
        return by_part.flatten(-3)


def grouped_linear(values: Tensor, weight: Tensor, bias: Tensor | None, num_members: int) -> Tensor:
    """Map ``[..., m*I]`` to ``[..., m*O]`` by one batched product; the weight is ``[m*O, I]``."""
    own = weight.unflatten(0, (num_members, -1)).transpose(1, 2)
    rows = values.reshape(-1, num_members, own.shape[1]).transpose(0, 1)
    if bias is None:
        result = torch.bmm(rows, own)
    else:
        result = torch.baddbmm(bias.unflatten(0, (num_members, 1, -1)), rows, own)
    return result.transpose(0, 1).reshape(*values.shape[:-1], -1)


class GroupedLayerNorm(nn.Module):
    """LayerNorm of each member's own channels.

    The channels are on the last axis, or on axis 1 for the norms of images ``[B, C, H, W]`` that
    torchvision and timm derive from ``nn.LayerNorm``. A norm of single attention heads
    ``[B, m*heads, L, d]`` gets each member's scale on its own heads.
    """

    def __init__(self, norm: nn.LayerNorm, num_members: int) -> None:
        super().__init__()
        self.num_members = num_members
        self.width = norm.normalized_shape[0]
        self.eps = norm.eps
        self.channels_first = _reads_channels_first(norm)
        self.weight = _joined(norm.weight, num_members)
        self.bias = _joined(norm.bias, num_members)

    def forward(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The normalised values."""
        if self.channels_first:
            return self._normalise(values.movedim(1, -1)).movedim(-1, 1)
        if values.shape[-1] == self.width and values.ndim == 4:
            heads = values.unflatten(1, (self.num_members, -1)).movedim(1, -2)
            own = self._normalise(heads.flatten(-2)).unflatten(-1, (self.num_members, -1))
            return own.movedim(-2, 1).flatten(1, 2)
        return self._normalise(values)

    def _normalise(self, values: Tensor) -> Tensor:
        own = values.unflatten(-1, (self.num_members, self.width))
        result = F.layer_norm(own, (self.width,), eps=self.eps).flatten(-2)
        if self.weight is not None:
            result = result * self.weight
        return result if self.bias is None else result + self.bias


def _reads_channels_first(norm: nn.LayerNorm) -> bool:
    """Ask the norm itself: only a norm of axis 1 takes a last axis of another length."""
    width = norm.normalized_shape[0]
    if type(norm) is nn.LayerNorm or norm.weight is None:
        return False
    try:
        with torch.no_grad():
            norm(norm.weight.new_zeros(1, width, 1, width + 1))
    except RuntimeError:
        return False
    return True


class GroupedPReLU(nn.Module):
    """PReLU with each member's own slopes, one per member or one per channel."""

    def __init__(self, activation: nn.PReLU, num_members: int) -> None:
        super().__init__()
        self.num_members = num_members
        self.num_parameters = activation.num_parameters
        self.weight = _joined(activation.weight, num_members)

    def forward(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The activation."""
        if self.num_parameters > 1:
            return F.prelu(values, self.weight)
        axis = -1 if values.ndim == 3 else 1  # tokens have their channels last
        slopes = self.weight.repeat_interleave(values.shape[axis] // self.num_members)
        shape = [1] * values.ndim
        shape[axis] = -1
        return torch.where(values > 0, values, values * slopes.view(shape))


class GroupedAttention(nn.Module):
    """``nn.MultiheadAttention`` for all members: their heads side by side, attended in one call.

    Raises:
        ValueError: An attention with extra biases or other widths.
    """

    _qkv_same_embed_dim = False  # what keeps torch's own encoder layers off their fused kernel

    def __init__(self, attention: nn.MultiheadAttention, num_members: int) -> None:
        super().__init__()
        if attention.in_proj_weight is None or attention.bias_k is not None:
            raise ValueError("keys and values of another width, or with a bias of their own")
        if attention.add_zero_attn:
            raise ValueError("add_zero_attn")
        self.num_members = num_members
        self.num_heads = attention.num_heads
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        self.in_proj_weight = _joined(attention.in_proj_weight, num_members)
        self.in_proj_bias = _joined(attention.in_proj_bias, num_members)
        # Under its own name, so that the parameters are called as in the plain attention.
        self.out_proj = GroupedLinear(attention.out_proj, num_members)

    def forward(
        self,
        query: Float[Tensor, "_ _ width"],
        key: Float[Tensor, "_ _ width"],
        value: Float[Tensor, "_ _ width"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "_ _ width"], None]:
        """Attend over ``[B, L, m*D]``, or ``[L, B, m*D]``; no attention weights are returned.

        Raises:
            ValueError: A mask.
        """
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise ValueError("attention with a mask has no grouped form")
        m, weights, biases = self.num_members, self.in_proj_weight, self.in_proj_bias
        projected = []
        for part, values in enumerate((query, key, value)):
            values = values if self.batch_first else values.transpose(0, 1)
            weight = weights.unflatten(0, (m, 3, -1))[:, part].flatten(0, 1)
            bias = None if biases is None else biases.unflatten(0, (m, 3, -1))[:, part].flatten()
            heads = grouped_linear(values, weight, bias, m).unflatten(-1, (m * self.num_heads, -1))
            projected.append(heads.transpose(1, 2))
        dropout = self.dropout if self.training else 0.0
        queries, keys, contents = projected
        attended = F.scaled_dot_product_attention(queries, keys, contents, dropout_p=dropout)
        result = self.out_proj(attended.transpose(1, 2).flatten(2))
        return (result if self.batch_first else result.transpose(0, 1)), None
