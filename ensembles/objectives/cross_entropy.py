"""Member cross-entropy: every member fits the labels by itself."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..ensemble import Logits
from .likelihood import Likelihood, MemberTargets, example_cross_entropy


class CrossEntropy(Likelihood):
    r"""The deep-ensemble objective :math:`\sum_m \ell_m`, one cross-entropy per member.

    With label smoothing s the label y, a class or soft, becomes :math:`(1 - s) y + s / C`, which
    often raises accuracy and distorts calibration and the ranking of confidences.

    Args:
        smoothing: s, in [0, 1).
        **options: Those of :class:`~.likelihood.Likelihood`, with its errors.

    Raises:
        ValueError: If ``smoothing`` is outside [0, 1).

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
        Lakshminarayanan, Pritzel & Blundell (2017), arXiv:1612.01474; label smoothing: Szegedy et
        al. (2016), arXiv:1512.00567, and its cost: Zhu et al. (2022), arXiv:2203.15783 (selective
        ranking), Mueller et al. (2019), arXiv:1906.02629.
    """

    def __init__(self, *, smoothing: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {smoothing}")
        self.smoothing = smoothing

    def loss(self, logits: Logits, targets: MemberTargets) -> Float[Tensor, "members batch"]:
        """The cross-entropy."""
        return example_cross_entropy(logits, targets, self.smoothing)
