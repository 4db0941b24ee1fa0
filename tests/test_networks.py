"""Executions of separate networks: each equals the loop, or is refused with one line.

Tolerances are for float64, unless a test says otherwise.
"""

import copy
from typing import ClassVar

import pytest
import timm
import torch
import torchvision
from contract import CLASSES, EnsembleContract
from deepens.ensembles import DeepEnsemble, Network, Packed, pack
from deepens.ensembles.backbones import Normalisation, Preprocessing, build
from deepens.ensembles.families import executions
from deepens.ensembles.families.networks import NetworkEnsemble
from deepens.ensembles.families.proof import randomise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class _Executed(EnsembleContract):
    """The contract for a deep ensemble in another execution than the loop."""

    execution = "grouped"
    backbone = "small-cnn"

    scales: ClassVar = {}

    def factory(self):
        channels, size, _ = self.image_shape
        sizes = {"channels": channels, "image_size": size} | self.scales
        return build(self.backbone, num_classes=CLASSES, **sizes)

    def make(self, num_members):
        return DeepEnsemble(self.factory, seeds=[7, 8, 9][:num_members], execution=self.execution)

    def plain(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return self.factory()


class TestGroupedSmallCNN(_Executed):
    pass


class TestGroupedVisionTransformer(_Executed):
    backbone = "vit-micro/4"
    scales: ClassVar = {"width": 0.25, "depth": 0.5}


def _plain_convolutions():
    return build("resnet8", num_classes=CLASSES, channels=3, image_size=8)


def _small_cnn():
    return build("small-cnn", num_classes=CLASSES, channels=3, image_size=8)


def _flattened():
    features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.PReLU(), nn.MaxPool2d(2))
    body = nn.Sequential(
        features, nn.Flatten(), nn.Linear(96, 12), nn.BatchNorm1d(12), nn.PReLU(12)
    )
    return Network(body, nn.Linear(12, CLASSES))


def _perceptron():
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.Tanh(), nn.Linear(7, 6))
    return Network(body, nn.Linear(6, CLASSES))


def _group_norms():
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1, bias=False),
        nn.GroupNorm(4, 8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Network(body, nn.Linear(8, CLASSES))


def _depthwise_on_the_image():
    body = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten())
    return Network(body, nn.Linear(4 * 36, CLASSES))


def _inverted_residuals():
    def block(*sizes):
        return torchvision.models.mobilenetv3.InvertedResidualConfig(*sizes, 1, 1.0)

    blocks = [block(16, 3, 16, 16, True, "RE", 2), block(16, 5, 24, 16, True, "HS", 1)]
    return torchvision.models.MobileNetV3(blocks, 24, num_classes=CLASSES, dropout=0.0)


def _mobilenet():
    return torchvision.models.mobilenet_v3_small(num_classes=CLASSES, dropout=0.0)


def _shufflenet():
    return torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES)


def _layer_scale():
    block = torchvision.models.convnext.CNBlock
    norm = torchvision.models.convnext.LayerNorm2d
    body = nn.Sequential(
        nn.Conv2d(3, 8, 2, stride=2), norm(8), block(8, 0.5, 0.0), norm(8), nn.Flatten()
    )
    return Network(body, nn.Linear(128, CLASSES))


def _timm_convnext():
    return timm.models.convnext.ConvNeXt(
        num_classes=CLASSES, depths=(1, 1, 1, 1), dims=(4, 6, 8, 6), patch_size=1
    )


def _own_vit():
    options = {"width": 0.25, "depth": 0.5}
    return build("vit-micro/4", num_classes=CLASSES, channels=3, image_size=8, **options)


class _SeparateProjections(nn.Module):
    """Attention as Hugging Face writes it."""

    def __init__(self):
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 2, 4, 8
        self.embedding = nn.Conv2d(3, 8, 4, stride=4)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def heads(self, tokens):
        sizes = (self.num_attention_heads, self.attention_head_size)
        return tokens.view(tokens.shape[:-1] + sizes).permute(0, 2, 1, 3)

    def forward(self, images):
        tokens = self.embedding(images).flatten(2).transpose(1, 2)
        query, key, value = (
            self.heads(project(tokens)) for project in (self.query, self.key, self.value)
        )
        attended = (query @ key.transpose(-1, -2) / 2).softmax(-1) @ value
        joined = attended.permute(0, 2, 1, 3).contiguous()
        return joined.view((*joined.shape[:-2], self.all_head_size)).mean(1)


