"""Convolutional networks for small images: ResNets, wide ResNets and a small network for digits."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from .network import ExitPlaces, FeatureMaps, Images, Network, convolution, pooled, scaled

NARROW_LAYERS = (8, 14, 20, 32, 44, 56, 110)
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
LAYERS = tuple(BLOCKS)
EXPANSION = 4


class Residual(nn.Module):
    """One residual block, ``relu(branch(x) + shortcut(x))``.

    The branch is convolutions with BatchNorm, with ReLU between them. The shortcut is the identity
    where shapes agree, else a 1x1 convolution with BatchNorm (option B of the paper).

    Args:
        widths: Channels of the input and behind each convolution.
        sizes: Kernel sizes of the convolutions; the first of size 3 has the stride.
        stride: 1 or 2.
    """

    def __init__(self, widths: Sequence[int], sizes: Sequence[int], *, stride: int) -> None:
        super().__init__()
        branch: list[nn.Module] = []
        for place, (width, size) in enumerate(zip(pairwise(widths), sizes, strict=True)):
            branch += convolution(*width, size, stride=stride if place == sizes.index(3) else 1)
        self.branch = nn.Sequential(*branch[:-1])
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or widths[0] != widths[-1]:
            self.shortcut = nn.Sequential(
                *convolution(widths[0], widths[-1], 1, stride=stride)[:-1]
            )
        self.relu = nn.ReLU()

    def forward(self, images: Images) -> FeatureMaps:
        """Return the block's output."""
        return self.relu(self.branch(images) + self.shortcut(images))


class PreActivation(nn.Module):
    """One block that normalises before it convolves.

    ``y = relu(norm(x));  output = branch(y) + shortcut``, where the shortcut is x itself, or a 1x1
    convolution of y where the shapes differ.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.branch = nn.Sequential(
            *convolution(in_channels, out_channels, stride=stride),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.projection: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.projection = convolution(in_channels, out_channels, 1, stride=stride)[0]

    def forward(self, images: Images) -> FeatureMaps:
        """Return the block's output."""
        active = self.activation(images)
        shortcut = images if self.projection is None else self.projection(active)
        return self.branch(active) + shortcut


def resnet(
    layers: int, *, num_classes: int, channels: int, width: float = 1.0, depth: float = 1.0
) -> Network:
    """Build ResNet-18, -34 or -50 for small images: a 3x3 stem of stride 1 and no max pooling.

    The stem has 64 channels, the four stages 64, 128, 256 and 512 (times 4 outside the
    bottlenecks of ResNet-50), each after the first halving the resolution. With ten classes and
    32x32 colour images, ResNet-18 has 11.17 million parameters and takes 0.555 billion
    multiply-accumulates. Sizes are as for :func:`~deepens.ensembles.backbones.build`.

    Raises:
        ValueError: If ``layers`` is none of 18, 34 and 50.

    Example:
        >>> from deepens.ensembles.backbones.convolutional import resnet
        >>> network = resnet(18, num_classes=10, channels=3)
        >>> sum(parameter.numel() for parameter in network.parameters())
        11173962

    Reference: He et al. (2016), arXiv:1512.03385, apart from the stem: the paper's 7x7
        convolution and pooling, both of stride 2, would leave 8x8 positions of 32-pixel images.
    """
    if layers not in BLOCKS:
        raise ValueError(f"layers must be one of {LAYERS}, got {layers}")
    bases = (64, 128, 256, 512)
    return _residual_network(
        widths=[scaled(base, width) for base in bases],
        outer_widths=[scaled(base * EXPANSION, width) for base in bases] if layers == 50 else None,
        blocks=[scaled(count, depth) for count in BLOCKS[layers]],
        channels=channels,
        num_classes=num_classes,
    )


def narrow_resnet(
    layers: int, *, num_classes: int, channels: int, width: float = 1.0, depth: float = 1.0
) -> Network:
    """Build the paper's CIFAR network of ``6n + 2`` layers, 16, 32 and 64 channels wide.

    Sizes are as for :func:`~deepens.ensembles.backbones.build`.

    Raises:
        ValueError: If ``layers`` is not of the form 6n + 2 with n >= 1.

    Example:
        >>> from deepens.ensembles.backbones.convolutional import narrow_resnet
        >>> network = narrow_resnet(20, num_classes=10, channels=3)
        >>> sum(parameter.numel() for parameter in network.parameters())
        272474

    Reference: He et al. (2016), arXiv:1512.03385, section 4.2, apart from the shortcuts: where
        widths change, projections (2,752 parameters more in ResNet-20) replace zero padding, so
        that every width multiplier works.
    """
    count, rest = divmod(layers - 2, 6)
    if count < 1 or rest:
        raise ValueError(f"layers must be 6n + 2 with n >= 1 (8, 14, 20, ...), got {layers}")
    return _residual_network(
        widths=[scaled(base, width) for base in (16, 32, 64)],
        outer_widths=None,
        blocks=[scaled(count, depth)] * 3,
        channels=channels,
        num_classes=num_classes,
    )


