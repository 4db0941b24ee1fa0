"""Second derivatives that are written out equal those that torch composes."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from deepens.ensembles import CrossEntropy, DeepEnsemble, FoRDE, Repulsive
from deepens.ensembles.backbones import build
from deepens.ensembles.objectives.second_derivatives import cheap_second_derivatives
from one_step import batch, convolutional
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided, dilated": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, bias=False),
    "groups": lambda: nn.Conv2d(4, 6, (3, 1), groups=2, padding=(1, 0)),
    "padding by name": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "norm": lambda: nn.BatchNorm2d(4),
    "norm without scale": lambda: nn.BatchNorm2d(4, affine=False),
    "norm without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "norm in evaluation": lambda: nn.BatchNorm2d(4).eval(),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def derivatives(layer, context, layout):
    """Outputs, gradients by images, and what a loss of both gives by all that it depends on."""
    layer = copy.deepcopy(layer)
    leaf = drawn(5, 4, 6, 6).contiguous(memory_format=layout).requires_grad_()
    with context:
        outputs = layer(leaf).tanh()
    weights = drawn(*outputs.shape, seed=1)
    (by_images,) = torch.autograd.grad((weights * outputs).sum(), leaf, create_graph=True)
    (outputs.exp().sum() + by_images.tanh().square().sum()).backward()
    trained = [parameter.grad for parameter in layer.parameters()]
    return [outputs.detach(), by_images.detach(), leaf.grad, *trained, *layer.buffers()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_are_those_of_torch(name, layout):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    plain = derivatives(layer, contextlib.nullcontext(), LAYOUTS[layout])
    ours = derivatives(layer, cheap_second_derivatives(), LAYOUTS[layout])
    assert len(plain) == len(ours)
    for expected, found in zip(plain, ours, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert torch.equal(plain[0], ours[0])  # values and first derivatives to the last bit
    assert torch.equal(plain[1], ours[1])


def test_both_functions_are_replaced_and_no_others():
    """Otherwise the equalities above would compare torch with itself."""
    images = drawn(3, 4, 6, 6).requires_grad_()

    def functions_of(outputs):
        left, found = [outputs.grad_fn], set()
        while left:
            node = left.pop()
            found.add(type(node).__name__)
            left += [each for each, _ in node.next_functions if each is not None]
        return {name for name in found if "Convolution" in name or "Norm" in name}

    with cheap_second_derivatives():
        for name in ("convolution", "strided, dilated", "groups"):
            assert functions_of(LAYERS[name]().double()(images)) == {"_ConvolutionBackward"}
        assert functions_of(LAYERS["norm"]().double()(images)) == {"_BatchNormBackward"}
        evaluated = LAYERS["norm in evaluation"]().double()(images)
        assert functions_of(evaluated) == {"NativeBatchNormBackward0"}
        with torch.autocast("cpu", torch.bfloat16):
            mixed = nn.Conv2d(4, 6, 3)(images.float())
        assert functions_of(mixed) == {"ConvolutionBackward0"}
    assert functions_of(LAYERS["norm"]().double()(images)) == {"NativeBatchNormBackward0"}


class Backwards(TorchDispatchMode):
    """Notes what is asked of each convolution's backward pass: by images, weights, bias."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.asked.append(list(args[-1]))
        return function(*args, **(kwargs or {}))


def test_parameters_gradients_are_computed_only_where_they_are_asked_for():
    layers, images = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)), torch.randn(2, 4, 8, 8)
    images.requires_grad_()
    with cheap_second_derivatives():
        outputs = layers(images)
    with Backwards() as backwards:
        (by_images,) = torch.autograd.grad(outputs.sum(), images, create_graph=True)
    assert backwards.asked == [[True, False, False]] * 2
    (outputs.square().sum() + by_images.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in layers.parameters())


def test_parameters_gradients_cannot_be_differentiated_again():
    layer, images = nn.Conv2d(4, 2, 3), torch.randn(2, 4, 8, 8, requires_grad=True)
    with cheap_second_derivatives():
        outputs = layer(images)
    (found,) = torch.autograd.grad(outputs.square().sum(), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.square().sum().backward()


@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize("backbone", ["resnet8", "airbench94", "plain"])
def test_forde_is_what_it_is_with_the_second_derivatives_of_torch(monkeypatch, backbone, at_once):
    """Loss, gradients and running statistics of whole networks, in float64."""

    def ensemble():
        if backbone == "plain":
            return convolutional(2).train()
        options = {"num_classes": 5, "channels": 1, "image_size": 8, "width": 0.25}
        return DeepEnsemble(lambda: build(backbone, **options), seeds=[1, 2]).double().train()

    images, targets = batch()
    found = []
    for context in (cheap_second_derivatives, contextlib.nullcontext):
        monkeypatch.setattr(
            "deepens.ensembles.objectives.repulsion.cheap_second_derivatives", context
        )
        own = ensemble()
        objective = Repulsive(CrossEntropy(members_at_once=at_once), [FoRDE()])
        loss = objective(own, images, targets)[0]
        loss.backward()
        found.append([loss, *(p.grad for p in own.parameters()), *own.buffers()])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_one_value_per_channel_is_refused_as_by_torch():
    with cheap_second_derivatives(), pytest.raises(ValueError, match="more than 1 value"):
        F.batch_norm(torch.ones(1, 4, 1, 1), None, None, training=True)
