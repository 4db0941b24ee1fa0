"""Narrowing: against networks that are built narrow, against counts by hand, and its refusals."""

import copy
import math
from fractions import Fraction

import pytest
import timm
import torch
from deepens.ensembles import pack
from deepens.ensembles.backbones import build
from deepens.ensembles.families.packed.slim import Plan
from published_networks import LARGE, PUBLISHED, published
from timm.models.cait import Cait
from timm.models.eva import Eva
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def slim(model, image_shape, *, num_members=4, alpha=2, gamma=1):
    plan = Plan.of(
        model,
        num_members=num_members,
        alpha=Fraction(alpha),
        gamma=gamma,
        image_shape=image_shape,
    )
    return plan.narrow(copy.deepcopy(model), image_shape)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "wrn-16-4", "small-cnn"])
def test_half_as_wide_is_the_network_that_is_built_half_as_wide(name):
    make = {"num_classes": 10, "channels": 3, "image_size": 16}
    narrow = slim(build(name, **make), (3, 16, 16))
    built = build(name, width=0.5, **make)
    assert shapes(narrow) == shapes(built)
    built.load_state_dict(narrow.state_dict())
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(narrow.eval()(images), built.eval()(images))


def test_vision_transformer_keeps_its_heads_and_halves_their_size():
    make = {"num_classes": 10, "channels": 1, "image_size": 8}
    narrow = slim(build("vit-micro/2", **make), (1, 8, 8))
    built = build("vit-micro/2", width=0.5, **make)
    assert shapes(narrow) == shapes(built)
    built.load_state_dict(narrow.state_dict())
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(narrow.eval()(images), built.eval()(images))


@pytest.mark.parametrize(
    ("members", "alpha", "gamma", "expected"),
    [
        (1, 1, 1, 11_173_962),
        (4, 2, 1, 11_190_440),
        (4, 4, 1, 44_695_848),
        # 5.61 M with the three shortcuts in two groups, which here have one
        (4, 2, 2, 5_697_704),
    ],
)
def test_parameters_of_packed_resnet18_are_the_published_ones(members, alpha, gamma, expected):
    model = build("resnet18", num_classes=10, channels=3, image_size=32)
    member = slim(model, (3, 16, 16), num_members=members, alpha=alpha, gamma=gamma)
    assert members * count(member) == expected


def test_gamma_acts_on_interior_convolutions_alone():
    model = build("resnet8", num_classes=10, channels=3, image_size=16)
    member = slim(model, (3, 16, 16), gamma=2)
    groups = [
        (module.kernel_size[0], module.groups)
        for module in member.modules()
        if isinstance(module, nn.Conv2d)
    ]
    # The first reads the image; the two 1x1 ones are shortcuts.
    assert groups == [(3, 1), (3, 2), (3, 2), (3, 2), (3, 2), (1, 1), (3, 2), (3, 2), (1, 1)]


def test_gamma_counts_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 7),
    )
    assert count(slim(model, (3, 8, 8), gamma=4)) == 8 * 3 * 9 + 16 * 2 * 9 + 16 * 7 + 7


def test_nothing_changes_at_one_member_of_full_width():
    for name, shape in [("resnet8", (3, 16, 16)), ("vit-micro/4", (3, 16, 16))]:
        model = build(name, num_classes=10, channels=3, image_size=16)
        same = slim(model, shape, num_members=1, alpha=1)
        for key, value in model.state_dict().items():
            assert torch.equal(same.state_dict()[key], value), key


def test_weights_are_scaled_to_their_fan_in():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 4, 256), nn.Linear(256, 10)
    )
    narrow = slim(model, (3, 4, 4))
    for layer, fan_in in [(narrow[0], 27), (narrow[3], 128), (narrow[4], 128)]:
        bound = 1 / math.sqrt(fan_in)  # torch's default initialisation
        assert 0.97 * bound < layer.weight.abs().max() <= bound * 1.0001
        assert layer.bias.abs().max() <= bound * 1.0001
        expected = bound / math.sqrt(3)
        assert abs(float(layer.weight.std()) / expected - 1) < 0.06


