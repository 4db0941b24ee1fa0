"""A plugin with a small network without batch normalisation, whose batches can be divided."""

import deepens
from deepens.ensembles.backbones.network import Network
from torch import nn


def make(*, num_classes, channels, image_size, width=1.0, depth=1.0):
    """Build one convolution, group normalisation and a linear layer."""
    side = image_size if isinstance(image_size, int) else image_size[0]
    layers = [nn.Conv2d(channels, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2)]
    return Network(
        nn.Sequential(*layers, nn.Flatten()), nn.Linear(8 * (side // 2) ** 2, num_classes)
    )


deepens.register_backbone("toy-cnn", make)
