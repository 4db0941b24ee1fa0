"""Strided pointwise convolutions: subsampled, equal to torch's, safe channels-last."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from deepens.ensembles import DeepEnsemble, pack
from deepens.ensembles.backbones import build
from deepens.ensembles.backbones.pointwise import SubsampledConv2d, to_channels_last
from deepens.experiments.benchmarks import layouts
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1), (1, 4)])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_of_any_order_are_those_of_torchs_layer(stride, size, layout):
    ours = SubsampledConv2d(6, 4, 1, stride=stride, groups=2).double()
    plain = nn.Conv2d(6, 4, 1, stride=stride, groups=2).double()
    plain.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, plain):
        images = torch.rand(3, 6, *size, generator=torch.Generator().manual_seed(1)).double()
        images = images.contiguous(memory_format=layout).requires_grad_()
        outputs = layer(images)
        (first,) = torch.autograd.grad(outputs.pow(3).sum(), images, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), (images, *layer.parameters()))
        found.append((outputs, first, *second))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_larger_kernels_and_padding_are_refused():
    for options in ({"kernel_size": 3}, {"kernel_size": 1, "padding": 1}):
        with pytest.raises(ValueError, match=r"1x1 kernel and no padding, got kernel_size \("):
            SubsampledConv2d(3, 4, **options)


class _Scaled(nn.Conv2d):
    """A convolution of a user's own, which reads its stride itself."""

    def forward(self, images):
        return nn.functional.conv2d(images, 2 * self.weight, self.bias, self.stride)


def test_strided_pointwise_layers_of_any_network_are_rewritten_and_nothing_else():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 6, 1, stride=2),
        _Scaled(6, 6, 1, stride=3),
        parametrizations.weight_norm(nn.Conv2d(6, 5, 1, stride=2)),
        nn.Conv2d(5, 4, 1, stride=2, padding=1),
    ).double()
    images = torch.rand(2, 3, 25, 26, dtype=torch.float64)
    before, names = network(images), list(network.state_dict())
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert to_channels_last(network) == 3
    assert to_channels_last(network) == 0
    kinds = [type(layer).__name__ for layer in network]
    assert kinds[:4] == ["Conv2d", "Conv2d", "SubsampledConv2d", "_Scaled"]
    assert type(network[5]) is nn.Conv2d
    assert list(network.state_dict()) == names
    with FlopCounterMode(display=False) as after:
        found = network(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, before, rtol=0, atol=1e-12)
    assert after.get_total_flops() == counter.get_total_flops()


STEP = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_pointwise import NETWORKS, step
for name in NETWORKS:
    contiguous, last = step(name, torch.contiguous_format), step(name, torch.channels_last)
    torch.testing.assert_close(contiguous[0], last[0], rtol=0, atol=1e-4)
    largest = max(float(value.abs().max()) for value in last[1:])
    for mine, theirs in zip(contiguous[1:], last[1:], strict=True):
        # Rounding moves a few places across the kink of ReLU, where gradients jump.
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.03 * largest)
print("equal")
"""


def _published():
    """A network as others write it, with the shortcut that torch's library fails on."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 16, 1, stride=2, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def _resnet(width):
    return lambda: build("resnet8", num_classes=4, channels=3, width=width, image_size=64)


NETWORKS = {
    "half as wide": lambda: DeepEnsemble(_resnet(0.5), seeds=[1, 2]),
    "packed": lambda: pack(_resnet(1.0), 2, alpha=1.0, image_shape=(3, 64, 64)),
    "wide residual": lambda: build(
        "wrn-16-4", num_classes=4, channels=3, width=0.125, image_size=64
    ),
    "published": lambda: DeepEnsemble(_published, seeds=[1, 2]),
}


def step(name, layout):
    """Logits and the gradients of one training step at 64 pixels."""
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    if layout is torch.channels_last:
        to_channels_last(model)
    images = torch.randn(16, 3, 64, 64).contiguous(memory_format=layout)
    logits = model(images)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in model.parameters())]


def test_networks_that_crashed_train_at_64_pixels_and_equal_the_contiguous_result():
    """In a process of its own: where the arithmetic library fails, it ends the process."""
    folder = __file__.rpartition("/")[0]
    found = subprocess.run([sys.executable, "-c", STEP, folder], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "equal\n"), found.stderr[-2000:]


SMALL = layouts.Shape("SubsampledConv2d", 1, 2, 3, 4, 1, 9, torch.float32)


def test_the_sweep_of_layouts_sees_crashes_and_differences(monkeypatch):
    assert layouts.trial(SMALL) == ""
    monkeypatch.setattr(layouts, "difference", lambda shape: os.kill(os.getpid(), signal.SIGSEGV))
    assert layouts.trial(SMALL) == "crash (SIGSEGV)"
    monkeypatch.setattr(layouts, "difference", lambda shape: 0.25)
    assert layouts.trial(SMALL) == "differs by 0.25"
    monkeypatch.setattr(layouts, "difference", lambda shape: float("nan"))
    assert layouts.trial(SMALL) == "differs by nan"
