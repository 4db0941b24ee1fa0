"""A residual network that may answer early: one exit after each stage of blocks."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .convolutional import narrow_resnet
from .network import FeatureMaps, Images, Logits, Network, scaled

WIDTHS = (16, 32, 64)
"""Channels behind each stage of a narrow ResNet at width 1."""
MOST_EXITS = len(WIDTHS)
STEM, POOLING = 3, 2
"""Modules of its body before the first block and after the last."""


class Stage(nn.Module):
    """The part of a network between two exits, and the exit at its end.

    ``hidden' = blocks(hidden);  logits = head(pooling(hidden'))``
    """

    def __init__(self, blocks: nn.Module, pooling: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.blocks, self.pooling, self.head = blocks, pooling, head

    def forward(self, hidden: Images) -> tuple[FeatureMaps, Logits]:
        """Return the hidden state for the next stage, and this exit's logits."""
        hidden = self.blocks(hidden)
        return hidden, self.head(self.pooling(hidden))


class MultiExitResNet(Network):
    """He et al.'s narrow CIFAR network of ``6n + 2`` layers, with an exit after each stage.

    ``h_1 = stage_1(images);  h_i = stage_i(h_(i-1));  logits_i = W_i mean_places(h_i) + b_i``

    h_i is ``[batch, channels_i, height_i, width_i]``, logits_i ``[batch, classes]``.

    As a plain classifier the network is its last exit: a ``narrow_resnet`` with the same draws and
    parameter names. A loss on ``forward`` alone leaves ``early_heads`` untrained, so train it as an
    ensemble of its exits, :class:`~deepens.ensembles.families.multi_exit.MultiExitEnsemble`.

    With three exits, ten classes and 32x32 colour images, the stages of the network of 8 layers
    cost 5.16, 3.67 and 3.67 million multiply-accumulates; the two early heads are 480 of these.

    The exits, 1 to 3, are after the *last* stages; with fewer than three, the first stages join.
    Other sizes are as for :func:`~deepens.ensembles.backbones.build`.

    Raises:
        ValueError: If ``num_exits`` is not from 1 to 3, ``width`` or ``depth`` is not a finite
            number > 0, or ``layers`` is not of the form 6n + 2 with n >= 1.

    Example:
        Only the images that the first exit is unsure of continue.

        >>> import torch
        >>> from deepens.ensembles.backbones.multi_exit import MultiExitResNet
        >>> network = MultiExitResNet(8, num_classes=10, channels=3).eval()
        >>> network.exits(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([3, 4, 10])
        >>> first, second, third = network.stages()
        >>> hidden, logits = first(torch.zeros(4, 3, 32, 32))
        >>> hidden, logits = second(hidden[torch.tensor([0, 2])])
        >>> hidden.shape, logits.shape
        (torch.Size([2, 32, 16, 16]), torch.Size([2, 10]))

    Reference:
        Teerapittayanon, McDanel and Kung (2016), arXiv:1709.01686, put exits on a residual
        network; He et al. (2016), arXiv:1512.03385, section 4.2, for the network itself. Our exits
        have no convolutions of their own, so that they cost next to nothing. Multi-scale features
        (Huang et al. 2018, arXiv:1703.09844) would make the first exits more accurate.
    """

    body: nn.Sequential

    def __init__(
        self,
        layers: int,
        *,
        num_classes: int,
        channels: int,
        num_exits: int = 3,
        width: float = 1.0,
        depth: float = 1.0,
    ) -> None:
        if not 1 <= num_exits <= len(WIDTHS):
            raise ValueError(
                f"num_exits must be from 1 to {len(WIDTHS)}, the number of stages, got {num_exits}"
            )
        for argument, factor in (("width", width), ("depth", depth)):
            if not 0 < factor < math.inf:
                raise ValueError(f"{argument} must be > 0 and finite, got {factor}")
        plain = narrow_resnet(
            layers, num_classes=num_classes, channels=channels, width=width, depth=depth
        )
        super().__init__(plain.body, plain.head)
        widths = [scaled(base, width) for base in WIDTHS[-num_exits:-1]]
        self.early_heads = nn.ModuleList(nn.Linear(size, num_classes) for size in widths)

    def stages(self) -> list[Stage]:
        """Return the network in stages, to run each on some of the images.

        Stage i takes the hidden state of stage i - 1, whole or indexed by image, and the first
        stage takes images; each returns ``(hidden, logits)``. The stages are the network's own
        modules, not copies.
        """
        blocks = (len(self.body) - STEM - POOLING) // len(WIDTHS)  # of each stage
        heads = [*self.early_heads, self.head]
        ends = [STEM + blocks * (stage + 1) for stage in range(len(WIDTHS))][-len(heads) :]
        pooling = self.body[-POOLING:]
        return [
            Stage(self.body[start:end], pooling, head)
            for start, end, head in zip([0, *ends[:-1]], ends, heads, strict=True)
        ]

    def up_to(self, index: int) -> Network:
        """Return the plain network that ends at an exit, counted from 0, of the same modules."""
        stages = self.stages()
        if not 0 <= index < len(stages):
            raise ValueError(f"index must be in [0, {len(stages)}), got {index}")
        blocks = [part for stage in stages[: index + 1] for part in stage.blocks.children()]
        return Network(nn.Sequential(*blocks, *self.body[-POOLING:]), stages[index].head)

    def exits(self, images: Images) -> Float[Tensor, "exits batch classes"]:
        """Return the logits of all exits in one pass, the last exit's being ``forward``'s."""
        hidden, all_logits = images, []
        for stage in self.stages():
            hidden, logits = stage(hidden)
            all_logits.append(logits)
        return torch.stack(all_logits)
