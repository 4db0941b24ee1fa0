"""The two parts that every backbone has, and how its sizes and weights are set."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from .pointwise import SubsampledConv2d

Images = Float[Tensor, "batch channels height width"]
FeatureMaps = Float[Tensor, "batch out_channels new_height new_width"]
Tokens = Float[Tensor, "batch tokens features"]
Features = Float[Tensor, "batch features"]
Logits = Float[Tensor, "batch classes"]


@dataclass(frozen=True)
class ExitPlaces:
    """Where the body of a network can be left early, behind each of its stages.

    Args:
        ends: How many of the body's modules come before each place; its last one is where the
            features are pooled.
        widths: Channels there.
    """

    ends: tuple[int, ...]
    widths: tuple[int, ...]


class Network(nn.Module):
    """A plain classification network in two parts, ``logits = head(body(images))``.

    ==========  ====================================  =======================
    tensor      shape                                 meaning
    ==========  ====================================  =======================
    images      ``[batch, channels, height, width]``  normalised images
    features    ``[batch, features]``                 input of the head
    logits      ``[batch, classes]``                  unnormalised log-scores
    ==========  ====================================  =======================

    Args:
        body: From images to one feature vector per image.
        head: From feature vectors to logits.
        exit_places: Where the body, a ``nn.Sequential``, can be left early; what comes behind the
            last place must make features of every place's channels. None by default.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deepens.ensembles.backbones import Network
        >>> network = Network(nn.Flatten(), nn.Linear(64, 10))
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, body: nn.Module, head: nn.Module, *, exit_places: ExitPlaces | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.exit_places = exit_places

    def features(self, images: Images) -> Features:
        """Return the feature vectors, the head's input."""
        return self.body(images)

    def forward(self, images: Images) -> Logits:
        """Return the logits."""
        return self.head(self.features(images))


def scaled(size: int, factor: float) -> int:
    """Return a scaled width or depth as a whole number, ``max(1, floor(size * factor + 1/2))``.

    Half-way cases go up, so the result never falls as ``factor`` grows.

    Example:
        >>> from deepens.ensembles.backbones.network import scaled
        >>> [scaled(16, factor) for factor in (0.01, 0.5, 1.0, 1.41)]
        [1, 8, 16, 23]
    """
    return max(1, math.floor(size * factor + 0.5))


def convolution(
    in_channels: int, out_channels: int, size: int = 3, *, stride: int = 1
) -> list[nn.Module]:
    """Return a convolution without bias, BatchNorm and ReLU."""
    kind = SubsampledConv2d if size == 1 < stride else nn.Conv2d
    return [
        kind(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def pooled(
    layers: Iterable[nn.Module],
    features: int,
    num_classes: int,
    *,
    exit_places: ExitPlaces | None = None,
) -> Network:
    """Return the network of new layers, global average pooling and a linear head."""
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    initialise_convolutions(body)
    return Network(body, nn.Linear(features, num_classes), exit_places=exit_places)


def initialise_convolutions(module: nn.Module) -> None:
    """Draw every convolution's weight from He's normal distribution (fan-out), in place.

    ``w ~ N(0, 2 / (out_channels / groups * kernel_height * kernel_width))``; biases become zero.
    The draws come from torch's global generator.

    Reference: He et al. (2015), arXiv:1502.01852
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            height, width = part.kernel_size
            fan_out = part.out_channels // part.groups * height * width
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