def _separate_projections():
    return Network(_SeparateProjections(), nn.Linear(8, CLASSES))


def _torchvision_vit():
    return torchvision.models.VisionTransformer(8, 4, 2, 2, 16, 24, num_classes=CLASSES)


def _timm_vit(**options):
    return timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=CLASSES, **options
    )


def _timm_vit_with_norms():
    return _timm_vit(qk_norm=True, init_values=1e-5)


class _Encoder(nn.Module):
    """Torch's own encoder, which has a fused kernel for evaluation."""

    def __init__(self, **options):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(
            layer, 2, enable_nested_tensor=not options, norm=nn.LayerNorm(8)
        )

    def forward(self, images):
        return self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(1)


def _encoder():
    return Network(_Encoder(), nn.Linear(8, CLASSES))


def _encoder_with_norms_first():
    return Network(_Encoder(norm_first=True, activation="gelu"), nn.Linear(8, CLASSES))


def _same_padding():
    body = nn.Sequential(
        timm.layers.Conv2dSame(3, 6, 3, stride=2),
        timm.layers.BatchNormAct2d(6),
        timm.layers.LayerNorm2d(6),
        nn.Flatten(),
    )
    return Network(body, nn.Linear(96, CLASSES))


def _dense():
    return torchvision.models.DenseNet(4, (2, 2), 6, bn_size=2, num_classes=CLASSES)


class _Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        unit = torchvision.models.shufflenetv2.InvertedResidual
        self.units = nn.Sequential(unit(8, 8, 1), unit(8, 12, 2), nn.ChannelShuffle(3))
        self.last = nn.Conv2d(6, 6, 1)

    def forward(self, images):
        first, second = self.units(self.stem(images)).split(6, dim=1)
        return torch.cat([self.last(second), first], 1).flatten(1)


def _shuffled():
    return Network(_Shuffled(), nn.Linear(48, CLASSES))


def _behind_preprocessing():
    given = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expected = Normalisation(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.6))
    preprocessing = Preprocessing(given, expected, channels=3, size=12)
    body = nn.Sequential(preprocessing, nn.Conv2d(3, 6, 4, stride=4), nn.Flatten())
    return Network(body, nn.Linear(54, CLASSES))


def _shared_layer():
    layer = nn.Linear(6, 6)
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), layer, nn.ReLU(), layer)
    return Network(body, nn.Linear(6, CLASSES))


NETWORKS = [
    _plain_convolutions,
    _flattened,
    _perceptron,
    _group_norms,
    _depthwise_on_the_image,
    _inverted_residuals,
    _layer_scale,
    _timm_convnext,
    _own_vit,
    _separate_projections,
    _torchvision_vit,
    _timm_vit,
    _timm_vit_with_norms,
    _encoder,
    _encoder_with_norms_first,
    _same_padding,
    _dense,
    _shuffled,
    _behind_preprocessing,
    _shared_layer,
]


def _ensemble(factory, execution="loop", num_members=3, dtype=torch.float64):
    ensemble = DeepEnsemble(factory, seeds=list(range(num_members)), execution=execution)
    generator = torch.Generator().manual_seed(3)
    for network in ensemble.networks:
        randomise(network, generator)
    return ensemble.to(dtype)


