"""Packed ensembles: the contract, their members, and what is refused."""

import copy
from typing import ClassVar

import pytest
import torch
from contract import CLASSES, EnsembleContract
from deepens.ensembles import Packed, PackedEnsemble, pack
from deepens.ensembles.backbones import build
from deepens.experiments.cost.macs import count_macs, count_parameters
from published_networks import LARGE, PUBLISHED, published
from torch import nn


class _PackedContract(EnsembleContract):
    backbone = ""
    options = Packed()

    scales: ClassVar = {}

    def factory(self):
        channels, size, _ = self.image_shape
        sizes = {"channels": channels, "image_size": size} | self.scales
        return build(self.backbone, num_classes=CLASSES, **sizes)

    def make(self, num_members):
        # Of three members, so that an ensemble of one equals the first of them.
        return PackedEnsemble(
            self.factory,
            seeds=[7, 8, 9][:num_members],
            options=self.options,
            image_shape=self.image_shape,
            num_members=3,
        )

    def plain(self):
        return self.make(1).member(0)


class TestPackedSmallCNN(_PackedContract):
    backbone = "small-cnn"


class TestPackedNarrowResNetWithGroups(_PackedContract):
    backbone = "resnet8"
    options = Packed(alpha=3.0, gamma=2)
    image_shape = (3, 8, 8)


class TestPackedVisionTransformer(_PackedContract):
    backbone = "vit-micro/4"
    scales: ClassVar = {"width": 0.25, "depth": 0.5}
    options = Packed(alpha=2.0)


class TestPackedGroupedNarrowResNet(_PackedContract):
    backbone = "resnet8"
    options = Packed(alpha=3.0, execution="grouped")
    image_shape = (3, 8, 8)


def _resnet():
    return build("resnet8", num_classes=CLASSES, channels=3, image_size=8)


@pytest.mark.parametrize("name", ["resnet8", "vit-micro/4", "small-cnn"])
def test_one_member_of_full_width_is_the_plain_network_with_its_weights(name):
    model = build(name, num_classes=CLASSES, channels=3, image_size=8)
    images = torch.randn(4, 3, 8, 8)
    packed = pack(model, 1, alpha=1.0, gamma=1, image_shape=(3, 8, 8)).eval()
    torch.testing.assert_close(packed(images)[0], model.eval()(images), rtol=0, atol=1e-6)
    assert all(
        torch.equal(value, packed.member_state(0)[key]) for key, value in model.state_dict().items()
    )


