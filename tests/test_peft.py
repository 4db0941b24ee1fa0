"""Plain LoRA weights in peft's format, as starting point of every member.

Checked once against the package peft 0.21 itself, on models of timm, torchvision and transformers.
"""

import copy
import json

import pytest
import torch
from contract import CLASSES
from deepens.ensembles import LoRA, LoRAEnsemble
from deepens.ensembles.backbones.transformers import as_network
from deepens.ensembles.families.peft import load_peft
from safetensors.torch import save_file
from small_transformers import drawn, hugging_face, own, timm_model, torchvision_model
from torch import nn

RANK = 3
CONFIGURATION = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["qkv"]}

# The file's name of a module, its place in the base's body, and which rows of a weight it is.
MODULES = {
    own: [("blocks.1.attn.qkv", "blocks.1.attn.qkv.weight")],
    timm_model: [("blocks.0.attn.qkv", "blocks.0.attn.qkv.weight"),
                 ("blocks.2.attn.proj", "blocks.2.attn.proj.weight")],
    torchvision_model: [
        ("encoder.layers.encoder_layer_1.self_attention",
         "encoder.layers.encoder_layer_1.self_attention.in_proj_weight"),
        ("encoder.layers.encoder_layer_1.self_attention.base_layer.out_proj",
         "encoder.layers.encoder_layer_1.self_attention.out_proj.weight"),
    ],
    hugging_face: [("vit.encoder.layer.2.attention.attention.value",
                    "model.encoder.layer.2.attention.attention.value.weight"),
                   ("vit.encoder.layer.0.attention.output.dense",
                    "model.encoder.layer.0.attention.output.dense.weight")],
}  # fmt: skip


def _write(folder, base, configuration=None, extra=None, rank=RANK):
    """An adapter on the base's modules, and what its weights become when it is merged."""
    network = as_network(drawn(base))
    state = network.body.state_dict()
    generator = torch.Generator().manual_seed(0)
    tensors, products = {}, {}
    for module, weight in MODULES[base]:
        outputs, inputs = state[weight].shape
        down = torch.randn(rank, inputs, generator=generator)
        up = torch.randn(outputs, rank, generator=generator)
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        products[weight] = up @ down
    save_file(tensors | (extra or {}), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIGURATION | (configuration or {})))
    return network, products


def _ensemble(base, **options):
    options = LoRA(rank=RANK, head="base", **options)
    return LoRAEnsemble(drawn(base), seeds=[1, 2], options=options).eval()


@pytest.mark.parametrize("base", list(MODULES))
@pytest.mark.parametrize(("stabilised", "factor"), [(False, 6 / RANK), (True, 6 / RANK**0.5)])
def test_every_member_starts_as_the_merged_network(tmp_path, base, stabilised, factor):
    network, products = _write(tmp_path, base, {"use_rslora": stabilised})
    ensemble = _ensemble(base, scaling=0.5)
    load_peft(ensemble, tmp_path)
    with torch.no_grad():
        state = network.body.state_dict()
        for weight, product in products.items():
            state[weight] += factor * product
    images = torch.randn(4, 3 if base is torchvision_model else 1, 8, 8)
    expected = network.eval()(images)
    for logits in ensemble(images):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_head_saved_beside_becomes_every_member_s(tmp_path):
    head = nn.Linear(24, CLASSES)
    extra = {f"base_model.model.head.{name}": value for name, value in head.state_dict().items()}
    _write(tmp_path, own, extra=extra)
    ensemble = _ensemble(own)
    load_peft(ensemble, tmp_path)
    for index in range(2):
        assert torch.equal(ensemble.heads.weight[index], head.weight)
        assert torch.equal(ensemble.heads.bias[index], head.bias)


