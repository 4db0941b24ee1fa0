"""Wide residual networks."""

from jaxtyping import Float
from torch import Tensor, nn

from .network import Network, initialise_convolutions, scaled

__all__ = ["wide_resnet"]


class PreActivation(nn.Module):
    """One block that normalises before it convolves.

    ``y = relu(norm(x));  output = branch(y) + shortcut``, where the shortcut is x itself, or a 1x1
    convolution of y where the widths differ.

    Args:
        in_channels: Channels of the block's input.
        out_channels: Channels of its output.
        stride: Step of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.projection: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(
        self, images: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels new_height new_width"]:
        """Return the block's output."""
        active = self.activation(images)
        shortcut = images if self.projection is None else self.projection(active)
        return self.branch(active) + shortcut


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

    The stem keeps the paper's 16 channels times ``width`` alone. WRN-28-10 with ten classes has
    36.5 million parameters. There is no dropout, as in the paper's CIFAR default.

    Args:
        layers: ``6n + 4``: 10, 16, 22, 28, 40, ...
        widening: The paper's k.
        num_classes: Number of classes.
        channels: Channels of the images.
        width: Multiplies every width, each rounded to whole channels.
        depth: Multiplies n, rounded to a whole number >= 1.

    Raises:
        ValueError: If ``layers`` is not of the form 6n + 4 with n >= 1, or ``widening`` < 1.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones.wide_resnet import wide_resnet
        >>> with torch.device("meta"):
        ...     network = wide_resnet(28, 10, num_classes=10, channels=3)
        >>> sum(parameter.numel() for parameter in network.parameters())
        36479194

    Reference:
        Zagoruyko and Komodakis (2016), arXiv:1605.07146
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
    body = nn.Sequential(
        *parts, nn.BatchNorm2d(in_channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    initialise_convolutions(body)
    return Network(body, nn.Linear(in_channels, num_classes))
