"""What members are trained on: the examples that each is shown, and its loss on them."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..ensemble import Ensemble, Images, Logits, check_batches
from ..objective import Objective, ObjectiveValue, Targets
from .gradients import GradientSum
from .passes import running_statistics_kept

MemberTargets = Int[Tensor, "members batch"] | Float[Tensor, "members batch classes"]
"""Class indices or soft labels, of each member."""

Losses = Callable[[Logits, Shaped[Tensor, "members batch ..."]], Float[Tensor, "members batch"]]
"""A loss per member and example, as :meth:`Likelihood.loss` computes it."""


def example_cross_entropy(
    logits: Logits, targets: MemberTargets, smoothing: float = 0.0
) -> Float[Tensor, "members batch"]:
    r"""Each member's cross-entropy on each example, :math:`-\sum_c y_c \log \mathrm{softmax}(z)_c`.

    With smoothing s, labels are :math:`(1 - s) y + s / C`, which keeps it linear in y.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.likelihood import example_cross_entropy
        >>> example_cross_entropy(torch.zeros(1, 2, 4), torch.tensor([[0, 3]]))
        tensor([[1.3863, 1.3863]])
    """
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(0, 1), reduction="none", label_smoothing=smoothing
    )
    return losses.view(logits.shape[:2])


def soft_labels(targets: MemberTargets, logits: Logits) -> Logits:
    """Targets as soft labels over the classes of the logits; soft labels as they are.

    Use it in a loss that is written in terms of label probabilities, such as label smoothing.

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.likelihood import soft_labels
        >>> soft_labels(torch.tensor([[2]]), torch.zeros(1, 1, 3))
        tensor([[[0., 0., 1.]]])
    """
    if targets.is_floating_point():
        return targets
    return F.one_hot(targets, logits.shape[-1]).to(logits)


def member_losses(
    logits: Logits,
    targets: Targets,
    weights: Float[Tensor, "members batch"] | None = None,
    loss: Losses = example_cross_entropy,
) -> Float[Tensor, "members"]:
    r"""Each member's loss over the batch, in float32 or wider whatever the logits are.

    :math:`\ell_m = \sum_b w_{mb}\, \ell(z_{mb}, y_{mb})`, where :math:`w_{mb}` is 1 / B, unless
    ``weights`` are given.

    Raises:
        ValueError: Targets of another shape than the logits ask for, or a class index outside
            ``[0, C)`` (on a GPU an index error of torch's instead, to avoid waiting for the host).

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.likelihood import member_losses
        >>> member_losses(torch.zeros(3, 5, 4), torch.zeros(5, dtype=torch.long))
        tensor([1.3863, 1.3863, 1.3863])
    """
    members, batch, classes = logits.shape
    soft = targets.is_floating_point()
    shape = (batch, classes) if soft else (batch,)
    if targets.shape not in (shape, (members, *shape)):
        raise ValueError(
            f"targets must have shape {list(shape)} or {[members, *shape]} for logits of shape "
            f"{[members, batch, classes]}, got {list(targets.shape)}"
        )
    if not soft and targets.device.type == "cpu":
        low, high = torch.aminmax(targets)
        if low < 0 or high >= classes:  # cross_entropy gives label -100 a zero loss, silently
            wrong = int(low if low < 0 else high)
            raise ValueError(f"targets must be in [0, {classes}), got {wrong}")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    each = targets.expand(members, *shape)
    losses = loss(logits, each if soft else each.long())
    return losses.mean(1) if weights is None else (losses * weights).sum(1)


class Examples(NamedTuple):
    """What the members are shown at one step.

    Attributes:
        images: Shared by the members, or one batch per member.
        labels: One or more labels for each image, as (targets, weights): a member's loss is the
            sum of its losses with each, the batch mean where weights are None. A mixed label is
            two of them, for a loss that is linear in the label, as cross-entropy is.
        originals: How many leading images are those of the batch itself; pseudo-data follow.
        apart: Whether the pseudo-data go through the network by themselves, so that they are
            normalised by statistics of their own and leave the running statistics alone.
    """

    images: Images
    labels: Sequence[tuple[Targets, Float[Tensor, "members batch"] | None]]
    originals: int
    apart: bool = False


def of_members(targets: Targets, rows: slice) -> Shaped[Tensor, "..."]:
    """The rows of member-wise targets; shared ones as they are."""
    own = targets.ndim == (3 if targets.is_floating_point() else 2)
    return targets[rows] if own else targets


class Likelihood(Objective):
    r"""The data's part :math:`\sum_m \ell_m` of an objective: every member fits its examples.

    Two methods say what is new in one: :meth:`loss`, of each member and example, and
    :meth:`examples`, what members are shown of a batch, by default the batch itself. Chunks of
    members, soft labels, a batch per member, repulsion and greedy training then come with it.

    Args:
        reduction: ``"sum"`` over members; ``"mean_members"`` divides by M, which makes weight
            decay relatively M times stronger: to replicate authors who do so.
        members_at_once: Members whose graphs are kept at the same time; all of them when None. Set
            it where memory is short; the gradients are the same.

    Raises:
        ValueError: An unknown reduction, or ``members_at_once`` below 1.

    Attributes:
        shows_batch: Whether members are shown the batch's own images.
        shows_pseudo_data: Whether each member is shown other images too, of its own making.
    """

    shows_batch: bool = True
    shows_pseudo_data: bool = False
    averages_parts: bool = True

    def __init__(
        self,
        *,
        reduction: Literal["sum", "mean_members"] = "sum",
        members_at_once: int | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("sum", "mean_members"):
            raise ValueError(f"reduction must be 'sum' or 'mean_members', got {reduction!r}")
        if members_at_once is not None and members_at_once < 1:
            raise ValueError(f"members_at_once must be >= 1, got {members_at_once}")
        self.reduction = reduction
        self.members_at_once = members_at_once

    @abstractmethod
    def loss(self, logits: Logits, targets: MemberTargets) -> Float[Tensor, "members batch"]:
        """Each member's loss on each example; the number of classes is that of the logits.

        Args:
            logits: In float32 or wider, of all members or of those of one chunk.
            targets: Checked and expanded to the members: class indices in ``[0, C)``, or soft
                labels (:func:`soft_labels` makes either into soft labels).
        """

    def examples(self, ensemble: Ensemble, images: Images, targets: Targets) -> Examples:
        """What the members are shown of a batch: by default the batch itself."""
        return Examples(images, [(targets, None)], originals=images.shape[-4])

    def shown(self, ensemble: Ensemble, images: Images, targets: Targets) -> "Shown":
        """The examples of a batch as the members see them, with this likelihood's loss."""
        return Shown(ensemble, self.examples(ensemble, images, targets), self.loss)

    def check(self, ensemble: Ensemble) -> str | None:
        """Refuse to show members that share parameters anything but one batch, all at once."""
        if ensemble.shares_parameters and self.shows_pseudo_data:
            raise ValueError(
                f"{type(self).__name__} shows each member images of its own, but members of a "
                f"{type(ensemble).__name__} share parameters and see one batch; use cross-entropy"
            )
        if ensemble.shares_parameters and self.members_at_once is not None:
            raise ValueError(
                "members_at_once must be left out, since members of a "
                f"{type(ensemble).__name__} share parameters and are one graph, got "
                f"{self.members_at_once}"
            )
        return None

    def chunks(self, ensemble: Ensemble) -> list[slice]:
        """The members whose graphs are kept at the same time; empty where all are in one graph."""
        at_once, members = self.members_at_once, ensemble.num_members
        if at_once is None or at_once >= members or not torch.is_grad_enabled():
            return []
        starts = range(0, members, at_once)
        return [slice(start, min(start + at_once, members)) for start in starts]

    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """The summed loss of one batch and each member's own."""
        shown = self.shown(ensemble, images, targets)
        if not (chunks := self.chunks(ensemble)):
            values = shown.losses(shown.logits())
            return ObjectiveValue(self.reduce(values), values.detach())
        total, found = shown.gradients(images), []
        for rows in chunks:
            own = shown.losses(shown.logits(rows), rows)
            found.append(own.detach())
            total.add(own.sum())
        joint = torch.cat(found)
        return ObjectiveValue(self.reduce(joint, total.linear()), joint)

    def reduce(
        self, values: Float[Tensor, "members"], linear: Float[Tensor, ""] | None = None
    ) -> Float[Tensor, ""]:
        """One scalar of the members' values; where they have no gradient, ``linear`` has it."""
        total = values.sum() if linear is None else values.sum() + linear
        return total if self.reduction == "sum" else total / len(values)


class Shown:
    """Examples as the members see them: logits of all, or of some at a time.

    Raises:
        ValueError: Member-wise images of another number of batches than members.
    """

    def __init__(self, ensemble: Ensemble, examples: Examples, loss: Losses) -> None:
        check_batches(examples.images, ensemble.num_members)
        self.ensemble, self.examples, self._loss = ensemble, examples, loss
        self._own = examples.images.ndim == 5

    def losses(self, logits: Logits, rows: slice = slice(None)) -> Float[Tensor, "members"]:
        """Losses of the members in these rows, from their logits."""
        each = [
            member_losses(logits, of_members(t, rows), None if w is None else w[rows], self._loss)
            for t, w in self.examples.labels
        ]
        return each[0] if len(each) == 1 else torch.stack(each).sum(0)

    @cached_property
    def _prefix(self) -> Tensor:
        """What members share, computed once."""
        return self.ensemble.prefix(self.examples.images)

    @cached_property
    def _border(self) -> Tensor:
        """Where a chunk's gradient stops: the shared part is gone through once, at the end."""
        return self._prefix.detach().requires_grad_(self._prefix.requires_grad)

    def logits(self, rows: slice | None = None) -> Logits:
        """Logits of all members in one graph, or of those in some rows in a graph of their own."""
        every = self.ensemble.chosen(None)
        if rows is None:
            return self._forward(self._prefix, every, self._own)
        inputs = self._border[rows] if self._own else self._border
        return self._forward(inputs, every[rows], self._own)

    def logits_of_leaves(self, rows: slice = slice(None)) -> tuple[Logits, Tensor]:
        """Logits of these members, and the images as leaves, one batch per member.

        A leaf that members shared would sum their gradients.
        """
        members = self.ensemble.chosen(None)[rows]
        images = self.examples.images
        own = images[rows] if self._own else images.expand(len(members), *images.shape)
        leaves = own.detach().clone().requires_grad_()
        return self._forward(self.ensemble.prefix(leaves), members, own=True), leaves

    def gradients(self, images: Images | None = None, *, border: bool = True) -> GradientSum:
        """To be filled with gradients by all that learns, and by images that ask for gradients.

        With ``border``, chunks start from what members share.
        """
        learned: list[Tensor] = [p for p in self.ensemble.parameters() if p.requires_grad]
        if images is not None and images.requires_grad:
            learned.append(images)
        return GradientSum(learned, (self._prefix, self._border) if border else None)

    def _forward(self, inputs: Tensor, members: list[int], own: bool) -> Tensor:
        """Logits of what ``prefix`` returned, its images on the second axis if members own them."""
        ensemble, cut = self.ensemble, self.examples.originals
        shown = self.examples.images.shape[-4]
        if not self.examples.apart or cut == shown:
            return ensemble.head(ensemble.features(inputs, members), members)
        originals, pseudo = inputs.split([cut, shown - cut], dim=1 if own else 0)
        first = ensemble.head(ensemble.features(originals, members), members)
        with running_statistics_kept(ensemble):
            second = ensemble.head(ensemble.features(pseudo, members), members)
        return torch.cat([first, second], dim=1)
