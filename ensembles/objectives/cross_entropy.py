"""Member cross-entropy: every member fits the labels by itself."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..ensemble import Ensemble, Images
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

    def __init__(self, *, reduction: Literal["sum", "mean_members"] = "sum") -> None:
        super().__init__()
        if reduction not in ("sum", "mean_members"):
            raise ValueError(f"reduction must be 'sum' or 'mean_members', got {reduction!r}")
        self.reduction = reduction

    def forward(self, ensemble: Ensemble, images: Images, targets: Targets) -> ObjectiveValue:
        """The summed loss of one batch and each member's mean cross-entropy."""
        values = member_cross_entropy(ensemble(images), targets)
        loss = values.sum() if self.reduction == "sum" else values.mean()
        return ObjectiveValue(loss, values.detach())
