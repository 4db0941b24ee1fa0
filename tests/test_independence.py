"""Independence by gradients: proved for what is independent, refused for what is not."""

import copy

import pytest
import torch
import torchvision
from deepens.ensembles import DeepEnsemble, Network
from deepens.ensembles.backbones import build
from deepens.ensembles.families.independence import prove_independence
from deepens.ensembles.families.networks import NetworkEnsemble
from torch import nn


def _small_cnn():
    return build("small-cnn", num_classes=4, channels=1, image_size=8)


def _zero_head():
    network = _small_cnn()
    nn.init.zeros_(network.head.weight)
    return network


def _transformer():
    return torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=4)


@pytest.mark.parametrize("execution", ["loop", "grouped", "vmap", "compiled"])
@pytest.mark.parametrize("factory", [_small_cnn, _zero_head])
def test_separate_networks_are_independent_in_every_execution(factory, execution):
    prove_independence(DeepEnsemble(factory, seeds=[1, 2, 3], execution=execution), (1, 8, 8))


def test_parameters_without_a_gradient_by_nature_do_not_matter():
    prove_independence(DeepEnsemble(_transformer, seeds=[1, 2]), (3, 8, 8))


@pytest.mark.parametrize("execution", ["loop", "grouped"])
def test_shared_parameter_is_found_and_named(execution):
    networks = [_small_cnn(), _small_cnn(), _small_cnn()]
    networks[2].body[3].weight = networks[0].body[3].weight
    ensemble = NetworkEnsemble(networks, seeds=[1, 2, 3], execution=execution)
    line = r"logits of member 0 depend on the parameter 'body.3.weight' of member 2"
    with pytest.raises(ValueError, match=line):
        prove_independence(ensemble, (1, 8, 8))


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