def _images(*leading, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(11)
    return torch.rand(*leading, 3, size, size, generator=generator, dtype=dtype)


def _step(ensemble, images, members=None):
    ensemble.zero_grad()
    logits = ensemble(images, members)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach()


def _assert_equal_step(ensemble, loop, images, members=None, tolerance=1e-10):
    expected = _step(loop, images, members)
    result = _step(ensemble, images, members)
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
    for (name, mine), other in zip(ensemble.named_parameters(), loop.parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None or not mine.grad.any(), name
        else:
            scale = 1 + float(other.grad.abs().max())
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=tolerance * scale)
    for (name, mine), other in zip(ensemble.named_buffers(), loop.buffers(), strict=True):
        torch.testing.assert_close(
            mine, other, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("factory", NETWORKS, ids=lambda factory: factory.__name__.strip("_"))
def test_logits_gradients_and_running_statistics_equal_the_loop(factory):
    size = 32 if factory is _dense else 8
    ensemble, loop = _ensemble(factory, "grouped"), _ensemble(factory)
    for images in (_images(4, size=size), _images(3, 4, size=size)):
        _assert_equal_step(ensemble.eval(), loop.eval(), images)
        _assert_equal_step(ensemble.train(), loop.train(), images)


@pytest.mark.slow
@pytest.mark.parametrize("factory", [_mobilenet, _shufflenet])
def test_published_networks_equal_the_loop(factory):
    ensemble, loop = _ensemble(factory, "grouped").train(), _ensemble(factory).train()
    _assert_equal_step(ensemble, loop, _images(4, size=32))


def test_subsets_move_the_running_statistics_of_these_members_alone():
    ensemble, loop = _ensemble(_small_cnn, "grouped").train(), _ensemble(_small_cnn).train()
    for members in ([2], [2, 0], [1, 2, 0]):
        _assert_equal_step(ensemble, loop, _images(4), members)
        _assert_equal_step(ensemble, loop, _images(len(members), 4), members)
    counts = [n.state_dict()["body.1.num_batches_tracked"] for n in ensemble.networks]
    assert [int(count) for count in counts] == [4, 2, 6]


@pytest.mark.parametrize("factory", [_plain_convolutions, _own_vit])
def test_single_precision_agrees_to_one_part_in_a_hundred_thousand(factory):
    options = {"dtype": torch.float32}
    ensemble, loop = _ensemble(factory, "grouped", **options), _ensemble(factory, **options)
    images = _images(4, dtype=torch.float32)
    _assert_equal_step(ensemble.train(), loop.train(), images, tolerance=1e-5)


def _halve_momentum(body):
    body[1].momentum /= 2


def _change_eps(body):
    body[1].eps = 0.3


def _other_activation(body):
    body[2] = nn.Tanh()


def _drop_bias(body):
    body[3].bias = None


def _pad_differently(body):
    body[0].padding_mode = "reflect"
    body[0].padding = (2, 2)
    body[0]._reversed_padding_repeated_twice = [2, 2, 2, 2]


def _changeable():
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)
    )
    return Network(nn.Sequential(*body, nn.Flatten()), nn.Linear(192, CLASSES))


CHANGES = [_halve_momentum, _change_eps, _other_activation, _drop_bias, _pad_differently]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_changes_after_first_use_are_followed(change):
    ensemble, loop = _ensemble(_changeable, "grouped"), _ensemble(_changeable)
    for training in (False, True):
        _assert_equal_step(ensemble.train(training), loop.train(training), _images(4))
    for network in (*ensemble.networks, *loop.networks):
        change(network.body)
    for training in (False, True):
        _assert_equal_step(ensemble.train(training), loop.train(training), _images(4))


class _Activated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.activation = nn.Linear(192, 6), torch.relu

    def forward(self, images):
        return self.activation(self.layer(images.flatten(1)))


def test_a_function_that_is_replaced_is_followed():
    def factory():
        return Network(_Activated(), nn.Linear(6, CLASSES))

    ensemble, loop = _ensemble(factory, "grouped"), _ensemble(factory)
    ensemble(_images(4))
    for network in (*ensemble.networks, *loop.networks):
        network.body.activation = torch.tanh
    _assert_equal_step(ensemble, loop, _images(4))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_members_that_no_longer_agree_are_refused(change):
    ensemble = _ensemble(_changeable, "grouped").eval()
    expected = ensemble(_images(4))
    change(ensemble.networks[1].body)
    with pytest.raises(ValueError, match=r"members 0 and 1 differ in module '\d'; use execution"):
        ensemble(_images(4))
    with pytest.raises(ValueError, match="members 0 and 1 differ"):
        ensemble(_images(4), members=[1])
    ensemble.execution = "loop"
    kept = ensemble(_images(4), members=[0, 2])
    torch.testing.assert_close(kept, expected[[0, 2]], rtol=0, atol=1e-12)


