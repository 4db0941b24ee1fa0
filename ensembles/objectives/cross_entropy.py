"""Member cross-entropy: every member fits the labels by itself."""

from jaxtyping import Float
from torch import Tensor

from ..ensemble import Logits
from .likelihood import Likelihood, MemberTargets, example_cross_entropy


class CrossEntropy(Likelihood):
    r"""The deep-ensemble objective :math:`\sum_m \ell_m`, one cross-entropy per member.

    Arguments and errors are those of :class:`~.likelihood.Likelihood`.

    Example:
        >>> import torch
        >>> from deepens.ensembles import CrossEntropy, DeepEnsemble
        >>> network = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> ensemble = DeepEnsemble(network, seeds=[1, 2])
        >>> images, targets = torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1])
        >>> loss, values = CrossEntropy()(ensemble, images, targets)
        >>> bool(torch.isclose(loss, values.sum()))
        True

    Reference:
        Lakshminarayanan, Pritzel & Blundell (2017), arXiv:1612.01474.
    """

    def loss(self, logits: Logits, targets: MemberTargets) -> Float[Tensor, "members batch"]:
        """The cross-entropy."""
        return example_cross_entropy(logits, targets)
