"""Finds a network's self-attention, and the linear maps that it consists of."""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .vision_transformer import Attention

PROJECTIONS = ("query", "key", "value", "output")
"""The four linear maps of attention, in our order."""

Part = TypeVar("Part", bound=nn.Module)

_JOINT = ("qkv", "to_qkv")
_SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
_IN_THIRDS = {
    "timm.layers.attention": ("Attention", "AttentionRope"),
    "timm.models.vision_transformer": ("Attention",),  # of an older timm
    "timm.models.eva": ("EvaAttention",),
    "timm.models.swin_transformer": ("WindowAttention",),
    "torchvision.models.maxvit": ("RelativePositionalMultiHeadAttention",),
}  # by the module that defines the forward pass
_OUTPUT = ("proj", "out_proj", "o_proj", "merge")


@dataclass(frozen=True)
class Projection:
    """One projection of one attention.

    Args:
        path: Name of its linear module.
        part: Its third of the outputs of a joint projection of queries, keys and values; None
            where the module is the projection.
        inputs: Number of input features.
        outputs: Number of output features.
    """

    path: str
    part: int | None
    inputs: int
    outputs: int

    def rows(self) -> slice:
        """Its rows of the module's weight."""
        start = (self.part or 0) * self.outputs
        return slice(start, start + self.outputs)


@dataclass(frozen=True)
class AttentionPlace:
    """One self-attention in a network.

    Args:
        path: Name of the module that holds its projections.
        projections: By their names in :data:`PROJECTIONS`; ``output`` is missing where no linear
            map follows.
        in_thirds: Whether a joint projection is known to return all queries, then all keys, then
            all values; otherwise they may be interleaved, such as head by head.
    """

    path: str
    projections: dict[str, Projection]
    in_thirds: bool = True

    def within(self, block: str) -> bool:
        """Return whether it is part of the module of this name."""
        return not block or self.path == block or self.path.startswith(f"{block}.")


def find_attention(model: nn.Module) -> list[AttentionPlace]:
    """Find every self-attention, in the order of registration.

    It is recognised by its linear maps: one named ``qkv`` or ``to_qkv`` (ours, timm, torchvision),
    or three named ``query``, ``key``, ``value`` or ``q_proj``, ``k_proj``, ``v_proj`` (Hugging
    Face). A ``torch.nn.MultiheadAttention`` must be opened first (:func:`open_attention`).

    Example:
        >>> from deepens.ensembles.backbones import build
        >>> from deepens.ensembles.backbones.attention import find_attention
        >>> network = build("vit-micro/4", num_classes=10, channels=1, image_size=8)
        >>> places = find_attention(network.body)
        >>> len(places), places[0].projections["key"]
        (4, Projection(path='blocks.0.attn.qkv', part=1, inputs=96, outputs=96))
    """
    return [
        AttentionPlace(path, projections, _in_thirds(module, projections))
        for path, module in model.named_modules()
        if (projections := _projections(model, path, module))
    ]


def has_attention(model: nn.Module) -> bool:
    """Return whether a network has self-attention that can be found or opened."""
    multihead = any(isinstance(part, nn.MultiheadAttention) for part in model.modules())
    return multihead or bool(find_attention(model))


def _projections(model: nn.Module, path: str, module: nn.Module) -> dict[str, Projection]:
    found: dict[str, Projection] = {}
    start = f"{path}." if path else ""
    for name in _JOINT:
        joint = _linear(module, name)
        if joint is not None and joint.out_features % 3 == 0:
            for part, projection in enumerate(PROJECTIONS[:3]):
                third = joint.out_features // 3
                found[projection] = Projection(start + name, part, joint.in_features, third)
    for names in _SEPARATE:
        linears = [linear for name in names if (linear := _linear(module, name)) is not None]
        if not found and len(linears) == len(names):
            for projection, name, linear in zip(PROJECTIONS, names, linears, strict=False):
                found[projection] = _whole(start + name, linear)
    if not found:
        return {}
    for name in _OUTPUT:
        if (linear := _linear(module, name)) is not None:
            return found | {"output": _whole(start + name, linear)}
    # Hugging Face's older layout: attention.attention beside attention.output.dense.
    parent = path.rpartition(".")[0]
    beside = getattr(model.get_submodule(parent), "output", None) if path else None
    if (linear := _linear(beside, "dense")) is not None:
        found["output"] = _whole(f"{parent}.output.dense".removeprefix("."), linear)
    return found


