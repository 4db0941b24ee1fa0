"""Vision transformers of every library in three steps: embed, blocks, finish."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from .attention import AttentionPlace, find_attention, has_attention
from .network import Features, Images, Network
from .preprocessing import Preprocessing
from .vision_transformer import TransformerBody

Kind = Literal["own", "torchvision", "timm", "huggingface", "other"]


@dataclass(frozen=True)
class Anatomy:
    """The structure of a body, ``finish(block_n(... block_1(embed(front(images)))))``, as data.

    Args:
        kind: The library of the transformer. One of an ``other`` kind counts as one block, between
            an embedding and a finish that are identities.
        front: Name of the preprocessing before the transformer; None without one.
        core: Name of the transformer itself, empty where it is the body.
        blocks: Names of its blocks, in order, relative to the body.
    """

    kind: Kind
    front: str | None
    core: str
    blocks: tuple[str, ...]


class HuggingFaceBody(nn.Module):
    """A ``ViTModel`` of the package transformers as a body, from images to the class token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Features:
        """Return the class token after the last norm."""
        return self.model(images).last_hidden_state[:, 0]


def as_network(model: nn.Module) -> Network:
    """Split a vision transformer that ends in a linear head into body and head.

    Args:
        model: A :class:`Network`, which is returned; a ``VisionTransformer`` of torchvision; a
            model of timm; or one of Hugging Face's with a linear ``classifier`` on the class
            token, such as ``ViTForImageClassification``. All but the first are copied.

    Raises:
        ValueError: Anything else.

    Example:
        >>> from torchvision.models import VisionTransformer
        >>> from deepens.ensembles.backbones.transformers import as_network
        >>> model = VisionTransformer(
        ...     image_size=8, patch_size=4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16
        ... )
        >>> as_network(model).head
        Linear(in_features=16, out_features=1000, bias=True)
    """
    if isinstance(model, Network):
        return model
    body: Any = model
    head: Any = None
    if _defines(model, "torchvision.models.vision_transformer", "forward"):
        body = copy.deepcopy(body)
        head, body.heads[-1] = body.heads[-1], nn.Identity()
    elif hasattr(model, "reset_classifier") and hasattr(model, "get_classifier"):
        body = copy.deepcopy(body)
        if isinstance(head := body.get_classifier(), nn.Linear):
            body.reset_classifier(0)
    elif isinstance(classifier := getattr(model, "classifier", None), nn.Linear):
        inner = getattr(model, getattr(model, "base_model_prefix", "vit"), None)
        norm = getattr(inner, "layernorm", None)
        size = (classifier.in_features,)  # DINOv2's also reads the patches' mean
        if isinstance(inner, nn.Module) and getattr(norm, "normalized_shape", None) == size:
            body, head = HuggingFaceBody(copy.deepcopy(inner)), copy.deepcopy(classifier)
    if isinstance(head, nn.Linear):
        return Network(body, head)
    raise ValueError(
        "base must be Network(body, head), or a vision transformer of torchvision, timm or "
        f"transformers that ends in a linear layer, got {type(model).__name__}"
    )


def require_attention(model: nn.Module) -> None:
    """Refuse a network without self-attention of a known form."""
    if not has_attention(model):
        kind = type(model.body if isinstance(model, Network) else model).__name__
        found = next(
            (pair for pair in model.named_modules() if hasattr(pair[1], "num_heads")), None
        )
        if found is None:
            reason = f"base must have self-attention to put adapters on, got {kind}"
        else:
            name, part = found
            reason = (
                "base must have self-attention whose queries, keys and values come from linear "
                f"layers, to put adapters on, but {name!r} ({type(part).__name__}) of {kind} has "
                "none of a known name"
            )
        raise ValueError(
            f"{reason}: choose a vision transformer (vit-tiny/4, torchvision:vit_b_32, "
            "timm:vit_small_patch16_224), or a deep ensemble"
        )


def anatomy(body: nn.Module) -> Anatomy:
    """Describe a vision transformer, alone or behind a :class:`~.preprocessing.Preprocessing`.

    Example:
        >>> from deepens.ensembles.backbones import build
        >>> from deepens.ensembles.backbones.transformers import anatomy
        >>> network = build("vit-micro/4", num_classes=10, channels=1, image_size=8)
        >>> anatomy(network.body).blocks
        ('blocks.0', 'blocks.1', 'blocks.2', 'blocks.3')
    """
    front, core = None, ""
    model = body
    if isinstance(body, nn.Sequential) and len(body) == 2 and isinstance(body[0], Preprocessing):
        (front, _), (core, model) = body.named_children()
    kind = _kind(model)
    if kind == "other":
        return Anatomy(kind, front, core, (core,))
    if kind == "huggingface":
        holder = "model.layers" if hasattr(model.model, "layers") else "model.encoder.layer"
    else:
        holder = "encoder.layers" if kind == "torchvision" else "blocks"
    start = f"{core}.{holder}" if core else holder
    names = [name for name, _ in model.get_submodule(holder).named_children()]
    return Anatomy(kind, front, core, tuple(f"{start}.{name}" for name in names))


