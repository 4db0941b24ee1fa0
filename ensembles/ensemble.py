"""The abstraction of an ensemble: how members store their parameters, and nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

Images = (
    Float[Tensor, "batch channels height width"]
    | Float[Tensor, "members batch channels height width"]
)
"""One batch that the members share, or one batch per member."""

Features = list[Float[Tensor, "batch _"]]
Logits = Float[Tensor, "members batch classes"]


class Ensemble(nn.Module, ABC):
    """M members that predict the same images.

    ``forward(images, members) = head(features(prefix(images), members), members)``

    ==========  ==========================================================================
    images      ``[B, K, H, W]`` shared by the members, or ``[m, B, K, H, W]``, one batch
                for each of the m chosen members (m = M when ``members`` is None)
    logits      ``[m, B, C]``, in the order of ``members``
    ==========  ==========================================================================

    ``members=[i]`` equals row i of the whole and runs only member i. A single model is an
    ensemble of one. Everything random about a member (initialisation, batch order, augmentation,
    dropout) is a function of its own seed, so that members trained together equal members trained
    one by one.

    Args:
        seeds: One seed per member, ``0 <= seed < 2**63``.

    Raises:
        ValueError: No member, a seed out of range, or one seed twice.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        if len(seeds) < 1:
            raise ValueError("num_members must be >= 1, got 0")
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seeds must be in [0, 2**63), got {seed}")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must differ from member to member, got {list(seeds)}")
        self.seeds = tuple(int(seed) for seed in seeds)
        self._step: int | None = None
        self._rank = 0

    @property
    def num_members(self) -> int:
        """M, the number of members."""
        return len(self.seeds)

    @property
    def base(self) -> nn.Module | None:
        """The frozen network that all members share, which a weights file leaves out, or None.

        A family registers it as its submodule ``base``, so that the names of its tensors, and no
        others, begin with ``base.``.
        """
        return self._modules.get("base")

    @property
    def shares_parameters(self) -> bool:
        """Whether members share trained parameters, unlike a frozen ``base``; by default not.

        Then no member can be trained, clipped or assembled alone, ``member_parameters`` of two
        members overlap, and a write to a member's state may change others.
        """
        return False

    def base_hash(self) -> str:
        """SHA-256 of the base's weights, in hexadecimal; a ValueError without a base."""
        raise ValueError(f"a {type(self).__name__} has no base that its members share")

    def forward(
        self, images: Images, members: Sequence[int] | None = None
    ) -> Float[Tensor, "members batch classes"]:
        """Logits of the chosen members, or of all of them."""
        chosen = self.chosen(members)
        check_batches(images, len(chosen))
        logits = self.head(self.features(self.prefix(images), chosen), chosen)
        return stacked_logits(logits, images.shape[-4], chosen)

    def prefix(self, images: Images) -> Shaped[Tensor, "..."]:
        """The computation that all members share, indexable by image: by default none."""
        return images

    @abstractmethod
    def features(
        self, images: Shaped[Tensor, "..."], members: Sequence[int]
    ) -> list[Float[Tensor, "batch _"]]:
        """The inputs of each chosen member's head, whose widths may differ."""

    @abstractmethod
    def head(
        self, features: list[Float[Tensor, "batch _"]], members: Sequence[int]
    ) -> Float[Tensor, "members batch classes"]:
        """Logits of the chosen members from their features."""

    def stages(
        self, members: Sequence[int]
    ) -> list[Callable[[Tensor], tuple[Tensor, Float[Tensor, "members batch classes"]]]]:
        """One function per member, in the order in which they run, to run on some images each.

        Each goes from the previous state, whole or indexed by image, to the next state and its
        member's logits; the first takes images. By default the state is the prefix; a family whose
        members continue from each other's features passes these.
        """

        def stage(position: int, member: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            def run(state: Tensor) -> tuple[Tensor, Tensor]:
                shared = self.prefix(state) if position == 0 else state
                return shared, self.head(self.features(shared, [member]), [member])

            return run

        return [stage(position, member) for position, member in enumerate(members)]

    @abstractmethod
    def member(self, index: int) -> nn.Module:
        """A standalone copy of one member: a network of its own with the same logits.

        Detectors that read features need a ``Network(body, head)``.
        """

    @abstractmethod
    def member_parameters(self, index: int) -> list[tuple[nn.Parameter, int | None]]:
        """The member's own parameters, as (parameter, index) pairs.

        With ``shares_parameters``, all that its logits depend on. The index is a position on the
        leading axis where the parameter stacks all members, else None.
        """

    @abstractmethod
    def member_state(self, index: int) -> dict[str, Tensor]:
        """The member's parameters and buffers, by name; writing to them changes the member.

        A member is stored, moved to another ensemble and restored by this state alone. Where all
        members' are stacked in one tensor, it is a view on the member's row.
        """

    def chosen(self, members: Sequence[int] | None) -> list[int]:
        """The chosen members, all when None; a ValueError if there are none or one is unknown."""
        if members is None:
            return list(range(self.num_members))
        if len(members) == 0:
            raise ValueError("members must name at least one member, got an empty list")
        for index in members:
            if not 0 <= index < self.num_members:
                raise ValueError(f"members must be in [0, {self.num_members}), got {index}")
        return list(members)

    def not_twice_differentiable(self) -> str | None:
        """Why its logits cannot be differentiated twice; None where they can."""
        return None

    def set_step(self, step: int | None, rank: int = 0) -> None:
        """Key the members' dropout on a training step; None returns to torch's global generator.

        Of several processes that share a batch, each has a rank and draws of its own.
        """
        self._step, self._rank = step, rank

    @contextmanager
    def member_stream(
        self, index: int, stage: str, device: torch.device, *, whole: bool = False
    ) -> Iterator[None]:
        """Draw inside from the member's own stream, a function of (seed, step), in training.

        It has no effect before ``set_step``. What is drawn for the ``whole`` batch is the same in
        every process.
        """
        if self._step is None or not self.training:
            yield
            return
        key = (self.seeds[index], self._step, len(stage), *stage.encode())
        if self._rank and not whole:
            key = (*key, self._rank)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            # torch.manual_seed would also queue the seed for every kind of device that is absent.
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield


def check_batches(images: Images, num_members: int) -> None:
    """Refuse member-wise images of another number of batches than members."""
    if images.ndim == 5 and len(images) != num_members:
        raise ValueError(
            f"images must have one batch for each of the {num_members} chosen members, "
            f"got {len(images)} batches"
        )


def check_result(result: object, batch: int, member: int) -> None:
    """Refuse what a member's network returned unless it is a tensor with a row for each image.

    Raises:
        ValueError: It is something else, such as logits with those of side heads.
    """
    if not isinstance(result, Tensor):
        raise ValueError(
            f"members must return logits [batch, classes], but member {member} returns "
            f"{type(result).__name__}: switch side outputs off (aux_logits=False in torchvision), "
            "or wrap the network in a module that returns logits alone"
        )
    if result.ndim < 2 or result.shape[0] != batch:
        raise ValueError(
            f"members must return logits [batch, classes], but member {member} returns "
            f"{list(result.shape)} for {batch} images: keep the batch and the classes as axes "
            "(flatten(1) instead of squeeze())"
        )


def stacked_logits(logits: Sequence[Tensor] | Tensor, batch: int, members: Sequence[int]) -> Logits:
    """Stack the members' logits ``[batch, classes]``, which must have the same classes.

    Raises:
        ValueError: They are something else, have fewer than two classes, or differ in number.
    """
    for member, own in zip(members, logits, strict=True):
        check_result(own, batch, member)
        if own.ndim != 2:
            raise ValueError(
                f"members must return logits [batch, classes], but member {member} returns "
                f"{list(own.shape)}: average feature maps over their places and put a linear layer "
                "behind them"
            )
        if own.shape[1] < 2:
            raise ValueError(
                f"members must return logits of at least 2 classes, but member {member} returns "
                f"{own.shape[1]}: for two classes let the last layer have two outputs"
            )
        if own.shape[1] != logits[0].shape[1]:
            raise ValueError(
                f"members must have the same classes, but member {members[0]} returns "
                f"{logits[0].shape[1]} logits per image and member {member} returns {own.shape[1]}"
            )
    return logits if isinstance(logits, Tensor) else torch.stack(list(logits))
