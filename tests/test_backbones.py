"""Properties of every backbone, and the published networks' sizes and functions."""

import subprocess
import sys

import pytest
import torch
import torchvision
from deepens.ensembles.backbones import Network, build, known
from deepens.ensembles.backbones.network import scaled
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

TASKS = {
    "small-cnn": (1, 8),
    "resnet8": (3, 16),
    "resnet18": (3, 8),
    "wrn-16-4": (3, 8),
    "vit-micro/2": (1, 8),
    "torchvision:resnet18": (1, 32),
    "torchvision:shufflenet_v2_x0_5": (3, 96),
    "timm:resnet18": (1, 32),
    "timm:vit_tiny_patch16_224": (3, 96),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small passes on many threads mostly wait for one another where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(name, seed=0, **options):
    channels, size = TASKS.get(name, (3, 32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(name, num_classes=7, channels=channels, image_size=size, **options)


def light(name, **options):
    """Build for ten classes of 32x32 colour images, without weights."""
    with torch.device("meta"):
        return build(name, **({"num_classes": 10, "channels": 3, "image_size": 32} | options))


def images_for(name, batch, seed=1):
    channels, size = TASKS[name]
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("wrn-28-10", 36_479_194),
    ],
)
def test_parameters_are_those_of_the_customary_network(name, parameters):
    assert count(light(name)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # He et al. (2016), table 6, to its two digits.
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
        # Zagoruyko and Komodakis (2016), tables 4 and 5.
        ("wrn-40-2", 2.2),
        ("wrn-16-4", 2.75),
        ("wrn-28-10", 36.5),
    ],
)
def test_parameters_are_the_papers(name, millions):
    assert count(light(name)) == pytest.approx(millions * 1e6, rel=0.02)


def test_projections_are_all_that_the_narrow_resnet_has_beyond_the_papers():
    # Two shortcuts with their norms; without them ResNet-20 has the often quoted 269,722.
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert count(light("resnet20")) - projections == 269_722


@pytest.mark.parametrize("layers", [18, 34, 50])
def test_resnet_computes_what_torchvisions_does_with_the_small_stem(layers):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(f"resnet{layers}", num_classes=7)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    for part in reference.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    ours = make(f"resnet{layers}")
    # Both register their parts in the order of the computation, shortcuts last.
    assert [v.shape for v in ours.state_dict().values()] == [
        v.shape for v in reference.state_dict().values()
    ]
    ours.load_state_dict(dict(zip(ours.state_dict(), reference.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours.eval()(images), reference.eval()(images), rtol=1e-4, atol=1e-5)


def test_vision_transformer_computes_what_torchs_encoder_layers_do():
    ours = make("vit-micro/2").eval()
    body = ours.body
    images = images_for("vit-micro/2", 3)
    patches = nn.functional.unfold(images, 2, stride=2).transpose(1, 2)
    projection = body.embedding.projection
    tokens = patches @ projection.weight.flatten(1).T + projection.bias + body.embedding.position
    for block in body.blocks:
        layer = nn.TransformerEncoderLayer(
            96, 3, 384, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        ).eval()
        layer.self_attn.in_proj_weight.data = block.attn.qkv.weight.data
        layer.self_attn.in_proj_bias.data = block.attn.qkv.bias.data
        layer.self_attn.out_proj.load_state_dict(block.attn.proj.state_dict())
        layer.norm1.load_state_dict(block.norm1.state_dict())
        layer.norm2.load_state_dict(block.norm2.state_dict())
        layer.linear1.load_state_dict(block.mlp[0].state_dict())
        layer.linear2.load_state_dict(block.mlp[2].state_dict())
        tokens = layer(tokens)
    expected = ours.head(body.norm(tokens).mean(1))
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_two_builds_differ_in_every_freshly_drawn_tensor(name):
    first, second = make(name, seed=1), make(name, seed=2)
    drawn = 0
    for (key, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        if one.numel() > 1 and one.std() > 0:
            drawn += 1
            assert not torch.equal(one, other), key
        else:
            # Only norms, biases and class tokens may start from a constant.
            assert one.squeeze().ndim <= 1, key
    assert drawn >= len([part for part in first.modules() if isinstance(part, nn.Conv2d)])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("vit-micro/2", "body.embedding.position"),
        ("timm:vit_tiny_patch16_224", "body.pos_embed"),
    ],
)
def test_two_builds_differ_in_the_position_embedding(name, key):
    one, other = (dict(make(name, seed=seed).named_parameters()) for seed in (1, 2))
    assert (one[key] != other[key]).float().mean() > 0.99


@pytest.mark.parametrize("name", ["small-cnn", "vit-micro/2", "torchvision:resnet18"])
def test_the_global_seed_decides_the_network(name):
    first, second = make(name, seed=3).state_dict(), make(name, seed=3).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", TASKS)
def test_the_gradient_reaches_every_parameter(name):
    network = make(name)
    for part in network.modules():
        # timm starts the last norm of a branch at zero, which would hide the rest of the branch.
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    logits = network(images_for(name, 4))
    logits.logsumexp(dim=1).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_of_two_equals_two_batches_in_evaluation(name):
    network = make(name)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0  # statistics as after training, so that the images matter
    with torch.no_grad():
        network(images_for(name, 8, seed=2))
    network.eval()
    images = images_for(name, 2)
    with torch.no_grad():
        together = network(images)
        apart = torch.cat([network(images[:1]), network(images[1:])])
    assert (together[0] - together[1]).abs().max() > 1e-4
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_logits_are_the_head_on_the_features(name):
    network = make(name).eval()
    images = images_for(name, 2)
    features = network.features(images)
    assert isinstance(network, Network)
    assert features.shape == (2, network.head.in_features)
    assert torch.equal(network.head(features), network(images))
    assert network(images).shape == (2, 7)


@pytest.mark.parametrize("name", ["small-cnn", "resnet8", "wrn-16-4", "vit-micro/2"])
def test_input_gradients_can_be_differentiated_again(name):
    network = make(name)
    images = images_for(name, 3).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(network(images)[:, 0].sum(), images, create_graph=True)
        gradient.square().sum().backward()
    first = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    assert first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in TASKS if ":" not in name])