def _in_thirds(module: nn.Module, projections: dict[str, Projection]) -> bool:
    """Whether queries, keys and values are apart, or in thirds by a forward pass that we know."""
    if projections["query"].part is None:
        return True
    forward = type(module).forward
    if forward in (Attention.forward, JointAttention.forward):
        return True
    owner, _, method = getattr(forward, "__qualname__", "").rpartition(".")
    known = _IN_THIRDS.get(getattr(forward, "__module__", ""), ())
    return method == "forward" and owner in known


def _linear(module: nn.Module | None, name: str) -> nn.Linear | None:
    part = getattr(module, name, None)
    return part if isinstance(part, nn.Linear) else None


def _whole(path: str, linear: nn.Linear) -> Projection:
    return Projection(path, None, linear.in_features, linear.out_features)


class JointAttention(nn.Module):
    """A replacement of ``torch.nn.MultiheadAttention`` with its linear maps as modules.

    The original bypasses modules in its products and, in evaluation, its blocks' fused kernel does,
    so that nothing can be added to one projection. The call signature and the parameters are the
    original's; None is returned in place of attention weights.

    Raises:
        ValueError: A module made for keys or values of other sizes than the queries', or with
            learned extra keys.
    """

    _qkv_same_embed_dim = False  # keeps torch's encoder layers from their fused kernel
    in_proj_bias = None

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        if original.in_proj_weight is None or original.bias_k is not None or original.add_zero_attn:
            raise ValueError(
                "base must have attention with queries, keys and values of one size and no extra "
                "keys, got a MultiheadAttention with kdim, vdim, add_bias_kv or add_zero_attn"
            )
        self.num_heads, self.dropout = original.num_heads, original.dropout
        self.batch_first = original.batch_first
        width, bias = original.embed_dim, original.in_proj_bias is not None
        self.qkv = nn.Linear(width, 3 * width, bias=bias, device="meta")
        self.qkv.weight = original.in_proj_weight
        if bias:
            self.qkv.bias = original.in_proj_bias
        self.proj = original.out_proj
        self.train(original.training)

    def forward(
        self,
        query: Float[Tensor, "_ _ features"],
        key: Float[Tensor, "_ _ features"],
        value: Float[Tensor, "_ _ features"],
        key_padding_mask: Shaped[Tensor, "batch tokens"] | None = None,
        need_weights: bool = True,
        attn_mask: Shaped[Tensor, "..."] | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "_ _ features"], None]:
        """Return the attended tokens, and None; a ValueError for keys other than the queries."""
        if key is not query or value is not query:
            raise ValueError(
                "base must attend from its tokens to themselves, got other keys or values than "
                "queries in a MultiheadAttention"
            )
        tokens = query if self.batch_first else query.transpose(0, 1)
        split = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        mask = self._mask(queries, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
        out = self.proj(attended.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _mask(self, queries: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores; torch's are True where hidden."""
        total = None
        if mask is not None:
            total = _additive(mask, queries)
            if total.ndim == 3:
                total = total.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            hidden = _additive(padding, queries)[:, None, None]
            total = hidden if total is None else total + hidden
        return total

    def original(self) -> nn.MultiheadAttention:
        """Return the original module, with the same parameters."""
        original = nn.MultiheadAttention(
            self.qkv.in_features,
            self.num_heads,
            dropout=self.dropout,
            bias=self.qkv.bias is not None,
            batch_first=self.batch_first,
            device="meta",
        )
        original.in_proj_weight = self.qkv.weight  # type: ignore[assignment]
        if self.qkv.bias is not None:
            original.in_proj_bias = self.qkv.bias  # type: ignore[assignment]
        original.out_proj = self.proj  # type: ignore[assignment]
        return original.train(self.training)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    zeros = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill(mask, float("-inf"))


def open_attention(model: nn.Module) -> None:
    """Replace every MultiheadAttention by a :class:`JointAttention`, in place.

    Example:
        >>> from torch import nn
        >>> from deepens.ensembles.backbones.attention import find_attention, open_attention
        >>> block = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> open_attention(block)
        >>> [place.path for place in find_attention(block)]
        ['self_attn']
    """
    for name, part in _parts(model, nn.MultiheadAttention):
        model.set_submodule(name, JointAttention(part))


def restore_attention(model: nn.Module) -> None:
    """Undo :func:`open_attention`, in place."""
    for name, part in _parts(model, JointAttention):
        model.set_submodule(name, part.original())


def _parts(model: nn.Module, kind: type[Part]) -> list[tuple[str, Part]]:
    return [(name, part) for name, part in model.named_modules() if isinstance(part, kind)]
