"""A small vision transformer for small images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .network import Features, Images, Network, Tokens, scaled


@dataclass(frozen=True)
class TransformerShape:
    """The sizes of a vision transformer at width and depth 1.

    The network is ``heads * head_size`` wide, its perceptrons ``expansion`` times as wide.
    """

    head_size: int
    heads: int
    blocks: int
    expansion: int = 4


SHAPES = {
    "vit-micro": TransformerShape(head_size=32, heads=3, blocks=4),
    "vit-tiny": TransformerShape(head_size=64, heads=3, blocks=12),
    "vit-small": TransformerShape(head_size=64, heads=6, blocks=12),
}


class PatchEmbedding(nn.Module):
    """Embed square patches linearly, ``tokens[b, l] = W patch[b, l] + bias + position[l]``."""

    def __init__(self, channels: int, width: int, *, patch_size: int, num_tokens: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.empty(1, num_tokens, width))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, images: Images) -> Tokens:
        """Return the tokens."""
        return self.projection(images).flatten(2).transpose(1, 2) + self.position


class Attention(nn.Module):
    """Multi-head self-attention with one joint projection for queries, keys and values.

    ``softmax(q k^T / sqrt(head size)) v``, per head, then ``proj``; the layout is timm's.
    Differentiating twice (repulsion on input gradients) needs the math kernel:
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the attended tokens."""
        split = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One pre-norm block, ``x = x + attention(norm(x));  x = x + perceptron(norm(x))``."""

    def __init__(self, width: int, hidden: int, *, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the block's output."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class TransformerBody(nn.Module):
    """Patch embedding, blocks, a last norm, and the mean over tokens."""

    def __init__(self, embedding: PatchEmbedding, blocks: list[Block], *, width: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Images) -> Features:
        """Return the mean token."""
        tokens = self.embedding(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).mean(dim=1)


def vision_transformer(
    shape: TransformerShape,
    *,
    patch_size: int,
    num_classes: int,
    channels: int,
    image_size: int,
    width: float = 1.0,
    depth: float = 1.0,
) -> Network:
    """Build a vision transformer with learned positions and mean pooling.

    With L tokens of width D, perceptrons of width H and patches of P pixels, one image costs
    ``L K P² D + blocks (4 L D² + 2 L² D + 2 L D H) + D C`` multiply-accumulates.

    Weights and positions are drawn from truncated normals of deviation 0.02, the head as
    ``nn.Linear`` does.

    Sizes are as for :func:`~deepens.ensembles.backbones.build`: ``width`` multiplies the head size,
    so that D is a multiple of the number of heads; the perceptrons' width is rounded separately.

    Raises:
        ValueError: If ``patch_size`` does not divide ``image_size``.

    Example:
        >>> from deepens.ensembles.backbones.vision_transformer import SHAPES, vision_transformer
        >>> network = vision_transformer(
        ...     SHAPES["vit-micro"], patch_size=2, num_classes=10, channels=1, image_size=8
        ... )
        >>> network.body.embedding.position.shape
        torch.Size([1, 16, 96])

    Reference: Dosovitskiy et al. (2021), arXiv:2010.11929; the mean over tokens replaces the class
        token, as in Beyer et al. (2022), arXiv:2205.01580.
    """
    if patch_size < 1 or image_size % patch_size:
        raise ValueError(
            f"patch_size must divide image_size, got {patch_size} for images of {image_size} pixels"
        )
    heads, tokens = shape.heads, (image_size // patch_size) ** 2
    size = heads * scaled(shape.head_size, width)
    hidden = scaled(shape.expansion * heads * shape.head_size, width)
    embedding = PatchEmbedding(channels, size, patch_size=patch_size, num_tokens=tokens)
    blocks = [Block(size, hidden, num_heads=heads) for _ in range(scaled(shape.blocks, depth))]
    body = TransformerBody(embedding, blocks, width=size)
    for part in body.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return Network(body, nn.Linear(size, num_classes))