def test_averages_of_batch_norm_are_refused_while_their_momentum_is_none():
    ensemble = _ensemble(_small_cnn, "grouped").train()
    loop = _ensemble(_small_cnn).train()
    _assert_equal_step(ensemble, loop, _images(4))
    line = r"execution 'grouped' must equal the loop .* \(BatchNorm2d\): .*execution: loop$"
    with pytest.raises(ValueError, match=line):
        torch.optim.swa_utils.update_bn([_images(4)], ensemble)
    for part in ensemble.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1
    ensemble.load_state_dict(loop.state_dict())
    _assert_equal_step(ensemble.train(), loop, _images(4))


def test_proofs_are_kept_while_nothing_changes(monkeypatch):
    proved = []
    prove = executions.prove_equal
    monkeypatch.setattr(
        executions, "prove_equal", lambda *given: (proved.append(given), prove(*given))
    )
    ensemble = _ensemble(_small_cnn, "grouped").eval()
    for _ in range(3):
        ensemble(_images(4))
        ensemble.load_state_dict(ensemble.state_dict(), assign=True)
        randomise(ensemble, torch.Generator().manual_seed(8))
    assert len(proved) == 3  # loading asks for a new one
    for _ in range(3):
        ensemble(_images(4))
        ensemble.float().double()
        randomise(ensemble, torch.Generator().manual_seed(8))
    assert len(proved) == 4


def _listen(_, inputs, *__):
    assert inputs[0].shape[1] in (3, 192)


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_hooks_of_members_are_refused_while_they_are_there(register):
    ensemble = _ensemble(_perceptron, "grouped").eval()
    loop = _ensemble(_perceptron).eval()
    ensemble(_images(4))
    handle = getattr(ensemble.networks[1].body[1], register)(_listen)
    line = (
        r"execution 'grouped' calls no hooks of members' modules, but module '1' \(Linear\) "
        "has one; remove it, or use execution: loop"
    )
    with pytest.raises(ValueError, match=line):
        ensemble(_images(4))
    handle.remove()
    torch.testing.assert_close(ensemble(_images(4)), loop(_images(4)), rtol=0, atol=1e-12)


def test_hooks_of_other_members_and_of_all_modules_do_not_matter():
    ensemble = _ensemble(_perceptron, "grouped").eval()
    ensemble.networks[2].body[1].register_forward_hook(_listen)
    with FlopCounterMode(display=False) as counter:
        ensemble(_images(4), members=[0, 1])
    assert counter.get_total_flops() > 0


def test_autocast_on_a_cpu_acts_in_loop_and_grouped_alike():
    options = {"dtype": torch.float32}
    images = _images(4, dtype=torch.float32)
    features = {}
    for execution in ("loop", "grouped"):
        ensemble = _ensemble(_autocast, execution, **options).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features[execution] = ensemble.features(images, [0, 1, 2])
    for loop, grouped in zip(features["loop"], features["grouped"], strict=True):
        assert loop.dtype is grouped.dtype is torch.bfloat16
        torch.testing.assert_close(grouped, loop, rtol=0.05, atol=0.05)


def _autocast():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6))
    return Network(body, nn.Linear(6, CLASSES))


def test_torchs_encoder_trains_grouped_and_packs():
    ensemble = pack(_encoder, 2, alpha=2.0, image_shape=(3, 8, 8), execution="grouped")
    images = _images(4, dtype=torch.float32)
    ensemble.train()(images).sum().backward()
    with torch.no_grad():
        grouped = ensemble.eval()(images)
    ensemble.execution = "loop"
    torch.testing.assert_close(grouped, ensemble(images), rtol=1e-5, atol=1e-5)


class _InEvaluationAlone(nn.Module):
    """Fails in evaluation: in the grouped form's first run, once it is proved for training."""

    def forward(self, values):
        return values if self.training else values.missing


def test_failure_of_the_first_run_is_one_line():
    def factory():
        body = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), _InEvaluationAlone())
        return Network(body, nn.Linear(6, CLASSES))

    ensemble = _ensemble(factory, "grouped").train()
    line = r"differs first in module '2' \(_InEvaluationAlone\): .*'missing'; use execution: loop"
    with pytest.raises(ValueError, match=line):
        ensemble(_images(4))


