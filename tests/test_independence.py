"""Independence by gradients: proved for what is independent, refused for what is not."""

import copy

import pytest
import torch
import torchvision
from deepens.ensembles import DeepEnsemble, Network
from deepens.ensembles.backbones import build
from deepens.ensembles.families.independence import prove_independence
from deepens.ensembles.families.networks import NetworkEnsemble
from published_networks import published
from torch import nn


def _small_cnn():
    return build("small-cnn", num_classes=4, channels=1, image_size=8)


def _zero_head():
    network = _small_cnn()
    nn.init.zeros_(network.head.weight)
    return network


def _transformer():
    return torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=4)


@pytest.mark.parametrize("execution", ["loop", "grouped"])
@pytest.mark.parametrize("factory", [_small_cnn, _zero_head])
def test_separate_networks_are_independent_in_every_execution(factory, execution):
    prove_independence(DeepEnsemble(factory, seeds=[1, 2, 3], execution=execution), (1, 8, 8))


def test_parameters_without_a_gradient_by_nature_do_not_matter():
    prove_independence(DeepEnsemble(_transformer, seeds=[1, 2]), (3, 8, 8))


@pytest.mark.parametrize("execution", ["loop", "grouped"])
def test_shared_parameter_is_found_and_named(execution):
    networks = [_small_cnn(), _small_cnn(), _small_cnn()]
    ensemble = NetworkEnsemble(networks, seeds=[1, 2, 3], execution=execution)
    networks[2].body[3].weight = networks[0].body[3].weight
    line = r"logits of member 0 depend on the parameter 'body.3.weight' of member 2"
    with pytest.raises(ValueError, match=line):
        prove_independence(ensemble, (1, 8, 8))


@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(6, 6), lambda: nn.InstanceNorm2d(6)])
@pytest.mark.parametrize("execution", ["loop", "grouped"])
def test_member_that_does_not_read_the_image_is_named(norm, execution):
    def constant():
        pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Network(nn.Sequential(nn.Conv2d(1, 6, 3), norm(), pooling), nn.Linear(6, 4))

    ensemble = DeepEnsemble(constant, seeds=[1, 2], execution=execution)
    line = "logits of member 0 do not depend on the image at 1x8x8: look for a norm"
    with pytest.raises(ValueError, match=line):
        prove_independence(ensemble, (1, 8, 8))


def test_every_member_must_read_the_image():
    def constant():
        body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(6, 6), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(body, nn.Flatten(), nn.Linear(6, 4))

    ensemble = DeepEnsemble([_small_cnn, constant], seeds=[1, 2])
    with pytest.raises(ValueError, match="logits of member 1 do not depend on the image"):
        prove_independence(ensemble, (1, 8, 8))


@pytest.mark.parametrize("execution", ["loop", "grouped"])
def test_member_must_depend_on_a_parameter_of_its_own(execution):
    class Stopped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 4)

        def forward(self, images):
            return self.layer(images.flatten(1)).detach()

    ensemble = DeepEnsemble(Stopped, seeds=[1, 2], execution=execution)
    with pytest.raises(ValueError, match="logits of member 0 depend on none of its own"):
        prove_independence(ensemble, (1, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_precision_does_not_matter(dtype):
    prove_independence(DeepEnsemble(_small_cnn, seeds=[1, 2]).to(dtype), (1, 8, 8))


@pytest.mark.parametrize(
    ("network", "size"), [("resnet20", 32), ("wrn-16-4", 32), ("resnet18", 32), ("vit-micro/4", 8)]
)
def test_own_networks_read_the_image(network, size):
    def factory():
        return build(network, num_classes=4, channels=3, image_size=size)

    prove_independence(DeepEnsemble(factory, seeds=[1]), (3, size, size))


LIGHT = [
    *(("torchvision", name) for name in ("mobilenet_v3_small", "shufflenet_v2_x1_0")),
    *(("torchvision", name) for name in ("resnet18", "densenet121")),
    *(("timm", name) for name in ("convnext_atto", "vit_tiny_patch16_224")),
]


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("library", "name"), LIGHT)
def test_published_networks_read_the_image(library, name, size):
    ensemble = DeepEnsemble(lambda: published(library, name, size), seeds=[1])
    prove_independence(ensemble, (3, size, size))


class _Mixed(NetworkEnsemble):
    """Lets a little of member 1 into member 0, as a wrong grouping would."""

    def features(self, images, members):
        features = super().features(images, members)
        return [features[0] + 1e-6 * features[1], *features[1:]]


def test_members_that_mix_are_found_and_named():
    ensemble = _Mixed([_small_cnn(), _small_cnn()], seeds=[1, 2])
    line = "logits of member 0 depend on the parameter 'body.0.weight' of member 1"
    with pytest.raises(ValueError, match=line):
        prove_independence(ensemble, (1, 8, 8))


class _Permuted(NetworkEnsemble):
    """Uses the bodies in another order than the heads."""

    def features(self, images, members):
        return super().features(images, [(index + 1) % 2 for index in members])


def test_members_that_use_the_parameters_of_others_are_found():
    with pytest.raises(ValueError, match="member 0 do not depend on its 'body.0.weight'"):
        prove_independence(_Permuted([_small_cnn(), _small_cnn()], seeds=[1, 2]), (1, 8, 8))


class _Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, images):
        return self.layer(images.flatten(1))


def test_frozen_parameters_are_proved_too_and_nothing_is_changed():
    def frozen():
        network = Network(_Detached(), nn.Linear(4, 3))
        return network.requires_grad_(False)

    ensemble = DeepEnsemble(frozen, seeds=[1, 2]).train()
    state = copy.deepcopy(ensemble.state_dict())
    before = torch.get_rng_state()
    prove_independence(ensemble, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert ensemble.training
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, state[name])
