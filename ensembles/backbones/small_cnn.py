"""A small convolutional network for digits."""

from torch import nn

from .network import Network, initialise_convolutions, scaled

__all__ = ["small_cnn"]

WIDTHS = (16, 24, 32)
STRIDES = (1, 2, 1)


def small_cnn(
    *, num_classes: int, channels: int, width: float = 1.0, depth: float = 1.0
) -> Network:
    """Build three stages of 3x3 convolutions with BatchNorm, then the mean over places.

    Made for digits of 8x8 pixels, of which one costs 0.18 million multiply-accumulates. The
    widths are 16, 24 and 32 channels; the second stage halves the resolution. Any image size
    works.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images.
        width: Multiplies every stage's channels, each rounded to a whole number.
        depth: Multiplies every stage's number of convolutions (one), rounded likewise.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones.small_cnn import small_cnn
        >>> network = small_cnn(num_classes=10, channels=1)
        >>> sum(parameter.numel() for parameter in network.parameters())
        10986
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    layers: list[nn.Module] = []
    in_channels = channels
    for base, stride in zip(WIDTHS, STRIDES, strict=True):
        out_channels = scaled(base, width)
        for index in range(scaled(1, depth)):
            step = stride if index == 0 else 1
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride=step, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            in_channels = out_channels
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    initialise_convolutions(body)
    return Network(body, nn.Linear(in_channels, num_classes))
