"""The abstraction of an objective: what the members minimise together."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from .ensemble import Ensemble, Images

Targets = (
    Int[Tensor, "batch"]
    | Int[Tensor, "members batch"]
    | Float[Tensor, "batch classes"]
    | Float[Tensor, "members batch classes"]
)
"""Class indices, or soft labels with a trailing class axis; shared, or one batch a member."""


class ObjectiveValue(NamedTuple):
    """What an objective returns.

    Attributes:
        loss: One scalar whose gradient is followed: the sum over members of batch means.
        values: Each member's own part, detached, for the logs and for naming the member that
            went non-finite.
    """

    loss: Float[Tensor, ""]
    values: Float[Tensor, "members"]


class Objective(nn.Module, ABC):
    """A loss over all members of an ensemble.

    The loss is the sum over members of each member's batch mean, so that a member's gradient does
    not depend on how many others there are. What an objective keeps (a basis, a noise set, an
    annealing step) are buffers, which ``prepare`` fills.
    """

    def prepare(self, train_images: Iterable[UInt8[Tensor, "batch channels height width"]]) -> None:
        """Compute what the objective needs from the training images: by default nothing.

        Args:
            train_images: Batches of them all, in one pass: they need not fit in memory.
        """

    @abstractmethod
    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """The loss of one batch and each member's part of it."""
