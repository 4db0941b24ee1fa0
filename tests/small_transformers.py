"""Small vision transformers in the structures that LoRA-ensembles must carry."""

from types import SimpleNamespace

import torch
from contract import CLASSES
from deepens.ensembles import Network
from deepens.ensembles.backbones import build
from deepens.ensembles.backbones.transformers import HuggingFaceBody
from torch import nn


def drawn(factory, seed=3):
    """A network drawn under a seed of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory()


def own():
    return build("vit-micro/4", num_classes=CLASSES, channels=1, image_size=8, width=0.25)


def torchvision_model():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=8, patch_size=4, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24,
        dropout=0.1, attention_dropout=0.1, num_classes=CLASSES,
    )  # fmt: skip
    nn.init.normal_(model.heads[-1].weight)  # torchvision's is zero
    return model


def timm_model():
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=CLASSES, embed_dim=16, depth=3,
        num_heads=2, mlp_ratio=1.5, init_values=0.5, drop_path_rate=0.1, proj_drop_rate=0.1,
    )  # fmt: skip


class _SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, tokens):
        batch, length, width = tokens.shape
        query, key, value = (
            part(tokens).view(batch, length, self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return attended.transpose(1, 2).reshape(batch, length, width)


class _Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = _SelfAttention(width, heads)
        self.output = nn.Module()
        self.output.dense = nn.Linear(width, width)

    def forward(self, tokens):
        return self.output.dense(self.attention(tokens))


class _Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = _Attention(width, heads)
        self.layernorm_before, self.layernorm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.intermediate = nn.Linear(width, width)

    def forward(self, tokens):
        tokens = tokens + self.attention(self.layernorm_before(tokens))
        return (tokens + nn.functional.gelu(self.intermediate(self.layernorm_after(tokens))),)


class _Embeddings(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.randn(1, 5, width))
        self.projection = nn.Conv2d(1, width, 4, stride=4)

    def forward(self, images):
        patches = self.projection(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self.position_embeddings


class HuggingFaceModel(nn.Module):
    """As transformers' ViTModel up to its version 4."""

    def __init__(self, width=16, heads=2, blocks=3):
        super().__init__()
        self.embeddings = _Embeddings(width)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(_Layer(width, heads) for _ in range(blocks))
        self.layernorm = nn.LayerNorm(width)

    def forward(self, images):
        tokens = self.embeddings(images)
        for layer in self.encoder.layer:
            tokens = layer(tokens)[0]
        return SimpleNamespace(last_hidden_state=self.layernorm(tokens))


def hugging_face():
    return Network(HuggingFaceBody(HuggingFaceModel()), nn.Linear(16, CLASSES))


class _EncoderBody(nn.Module):
    """Torch's own encoder layers, tokens before batch: a structure that nobody knows."""

    def __init__(self, width=16):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        layer = nn.TransformerEncoderLayer(width, 2, 24, dropout=0.1, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, images):
        return self.encoder(self.patches(images).flatten(2).permute(2, 0, 1)).mean(0)


def unknown():
    return Network(_EncoderBody(), nn.Linear(16, CLASSES))