def choose_attention(
    body: nn.Module, parts: Anatomy, blocks: int | None
) -> tuple[int, list[tuple[int, AttentionPlace]]]:
    """Find the attentions of a body's last blocks.

    Args:
        body: The body, its attention opened (see :func:`~.attention.open_attention`).
        parts: Its structure.
        blocks: How many of its last blocks; all when None. Of a transformer of unknown structure
            every attention counts as a block.

    Returns:
        The index of the first of these blocks, and the attentions, each with its index among all
        of the body's.

    Raises:
        ValueError: More blocks than there are, or no attention in them.
    """
    places = [
        (number, place)
        for number, place in enumerate(find_attention(body))
        if any(place.within(name) for name in parts.blocks)
    ]
    available = len(places) if parts.kind == "other" else len(parts.blocks)
    if blocks is not None and blocks > available:
        raise ValueError(f"lora.blocks must be <= {available}, the base's blocks, got {blocks}")
    if parts.kind == "other":
        return 0, places[-(blocks or available) :]
    first = 0 if blocks is None else available - blocks
    chosen = [pair for pair in places if any(pair[1].within(b) for b in parts.blocks[first:])]
    if not chosen:
        raise ValueError(
            f"base must have self-attention in its last {available - first} blocks, got none in "
            f"{type(body.get_submodule(parts.core)).__name__}"
        )
    return first, chosen


def embed(kind: Kind, model: Any, images: Images) -> Shaped[Tensor, "batch ..."]:
    """From images to the first block's tokens ``[B, L, D]``; of other kinds the images."""
    if kind == "own":
        return model.embedding(images)
    if kind == "torchvision":
        patches = model._process_input(images)
        tokens = torch.cat([model.class_token.expand(len(patches), -1, -1), patches], dim=1)
        return model.encoder.dropout(tokens + model.encoder.pos_embedding)
    if kind == "timm":
        tokens = model._pos_embed(model.patch_embed(images))
        return model.norm_pre(model.patch_drop(tokens))
    if kind == "huggingface":
        return model.model.embeddings(images)
    return images


def run_block(block: nn.Module, tokens: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "batch ..."]:
    """Run one block; Hugging Face's older ones return their tokens in a tuple."""
    result = block(tokens)
    return result[0] if isinstance(result, tuple) else result


def finish(kind: Kind, model: Any, tokens: Shaped[Tensor, "batch ..."]) -> Features:
    """From the last block's tokens ``[B, L, D]`` to the head's input; of other kinds unchanged."""
    if kind == "own":
        return model.norm(tokens).mean(dim=1)
    if kind == "torchvision":
        return model.heads(model.encoder.ln(tokens)[:, 0])
    if kind == "timm":
        return model.forward_head(model.norm(tokens))
    if kind == "huggingface":
        return model.model.layernorm(tokens)[:, 0]
    return tokens


def _kind(model: nn.Module) -> Kind:
    """The library whose forward pass the model has, if our three steps equal it."""
    if isinstance(model, TransformerBody):
        return "own"
    if _defines(model, "torchvision.models.vision_transformer", "forward"):
        return "torchvision"
    timm = "timm.models.vision_transformer"
    if _defines(model, timm, "forward") and _defines(model, timm, "forward_features"):
        return "timm"
    return "huggingface" if _is_plain_vit(model) else "other"


def _is_plain_vit(body: nn.Module) -> bool:
    """Nothing but an embedding, blocks and a last norm; BEiT's blocks, say, take more inputs."""
    if not isinstance(body, HuggingFaceBody):
        return False
    parts = {name: part for name, part in body.model.named_children() if name != "pooler"}
    if parts.keys() == {"embeddings", "layers", "layernorm"}:
        return True
    older = parts.keys() == {"embeddings", "encoder", "layernorm"}
    return older and [name for name, _ in parts["encoder"].named_children()] == ["layer"]


def _defines(model: nn.Module, module: str, method: str) -> bool:
    """Whether a library's ``VisionTransformer`` defines this method of the model's."""
    function = getattr(type(model), method, None)
    return (
        getattr(function, "__module__", None) == module
        and getattr(function, "__qualname__", None) == f"VisionTransformer.{method}"
    )
