"""The exits of one network as an ensemble: member i is the network up to its exit i."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import final

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from ..backbones.multi_exit import MultiExitNetwork
from ..ensemble import Ensemble, Features, Images, Logits

__all__ = ["MultiExitEnsemble"]


@final
class MultiExitEnsemble(Ensemble):
    r"""M exits of one network, each a member that stops where its exit is.

    :math:`h_0 = \mathrm{blocks}_0(x);\ h_i = \mathrm{blocks}_i(h_{i-1});\
    z_i = W_i\, \mathrm{pool}(h_i) + b_i`. The prefix is :math:`h_0`; each block runs once for all
    members, and none behind the last exit that is asked for.

    Members share parameters (``shares_parameters``): they are one network, drawn and trained as
    one, from the first member's seed. So that blocks run once, they need one batch (``batches:
    shared``); given a batch each, every exit goes the whole way on its own. What takes members for
    independent refuses them: training one member alone, greedy training, repulsion, pseudo-data for
    each member, and graphs of some members at a time.

    As an early-exit network is mostly used, exit m answers alone: that is ``pool="last"`` of a
    :class:`~..policies.cascade.Cascade`, whose default, ``"mean"``, pools the exits up to m.

    Args:
        factory: Builds the network, with as many exits as there are seeds.
        seeds: One seed per member. The first draws the network; the others draw nothing.

    Raises:
        ValueError: Bad seeds, or a network with another number of exits.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones import build_multi_exit
        >>> from deepens.ensembles.families.multi_exit import MultiExitEnsemble
        >>> factory = lambda: build_multi_exit("resnet8", num_exits=3, num_classes=10, channels=1)
        >>> MultiExitEnsemble(factory, seeds=[1, 2, 3])(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([3, 5, 10])

    Reference:
        Teerapittayanon, McDanel & Kung (2016), arXiv:1709.01686; Huang et al. (2018),
        arXiv:1703.09844. See :class:`~..backbones.multi_exit.MultiExitNetwork` for deviations.
    """

    def __init__(self, factory: Callable[[], MultiExitNetwork], *, seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seeds[0])
            self.network = factory()
        if (exits := len(self.network.stages())) != len(seeds):
            raise ValueError(f"factory must build {len(seeds)} exits, one per seed, got {exits}")

    @property
    def shares_parameters(self) -> bool:
        """Whether there is a second exit, which shares the blocks up to the first."""
        return self.num_members > 1

    def prefix(self, images: Images) -> Shaped[Tensor, "..."]:
        """Hidden states at the first exit, ``[B, ...]`` or one batch per member ``[m, B, ...]``."""
        blocks = self.network.stages()[0].blocks
        if images.ndim == 5:  # one after the other: a batch is normalised by itself
            return torch.stack([blocks(own) for own in images])
        return blocks(images)

    def features(self, images: Shaped[Tensor, "..."], members: Sequence[int]) -> Features:
        """Each chosen exit's pooled features, from what :meth:`prefix` returns."""
        if images.ndim == 5:
            return [self._walk(own, {m})[m] for own, m in zip(images, members, strict=True)]
        found = self._walk(images, set(members))
        return [found[index] for index in members]

    def head(self, features: Features, members: Sequence[int]) -> Logits:
        """Each chosen exit's head on its features."""
        sections = self.network.stages()
        pairs = zip(features, members, strict=True)
        return torch.stack([sections[index].head(own) for own, index in pairs])

    def stages(self, members: Sequence[int]) -> list[Callable[[Tensor], tuple[Tensor, Logits]]]:
        """One stage per exit, each continuing from the hidden state that the one before handed on.

        Raises:
            ValueError: The exits do not come in the order of the network.
        """
        if list(members) != sorted(members):
            raise ValueError(
                "order must name exits from the first to the last, since each continues from the "
                f"one before, got {list(members)}"
            )

        def run(start: int, member: int, state: Tensor) -> tuple[Tensor, Tensor]:
            sections = self.network.stages()
            for section in sections[start : member + 1]:
                state = section.blocks(state)
            return state, sections[member].head(sections[member].pooling(state))[None]

        starts = [0, *(member + 1 for member in members)]
        return [partial(run, *pair) for pair in zip(starts, members, strict=False)]

    def member(self, index: int) -> nn.Module:
        """A copy of the network up to one exit."""
        index = self.chosen([index])[0]
        return copy.deepcopy(self.network.up_to(index)).train(self.training)

    def member_parameters(self, index: int) -> list[tuple[nn.Parameter, int | None]]:
        """All parameters that an exit's logits depend on, most of them other exits' too."""
        return [(p, None) for p in self.network.up_to(self.chosen([index])[0]).parameters()]

    def member_state(self, index: int) -> dict[str, Tensor]:
        """The state dict of the network up to an exit; writing changes the exits behind it too."""
        return self.network.up_to(self.chosen([index])[0]).state_dict()

    def _walk(self, hidden: Tensor, members: set[int]) -> dict[int, Tensor]:
        """Pooled features of some exits on one way to the last of them, from the first's."""
        found = {}
        for index, section in enumerate(self.network.stages()[: max(members) + 1]):
            hidden = section.blocks(hidden) if index > 0 else hidden
            if index in members:
                found[index] = section.pooling(hidden)
        return found
