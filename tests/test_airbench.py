"""Airbench networks: whitening, convolutions that begin as the identity, blocks and sizes."""

import pytest
import torch
import torch.nn.functional as F
from contract import CLASSES
from deepens.ensembles import DeepEnsemble
from deepens.ensembles.backbones import build
from deepens.ensembles.backbones.airbench import Block, IdentityConv2d, Whitening, airbench


def correlated(count=400, channels=3):
    """Images whose neighbouring pixels and colours are alike, with a mean."""
    noise = torch.randn(count, 1, 9, 9) + 0.3 * torch.randn(count, channels, 9, 9)
    return F.avg_pool2d(noise, 2, 1) + 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_no_correlation(channels):
    images = correlated(channels=channels)
    layer = Whitening(channels, epsilon=0.0)
    layer.bias.data.zero_()
    layer.initialise(images.split(150))
    outputs = layer(images).movedim(1, -1).flatten(0, -2).double()
    moments = outputs.T @ outputs / len(outputs)
    half = torch.eye(4 * channels, dtype=torch.float64)
    torch.testing.assert_close(moments[::2, ::2], half, rtol=0, atol=2e-3)
    torch.testing.assert_close(outputs[:, 1::2], -outputs[:, ::2], rtol=0, atol=1e-5)


def test_whitening_orders_directions_and_fits_any_number_of_maps():
    images = correlated()
    whole, few, many = Whitening(3), Whitening(3, 5), Whitening(3, 30)
    for layer in (whole, few, many):
        layer.initialise([images])
    assert torch.equal(few.weight, whole.weight[:5])
    assert torch.equal(many.weight[:24], whole.weight)
    assert torch.equal(many.weight[24:], whole.weight[:6])
    norms = whole.weight.flatten(1).norm(dim=1)[::2]
    assert bool((norms.diff() > 0).all())  # large directions are divided by more
    assert not whole.weight.requires_grad
    assert whole.bias.requires_grad


def test_whitening_does_not_depend_on_batches():
    images = correlated()
    one, two = Whitening(3), Whitening(3)
    one.initialise([images])
    two.initialise(images.split(7))
    torch.testing.assert_close(one.weight, two.weight, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="at least one training image, got none"):
        one.initialise([])


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 6), (6, 4), (5, 5)])
def test_first_filters_begin_as_the_identity(inputs, outputs):
    layer, images = IdentityConv2d(inputs, outputs), torch.randn(2, inputs, 5, 5)
    same = min(inputs, outputs)
    assert torch.equal(layer(images)[:, :same], images[:, :same])
    if outputs > inputs:
        assert float(layer.weight[inputs:].std()) > 0.01


def test_blocks_are_their_formula():
    def halved(values, block):
        return F.gelu(block.norms[0](F.max_pool2d(block.convolutions[0](values), 2)))

    images = torch.randn(3, 4, 8, 8)
    plain, residual = Block(4, 6, 2).eval(), Block(4, 6, 3).eval()
    for block in (plain, residual):
        for norm in block.norms:
            norm.running_var.uniform_(0.5, 2)
            norm.bias.data.normal_()
    hidden = halved(images, plain)
    expected = F.gelu(plain.norms[1](plain.convolutions[1](hidden)))
    assert torch.equal(plain(images), expected)
    first = halved(images, residual)
    second = F.gelu(residual.norms[1](residual.convolutions[1](first)))
    expected = F.gelu(residual.norms[2](residual.convolutions[2](second)) + first)
    assert torch.equal(residual(images), expected)


@pytest.mark.parametrize(("accuracy", "count"), [(94, 1_972_792), (96, 9_918_776)])
def test_sizes_are_the_papers(accuracy, count):
    """Counted from its table of layers: 24 x 12 + 24, the convolutions, two per norm, the head."""
    network = airbench(accuracy, num_classes=10, channels=3)
    widths, convolutions = {94: ((64, 256, 256), 2), 96: ((128, 384, 512), 3)}[accuracy]
    expected, before = 24 * 12 + 24 + 10 * widths[-1], 24
    for width in widths:
        expected += 9 * width * (before + (convolutions - 1) * width) + convolutions * 2 * width
        before = width
    assert sum(p.numel() for p in network.parameters()) == expected == count
    features = network.features(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, widths[-1])


def test_logits_are_a_ninth_of_the_head_on_the_largest_places():
    network = airbench(94, num_classes=CLASSES, channels=1, width=0.05).eval()
    images = torch.randn(2, 1, 24, 24)
    pooled = network.body[:-3](images).amax((2, 3))
    torch.testing.assert_close(network(images), network.head(pooled) / 9)


def test_width_and_depth_scale_blocks_and_not_the_whitening():
    network = build("airbench95", num_classes=10, channels=3, image_size=32, width=0.5, depth=1.5)
    assert [len(block.convolutions) for block in network.body[2:5]] == [3, 3, 3]
    assert network.body[0].out_channels == 24
    assert network.body[2].convolutions[0].out_channels == 64


def test_members_have_own_draws_and_frozen_scales():
    ensemble = DeepEnsemble(
        lambda: airbench(94, num_classes=CLASSES, channels=1, width=0.1), seeds=[1, 2]
    )
    first, second = (m.body[2].convolutions[0].weight for m in ensemble.networks)
    assert first.shape[0] <= first.shape[1] or not torch.equal(first, second)
    assert not torch.equal(*(m.head.weight for m in ensemble.networks))
    assert not any(m.weight.requires_grad for m in ensemble.networks[0].body[2].norms)