def test_frozen_norms_keep_their_statistics_while_the_rest_trains():
    ensemble, loop = _ensemble(_small_cnn, "grouped").train(), _ensemble(_small_cnn).train()
    for one in (ensemble, loop):
        for network in one.networks:
            network.body[1].eval()
    before = ensemble.networks[1].body[1].running_mean.clone()
    _assert_equal_step(ensemble, loop, _images(4))
    assert torch.equal(ensemble.networks[1].body[1].running_mean, before)


def test_first_use_in_inference_mode_leaves_training_possible():
    ensemble, loop = _ensemble(_small_cnn, "grouped"), _ensemble(_small_cnn)
    with torch.inference_mode():
        ensemble.eval()(_images(4))
    _assert_equal_step(ensemble.train(), loop.train(), _images(4))


def test_proof_leaves_weights_statistics_and_the_generator_alone():
    ensemble = _ensemble(_small_cnn, "grouped").eval()
    state = copy.deepcopy(ensemble.state_dict())
    before = torch.get_rng_state()
    ensemble(_images(4))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, state[name])


def test_execution_can_be_changed_and_copies_keep_it():
    ensemble = _ensemble(_small_cnn).eval()
    expected = ensemble(_images(4))
    ensemble.execution = "grouped"
    torch.testing.assert_close(ensemble(_images(4)), expected, rtol=0, atol=1e-12)
    copied = copy.deepcopy(ensemble)
    assert copied.execution == "grouped"
    randomise(ensemble, torch.Generator().manual_seed(8))
    torch.testing.assert_close(copied(_images(4)), expected, rtol=0, atol=1e-12)


def test_execution_does_not_change_the_state_dict():
    assert _ensemble(_small_cnn, "grouped").state_dict().keys() == (
        _ensemble(_small_cnn).state_dict().keys()
    )


class _Mixing(nn.Module):
    """Normalises by the largest of all channels."""

    def forward(self, values):
        return values / values.abs().amax(1, keepdim=True)


def _with_mixing():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), _Mixing()), nn.Flatten())
    return Network(body, nn.Linear(144, CLASSES))


class _Reversed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 2, 6)

    def forward(self, images):
        return self.second(self.first(images).flip(1)).flatten(1)


def _with_reversed_channels():
    return Network(nn.Sequential(_Reversed()), nn.Linear(2, CLASSES))


def _mixer():
    mixer = timm.models.mlp_mixer.MlpMixer
    return mixer(img_size=8, patch_size=4, num_classes=CLASSES, embed_dim=8, num_blocks=1)


def _swin():
    return torchvision.models.SwinTransformer(
        [2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=CLASSES, stochastic_depth_prob=0.0
    )


def _sequences():
    body = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.Flatten())
    return Network(body, nn.Linear(248, CLASSES))


class _Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))

    def forward(self, values):
        return values * self.value


def _with_one_number():
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), _Temperature())
    return Network(body, nn.Linear(4, CLASSES))


def _cumulative_statistics():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten())
    return Network(body, nn.Linear(144, CLASSES))


@pytest.mark.parametrize(
    ("factory", "module", "reason"),
    [
        (_with_mixing, "'1.1' (_Mixing)", "members would mix"),
        (_with_reversed_channels, "'0' (_Reversed)", "hands to 'second'"),
        (_mixer, "'blocks.0.mlp_tokens.fc1' (Linear)", "members would mix"),
        (_swin, "'features.1.0.attn' (ShiftedWindowAttention)", "shapes"),
        (_sequences, "'1' (Conv1d)", "there is no rule for it"),
        (_with_one_number, "'2' (_Temperature)", "'value' has one entry"),
        (_cumulative_statistics, "'1' (BatchNorm2d)", ""),
    ],
)
def test_network_without_an_exact_grouped_form_is_refused_and_the_module_named(
    factory, module, reason
):
    ensemble = _ensemble(factory, "grouped").train()
    with pytest.raises(ValueError, match="execution 'grouped' must equal the loop") as caught:
        ensemble(_images(4))
    line = str(caught.value)
    assert f"differs first in module {module}: " in line
    assert reason in line
    assert line.endswith("; use execution: loop")
    assert "\n" not in line


