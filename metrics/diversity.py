"""How much members differ, and what their differing gains."""

import torch
from jaxtyping import Float, Float64, Integer
from torch import Tensor

from .mixture import pool_log_probs, validate_logits
from .scoring import brier_score, negative_log_likelihood
from .streaming import SampleMean


def disagreement(logits: Float[Tensor, "members samples classes"]) -> Float64[Tensor, "samples"]:
    """Return each sample's share of member pairs that predict different classes.

    ``d = 2 / (M (M - 1)) sum_{i<j} [argmax z_i != argmax z_j]``

    One member has no pair and gives exactly 0. Of several largest logits the first counts.

    Args:
        logits: Raw outputs (or log-probabilities), members first.

    Returns:
        One value in ``[0, 1]`` a sample.

    Raises:
        ValueError: If ``logits`` are empty, of a wrong shape or dtype, or not finite.

    Example:
        >>> import torch
        >>> from deepens.metrics import disagreement
        >>> votes = torch.tensor([[0], [0], [1]])
        >>> disagreement(torch.nn.functional.one_hot(votes, 3).float())
        tensor([0.6667], dtype=torch.float64)
    """
    validate_logits(logits)
    num_members = logits.shape[0]
    votes = logits.argmax(-1)
    differing = torch.zeros_like(votes[0])
    for member in range(1, num_members):
        differing += (votes[:member] != votes[member]).sum(0)
    return differing.double() / max(num_members * (num_members - 1) // 2, 1)


def jensen_gap(
    member_log_probs: Float[Tensor, "members samples classes"], targets: Integer[Tensor, "samples"]
) -> Float64[Tensor, "samples"]:
    """Return what pooling gains in negative log-likelihood, a sample.

    ``(1/M) sum_m -log p_m,y  -  (-log p̄_y)  >=  0`` by Jensen's inequality.

    Args:
        member_log_probs: Each member's log-probabilities, as `member_log_probs` gives them.
        targets: Class indices.

    Returns:
        One value >= 0 (up to rounding) a sample, in nats.

    Raises:
        ValueError: If ``targets`` are not integers in ``[0, classes)``, one a sample.

    Example:
        >>> import torch
        >>> from deepens.metrics import jensen_gap
        >>> members = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()
        >>> round(jensen_gap(members, torch.tensor([0])).item(), 4)
        0.2231

    Reference: Abe et al. (2022), arXiv:2202.06985
    """
    members = member_log_probs.double()
    mean_member = torch.stack([negative_log_likelihood(m, targets) for m in members]).mean(0)
    return mean_member - negative_log_likelihood(pool_log_probs(members), targets)


def brier_ambiguity(
    member_log_probs: Float[Tensor, "members samples classes"], targets: Integer[Tensor, "samples"]
) -> Float64[Tensor, "samples"]:
    """Return what pooling gains in Brier score, a sample.

    ``(1/M) sum_m Brier(p_m, y) - Brier(p̄, y) = sum_c Var_m(p_m,c)``, the biased variance (over M).

    The difference of scores is computed; that it equals the variance, whatever the label, is the
    ambiguity decomposition.

    Args:
        member_log_probs: Each member's log-probabilities, as `member_log_probs` gives them.
        targets: Class indices.

    Returns:
        One value >= 0 (up to rounding) a sample.

    Raises:
        ValueError: If ``targets`` are not integers in ``[0, classes)``, one a sample.

    Example:
        >>> import torch
        >>> from deepens.metrics import brier_ambiguity
        >>> members = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()
        >>> round(brier_ambiguity(members, torch.tensor([0])).item(), 4)
        0.18

    Reference: Abe et al. (2022), arXiv:2202.06985
    """
    members = member_log_probs.double()
    mean_member = torch.stack([brier_score(m, targets) for m in members]).mean(0)
    return mean_member - brier_score(pool_log_probs(members), targets)


class Disagreement(SampleMean):
    """Mean over samples of the share of member pairs that predict different classes.

    Example:
        >>> import torch
        >>> from deepens.metrics import Disagreement
        >>> metric = Disagreement()
        >>> metric.update(torch.eye(2).reshape(2, 1, 2), torch.tensor([0]))
        >>> metric.compute().item()
        1.0
    """

    def per_sample(self, logits: Tensor, targets: Tensor) -> Float64[Tensor, "samples"]:
        """Return the disagreements."""
        return disagreement(logits)
