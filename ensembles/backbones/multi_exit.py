"""A network that may answer early: one exit behind each of its stages."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .network import FeatureMaps, Images, Logits, Network

EXITS = "places for exits, as resnet8, resnet18, airbench94 and their like have"


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


class MultiExitNetwork(Network):
    """A network with an exit behind each of its last stages.

    ``h_1 = stage_1(images);  h_i = stage_i(h_(i-1));  logits_i = W_i pooling(h_i) + b_i``

    h_i is ``[batch, channels_i, height_i, width_i]``, logits_i ``[batch, classes]``. The pooling is
    the network's own, and early heads are linear as its head is.

    As a plain classifier the network is its last exit: the network that it is made of, with the
    same draws and parameter names. A loss on ``forward`` alone leaves ``early_heads`` untrained, so
    train it as an ensemble of its exits,
    :class:`~deepens.ensembles.families.multi_exit.MultiExitEnsemble`.

    With three exits, ten classes and 32x32 colour images, the stages of ``resnet8`` cost 5.16, 3.67
    and 3.67 million multiply-accumulates; the two early heads are 480 of these.

    Args:
        network: The plain network, whose modules it takes; it has ``exit_places``.
        num_exits: The exits are after the *last* stages; with fewer than all, the first ones join.

    Raises:
        ValueError: If the network has no places for exits, or not so many.

    Example:
        Only the images that the first exit is unsure of continue.

        >>> import torch
        >>> from deepens.ensembles.backbones import build_multi_exit
        >>> network = build_multi_exit("resnet8", num_exits=3, num_classes=10, channels=3).eval()
        >>> network.exits(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([3, 4, 10])
        >>> first, second, third = network.stages()
        >>> hidden, logits = first(torch.zeros(4, 3, 32, 32))
        >>> hidden, logits = second(hidden[torch.tensor([0, 2])])
        >>> hidden.shape, logits.shape
        (torch.Size([2, 32, 16, 16]), torch.Size([2, 10]))

    Reference:
        Teerapittayanon, McDanel and Kung (2016), arXiv:1709.01686, put exits on a residual
        network. Our exits have no convolutions of their own, so that they cost next to nothing.
        Multi-scale features (Huang et al. 2018, arXiv:1703.09844) would make the first exits more
        accurate.
    """

    body: nn.Sequential
    head: nn.Linear

    def __init__(self, network: Network, num_exits: int) -> None:
        places = getattr(network, "exit_places", None)
        if places is None:
            raise ValueError(f"network must have {EXITS}")
        if not 1 <= num_exits <= len(places.ends):
            raise ValueError(
                f"num_exits must be from 1 to {len(places.ends)}, the number of stages, got "
                f"{num_exits}"
            )
        super().__init__(network.body, network.head, exit_places=places)
        self._ends = places.ends
        classes, biased = self.head.out_features, self.head.bias is not None
        widths = places.widths[-num_exits:-1]
        self.early_heads = nn.ModuleList(nn.Linear(size, classes, bias=biased) for size in widths)

    def stages(self) -> list[Stage]:
        """Return the network in stages, to run each on some of the images.

        Stage i takes the hidden state of stage i - 1, whole or indexed by image, and the first
        stage takes images; each returns ``(hidden, logits)``. The stages are the network's own
        modules, not copies.
        """
        heads = [*self.early_heads, self.head]
        ends = self._ends[-len(heads) :]
        pooling = self.body[ends[-1] :]
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
        pooling = stages[index].pooling.children()
        return Network(nn.Sequential(*blocks, *pooling), stages[index].head)

    def exits(self, images: Images) -> Float[Tensor, "exits batch classes"]:
        """Return the logits of all exits in one pass, the last exit's being ``forward``'s."""
        hidden, all_logits = images, []
        for stage in self.stages():
            hidden, logits = stage(hidden)
            all_logits.append(logits)
        return torch.stack(all_logits)