class _RandomScale(nn.Module):
    def forward(self, values):
        return values * torch.rand(len(values), 1) if self.training else values


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (lambda: nn.Dropout(0.01), "Dropout"),
        (lambda: torchvision.ops.StochasticDepth(0.01, "row"), "StochasticDepth"),
        (_RandomScale, "_RandomScale"),
    ],
)
def test_random_bodies_train_in_the_loop_alone(layer, kind):
    def factory():
        body = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Sequential(nn.ReLU(), layer()))
        return Network(body, nn.Linear(6, CLASSES))

    ensemble, loop = _ensemble(factory, "grouped"), _ensemble(factory)
    torch.testing.assert_close(ensemble.eval()(_images(4)), loop.eval()(_images(4)))
    with pytest.raises(ValueError, match=rf"as module '2.1' \({kind}\) does: .*execution: loop"):
        ensemble.train()(_images(4))


def test_random_heads_train_in_every_execution():
    def factory():
        network = _small_cnn()
        return Network(network.body, nn.Sequential(nn.Dropout(0.5), network.head))

    ensemble, loop = _ensemble(factory, "grouped").train(), _ensemble(factory).train()
    ensemble.set_step(4)
    loop.set_step(4)
    torch.testing.assert_close(ensemble(_images(4)), loop(_images(4)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Conv2d(3, 5, 3),
        lambda: nn.Conv2d(3, 4, 3, padding=1),
        lambda: nn.Conv2d(3, 4, 3, bias=False),
        nn.Identity,
    ],
)
def test_members_of_different_architectures_are_refused(other):
    networks = [
        Network(nn.Sequential(nn.ReLU(), layer, nn.Flatten()), nn.LazyLinear(CLASSES))
        for layer in (nn.Conv2d(3, 4, 3), other())
    ]
    line = "members 0 and 1 differ in module '1'; use execution: loop"
    with pytest.raises(ValueError, match=line):
        NetworkEnsemble(networks, seeds=[1, 2], execution="grouped")


def test_constants_that_differ_are_refused_even_after_loading():
    ensemble = _ensemble(_behind_preprocessing, "grouped").eval()
    ensemble(_images(4))
    state = ensemble.state_dict()
    state["networks.1.body.0.scale"] = 2 * state["networks.1.body.0.scale"]
    with pytest.raises(ValueError, match="members 0 and 1 differ in module '0'"):
        ensemble.load_state_dict(state)


def test_members_in_different_modes_are_refused():
    ensemble = _ensemble(_small_cnn, "grouped").train()
    ensemble.networks[0].eval()
    with pytest.raises(ValueError, match="all members in the same mode"):
        ensemble(_images(4))
    assert torch.isfinite(ensemble(_images(4), members=[1, 2])).all()


def test_unknown_execution_is_refused(unchecked):
    with pytest.raises(ValueError, match="execution must be 'loop' or 'grouped', got 'fast'"):
        DeepEnsemble(_small_cnn, seeds=[1], execution="fast")


@pytest.mark.parametrize("execution", ["vmap", "compiled"])
def test_removed_executions_are_refused_with_what_remains(execution, unchecked):
    line = f"packed.execution must be 'loop' or 'grouped', got '{execution}'; .* removed"
    with pytest.raises(ValueError, match=line):
        Packed(execution=execution)


def test_number_of_networks_must_be_that_of_seeds():
    with pytest.raises(ValueError, match="networks must be one for each of the 2 seeds, got 1"):
        NetworkEnsemble([_small_cnn()], seeds=[1, 2])


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(192, 6)
        self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6)
        self.third.weight = self.second.weight

    def forward(self, images):
        return self.third(torch.tanh(self.second(self.first(images.flatten(1)))))


def test_layers_that_share_a_parameter_stay_tied():
    def factory():
        return Network(_Tied(), nn.Linear(6, CLASSES))

    ensemble, loop = _ensemble(factory, "grouped"), _ensemble(factory)
    _assert_equal_step(ensemble.train(), loop.train(), _images(4))
    body = ensemble.networks[0].body
    assert body.third.weight is body.second.weight
    assert isinstance(body.second.weight, nn.Parameter)