def wide_resnet(
    layers: int,
    widening: int,
    *,
    num_classes: int,
    channels: int,
    width: float = 1.0,
    depth: float = 1.0,
) -> Network:
    """Build WideResNet-(6n+4)-k: three stages of n blocks, 16k, 32k and 64k channels wide.

    The stem has 16 channels times ``width``; there is no dropout, as in the paper's CIFAR default.
    Sizes are as for :func:`~deepens.ensembles.backbones.build`.

    Raises:
        ValueError: If ``layers`` is not of the form 6n + 4 with n >= 1, or ``widening`` < 1.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones.convolutional import wide_resnet
        >>> with torch.device("meta"):
        ...     network = wide_resnet(28, 10, num_classes=10, channels=3)
        >>> sum(parameter.numel() for parameter in network.parameters())
        36479194

    Reference: Zagoruyko and Komodakis (2016), arXiv:1605.07146
    """
    count, rest = divmod(layers - 4, 6)
    if count < 1 or rest:
        raise ValueError(f"layers must be 6n + 4 with n >= 1 (10, 16, 22, 28, ...), got {layers}")
    if widening < 1:
        raise ValueError(f"widening must be >= 1, got {widening}")
    in_channels = scaled(16, width)
    parts: list[nn.Module] = [nn.Conv2d(channels, in_channels, 3, padding=1, bias=False)]
    for stage, base in enumerate((16, 32, 64)):
        out_channels = scaled(base * widening, width)
        for index in range(scaled(count, depth)):
            stride = 2 if stage > 0 and index == 0 else 1
            parts.append(PreActivation(in_channels, out_channels, stride=stride))
            in_channels = out_channels
    return pooled([*parts, nn.BatchNorm2d(in_channels), nn.ReLU()], in_channels, num_classes)


def small_cnn(
    *, num_classes: int, channels: int, width: float = 1.0, depth: float = 1.0
) -> Network:
    """Build three stages of 3x3 convolutions with BatchNorm, then global average pooling.

    Made for digits of 8x8 pixels, of which one costs 0.18 million multiply-accumulates; other
    sizes work. The widths are 16, 24 and 32 channels; the second stage halves the resolution.
    ``depth`` multiplies each stage's number of convolutions (one).

    Example:
        >>> from deepens.ensembles.backbones.convolutional import small_cnn
        >>> network = small_cnn(num_classes=10, channels=1)
        >>> sum(parameter.numel() for parameter in network.parameters())
        10986
    """
    layers: list[nn.Module] = []
    in_channels = channels
    for base, stride in ((16, 1), (24, 2), (32, 1)):
        out_channels = scaled(base, width)
        for index in range(scaled(1, depth)):
            layers += convolution(in_channels, out_channels, stride=stride if index == 0 else 1)
            in_channels = out_channels
    return pooled(layers, in_channels, num_classes)


def _residual_network(
    *,
    widths: Sequence[int],
    outer_widths: Sequence[int] | None,
    blocks: Sequence[int],
    channels: int,
    num_classes: int,
) -> Network:
    """Put stem, stages and head together; ``outer_widths`` asks for bottlenecks."""
    in_channels = widths[0]
    layers = convolution(channels, in_channels)
    ends: list[int] = []
    for stage, (inner, count) in enumerate(zip(widths, blocks, strict=True)):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            if outer_widths is None:
                layers.append(Residual((in_channels, inner, inner), (3, 3), stride=stride))
                in_channels = inner
            else:
                outer = outer_widths[stage]
                chain = (in_channels, inner, inner, outer)
                layers.append(Residual(chain, (1, 3, 1), stride=stride))
                in_channels = outer
        ends.append(len(layers))
    places = ExitPlaces(tuple(ends), tuple(outer_widths or widths))
    return pooled(layers, in_channels, num_classes, exit_places=places)