def test_model_comes_out_unchanged():
    model = build("resnet8", num_classes=10, channels=3, image_size=16)
    model.body[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    Plan.of(model, num_members=4, alpha=Fraction(2), gamma=1, image_shape=(3, 16, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1, Fraction(3, 2), 2, 3])
@pytest.mark.parametrize("members", range(1, 9))
def test_any_size_works_or_is_refused_with_an_alpha_that_works(members, alpha):
    model = build("resnet8", num_classes=10, channels=3, image_size=8)
    for gamma in (1, 2, 4):
        try:
            member = slim(model, (3, 8, 8), num_members=members, alpha=alpha, gamma=gamma)
        except ValueError as refused:
            line = str(refused)
            assert "by more than 25 %; the smallest alpha that works is" in line
            enough = line.rpartition(" ")[2]
            member = slim(model, (3, 8, 8), num_members=members, alpha=enough, gamma=gamma)
        assert torch.isfinite(member.eval()(torch.randn(2, 3, 8, 8))).all()


def test_rounding_is_reported():
    plan = Plan.of(
        build("resnet8", num_classes=10, channels=3, image_size=8),
        num_members=3,
        alpha=Fraction(2),
        gamma=1,
        image_shape=(3, 8, 8),
    )
    assert plan.rounding() == {
        16: (pytest.approx(32 / 3), 11),
        32: (pytest.approx(64 / 3), 22),
        64: (pytest.approx(128 / 3), 43),
    }


class _Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduce = nn.Conv2d(32, 8, 1)
        self.expand = nn.Conv2d(8, 32, 1)

    def forward(self, images):
        gate = self.expand(self.reduce(images.mean((2, 3), keepdim=True)).relu())
        return images * gate.sigmoid()


def test_squeeze_and_excitation_takes_no_gamma_and_depthwise_stays_depthwise():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.Conv2d(32, 32, 3, groups=32),
        _Squeeze(),
        nn.Conv2d(32, 64, 1, bias=False),
        nn.Flatten(),
        nn.Linear(64 * 16, 5),
    )
    member = slim(model, (3, 8, 8), gamma=2)
    depthwise, pointwise = member[1], member[3]
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (16, 16, 16)
    assert pointwise.groups == 2
    assert (member[2].reduce.groups, member[2].expand.groups) == (1, 1)
    assert (member[2].reduce.in_channels, member[2].reduce.out_channels) == (16, 4)


@pytest.mark.parametrize(
    ("library", "name"),
    [*PUBLISHED, *(pytest.param(*each, marks=pytest.mark.slow) for each in LARGE)],
)
def test_published_networks_are_narrowed(library, name):
    torch.manual_seed(0)
    model = published(library, name)
    member = slim(model, (3, 64, 64))
    wide, narrow = model.state_dict(), member.state_dict()
    assert wide.keys() == narrow.keys()
    # Interior weights have a quarter of their entries, those that touch image or classes a half.
    assert 0.24 < count(member) / count(model) < 0.30
    for parameter in member.parameters():
        if not parameter.any():  # a head that starts at zero would hide the image
            nn.init.normal_(parameter, std=0.05)
    images = torch.randn(2, 3, 64, 64)
    member.eval()
    for part in member.modules():
        part.training = isinstance(part, nn.BatchNorm2d)  # or activations would fade out of sight
    logits = member(images)
    assert logits.shape == (2, 7)
    assert not torch.equal(logits[0], logits[1])  # the image still reaches the classes
    # Every parameter is in use: none was left behind by the surgery.
    member.train()(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in member.parameters())


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.second(self.first(self.stem(images)).relu()).mean((2, 3)))


def test_tied_weights_stay_tied():
    member = slim(_Tied(), (3, 8, 8))
    assert member.first.weight is member.second.weight
    assert member.first.weight.shape == (4, 4, 3, 3)
    assert member.first.bias is not member.second.bias


def test_group_norm_keeps_the_size_of_its_groups():
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.GroupNorm(16, 32), nn.GroupNorm(1, 32), nn.Flatten(),
        nn.Linear(32 * 36, 5),
    )  # fmt: skip
    member = slim(model, (3, 8, 8))
    assert (member[1].num_groups, member[1].num_channels) == (8, 16)
    assert (member[2].num_groups, member[2].num_channels) == (1, 16)


class _FrozenPositions(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 2, stride=2)
        positions = torch.arange(16.0 * 16).view(1, 16, 16)
        self.positions = nn.Parameter(positions, requires_grad=False)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(tokens.mean(1))


def test_frozen_parameters_are_constants():
    model = _FrozenPositions()
    ensemble = pack(model, 2, alpha=2.0, image_shape=(3, 8, 8))
    for index in range(2):
        assert torch.equal(ensemble.member(index).body.positions, model.positions)
    with pytest.raises(ValueError, match="the parameter positions is frozen"):
        slim(model, (3, 8, 8))
    assert not model.positions.requires_grad


class _Slice(nn.Module):
    """Cuts a fixed number of channels out of more."""

    def __init__(self, start):
        super().__init__()
        self.stem, self.cut = nn.Conv2d(3, 32, 1), slice(start, start + 16)
        self.next, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, images):
        return self.head(self.next(self.stem(images)[:, self.cut]).mean((2, 3)))


