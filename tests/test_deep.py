"""Deep ensembles: the contract for several backbones, and what is particular to them."""

from typing import ClassVar

import pytest
import torch
from contract import CLASSES, EnsembleContract, images_like, randomise
from deepens.ensembles import DeepEnsemble, Network, Packed, PackedEnsemble
from deepens.ensembles.backbones import build
from deepens.ensembles.families.networks import NetworkEnsemble
from torch import nn


class _Deep(EnsembleContract):
    backbone = ""

    scales: ClassVar = {}

    def factory(self):
        channels, size, _ = self.image_shape
        sizes = {"channels": channels, "image_size": size} | self.scales
        return build(self.backbone, num_classes=CLASSES, **sizes)

    def make(self, num_members):
        return DeepEnsemble(self.factory, seeds=[7, 8, 9][:num_members])

    def plain(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return self.factory()


class TestDeepEnsembleOfSmallCNN(_Deep):
    backbone = "small-cnn"


class TestDeepEnsembleOfNarrowResNet(_Deep):
    backbone = "resnet8"
    image_shape = (3, 16, 16)


class TestDeepEnsembleOfVisionTransformer(_Deep):
    backbone = "vit-micro/4"
    scales: ClassVar = {"width": 0.25, "depth": 0.5}
    image_shape = (1, 8, 8)


class TestDeepEnsembleOfDifferentArchitectures(EnsembleContract):
    def make(self, num_members):
        factories = [
            lambda: build("small-cnn", num_classes=CLASSES, channels=1, image_size=8),
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)),
            lambda: build("small-cnn", num_classes=CLASSES, channels=1, image_size=8, width=0.5),
        ]
        return DeepEnsemble(factories[:num_members], seeds=[7, 8, 9][:num_members])

    def plain(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return build("small-cnn", num_classes=CLASSES, channels=1, image_size=8)

    def test_member_state_is_that_of_the_member_and_writable(self, ensemble):
        images = images_like(self, 4)
        expected = ensemble(images)
        randomise(ensemble)
        source = self.make(self.num_members).double()
        for index in range(self.num_members):
            for name, value in ensemble.member_state(index).items():
                value.copy_(source.member_state(index)[name])
        assert torch.equal(ensemble(images), expected)

    def test_every_drawn_tensor_is_an_independent_draw_for_each_member(self):
        first, again = self.make(3), self.make(3)
        for name, value in first.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])


def _linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    DeepEnsemble(_linear, seeds=[1, 2])
    assert torch.equal(torch.get_rng_state(), before)


def test_member_depends_on_its_own_seed_alone():
    joint = DeepEnsemble(_linear, seeds=[1, 2, 3])
    alone = DeepEnsemble(_linear, seeds=[3])
    for name, value in alone.member_state(0).items():
        assert torch.equal(value, joint.member_state(2)[name])


def test_loaded_weights_are_a_shared_starting_point_and_the_fresh_head_is_not():
    loaded = nn.Linear(4, 3)

    def pretrained():
        body = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        body[1].load_state_dict(loaded.state_dict())
        return Network(body, nn.Linear(3, 2))

    ensemble = DeepEnsemble(pretrained, seeds=[1, 2])
    first, second = ensemble.member_state(0), ensemble.member_state(1)
    assert torch.equal(first["body.1.weight"], second["body.1.weight"])
    assert not (first["head.weight"] == second["head.weight"]).any()


def test_factory_that_hands_out_one_module_twice_is_refused():
    network = _linear()
    with pytest.raises(ValueError, match="members 0 and 1 share the parameter"):
        DeepEnsemble(lambda: network, seeds=[1, 2])


def test_members_of_a_packed_ensemble_are_checked_too():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.flatten, self.layer = nn.Flatten(), nn.Linear(4, 2)
            nn.init.ones_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)

        def forward(self, images):
            return self.layer(self.flatten(images))

    with pytest.warns(UserWarning, match="members 0 and 1 start from identical parameters"):
        PackedEnsemble(Fixed, seeds=[1, 2], options=Packed(alpha=2.0), image_shape=(1, 2, 2))
    layer = nn.Linear(4, 2)
    networks = [Network(nn.Flatten(), layer), Network(nn.Flatten(), layer)]
    with pytest.raises(ValueError, match=r"members 0 and 1 share the parameter 'head\.weight'"):
        NetworkEnsemble(networks, seeds=[1, 2])


@pytest.mark.filterwarnings("error")
def test_one_member_and_networks_without_parameters_are_not_warned_about():
    DeepEnsemble(_linear, seeds=[1])
    DeepEnsemble(nn.Flatten, seeds=[1, 2])


def test_factory_that_draws_nothing_is_warned_about():
    weights = _linear().state_dict()

    def copied():
        network = _linear()
        network.load_state_dict(weights)
        return network

    with pytest.warns(UserWarning, match="members 0 and 1 start from identical parameters"):
        DeepEnsemble(copied, seeds=[1, 2])


@pytest.mark.parametrize(
    ("seeds", "line"),
    [
        ([], "num_members must be >= 1, got 0"),
        ([1, 1], "seeds must differ"),
        ([-1], r"seeds must be in \[0, 2\*\*63\), got -1"),
    ],
)
def test_bad_seeds_are_refused(seeds, line):
    with pytest.raises(ValueError, match=line):
        DeepEnsemble(_linear, seeds=seeds)


def test_number_of_factories_must_be_that_of_seeds():
    with pytest.raises(ValueError, match="one for each of the 2 seeds, got 1"):
        DeepEnsemble([_linear], seeds=[1, 2])


def _dropout():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))


def test_dropout_of_a_member_is_a_function_of_its_seed_and_the_step():
    images = torch.randn(16, 1, 2, 2)
    joint = DeepEnsemble(_dropout, seeds=[1, 2, 3]).train()
    alone = DeepEnsemble(_dropout, seeds=[3]).train()
    joint.set_step(5)
    alone.set_step(5)
    assert torch.equal(joint(images)[2], alone(images)[0])
    joint.set_step(6)
    assert not torch.equal(joint(images)[2], alone(images)[0])


def test_members_drop_different_units():
    ensemble = DeepEnsemble(_dropout, seeds=[1, 2]).train()
    for name, value in ensemble.member_state(1).items():
        value.copy_(ensemble.member_state(0)[name])
    ensemble.set_step(0)
    logits = ensemble(torch.randn(16, 1, 2, 2))
    assert not torch.equal(logits[0], logits[1])


def test_dropout_leaves_the_global_generator_alone():
    ensemble = DeepEnsemble(_dropout, seeds=[1, 2]).train()
    ensemble.set_step(0)
    before = torch.get_rng_state()
    ensemble(torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)
