"""Families whose members are separate plain networks, and how those are evaluated."""

import warnings
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..backbones.network import Network
from ..ensemble import Ensemble, Features, Logits, check_result, stacked_logits
from ..options import Execution, check_execution
from .executions import GroupedExecution, check_alike
from .standalone import GroupedMembers, LoopedMembers, grouped_members
from .surgery import copied

__all__ = ["Factory", "NetworkEnsemble", "draw"]

Factory = Callable[[], nn.Module]
"""Builds one plain network."""


def draw(factory: Factory, seed: int) -> Network:
    """Call a factory with torch's generator at a seed, and leave the generator as it was.

    A network that is no :class:`Network` becomes the body of one. A seed out of range is taken
    modulo 2**63, and refused by the ensemble.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed) % 2**63)
        network = factory()
    return network if isinstance(network, Network) else Network(network, nn.Identity())


class NetworkEnsemble(Ensemble):
    r"""M members, each a plain network ``head(body(images))`` with weights of its own.

    An execution is only how the chosen members' bodies are evaluated: ``loop``, one network after
    the other, is always possible; ``grouped`` is one network whose layers have a group for each
    member, with the members' weights joined at each forward. State and optimisers do not depend on
    it, and heads are always evaluated one by one.

    Both give the same logits, gradients and running statistics, to rounding. That is proved at
    first use, for the images' shape and the mode at hand, by comparing with the loop while all
    weights are random, and again when a module or one of its settings has changed since; a
    network for which it does not hold is refused. In training, ``grouped`` refuses bodies that draw
    random numbers, which are a function of the member's seed only in the loop; and always bodies
    with hooks.

    Members that start from equal parameters are warned about: they differ in batch order alone.

    Args:
        networks: One network per member; they share no parameters.
        seeds: One seed per member.
        execution: How bodies are evaluated.

    Raises:
        ValueError: Bad seeds, another number of networks than seeds, members that share a
            parameter, an unknown execution, or one other than ``"loop"`` for networks of
            different architectures.

    Example:
        >>> import torch
        >>> from deepens.ensembles.backbones import build
        >>> from deepens.ensembles.families.networks import NetworkEnsemble
        >>> make = lambda: build("small-cnn", num_classes=8, channels=1, image_size=8)
        >>> ensemble = NetworkEnsemble([make(), make()], seeds=[1, 2], execution="grouped").eval()
        >>> ensemble(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self, networks: Sequence[Network], *, seeds: Sequence[int], execution: Execution = "loop"
    ) -> None:
        super().__init__(seeds)
        if len(networks) != len(seeds):
            raise ValueError(
                f"networks must be one for each of the {len(seeds)} seeds, got {len(networks)}"
            )
        self.networks = nn.ModuleList(networks)
        self._check_members()
        self.execution = execution
        self.register_load_state_dict_post_hook(_prove_again)

    @property
    def execution(self) -> Execution:
        """How bodies are evaluated; it may be changed at any time."""
        return self._execution

    @execution.setter
    def execution(self, execution: Execution) -> None:
        check_execution("execution", execution)
        if execution != "loop":
            check_alike(self._bodies())
        self._execution: Execution = execution
        self._grouped = GroupedExecution()

    def features(self, images: Shaped[Tensor, "..."], members: Sequence[int]) -> Features:
        """Each chosen network's features, by the execution."""
        if self.execution != "loop":
            return self._grouped.features(self._bodies(members), images, self._bodies())
        features = []
        batches = images if images.ndim == 5 else repeat(images)
        for own, index in zip(batches, members, strict=False):
            with self.member_stream(index, "features", images.device):
                features.append(self._network(index).features(own))
            check_result(features[-1], own.shape[0], index)
        return features

    def head(self, features: Features, members: Sequence[int]) -> Logits:
        """Each chosen network's head on its features."""
        logits = []
        for own, index in zip(features, members, strict=True):
            with self.member_stream(index, "head", own.device):
                logits.append(self._network(index).head(own))
        return stacked_logits(logits, features[0].shape[0], members)

    def member(self, index: int) -> nn.Module:
        """A copy of one network."""
        return copied(self._network(index))

    def member_parameters(self, index: int) -> list[tuple[nn.Parameter, int | None]]:
        """All parameters of one network, each of them whole."""
        return [(p, None) for p in self._network(index).parameters()]

    def member_state(self, index: int) -> dict[str, Tensor]:
        """The state dict of one network."""
        return self._network(index).state_dict()

    image_shape: tuple[int, int, int] | None = None
    """``(K, H, W)`` of the images, where the family knows it."""

    def as_grouped(
        self, image_shape: tuple[int, int, int] | None = None
    ) -> GroupedMembers | LoopedMembers:
        """All members as one plain module in eval mode, to export.

        It takes images ``[B, K, H, W]`` and returns logits ``[M, B, C]``, and is made for
        ``torch.export.export`` and ``torch.onnx.export(..., dynamo=True)``. Its weights are copies,
        joined where the grouped form equals the loop. ``image_shape`` is ``(K, H, W)``.

        Raises:
            ValueError: The ensemble was made for no shape, and none is given.

        Example:
            >>> import torch
            >>> from deepens.ensembles import DeepEnsemble
            >>> from deepens.ensembles.backbones import build
            >>> factory = lambda: build("small-cnn", num_classes=8, channels=1, image_size=8)
            >>> module = DeepEnsemble(factory, seeds=[1, 2]).as_grouped((1, 8, 8))
            >>> exported = torch.export.export(module, (torch.zeros(5, 1, 8, 8),))
            >>> exported.module()(torch.zeros(5, 1, 8, 8)).shape
            torch.Size([2, 5, 8])
        """
        shape = image_shape or self.image_shape
        if shape is None:
            raise ValueError("image_shape must be given, (channels, height, width) of the images")
        return grouped_members(list(self.networks), shape)

    def _check_members(self) -> None:
        owner: dict[int, int] = {}
        for index, network in enumerate(self.networks):
            for name, parameter in network.named_parameters():
                first = owner.setdefault(id(parameter), index)
                if first != index:
                    raise ValueError(
                        f"members must share nothing, but members {first} and {index} share the "
                        f"parameter {name!r}: build a new network for each"
                    )
        for index, network in enumerate(self.networks[1:], start=1):
            pairs = list(zip(self.networks[0].parameters(), network.parameters(), strict=False))
            if pairs and all(_equal(a, b) for a, b in pairs):
                warnings.warn(
                    f"members 0 and {index} start from identical parameters: nothing is drawn for "
                    "them, so that they differ in batch order alone",
                    stacklevel=4,  # the caller of a family's constructor
                )

    def _network(self, index: int) -> Network:
        return cast(Network, self.networks[self.chosen([index])[0]])

    def _bodies(self, members: Sequence[int] | None = None) -> list[nn.Module]:
        return [self._network(index).body for index in self.chosen(members)]


def _equal(first: nn.Parameter, other: nn.Parameter) -> bool:
    """Whether two parameters have the same values; not if they have none yet."""
    empty = any(is_lazy(each) or each.is_meta for each in (first, other))
    return not empty and first.shape == other.shape and torch.equal(first, other)


def _prove_again(ensemble: NetworkEnsemble, _: object) -> None:
    """Loading may have changed constants that members have to have in common."""
    ensemble.execution = ensemble.execution