def test_a_head_of_other_classes_is_left_out(tmp_path):
    extra = {"base_model.model.head.weight": torch.zeros(7, 24)}
    _write(tmp_path, own, extra=extra)
    ensemble = _ensemble(own)
    before = ensemble.heads.weight.clone()
    load_peft(ensemble, tmp_path)
    assert torch.equal(ensemble.heads.weight, before)


@pytest.mark.parametrize(
    ("configuration", "line"),
    [
        ({"r": 4}, "lora.rank must be that of .*, 4, got 3: build the ensemble with rank 4"),
        ({"peft_type": "IA3"}, r"must describe plain LoRA \(peft_type LORA\), got 'IA3'"),
        ({"use_dora": True}, "got one with DoRA's magnitudes"),
        ({"rank_pattern": {"proj": 2}}, "rank_pattern"),
        ({"bias": "all"}, r"must leave the base's biases alone \(bias 'none'\), got 'all'"),
        (
            {"init_lora_weights": "pissa"},
            r"must leave the base as it is .*, got 'pissa', .*convert",
        ),
        ({"init_lora_weights": "pissa_niter_4"}, "got 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "got 'olora'"),
        ({"init_lora_weights": "corda"}, "got 'corda'"),
        ({"init_lora_weights": "loftq"}, "got 'loftq'"),
        ({"init_lora_weights": "lora_ga"}, "got 'lora_ga'"),
        ({"init_lora_weights": "new"}, "got 'new'"),
        ({"init_lora_weights": 1}, "got 1"),
        ({"r": None}, "must be peft's description of a LoRA adapter"),
    ],
)
def test_what_is_not_plain_lora_of_this_rank_is_refused(tmp_path, configuration, line):
    _write(tmp_path, own, configuration)
    _refuses(tmp_path, line)


@pytest.mark.parametrize("began", [True, False, None, "gaussian", "Gaussian", "orthogonal", "eva"])
def test_what_began_with_the_base_left_alone_is_loaded(tmp_path, began):
    _write(tmp_path, own, {"init_lora_weights": began})
    load_peft(ensemble := _ensemble(own), tmp_path)
    assert ensemble.adapters["1"]["key"].up.flatten(1).any(dim=1).all()


def _refuses(folder, line, **options):
    ensemble = _ensemble(own, **options)
    before = copy.deepcopy(ensemble.state_dict())
    with pytest.raises(ValueError, match=line) as caught:
        load_peft(ensemble, folder)
    assert "\n" not in str(caught.value)
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, before[name])


def test_modules_without_adapters_are_refused(tmp_path):
    _write(tmp_path, own)
    _refuses(tmp_path, "has an adapter on blocks.1.attn.qkv, where the ensemble has none", blocks=1)


def test_other_projections_than_the_file_s_are_refused(tmp_path):
    _write(tmp_path, own)
    line = "on all of blocks.1.attn.qkv, but the ensemble has one on 2 of its three projections"
    _refuses(tmp_path, line, projections=("query", "value"))


def test_another_rank_in_the_file_is_refused(tmp_path):
    _write(tmp_path, own, rank=4)
    _refuses(tmp_path, r"blocks.1.attn.qkv must have shape \[3, 24\], got \[4, 24\]")


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ({"base_model.model.x.lora_A.weight": torch.zeros(3, 4)}, "only one of them for x"),
        ({"base_model.model.pos_embed": torch.zeros(3)}, "nothing but LoRA weights and one linear"),
        ({"base_model.model.x.lora_magnitude_vector.weight": torch.zeros(3), "y": torch.zeros(1)},
         "nothing but LoRA weights"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_lora_weights_are_refused(tmp_path, extra, line):
    _write(tmp_path, own, extra=extra)
    _refuses(tmp_path, line)


def test_missing_and_damaged_files_are_refused(tmp_path):
    _refuses(tmp_path, "adapter_config.json must be peft's description of a LoRA adapter")
    _write(tmp_path, own)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    _refuses(tmp_path, "cannot be read as safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    _refuses(tmp_path, "safe_serialization=True")
