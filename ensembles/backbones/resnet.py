"""Residual networks for small images: ResNet-18/34/50 and the narrow 6n+2 family."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from .network import Network, initialise_convolutions, scaled

__all__ = ["LAYERS", "NARROW_LAYERS", "narrow_resnet", "resnet"]

LAYERS = (18, 34, 50)
NARROW_LAYERS = (8, 14, 20, 32, 44, 56, 110)

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
EXPANSION = 4


class Residual(nn.Module):
    """One residual block, ``relu(branch(x) + shortcut(x))``.

    The shortcut is the identity where shapes agree, else a 1x1 convolution with BatchNorm
    (option B of the paper).

    Args:
        branch: The convolutions, from ``in_channels`` to ``out_channels``.
        in_channels: Channels of the block's input.
        out_channels: Channels of its output.
        stride: Step of the branch, and so of the shortcut.
    """

    def __init__(
        self, branch: nn.Module, in_channels: int, out_channels: int, *, stride: int
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu = nn.ReLU()

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Return the block's output."""
        return self.relu(self.branch(images) + self.shortcut(images))


def basic_block(in_channels: int, channels: int, *, stride: int) -> Residual:
    """Return two 3x3 convolutions of ``channels`` with their shortcut."""
    branch = nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    return Residual(branch, in_channels, channels, stride=stride)


def bottleneck_block(
    in_channels: int, channels: int, out_channels: int, *, stride: int
) -> Residual:
    """Return 1x1, 3x3 and 1x1 convolutions, ``channels`` wide inside, with their shortcut."""
    branch = nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )
    return Residual(branch, in_channels, out_channels, stride=stride)


def resnet(
    layers: int, *, num_classes: int, channels: int, width: float = 1.0, depth: float = 1.0
) -> Network:
    """Build ResNet-18, -34 or -50 for small images: a 3x3 stem of stride 1 and no max pooling.

    The stem has 64 channels, the four stages 64, 128, 256 and 512 (times 4 outside the
    bottlenecks of ResNet-50), each after the first halving the resolution. With ten classes and
    32x32 colour images, ResNet-18 has 11.17 million parameters and takes 0.555 billion
    multiply-accumulates.

    Args:
        layers: 18, 34 or 50.
        num_classes: Number of classes.
        channels: Channels of the images.
        width: Multiplies every width, each rounded to whole channels.
        depth: Multiplies every stage's number of blocks, each rounded to a whole number >= 1.

    Raises:
        ValueError: If ``layers`` is none of 18, 34 and 50.

    Example:
        >>> from deepens.ensembles.backbones.resnet import resnet
        >>> network = resnet(18, num_classes=10, channels=3)
        >>> sum(parameter.numel() for parameter in network.parameters())
        11173962

    Reference:
        He et al. (2016), arXiv:1512.03385. We deviate from its ImageNet form in the stem, as is
        customary for images of 32 pixels: a 7x7 convolution of stride 2 and a pooling of stride 2
        would leave 8x8 places for the first stage.
    """
    if layers not in BLOCKS:
        raise ValueError(f"layers must be one of {LAYERS}, got {layers}")
    return _residual_network(
        widths=[scaled(base, width) for base in (64, 128, 256, 512)],
        outer_widths=[scaled(base * EXPANSION, width) for base in (64, 128, 256, 512)]
        if layers == 50
        else None,
        blocks=[scaled(count, depth) for count in BLOCKS[layers]],
        channels=channels,
        num_classes=num_classes,
    )


def narrow_resnet(
    layers: int, *, num_classes: int, channels: int, width: float = 1.0, depth: float = 1.0
) -> Network:
    """Build the paper's own CIFAR network of ``6n + 2`` layers, 16, 32 and 64 channels wide.

    Args:
        layers: ``6n + 2``: 8, 14, 20, 32, 44, 56, 110, ...
        num_classes: Number of classes.
        channels: Channels of the images.
        width: Multiplies every width, each rounded to whole channels.
        depth: Multiplies n, rounded to a whole number >= 1.

    Raises:
        ValueError: If ``layers`` is not of the form 6n + 2 with n >= 1.

    Example:
        >>> from deepens.ensembles.backbones.resnet import narrow_resnet
        >>> network = narrow_resnet(20, num_classes=10, channels=3)
        >>> sum(parameter.numel() for parameter in network.parameters())
        272474

    Reference:
        He et al. (2016), arXiv:1512.03385, section 4.2. We deviate in the shortcuts: projections
        where widths change (2,752 parameters more in ResNet-20) instead of zero padding, so that
        every width multiplier works.
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
    layers: list[nn.Module] = [
        nn.Conv2d(channels, in_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
    ]
    for stage, (inner, count) in enumerate(zip(widths, blocks, strict=True)):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            if outer_widths is None:
                layers.append(basic_block(in_channels, inner, stride=stride))
                in_channels = inner
            else:
                outer = outer_widths[stage]
                layers.append(bottleneck_block(in_channels, inner, outer, stride=stride))
                in_channels = outer
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    initialise_convolutions(body)
    return Network(body, nn.Linear(in_channels, num_classes))