def test_width_scales_every_width_and_neither_input_nor_output(name):
    base, wide = make(name), make(name, width=2.0)
    for one, other in zip(base.parameters(), wide.parameters(), strict=True):
        for axis, (small, large) in enumerate(zip(one.shape, other.shape, strict=True)):
            places = (one.ndim == 4 and axis >= 2) or (one.ndim == 3 and axis == 1)
            kept = places or small in (1, 3, 7)  # image channels and classes
            assert large == (small if kept else 2 * small)


@pytest.mark.parametrize("depth", [0.5, 1.5, 2.0, 3.0])
def test_depth_scales_the_number_of_blocks(depth):
    def blocks(name, **options):
        network = light(name, **options)
        return sum(isinstance(part, nn.Conv2d) for part in network.modules())

    # Two convolutions a block; the stem and the two or three projections stay.
    assert blocks("resnet20", depth=depth) == 3 + 6 * scaled(3, depth)
    assert blocks("resnet18", depth=depth) == 4 + 8 * scaled(2, depth)
    assert blocks("wrn-28-10", depth=depth) == 4 + 6 * scaled(4, depth)
    assert blocks("small-cnn", depth=depth) == 3 * scaled(1, depth)
    assert len(light("vit-tiny/4", depth=depth).body.blocks) == scaled(12, depth)


def test_a_narrow_resnet_of_twice_the_depth_is_the_deeper_one_of_its_family():
    assert count(light("resnet8", depth=2.0)) == count(light("resnet14"))
    assert count(light("resnet20", depth=3.0)) == count(light("resnet56"))


def test_a_wide_resnet_is_the_narrow_one_at_its_stages_width():
    wide, narrow = light("wrn-28-10"), light("wrn-28-2", width=5.0)
    # All but the stem and the block behind it: the paper leaves the stem at 16 channels.
    assert [p.shape for p in wide.parameters()][8:] == [p.shape for p in narrow.parameters()][8:]


@pytest.mark.parametrize("width", [0.1, 0.37, 1.2, 1.41421356, 2.8])
def test_every_width_gives_a_working_network(width):
    for name in ("small-cnn", "resnet8", "vit-micro/2"):
        network = make(name, width=width)
        assert network(images_for(name, 2)).isfinite().all()


def test_convolutions_start_from_hes_variance():
    network = make("resnet18")
    for part in network.body.modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 10_000:
            fan_out = part.out_channels * part.kernel_size[0] ** 2
            assert part.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert part.weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_small_cnn_learns_digits_in_a_few_epochs():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = (images - images.mean()) / images.std()
    targets = torch.tensor(digits.target)
    torch.manual_seed(0)
    network = build("small-cnn", num_classes=10, channels=1, image_size=8)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(10):
        for batch in torch.randperm(1200).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), targets[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        predicted = network.eval()(images[1200:]).argmax(dim=1)
    assert (predicted == targets[1200:]).float().mean() > 0.9


def test_every_known_name_builds():
    for name in known():
        network = light(name, depth=0.01)
        assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet19", "'resnet18'"),
        ("small_cnn", "'small-cnn'"),
        ("wrn-28-11", "'wrn-28-10'"),
        ("vit-tiny", "'vit-tiny/"),
        ("vit-tiny/0", "'vit-tiny/"),
        ("torchvision:resnet19", "'resnet18'"),
        ("torchvision:fcn_resnet50", "got 'torchvision:fcn_resnet50'"),
        ("timm:resnet18x", "'resnet18'"),
        ("timm:resnet18.nonsense", "'resnet18."),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known(name, near):
    with pytest.raises(ValueError, match="name must ") as error:
        light(name)
    assert near in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width must be > 0, got 0.0"),
        ({"width": float("nan")}, "width must be > 0, got nan"),
        ({"depth": -1.0}, "depth must be > 0, got -1.0"),
        ({"num_classes": 1}, "num_classes must be >= 2, got 1"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"image_size": 0}, "image_size must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_bounds_are_refused_by_name_bound_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        light("small-cnn", **options)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(
        ValueError, match="patch_size must divide image_size, got 3 for images of 32"
    ):
        light("vit-tiny/3")


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
@pytest.mark.parametrize("argument", ["width", "depth"])
def test_a_published_network_cannot_be_scaled_and_says_what_can(name, argument):
    with pytest.raises(ValueError, match=rf"{argument} must be 1 .* got 2.0: choose .* wrn-28-10"):
        light(name, **{argument: 2.0})


def test_building_our_own_networks_loads_neither_torchvision_nor_timm():
    script = (
        "import sys; from deepens.ensembles.backbones import build; "
        "build('small-cnn', num_classes=2, channels=1, image_size=8); "
        "print([m for m in ('torchvision', 'timm', 'lightning') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
