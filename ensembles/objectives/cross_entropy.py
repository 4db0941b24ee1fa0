"""Member cross-entropy: every member fits the labels by itself."""

from jaxtyping import Float, Int
from torch import Tensor

from .likelihood import Likelihood, example_cross_entropy


class CrossEntropy(Likelihood):
    r"""The deep-ensemble objective :math:`\sum_m \ell_m`, one cross-entropy per member.

    Args:
        reduction: ``"sum"`` over members; ``"mean_members"`` divides by M, which several authors
            do and which makes weight decay relatively M times stronger: for replication only.
        members_at_once: Members whose graphs are kept at the same time; all of them when None.

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

    def loss(
        self,
        logits: Float[Tensor, "members batch classes"],
        targets: Int[Tensor, "members batch"] | Float[Tensor, "members batch classes"],
    ) -> Float[Tensor, "members batch"]:
        """The cross-entropy."""
        return example_cross_entropy(logits, targets)
