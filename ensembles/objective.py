"""The abstraction of an objective: what the members minimise together."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from .ensemble import Ensemble, Images

Targets = (
    Int[Tensor, "batch"]
    | Int[Tensor, "members batch"]
    | Float[Tensor, "batch classes"]
    | Float[Tensor, "members batch classes"]
)
"""Class indices, or soft labels with a trailing class axis; shared, or one batch per member."""


class ObjectiveValue(NamedTuple):
    """What an objective returns.

    Attributes:
        loss: One scalar whose gradient is followed: the sum over members of batch means.
        values: Each member's own part, detached, for the logs and for naming the member that
            went non-finite.
    """

    loss: Float[Tensor, ""]
    values: Float[Tensor, "members"]


class TrainingStep(NamedTuple):
    """Where training stands, as the training loop reports it to an objective before each batch.

    Attributes:
        number: Of the step, counted from 0.
        total: Steps of the whole training.
        indices: Position of each of the batch's images among the training images, shaped as class
            indices are; None where the loader does not say.
    """

    number: int
    total: int
    indices: Int[Tensor, "..."] | None = None


@runtime_checkable
class TrainingImages(Protocol):
    """All training images, as the network sees them but without augmentation."""

    def __len__(self) -> int:
        """N, the number of images."""
        ...

    def __iter__(self) -> Iterator[Float[Tensor, "batch channels height width"]]:
        """Batches of them all, in one pass: they need not fit in memory."""
        ...


class Objective(nn.Module, ABC):
    """A loss over all members of an ensemble.

    The loss is the sum over members of each member's batch mean, so that a member's gradient does
    not depend on how many others there are. What an objective keeps (a basis, a noise set) are
    buffers, which ``prepare`` fills.

    Attributes:
        shared_batch: Whether it compares members on one batch, which they then have to share.
        couples_members: Whether a member's gradient depends on the other members, so that they
            cannot be trained one by one.
        step: Where training stands; None outside a training loop.
    """

    shared_batch: bool = False
    couples_members: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.step: TrainingStep | None = None

    def fits(self, num_members: int) -> list[list[int]]:
        """Groups of members that are trained together, one group after the other: by default one.

        Each fit is a training of its own, resumable by itself; those before it are its context.
        """
        return [list(range(num_members))]

    def check(self, ensemble: Ensemble) -> str | None:
        """Refuse an ensemble that it makes no sense for, and say what is special about one.

        Returns:
            A sentence for the user, such as that something is bypassed; None where all is usual.

        Raises:
            ValueError: The pair makes no sense, with the reason.
        """
        return None

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse images that it cannot be prepared with, before anything is computed.

        Args:
            shape: K, H, W of the training images.

        Raises:
            ValueError: They are too large, with the bound.
        """

    def prepare(self, images: TrainingImages, context: Sequence[Ensemble] = ()) -> None:
        """Compute what the objective needs before a fit: by default nothing.

        Args:
            images: The training images.
            context: The trained ensembles of the fits before this one.
        """

    def restore(self, buffers: Mapping[str, Tensor]) -> None:
        """Take buffers as an earlier ``prepare`` of the same training left them.

        Raises:
            ValueError: A name that is none of this objective's buffers.
        """
        for name, value in buffers.items():
            owner, _, leaf = name.rpartition(".")
            try:
                module = self.get_submodule(owner)
            except AttributeError:
                module = None
            if module is None or leaf not in module._buffers:
                raise ValueError(f"{name} is no buffer of this objective")
            module._buffers[leaf] = value

    def set_step(self, step: TrainingStep | None) -> None:
        """Say where training stands, before each batch; None when it is over."""
        for module in self.modules():
            if isinstance(module, Objective):
                module.step = step

    @abstractmethod
    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """The loss of one batch and each member's part of it."""
