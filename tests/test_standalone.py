"""Members as one module to export: exact, with joined weights where that is possible."""

import pytest
import timm
import torch
import torchvision
from deepens.ensembles import DeepEnsemble, Network
from deepens.ensembles.backbones import build
from deepens.ensembles.families.proof import randomise
from deepens.ensembles.families.standalone import GroupedMembers, LoopedMembers
from torch import nn

SHAPE = (3, 16, 16)


def _residual():
    return build("resnet8", num_classes=5, channels=3, image_size=16)


def _own_vit():
    return build("vit-micro/8", num_classes=5, channels=3, image_size=16)


def _torchvision_vit():
    return torchvision.models.VisionTransformer(16, 8, 1, 2, 16, 24, num_classes=5)


def _timm_vit():
    return timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=5
    )


class _LargestChannel(nn.Module):
    def forward(self, values):
        return values / values.amax(1, keepdim=True)


def _without_a_grouped_form():
    body = nn.Sequential(nn.Flatten(), nn.Linear(768, 6), _LargestChannel())
    return Network(body, nn.Linear(6, 5))


def _ensemble(factory, num_members=3):
    ensemble = DeepEnsemble(factory, seeds=list(range(num_members)))
    generator = torch.Generator().manual_seed(1)
    for network in ensemble.networks:
        randomise(network, generator)
    return ensemble


def _images(batch):
    return torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("num_members", [1, 3])
@pytest.mark.parametrize(
    ("factory", "kind"),
    [
        (_residual, GroupedMembers),
        (_own_vit, GroupedMembers),
        (_torchvision_vit, GroupedMembers),
        (_timm_vit, GroupedMembers),
    ],
)
def test_logits_equal_those_of_the_ensemble(factory, kind, num_members):
    ensemble = _ensemble(factory, num_members).double()
    module = ensemble.as_grouped(SHAPE)
    assert type(module) is kind
    images = _images(4).double()
    torch.testing.assert_close(module(images), ensemble.eval()(images), rtol=1e-10, atol=1e-10)


def test_module_has_weights_of_its_own_and_leaves_the_ensemble_alone():
    ensemble = _ensemble(_residual).train()
    module = ensemble.as_grouped(SHAPE)
    assert not any(part.training for part in module.modules())
    assert ensemble.training
    expected = module(_images(4))
    randomise(ensemble, torch.Generator().manual_seed(9))
    assert torch.equal(module(_images(4)), expected)
    own = sum(parameter.numel() for parameter in module.parameters())
    assert own == sum(parameter.numel() for parameter in ensemble.parameters())


@pytest.mark.parametrize(
    "factory",
    [_without_a_grouped_form, [_residual, _own_vit, _without_a_grouped_form]],
    ids=["mixing", "different"],
)
def test_members_without_a_grouped_form_are_looped_over_exactly(factory):
    ensemble = _ensemble(factory)
    module = ensemble.as_grouped(SHAPE)
    assert type(module) is LoopedMembers
    torch.testing.assert_close(module(_images(4)), ensemble.eval()(_images(4)))


@pytest.mark.parametrize("factory", [_residual, _torchvision_vit, _without_a_grouped_form])
def test_export_holds_for_every_batch_size(factory):
    ensemble = _ensemble(factory).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        ensemble.as_grouped(SHAPE), (_images(4),), dynamic_shapes=({0: batch},)
    )
    for size in (2, 7):
        torch.testing.assert_close(
            exported.module()(_images(size)), ensemble(_images(size)), rtol=1e-4, atol=1e-4
        )
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    convolutions = sum("conv2d" in name for name in names)
    assert convolutions == sum(isinstance(p, nn.Conv2d) for p in ensemble.networks[0].modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    "factory", [_residual, _own_vit, _torchvision_vit, _timm_vit, _without_a_grouped_form]
)
def test_onnx_runtime_gives_the_same_logits(factory, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    ensemble = _ensemble(factory).eval()
    path = tmp_path / "ensemble.onnx"
    torch.onnx.export(
        ensemble.as_grouped(SHAPE),
        (_images(4),),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
        verbose=False,
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 7):
        (logits,) = session.run(None, {session.get_inputs()[0].name: _images(size).numpy()})
        torch.testing.assert_close(
            torch.from_numpy(logits), ensemble(_images(size)), rtol=1e-4, atol=1e-4
        )
