"""Where a network's self-attention is, and the linear maps that it is made of."""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .vision_transformer import Attention

__all__ = [
    "PROJECTIONS",
    "AttentionPlace",
    "JointAttention",
    "Projection",
    "find_attention",
    "has_attention",
    "open_attention",
    "restore_attention",
]

PROJECTIONS = ("query", "key", "value", "output")
"""The four linear maps of attention, in the order in which everything of ours walks them."""

Part = TypeVar("Part", bound=nn.Module)

_JOINT = ("qkv", "to_qkv")
_SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))
_IN_THIRDS = {
    "timm.layers.attention": ("Attention", "AttentionRope"),
    "timm.models.vision_transformer": ("Attention",),  # of an older timm
    "timm.models.eva": ("EvaAttention",),
    "timm.models.swin_transformer": ("WindowAttention",),
    "torchvision.models.maxvit": ("RelativePositionalMultiHeadAttention",),
}  # by where the forward pass is defined, beside our own
_OUTPUT = ("proj", "out_proj", "o_proj", "merge")


@dataclass(frozen=True)
class Projection:
    """One projection of one attention.

    Args:
        path: Name of its linear module.
        part: Which third of the module's outputs it is, where one module makes queries, keys and
            values together; None where the module is the projection.
        inputs: Features that it reads.
        outputs: Features that it makes.
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
        in_thirds: Whether a joint projection is known to make all queries, then all keys, then
            all values; otherwise the parts may be mixed (head by head, say), and are right only
            together.
    """

    path: str
    projections: dict[str, Projection]
    in_thirds: bool = True

    def within(self, block: str) -> bool:
        """Return whether it is a part of the module of this name."""
        return not block or self.path == block or self.path.startswith(f"{block}.")


def find_attention(model: nn.Module) -> list[AttentionPlace]:
    """Find every self-attention, in the order of registration.

    Known by its linear maps: one named ``qkv`` or ``to_qkv`` (ours, timm, torchvision), or three
    named ``query``, ``key``, ``value`` or ``q_proj``, ``k_proj``, ``v_proj`` (Hugging Face). A
    ``torch.nn.MultiheadAttention`` has none to be found: see :func:`open_attention`. In which
    order a joint one makes queries, keys and values is known by the forward pass alone: of
    attention that is not ours, timm's or torchvision's it counts as unknown.

    Args:
        model: A network, or a part of it.

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
    """Return whether a network attends anywhere, in a form that can be opened."""
    multihead = any(isinstance(part, nn.MultiheadAttention) for part in model.modules())
    return multihead or bool(find_attention(model))


def _projections(model: nn.Module, path: str, module: nn.Module) -> dict[str, Projection]:
    found: dict[str, Projection] = {}
    for name in _JOINT:
        joint = _linear(module, name)
        if joint is not None and joint.out_features % 3 == 0:
            for part, projection in enumerate(PROJECTIONS[:3]):
                found[projection] = Projection(
                    _join(path, name), part, joint.in_features, joint.out_features // 3
                )
    for names in _SEPARATE:
        linears = [_linear(module, name) for name in names]
        if not found and all(linear is not None for linear in linears):
            for projection, name, linear in zip(PROJECTIONS, names, linears, strict=False):
                found[projection] = _whole(_join(path, name), linear)
    if not found:
        return {}
    for name in _OUTPUT:
        if (linear := _linear(module, name)) is not None:
            found["output"] = _whole(_join(path, name), linear)
            return found
    # Hugging Face's older layout keeps it beside: attention.attention and attention.output.dense.
    parent = path.rpartition(".")[0]
    beside = getattr(model.get_submodule(parent), "output", None) if path else None
    if beside is not None and (linear := _linear(beside, "dense")) is not None:
        found["output"] = _whole(_join(parent, "output.dense"), linear)
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


def _linear(module: nn.Module, name: str) -> nn.Linear | None:
    part = getattr(module, name, None)
    return part if isinstance(part, nn.Linear) else None


def _whole(path: str, linear: nn.Linear | None) -> Projection:
    if linear is None:
        raise TypeError(f"{path} is no linear map")
    return Projection(path, None, linear.in_features, linear.out_features)


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


class JointAttention(nn.Module):
    """``torch.nn.MultiheadAttention`` for self-attention, with its two linear maps in the open.

    The original multiplies with its weights by itself and, in evaluation, hands whole blocks to a
    fused kernel, so that nothing can be added to one projection. This one has its call signature
    and shares its parameters; attention weights are not returned (None in their place).

    Args:
        original: The module that it stands for.

    Raises:
        ValueError: A module made for keys or values of other sizes than the queries', or with
            learned extra keys.
    """

    _qkv_same_embed_dim = False  # what keeps torch's own encoder layers off their fused kernel
    in_proj_bias = None

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        if original.in_proj_weight is None or original.bias_k is not None or original.add_zero_attn:
            raise ValueError(
                "base must have attention with queries, keys and values of one size and no extra "
                "keys, got a MultiheadAttention with kdim, vdim, add_bias_kv or add_zero_attn"
            )
        self.num_heads = original.num_heads
        self.batch_first = original.batch_first
        self.dropout = original.dropout
        width = original.embed_dim
        bias = original.in_proj_bias is not None
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
        """Return the attended tokens, and None.

        Raises:
            ValueError: Keys or values other than the queries.
        """
        if key is not query or value is not query:
            raise ValueError(
                "base must attend from its tokens to themselves, got other keys or values than "
                "queries in a MultiheadAttention"
            )
        tokens = query if self.batch_first else query.transpose(0, 1)
        split = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=self._mask(queries, key_padding_mask, attn_mask),
            dropout_p=self.dropout if self.training else 0.0,
        )
        out = self.proj(attended.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _mask(self, queries: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one that is added to the scores; torch's say True for what is hidden."""
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
        """The module that this one stands for, with the same parameters."""
        width, bias = self.qkv.in_features, self.qkv.bias is not None
        original = nn.MultiheadAttention(
            width,
            self.num_heads,
            dropout=self.dropout,
            bias=bias,
            batch_first=self.batch_first,
            device="meta",
        )
        original.in_proj_weight = self.qkv.weight  # type: ignore[assignment]
        if bias:
            original.in_proj_bias = self.qkv.bias  # type: ignore[assignment]
        original.out_proj = self.proj  # type: ignore[assignment]
        return original.train(self.training)


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(
        mask, float("-inf")
    )


def open_attention(model: nn.Module) -> None:
    """Put a :class:`JointAttention` in every MultiheadAttention's place, in place.

    Args:
        model: A network.

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
