"""Vision transformers in steps against their own forward passes."""

import pytest
import torch
from contract import CLASSES
from deepens.ensembles import Network
from deepens.ensembles.backbones import Normalisation, Preprocessing
from deepens.ensembles.backbones.transformers import (
    HuggingFaceBody,
    anatomy,
    as_network,
    embed,
    finish,
    run_block,
)
from small_transformers import (
    HuggingFaceModel,
    drawn,
    hugging_face,
    own,
    timm_model,
    torchvision_model,
    unknown,
)
from torch import nn


class _ModelOfVersion5(HuggingFaceModel):
    """transformers' ViTModel since its version 5: the blocks are the model's own."""

    def __init__(self):
        super().__init__()
        self.layers = self.encoder.layer
        del self.encoder

    def forward(self, images):
        self.encoder = nn.Module()
        self.encoder.layer = self.layers
        result = super().forward(images)
        del self.encoder
        return result


def _version_5():
    return Network(HuggingFaceBody(_ModelOfVersion5()), nn.Linear(16, CLASSES))


def _timm(**options):
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2}
    return VisionTransformer(num_classes=CLASSES, num_heads=2, **sizes, **options)


@pytest.mark.parametrize(
    ("base", "kind", "blocks"),
    [
        (own, "own", 4),
        (torchvision_model, "torchvision", 3),
        (timm_model, "timm", 3),
        (lambda: _timm(class_token=False, global_pool="avg"), "timm", 2),
        (lambda: _timm(reg_tokens=2, pre_norm=True, no_embed_class=True), "timm", 2),
        (lambda: _timm(class_token=False, global_pool="map"), "timm", 2),
        (hugging_face, "huggingface", 3),
        (_version_5, "huggingface", 3),
        (unknown, "other", 1),
    ],
)
@pytest.mark.parametrize("behind", [True, False])
def test_steps_are_the_forward_pass(base, kind, blocks, behind):
    body = as_network(drawn(base)).body.double().eval()
    channels = 3 if base is torchvision_model else 1
    size = 8
    if behind:
        statistics = Normalisation((0.1,) * channels, (0.5,) * channels)
        front = Preprocessing(None, statistics, channels=channels, size=8).double()
        body, size = nn.Sequential(front, body), 12
    parts = anatomy(body)
    assert (parts.kind, len(parts.blocks)) == (kind, blocks)
    images = torch.randn(3, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = body(images)
        if parts.front is not None:
            images = body.get_submodule(parts.front)(images)
        core = body.get_submodule(parts.core)
        tokens = embed(parts.kind, core, images)
        for name in parts.blocks:
            tokens = run_block(body.get_submodule(name), tokens)
        result = finish(parts.kind, core, tokens)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_model_whose_blocks_are_told_more_is_taken_whole():
    model = HuggingFaceModel()
    model.encoder.relative_position_bias = nn.Linear(2, 2)  # as BEiT has
    assert anatomy(HuggingFaceBody(model)).kind == "other"


def test_subclass_with_a_forward_pass_of_its_own_is_taken_whole():
    from torchvision.models import VisionTransformer

    class _MeanOfTokens(VisionTransformer):
        def forward(self, images):
            return super().forward(images) / 2

    model = _MeanOfTokens(8, 4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16)
    assert anatomy(model).kind == "other"


class _ForClassification(nn.Module):
    base_model_prefix = "vit"

    def __init__(self, inputs=16):
        super().__init__()
        self.vit, self.classifier = HuggingFaceModel(), nn.Linear(inputs, CLASSES)

    def forward(self, images):
        return self.classifier(self.vit(images).last_hidden_state[:, 0])


@pytest.mark.parametrize("base", [torchvision_model, timm_model, _ForClassification])
def test_plain_models_come_apart_into_body_and_head(base):
    model = drawn(base).eval()
    images = torch.randn(3, 3 if base is torchvision_model else 1, 8, 8)
    names = list(model.state_dict())
    network = as_network(model).eval()
    assert isinstance(network.head, nn.Linear)
    torch.testing.assert_close(network(images), model(images))
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("model", [nn.Linear(2, 2), _ForClassification(inputs=32)])
def test_what_has_no_head_that_we_know_is_refused(model):
    with pytest.raises(ValueError, match=r"base must be Network\(body, head\), or a vision trans"):
        as_network(model)
