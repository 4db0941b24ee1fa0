"""Member cross-entropy: every member fits the labels by itself."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from ..ensemble import Ensemble, Images, check_batches
from ..objective import Objective, ObjectiveValue, Targets


def member_cross_entropy(
    logits: Float[Tensor, "members batch classes"], targets: Targets
) -> Float[Tensor, "members"]:
    r"""Each member's mean cross-entropy over the batch.

    :math:`\ell_m = B^{-1} \sum_b -\sum_c y_{bc} \log \mathrm{softmax}(z_{mb})_c`, in float32 or
    wider whatever the logits are.

    Args:
        logits: ``[M, B, C]``.
        targets: ``[B]`` or ``[M, B]`` class indices; ``[B, C]`` or ``[M, B, C]`` soft labels.

    Raises:
        ValueError: Targets of another shape than the logits ask for, or a class index outside
            ``[0, C)`` (on a GPU an index error of torch's instead, to avoid waiting for the host).

    Example:
        >>> import torch
        >>> from deepens.ensembles.objectives.cross_entropy import member_cross_entropy
        >>> member_cross_entropy(torch.zeros(3, 5, 4), torch.zeros(5, dtype=torch.long))
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
    each = targets.expand(members, *shape).flatten(0, 1)
    if not soft:
        each = each.long()
    return (
        F.cross_entropy(logits.flatten(0, 1), each, reduction="none").view(members, batch).mean(1)
    )


class CrossEntropy(Objective):
    r"""The deep-ensemble objective :math:`\sum_m \ell_m`, one cross-entropy a member.

    Args:
        reduction: ``"sum"`` over members; ``"mean_members"`` divides by M, which several authors
            do and which makes weight decay relatively M times stronger: for replication only.
        members_at_once: Members whose graphs are held at a time; all of them when None. For each
            so many members the gradient :math:`g = \partial\ell/\partial\theta` is taken at once
            and their graph let go, and the loss that is returned is the linear
            :math:`\ell + \sum \theta\, \mathrm{sg}(g) - \mathrm{sg}(\sum \theta\,
            \mathrm{sg}(g))`: its value and its gradient are those of the joint pass, at the
            memory of a few members. It cannot be differentiated twice, and its gradients are taken
            before any scaling of the loss (float16 may underflow).

    Raises:
        ValueError: An unknown reduction, or ``members_at_once`` below 1.

    Example:
        >>> import torch
        >>> from deepens.ensembles import CrossEntropy, DeepEnsemble
        >>> ensemble = DeepEnsemble(
        ...     lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), seeds=[1, 2]
        ... )
        >>> images, targets = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1])
        >>> loss, values = CrossEntropy()(ensemble, images, targets)
        >>> bool(torch.isclose(loss, values.sum()))
        True

    Reference:
        Lakshminarayanan, Pritzel & Blundell (2017), arXiv:1612.01474.
    """

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

    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """The summed loss of one batch and each member's mean cross-entropy."""
        at_once = self.members_at_once
        if at_once is None or at_once >= ensemble.num_members or not torch.is_grad_enabled():
            values = member_cross_entropy(ensemble(images), targets)
            return ObjectiveValue(self._reduce(values), values.detach())
        return self._in_chunks(ensemble, images, targets, at_once)

    def _reduce(self, values: Float[Tensor, "members"]) -> Float[Tensor, ""]:
        return values.sum() if self.reduction == "sum" else values.mean()

    def _in_chunks(
        self, ensemble: Ensemble, images: Images, targets: Targets, at_once: int
    ) -> ObjectiveValue:
        """A few members' graphs at a time; what members share is computed and gone through once."""
        every = ensemble.chosen(None)
        check_batches(images, len(every))
        variables: list[Tensor] = [p for p in ensemble.parameters() if p.requires_grad]
        if images.requires_grad:
            variables = [*variables, images]
        prefix = ensemble.prefix(images)
        # A leaf: each chunk's gradient stops here, and the shared part is gone through at the end.
        shared = prefix.detach().requires_grad_(prefix.requires_grad)
        sources = [*variables, shared] if shared.requires_grad else variables
        gradients: list[Tensor | None] = [None] * len(sources)
        values = []
        for start in range(0, len(every), at_once):
            members = every[start : start + at_once]
            rows = slice(start, start + len(members))
            own = shared[rows] if images.ndim == 5 else shared
            logits = ensemble.head(ensemble.features(own, members), members)
            found = member_cross_entropy(logits, _of_members(targets, rows, len(every)))
            values.append(found.detach())
            self._collect(found.sum(), sources, gradients)
        joint = torch.cat(values)
        if shared.requires_grad and (behind := gradients.pop()) is not None:
            self._collect(prefix, variables, gradients, behind)
        linear = torch.zeros((), dtype=joint.dtype, device=joint.device)
        for variable, gradient in zip(variables, gradients, strict=True):
            if gradient is not None:
                linear = linear + (variable * gradient).sum()
        if self.reduction == "mean_members":
            linear = linear / len(every)
        return ObjectiveValue(self._reduce(joint) + (linear - linear.detach()), joint)

    @staticmethod
    def _collect(
        output: Tensor,
        sources: list[Tensor],
        gradients: list[Tensor | None],
        weights: Tensor | None = None,
    ) -> None:
        """Add an output's gradient to what was collected, and let its graph go."""
        if not output.requires_grad:
            return
        found = torch.autograd.grad(output, sources, weights, allow_unused=True)
        for index, gradient in enumerate(found):
            if gradient is not None:
                before = gradients[index]
                gradients[index] = gradient if before is None else before + gradient


def _of_members(targets: Targets, rows: slice, num_members: int) -> Shaped[Tensor, "..."]:
    """The rows of member-wise targets; shared ones, and misshapen ones, as they are."""
    own = targets.ndim == (3 if targets.is_floating_point() else 2)
    return targets[rows] if own and len(targets) == num_members else targets