def test_module_and_factory_make_ensembles_of_the_same_shape():
    model = _resnet()
    before = copy.deepcopy(model.state_dict())
    of_module = pack(model, 4, image_shape=(3, 8, 8))
    of_factory = pack(_resnet, 4, image_shape=(3, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    shapes = [
        {name: value.shape for name, value in each.state_dict().items()}
        for each in (of_module, of_factory)
    ]
    assert shapes[0] == shapes[1]


def test_members_of_a_module_are_independent_draws():
    ensemble = pack(_resnet(), 4, alpha=4.0, image_shape=(3, 8, 8))  # no width changes
    first, second = ensemble.member_state(0), ensemble.member_state(1)
    for name, value in first.items():
        if name.endswith("weight") and value.ndim > 1:
            assert (value == second[name]).double().mean() < 0.01, name


def test_member_depends_on_its_own_seed_alone():
    options = Packed(alpha=2.0)
    make = {"options": options, "image_shape": (3, 8, 8), "num_members": 4}
    joint = PackedEnsemble(_resnet, seeds=[1, 2, 3, 4], **make)
    alone = PackedEnsemble(_resnet, seeds=[3], **make)
    for name, value in alone.member_state(0).items():
        assert torch.equal(value, joint.member_state(2)[name]), name


def test_building_leaves_the_global_generator_alone():
    model = _resnet()
    before = torch.get_rng_state()
    pack(model, 2, image_shape=(3, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_costs_are_those_of_the_members_together():
    ensemble = pack(_resnet(), 4, alpha=2.0, image_shape=(3, 8, 8))
    member = ensemble.member(0)
    assert count_parameters(ensemble) == 4 * count_parameters(member)
    assert count_macs(ensemble, (3, 8, 8)) == 4 * count_macs(member, (3, 8, 8))
    # By hand, halved widths 8, 16, 32 on 8x8, 4x4 and 2x2 places.
    stem = 64 * 27 * 8
    first = 2 * 64 * 9 * 8 * 8
    second = 16 * (9 * 8 * 16 + 9 * 16 * 16 + 8 * 16)
    third = 4 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32)
    assert count_macs(member, (3, 8, 8)) == stem + first + second + third + 32 * CLASSES


def test_grouped_execution_costs_as_many_macs_as_the_loop():
    loop, grouped = (
        pack(_resnet(), 4, alpha=2.0, gamma=2, image_shape=(3, 8, 8), execution=execution)
        for execution in ("loop", "grouped")
    )
    assert count_macs(grouped, (3, 8, 8)) == count_macs(loop, (3, 8, 8))


class _Own(nn.Module):
    """A user's network of ordinary layers, with a skip connection by concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.branch = nn.Conv2d(16, 24, 3, padding=1, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(40 * 16, 6)

    def forward(self, images):
        stem = self.norm(self.stem(images)).relu()
        joined = torch.cat([self.branch(stem), self.pool(stem)], dim=1)
        return self.head(joined.flatten(1))


def test_a_users_own_network_is_packed_in_one_line():
    ensemble = pack(_Own(), 4, alpha=2.0, gamma=1, image_shape=(3, 8, 8)).eval()
    images = torch.randn(5, 3, 8, 8)
    logits = ensemble(images)
    assert logits.shape == (4, 5, 6)
    torch.testing.assert_close(ensemble.member(2)(images), logits[2])
    assert ensemble.member(0).body.head.in_features == 20 * 16


def test_rounding_is_told():
    assert pack(_resnet(), 3, alpha=2.0, image_shape=(3, 8, 8)).rounding[16] == (
        pytest.approx(32 / 3),
        11,
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"num_members": 0}, "num_members must be a whole number >= 1, got 0"),
        ({"num_members": 4, "alpha": 0.0}, "packed.alpha must be >= 0.01 and finite, got 0.0"),
        ({"num_members": 4, "gamma": 0}, "packed.gamma must be a whole number >= 1, got 0"),
        (
            {"num_members": 8, "alpha": 1.0, "gamma": 4},
            r"would round the width 16 of \S+ from 2 up to 4, by more than 25 %; the smallest "
            r"alpha that works is 1.6",
        ),
    ],
)
def test_bad_sizes_are_refused(arguments, line):
    with pytest.raises(ValueError, match=line):
        pack(_resnet(), **arguments, image_shape=(3, 8, 8))


def test_factory_that_hands_out_one_network_twice_is_refused():
    network = _resnet()
    with pytest.raises(ValueError, match="model must build a new network at each call"):
        pack(lambda: network, 2, image_shape=(3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name"),
    [*PUBLISHED, *(pytest.param(*each, marks=pytest.mark.exhaustive) for each in LARGE)],
)
def test_executions_of_published_networks_agree(library, name):
    torch.manual_seed(0)
    ensemble = pack(published(library, name), 4, alpha=2.0, image_shape=(3, 64, 64)).eval()
    for parameter in ensemble.parameters():
        if not parameter.any():  # a head that starts at zero would make all logits equal
            nn.init.normal_(parameter, std=0.05)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = ensemble(images)
        assert not torch.allclose(expected[0], expected[1])
        ensemble.execution = "grouped"
        assert (ensemble(images) - expected).abs().max() <= 1e-5 * expected.abs().max()