class _ThreeHeads(nn.Module):
    """Joins the scores of three heads; or adds those of two."""

    def __init__(self, join):
        super().__init__()
        self.stem, self.join = nn.Conv2d(3, 16, 1), join
        self.heads = nn.ModuleList(nn.Linear(16, 4 if join else 2) for _ in range(3))

    def forward(self, images):
        features = self.stem(images).mean((2, 3))
        scores = [head(features) for head in self.heads]
        return torch.cat(scores, 1) if self.join else sum(scores)


class _Mixer(nn.Module):
    """Mixes tokens by a linear layer, whose width is no number of channels."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 2, stride=2)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        tokens = self.embed(images).flatten(2)
        return self.head((tokens + self.mix(tokens)).mean(2))


class _Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, images):
        return self.used(images.flatten(1))


class _Splits(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(192, 16), nn.Linear(8, 5)

    def forward(self, images):
        first, second = self.stem(images.flatten(1)).split([8, 8], 1)
        return self.head(first * second)


class _Reshapes(nn.Module):
    def forward(self, features):
        return features.view(-1, 16)


class _WeightAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(192, 8), nn.Linear(8, 5)

    def forward(self, images):
        return self.head(nn.functional.linear(images.flatten(1), self.layer.weight))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (_Mixer(), "_Mixer cannot be narrowed: "),
        (_Slice(0), "16 channels arrive at next where 16 did, not about 8"),
        (_Slice(16), "0 channels arrive at next where 16 did, not about 8"),
        (_ThreeHeads(join=True), "its 12 class scores would become 6"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.ReLU(), nn.Linear(2, 2)),
            "1 gives as many channels as there are classes",
        ),
        (_WeightAlone(), r"'layer' \(Linear\) is used through its weight alone"),
        (
            Eva(
                img_size=8,
                patch_size=4,
                embed_dim=16,
                depth=1,
                num_heads=2,
                qkv_fused=False,
                qkv_bias=False,
                use_abs_pos_emb=False,
                use_rot_pos_emb=True,
                num_classes=5,
            ),
            "'blocks.0.attn' .* fewer channels, since the rotation of its positions, 'rope'",
        ),
        (_Splits(), r"its own code does not run with fewer channels, since it, or a module before"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 16), _Reshapes(), nn.Linear(16, 5)),
            r"the module '2' \(_Reshapes\) does not run with fewer channels",
        ),
        (
            nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 2)), nn.Flatten()),
            "its parameters are computed from others",
        ),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), "it has no sizes before its first image"),
        (_Idle(), r"the module 'unused' \(Linear\) is not called for an image"),
        (
            nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Flatten(), nn.Linear(4 * 81, 5)),
            r"the module '0' \(ConvTranspose2d\) cannot be narrowed",
        ),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 2)), nn.Flatten()),
            "its parameters are computed from others",
        ),
        (nn.Conv2d(3, 8, 1), r"must return class scores \[batch, classes\], got \[1, 8, 8, 8\]"),
    ],
)
def test_what_cannot_be_narrowed_is_refused_by_name(model, line):
    shape = (3, 2, 2) if isinstance(model, _Idle) else (3, 8, 8)
    with pytest.raises(ValueError, match=line):
        slim(model, shape)


def test_gamma_without_an_interior_convolution_is_refused():
    with pytest.raises(ValueError, match="gamma must be 1, got 2: Network has no interior"):
        slim(build("vit-micro/4", num_classes=5, channels=3, image_size=8), (3, 8, 8), gamma=2)


def test_wrong_image_size_is_refused_by_the_module_that_fails():
    with pytest.raises(ValueError, match=r"the module '\w+' \(Linear\) fails on images of shape"):
        slim(nn.Sequential(nn.Flatten(), nn.Linear(10, 5)), (3, 8, 8))


def test_heads_whose_scores_are_added_keep_all_classes():
    narrow = slim(_ThreeHeads(join=False), (3, 8, 8))
    assert [(head.in_features, head.out_features) for head in narrow.heads] == [(8, 2)] * 3


def test_attention_keeps_the_maps_between_its_heads_and_scales_by_their_size():
    make = {"img_size": 8, "patch_size": 4, "depth": 1, "depth_token_only": 1, "num_classes": 5}
    narrow = slim(Cait(embed_dim=16, num_heads=4, **make), (3, 8, 8))
    built = Cait(embed_dim=8, num_heads=4, **make)
    assert shapes(narrow) == shapes(built)
    built.load_state_dict(narrow.state_dict())
    images = torch.randn(3, 3, 8, 8)
    assert torch.equal(narrow.eval()(images), built.eval()(images))


class _LayerScale(nn.Module):
    """A scale per channel that is kept flat and viewed by a shape, and positions of images."""

    def __init__(self, width):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 1), nn.Linear(width, 5)
        self.shape = (width, 1, 1)
        self.scale = nn.Parameter(torch.ones(width))
        self.positions = nn.Parameter(torch.randn(1, width, 8, 8))

    def forward(self, images):
        hidden = self.stem(images) * self.scale.view(self.shape) + self.positions
        return self.head(hidden.mean((2, 3)))


def test_shape_beside_a_parameter_and_positions_of_images_are_narrowed():
    narrow = slim(_LayerScale(16), (3, 8, 8))
    assert narrow.shape == (8, 1, 1)
    assert shapes(narrow) == shapes(_LayerScale(8))
    ensemble = pack(_LayerScale(24), 2, alpha=1.0, image_shape=(3, 8, 8)).eval().double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    expected = ensemble(images)
    ensemble.execution = "grouped"
    torch.testing.assert_close(ensemble(images), expected)


def test_standardised_weights_are_scaled_to_their_new_fan_in():
    model = timm.create_model("test_nfnet", num_classes=5)
    narrow = slim(model, (3, 96, 96))
    checked = 0
    for name, layer in model.named_modules():
        if hasattr(layer, "gain"):
            new = narrow.get_submodule(name)
            assert new.gain.shape == (new.out_channels, 1, 1, 1)
            factors = [own.scale * math.sqrt(own.weight[0].numel()) for own in (layer, new)]
            assert factors[1] == pytest.approx(factors[0])
            checked += new.weight.shape != layer.weight.shape
    assert checked > 5


class _Remembers(nn.Module):
    """Keeps what it computed, as networks do that show their attention or cache a table."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(192, 16), nn.Linear(16, 5)
        self.cache = {}

    def forward(self, images):
        self.last = self.stem(images.flatten(1))
        if "table" not in self.cache:
            self.cache["table"] = 2 * self.stem.weight[:, 0]
        return self.head(self.last + self.cache["table"])


