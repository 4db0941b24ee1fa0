"""Attention in the open against torch's own, and where it is found."""

import pytest
import torch
from deepens.ensembles.backbones.attention import (
    JointAttention,
    find_attention,
    has_attention,
    open_attention,
    restore_attention,
)
from small_transformers import drawn, hugging_face, own, timm_model, torchvision_model
from torch import nn


def _masks(name):
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    weights = torch.randn(3 * 2, 5, 5, generator=torch.Generator().manual_seed(1)).double()
    return {
        "none": {},
        "causal": {"attn_mask": causal},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "weights": {"attn_mask": weights},
    }[name]


@pytest.mark.parametrize("masks", ["none", "causal", "padding", "both", "weights"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_joint_attention_is_torch_s_multihead_attention(masks, batch_first, bias):
    original = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first).double().eval()
    tokens = torch.randn(*((3, 5) if batch_first else (5, 3)), 8, dtype=torch.float64)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.normal_()
        expected, _ = original(tokens, tokens, tokens, need_weights=False, **_masks(masks))
        joint = JointAttention(original).eval()
        result, weights = joint(tokens, tokens, tokens, need_weights=False, **_masks(masks))
        again, _ = joint.original()(tokens, tokens, tokens, need_weights=False, **_masks(masks))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    assert torch.equal(again, expected)
    assert weights is None


@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_s_encoder_layers_call_the_opened_projections(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    tokens = torch.randn(3, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = encoder(tokens)
        open_attention(encoder)
        called = []
        for place in find_attention(encoder):
            for projection in place.projections.values():
                module = encoder.get_submodule(projection.path)
                module.register_forward_hook(lambda *_: called.append(1))
        torch.testing.assert_close(encoder(tokens), expected, rtol=0, atol=1e-12)
    assert len(called) == 2 * 4  # a joint projection has three hooks


def test_restoring_leaves_the_model_as_it_was():
    model = drawn(torchvision_model)
    kinds = {name: type(part) for name, part in model.named_modules()}
    parameters = {name: parameter for name, parameter in model.named_parameters()}
    open_attention(model)
    assert not any(isinstance(part, nn.MultiheadAttention) for part in model.modules())
    restore_attention(model)
    assert {name: type(part) for name, part in model.named_modules()} == kinds
    assert list(model.state_dict()) == list(drawn(torchvision_model).state_dict())
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]


@pytest.mark.parametrize(
    ("base", "first"),
    [
        (lambda: own().body, ["blocks.0.attn.qkv"] * 3 + ["blocks.0.attn.proj"]),
        (timm_model, ["blocks.0.attn.qkv"] * 3 + ["blocks.0.attn.proj"]),
        (
            lambda: hugging_face().body.model.encoder,
            [f"layer.0.attention.attention.{name}" for name in ("query", "key", "value")]
            + ["layer.0.attention.output.dense"],
        ),
    ],
)
def test_projections_are_found_by_their_names(base, first):
    projections = find_attention(drawn(base))[0].projections
    assert list(projections) == ["query", "key", "value", "output"]
    assert [projection.path for projection in projections.values()] == first


def test_joint_projection_has_its_queries_keys_and_values_in_thirds():
    projections = find_attention(drawn(own).body)[1].projections
    rows = [projections[name].rows() for name in ("query", "key", "value", "output")]
    assert rows == [slice(0, 24), slice(24, 48), slice(48, 72), slice(0, 24)]


def _timm_eva():
    from timm.models.eva import EvaAttention

    return EvaAttention(8, 2, qkv_bias=False, scale_norm=False)


def _timm_swin():
    from timm.models.swin_transformer import WindowAttention

    return WindowAttention(8, 2, window_size=2)


def _timm_plain():
    from timm.layers.attention import Attention

    return Attention(8, 2)


def _timm_rope():
    from timm.layers.attention import AttentionRope

    return AttentionRope(8, 2)


def _torchvision_maxvit():
    from torchvision.models.maxvit import RelativePositionalMultiHeadAttention

    return RelativePositionalMultiHeadAttention(8, 4, 4)


KNOWN = [
    (lambda: own().body.blocks[0].attn, (3, 4, 24)),
    (lambda: JointAttention(nn.MultiheadAttention(8, 2, batch_first=True)), (3, 4, 8)),
    (_timm_plain, (3, 4, 8)),
    (_timm_rope, (3, 4, 8)),
    (_timm_eva, (3, 4, 8)),
    (_timm_swin, (3, 4, 8)),
    (_torchvision_maxvit, (3, 1, 4, 8)),
]


@pytest.mark.parametrize(("factory", "shape"), KNOWN)
def test_layouts_that_are_known_are_in_thirds(factory, shape):
    module = drawn(factory).double().eval()
    (place,) = find_attention(module)
    assert place.in_thirds
    rows = {name: each.rows() for name, each in place.projections.items()}
    joint = module.get_submodule(place.projections["query"].path)
    output = module.get_submodule(place.projections["output"].path)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()

    def attended():
        result = (
            module(tokens, tokens, tokens) if isinstance(module, JointAttention) else module(tokens)
        )
        return result[0] if isinstance(result, tuple) else result

    with torch.no_grad():
        if output.bias is not None:
            output.bias.zero_()
        if joint.bias is not None:
            joint.bias.zero_()
        before = attended()
        joint.weight[rows["key"]] = 0  # all tokens are attended to alike, whatever asks
        flat = attended()
        assert not torch.allclose(flat, before)
        joint.weight[rows["query"]] = torch.randn_like(joint.weight[rows["query"]])
        torch.testing.assert_close(attended(), flat, rtol=0, atol=1e-12)
        joint.weight[rows["value"]] *= 2  # all that is left is linear in the values
        torch.testing.assert_close(attended(), 2 * flat, rtol=0, atol=1e-12)


class _Derived(type(own().body.blocks[0].attn)):
    def forward(self, tokens):
        return super().forward(tokens)


def test_layout_is_known_by_the_forward_pass_alone():
    (place,) = find_attention(_Derived(8, 2))
    assert not place.in_thirds
    assert not any(p.in_thirds for p in find_attention(_timm_interleaved()))
    assert all(place.in_thirds for place in find_attention(hugging_face()))
    assert all(place.in_thirds for place in find_attention(timm_model()))


def _timm_interleaved():
    from timm.models.maxxvit import AttentionCl

    return AttentionCl(64, dim_head=32, head_first=True)


def test_what_has_no_attention_has_none():
    assert not has_attention(nn.Sequential(nn.Linear(3, 9), nn.Conv2d(1, 1, 1)))
    assert has_attention(nn.MultiheadAttention(4, 2))


def test_attention_to_other_tokens_is_refused():
    joint = JointAttention(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="base must attend from its tokens to themselves"):
        joint(torch.zeros(2, 3, 8), torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))


@pytest.mark.parametrize("options", [{"kdim": 4}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_with_other_keys_is_refused(options):
    with pytest.raises(ValueError, match="queries, keys and values of one size and no extra keys"):
        open_attention(nn.Sequential(nn.MultiheadAttention(8, 2, **options)))
