"""The plugin of ``fast-ablation.yaml``: airbench94 with a first convolution that is trained."""

from typing import Any

from torch import nn

from ...ensembles.backbones import Network, build, register_backbone


def unwhitened(**sizes: Any) -> Network:
    """Build airbench94 with a plain convolution in place of its whitening, as torch draws it."""
    network = build("airbench94", **sizes)
    body: Any = network.body
    body[0] = nn.Conv2d(body[0].in_channels, body[0].out_channels, 2)
    return network


register_backbone("airbench94-unwhitened", unwhitened)