def test_tensors_that_modules_keep_of_a_pass_are_left_out_of_copies():
    model = _Remembers()
    slim(model, (3, 8, 8))
    assert model.cache == {}
    assert not hasattr(model, "last")
    images = torch.randn(2, 3, 8, 8)
    expected = model(images)
    pack(model, 2, image_shape=(3, 8, 8))
    whole = pack(model, 1, alpha=1.0, image_shape=(3, 8, 8))
    torch.testing.assert_close(whole(images)[0], expected)
    torch.testing.assert_close(whole.member(0)(images), expected)
    torch.testing.assert_close(whole.as_grouped()(images)[0], expected)


def test_packing_costs_a_few_passes():
    model = build("vit-micro/4", num_classes=5, channels=3, image_size=16, width=0.25)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 16, 16))
    one = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        pack(model, 4, image_shape=(3, 16, 16))
    assert counter.get_total_flops() < 5 * one


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("deit_tiny_distilled_patch16_224", "poolformer_s12"),
        *(
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in (
                "cait_xxs24_224",
                "nfnet_l0",
                "eca_nfnet_l0",
                "coatnet_nano_rw_224",
                "maxvit_tiny_tf_224",
                "caformer_s18",
                "crossvit_tiny_240",
                "repvit_m0_9",
                "pit_ti_distilled_224",
            )
        ),
    ],
)
def test_networks_of_timm_with_scales_class_attention_and_several_heads_are_packed(name):
    model = timm.create_model(name, num_classes=5)
    shape = model.pretrained_cfg["input_size"]
    ensemble = pack(model, 2, alpha=1.0, image_shape=shape).eval()
    assert ensemble(torch.randn(2, *shape)).shape == (2, 2, 5)
    assert 0.2 < count(ensemble.member(0)) / count(model) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("levit_128s", r"'stages.0.blocks.0.attn' \(Attention\) does not run with fewer channels"),
        ("tiny_vit_5m_224", r"'stages.1.blocks.0.attn' \(Attention\) does not run with fewer"),
        ("vit_small_patch16_dinov3", "since the rotation of its positions, 'rope'"),
        ("eva02_tiny_patch14_224", "'blocks.0.attn.qkv' .* is used through its weight alone"),
    ],
)
def test_networks_of_timm_that_cannot_be_packed_are_refused_by_module_and_reason(name, line):
    model = timm.create_model(name, num_classes=5)
    with pytest.raises(ValueError, match=line):
        pack(model, 2, alpha=1.0, image_shape=model.pretrained_cfg["input_size"])
