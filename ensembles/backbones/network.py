"""The two parts that every backbone has, and how its sizes and weights are set."""

import math

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Network", "initialise_convolutions", "scaled"]


class Network(nn.Module):
    """A plain classification network in two parts: a body that describes and a head that decides.

    ``logits = head(body(images))``

    ==========  ====================================  =======================
    tensor      shape                                 meaning
    ==========  ====================================  =======================
    images      ``[batch, channels, height, width]``  normalised images
    features    ``[batch, features]``                 what the head sees
    logits      ``[batch, classes]``                  unnormalised log-scores
    ==========  ====================================  =======================

    Args:
        body: From images to one feature vector per image.
        head: From feature vectors to logits.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deepens.ensembles.backbones import Network
        >>> network = Network(nn.Flatten(), nn.Linear(64, 10))
        >>> network.features(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 64])
        >>> network(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return the feature vectors, the head's input."""
        return self.body(images)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        return self.head(self.features(images))


def scaled(size: int, factor: float) -> int:
    """Return the whole number nearest to a scaled width or depth, at least one.

    ``max(1, floor(size * factor + 1/2))``

    Half-way cases go up, so the result never falls when ``factor`` grows, and sizes 16, 32 and 64
    change at different factors: a network's cost then grows in fine steps.

    Args:
        size: Channels or blocks at factor 1.
        factor: The multiplier, > 0.

    Example:
        >>> from deepens.ensembles.backbones.network import scaled
        >>> [scaled(16, factor) for factor in (0.01, 0.5, 1.0, 1.41)]
        [1, 8, 16, 23]
    """
    return max(1, math.floor(size * factor + 0.5))


def initialise_convolutions(module: nn.Module) -> None:
    """Draw every convolution's weight from He's normal distribution (fan-out), in place.

    ``w ~ N(0, 2 / (out_channels / groups * kernel_height * kernel_width))``

    Biases become zero. The draws come from torch's global generator, which the caller seeds.

    Args:
        module: The network, or a part of it.

    Reference:
        He et al. (2015), arXiv:1502.01852
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            height, width = part.kernel_size
            fan_out = part.out_channels // part.groups * height * width
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
