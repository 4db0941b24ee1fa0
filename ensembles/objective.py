"""The abstraction of an objective: what the members minimise together."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from .ensemble import Ensemble, Images
from .parts import Part

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
        loss: The scalar to minimise: the sum over members of batch means.
        values: Each member's part, detached, for logs and for naming a member with a non-finite
            loss.
    """

    loss: Float[Tensor, ""]
    values: Float[Tensor, "members"]


class TrainingStep(NamedTuple):
    """The progress of training, which the training loop sets before each batch.

    Attributes:
        number: Of the step, counted from 0.
        total: Steps of the whole training.
        indices: Position of each of the batch's images among the training images, shaped as class
            indices are; None where the loader does not return it.
        part: Of the batch, where several processes have one each and average their gradients.
    """

    number: int
    total: int
    indices: Int[Tensor, "..."] | None = None
    part: Part = Part()


@runtime_checkable
class TrainingImages(Protocol):
    """All training images, as the network sees them but without augmentation."""

    def __len__(self) -> int:
        """N, the number of images."""
        ...

    def __iter__(self) -> Iterator[Float[Tensor, "batch channels height width"]]:
        """Batches of all images, which need not fit in memory."""
        ...


class Objective(nn.Module, ABC):
    """A loss over all members of an ensemble.

    The loss is the sum over members of each member's batch mean, so that a member's gradient does
    not depend on the number of others. An objective's state (a basis, a noise set) is in buffers,
    which ``prepare`` fills.

    Attributes:
        shared_batch: Whether members have to share one batch, on which they are compared.
        couples_members: Whether a member's gradient depends on the other members, so that they
            cannot be trained one by one.
        averages_parts: Whether the gradients of a batch are the mean of those of its equal parts,
            so that several processes can have a part each; by default not.
        step: The progress of training; None outside a training loop.
    """

    shared_batch: bool = False
    couples_members: bool = False
    averages_parts: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.step: TrainingStep | None = None

    def fits(self, num_members: int) -> list[list[int]]:
        """Groups of members trained together, one group after the other: by default one group.

        Each fit can be resumed by itself; those before it are its context.
        """
        return [list(range(num_members))]

    def check(self, ensemble: Ensemble) -> str | None:
        """Refuse an ensemble for which the objective makes no sense, with a ValueError.

        Returns:
            A note for the user, such as that something is bypassed, or None.
        """
        return None

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Refuse a shape (K, H, W) of training images that is too large, before any training."""

    def prepare(self, images: TrainingImages, context: Sequence[Ensemble] = ()) -> None:
        """Compute buffers before a fit, from the images and the ensembles of earlier fits."""

    def restore(self, buffers: Mapping[str, Tensor]) -> None:
        """Restore buffers of an earlier ``prepare``; a ValueError for an unknown name."""
        for name, value in buffers.items():
            owner, _, leaf = name.rpartition(".")
            module = dict(self.named_modules()).get(owner)
            if module is None or leaf not in module._buffers:
                raise ValueError(f"{name} is no buffer of this objective")
            module._buffers[leaf] = value

    def set_step(self, step: TrainingStep | None) -> None:
        """Set the progress of training before each batch; None when it is over."""
        for module in self.modules():
            if isinstance(module, Objective):
                module.step = step

    @abstractmethod
    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """The loss of one batch and each member's part of it."""
