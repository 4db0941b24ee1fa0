"""Networks for small colour images that train in a few epochs, and the layers they are made of."""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import ExitPlaces, FeatureMaps, Images, Network, scaled

AIRBENCH = {94: ((64, 256, 256), 2), 95: ((128, 384, 384), 2), 96: ((128, 384, 512), 3)}
"""Widths of the three blocks, and convolutions in each."""
LOGIT_SCALE = 1 / 9


class Whitening(nn.Conv2d):
    r"""A frozen 2x2 convolution that whitens patches of the training images, with a trained bias.

    With :math:`C = \frac1n \sum_p p p^\top` over the patches p of the images, and its eigenvectors
    :math:`v_j` and eigenvalues :math:`\lambda_j` in falling order, the filters are
    :math:`\pm v_j / \sqrt{\lambda_j + \epsilon}`: each map has about unit variance, and maps are
    uncorrelated but for their signs. Further maps than there are such filters repeat them; with
    fewer, the last directions are left out.

    Call :meth:`initialise` with training images before training: until then the filters are
    random. The bias is trained for the first ``bias_epochs`` epochs only.

    Args:
        channels: Of the images.
        maps: Output maps; by default twice the number of values in a patch.
        epsilon: Added to the eigenvalues.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones.airbench import Whitening
        >>> layer = Whitening(1)
        >>> images = torch.randn(500, 1, 8, 8) * 3
        >>> layer.initialise([images])
        >>> bool((layer(images).std((0, 2, 3)) - 1).abs().max() < 0.1)
        True

    Reference:
        Jordan (2024), arXiv:2404.00498, after Page (2018).
    """

    bias: nn.Parameter  # type: ignore[assignment]
    bias_epochs = 3
    draws_itself = True
    fixed_width = True

    def __init__(self, channels: int, maps: int | None = None, *, epsilon: float = 5e-4) -> None:
        super().__init__(channels, maps or 8 * channels, 2)
        self.epsilon = epsilon
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def initialise(self, batches: Iterable[Images]) -> None:
        """Compute the filters from images as the network sees them, batch after batch."""
        size = self.in_channels * 4
        moments = torch.zeros(size, size, dtype=torch.float64)
        count = 0
        for images in batches:
            patches = F.unfold(images.float(), 2).movedim(1, -1).flatten(0, 1).double()
            moments += (patches.T @ patches).cpu()
            count += len(patches)
        if not count:
            raise ValueError("a whitening layer needs at least one training image, got none")
        values, vectors = torch.linalg.eigh(moments / count)
        largest = vectors.abs().argmax(0, keepdim=True)
        vectors *= vectors.gather(0, largest).sign()  # eigenvectors have no sign of their own
        filters = (vectors / (values + self.epsilon).sqrt()).T.flip(0)
        signed = torch.stack([filters, -filters], dim=1).flatten(0, 1)
        chosen = signed[torch.arange(self.out_channels) % len(signed)]
        self.weight.copy_(chosen.view_as(self.weight))


class IdentityConv2d(nn.Conv2d):
    """A 3x3 convolution without bias whose first filters begin as the identity.

    The filters beyond the number of inputs are drawn as torch draws them.

    Reference:
        Jordan (2024), arXiv:2404.00498, section 3.3; Zagoruyko and Komodakis (2017),
        arXiv:1706.00388.
    """

    draws_itself = True

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights."""
        super().reset_parameters()
        with torch.no_grad():
            inputs, own = self.in_channels // self.groups, self.out_channels // self.groups
            for group in range(self.groups):
                rows = slice(group * own, group * own + min(own, inputs))
                nn.init.dirac_(self.weight[rows])


class Block(nn.Module):
    """Convolutions with max pooling behind the first, and a shortcut where there are three or more.

    ``h = gelu(norm(pool(conv_1(x))))``, then ``gelu(norm(conv_i(h)))`` for the others; with three
    or more, ``h`` is added before the last activation.
    """

    def __init__(self, in_channels: int, out_channels: int, convolutions: int) -> None:
        super().__init__()
        sizes = [in_channels] + [out_channels] * (convolutions - 1)
        self.convolutions = nn.ModuleList(IdentityConv2d(size, out_channels) for size in sizes)
        self.norms = nn.ModuleList(_norm(out_channels) for _ in sizes)
        self.pool, self.activation = nn.MaxPool2d(2), nn.GELU()

    def forward(self, images: Images) -> FeatureMaps:
        """Return the block's output."""
        hidden = self.convolutions[0](images)
        if min(hidden.shape[-2:]) > 1:  # images of 8 pixels have one place in the last block
            hidden = self.pool(hidden)
        first = self.activation(self.norms[0](hidden))
        hidden, last = first, len(self.convolutions) - 1
        for place in range(1, last + 1):
            hidden = self.norms[place](self.convolutions[place](hidden))
            if place == last >= 2:
                hidden = hidden + first
            hidden = self.activation(hidden)
        return hidden


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        """Return the product."""
        return values * self.factor


def airbench(
    accuracy: int, *, num_classes: int, channels: int, width: float = 1.0, depth: float = 1.0
) -> Network:
    r"""Build a network of Jordan's for CIFAR-10, named after the accuracy of its paper in per cent.

    The paper trains it for 10, 15 or 37 epochs, with label smoothing of 0.2, and evaluates it on
    several views of each image; with neither, as in ``--recipe fast``, its accuracy is lower.

    A frozen :class:`Whitening` of 2x2 patches, three blocks of convolutions that begin as the
    identity (:class:`IdentityConv2d`), batch normalisation without scale, GELU and max pooling, and
    a linear head without bias on features that are divided by 9. With ten classes and 32x32 colour
    images, ``airbench94`` has 1.97 million parameters. Train it with ``--recipe fast``. Sizes are
    as for :func:`~deepens.ensembles.backbones.build`; the whitening is not widened, nor narrowed in
    a packed ensemble.

    Raises:
        ValueError: If ``accuracy`` is none of 94, 95 and 96.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones.airbench import airbench
        >>> network = airbench(94, num_classes=10, channels=3, width=0.25)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Reference:
        Jordan (2024), arXiv:2404.00498, apart from the head of other image sizes: the maximum over
        all places stands for his pooling of 3x3.
    """
    if accuracy not in AIRBENCH:
        raise ValueError(f"accuracy must be one of {tuple(AIRBENCH)}, got {accuracy}")
    bases, convolutions = AIRBENCH[accuracy]
    whitening = Whitening(channels)
    sizes = [whitening.out_channels, *(scaled(base, width) for base in bases)]
    blocks = [
        Block(before, after, scaled(convolutions, depth)) for before, after in pairwise(sizes)
    ]
    end = (nn.AdaptiveMaxPool2d(1), nn.Flatten(), Scale(LOGIT_SCALE))
    body = nn.Sequential(whitening, nn.GELU(), *blocks, *end)
    places = ExitPlaces(tuple(range(3, 3 + len(blocks))), tuple(sizes[1:]))
    return Network(body, nn.Linear(sizes[-1], num_classes, bias=False), exit_places=places)


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
