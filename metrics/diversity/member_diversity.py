"""How much members differ, and what their differing gains.

``member_log_probs`` are as `member_log_probs` gives them, ``logits`` raw outputs, members first.
Logits where log-probabilities are due, what is not finite, and labels that are not integers in
``[0, classes)``, one per sample, are a ``ValueError``.
"""

import itertools
import warnings

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..core import mixture
from ..core.shapes import Logits, MemberProbs, PerSample, Targets
from ..scoring.proper_scores import brier_score, negative_log_likelihood


def disagreement(logits: Logits) -> PerSample:
    """Return each sample's share of member pairs that predict different classes, in ``[0, 1]``.

    ``d = 2 / (M (M - 1)) sum_{i<j} [argmax z_i != argmax z_j]``

    One member has no pair and gives exactly 0. Of several largest logits (or log-probabilities) the
    first counts.

    Example:
        >>> import torch
        >>> from deepens.metrics import disagreement
        >>> votes = torch.tensor([[0], [0], [1]])
        >>> disagreement(torch.nn.functional.one_hot(votes, 3).float())
        tensor([0.6667], dtype=torch.float64)
    """
    mixture.validate_logits(logits)
    return disagreement_of_votes(mixture.first_largest(logits)[1])


def disagreement_of_votes(votes: Int64[Tensor, "members samples"]) -> PerSample:
    """Return the `disagreement` of the classes that the members predict."""
    num_members, narrow = votes.shape[0], votes.int()
    differing, pair = torch.zeros_like(narrow[0]), torch.empty_like(narrow[0])
    for first, second in itertools.combinations(narrow, 2):
        differing += torch.ne(first, second, out=pair)  # numbers of one type: half of the time
    return differing.double() / max(num_members * (num_members - 1) // 2, 1)


def pairwise_kl(
    member_log_probs: MemberProbs, *, member_probs: MemberProbs | None = None
) -> PerSample:
    """Return each sample's mean divergence between two members' predictions, in nats.

    ``K = 1 / (M (M - 1)) sum_{i != j} KL(p_i || p_j) = 1 / (M - 1) sum_m sum_c (p_m,c - p̄_c) log
    p_m,c``

    The second form is computed, in float64 and clamped at 0 per sample: its cost is linear in M. It
    is mutual and reverse mutual information together, times ``M / (M - 1)``. ``0 log 0 = 0``; a
    class that one member rules out and another does not gives infinity. One member has no pair and
    gives exactly 0; several identical members give 0 up to rounding (about 1e-16).

    Args:
        member_log_probs: Each member's log-probabilities; float64 ones if small values matter.
        member_probs: Each member's probabilities, if they are at hand already.

    Example:
        >>> import torch
        >>> from deepens.metrics import pairwise_kl
        >>> members = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()
        >>> round(pairwise_kl(members).item(), 4)
        0.8318

    Reference: Malinin & Gales (2021), arXiv:2002.07650
    """
    members = member_log_probs.double()
    if member_probs is None:
        mixture.validate_log_probs(members, "member_log_probs")
    probs = members.exp() if member_probs is None else member_probs.double()
    spread = probs - mixture.mean_of_members(probs)
    alike = spread == 0.0
    divergence = spread.mul_(members).masked_fill_(alike, 0.0)  # 0 log 0 = 0
    return divergence.sum(-1).sum(0).div_(max(members.shape[0] - 1, 1)).clamp_(min=0.0)


def input_gradient_similarity(gradients: Float[Tensor, "members samples features"]) -> PerSample:
    """Return how alike the directions are in which the members' outputs depend on each input.

    ``s = 2 / (M (M - 1)) sum_{i<j} <u_i, u_j> = (|sum_m u_m|² - sum_m |u_m|²) / (M (M -
    1))`` with ``u_m = g_m / |g_m|``, a cosine in ``[-1 / (M - 1), 1]`` up to rounding

    The second form is computed, in float64, of the gradients of one output of each member by the
    same input, flattened, in any unit: 1 where all members look at the input in the same way. A
    gradient of zero has no direction and counts as ``u = 0``, unlike every other: a pair with it
    adds 0. One member has no pair: NaN, with a warning.

    Example:
        >>> import torch
        >>> from deepens.metrics import input_gradient_similarity
        >>> gradients = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]], [[0.0, 0.5]]])
        >>> input_gradient_similarity(gradients)
        tensor([0.3333], dtype=torch.float64)

    Reference: Trinh et al. (2024), arXiv:2306.02775, whose repulsion makes this small
    """
    shape = list(gradients.shape)
    if gradients.ndim != 3 or min(shape) < 1:
        raise ValueError(
            f"gradients must be [members, samples, features] with >= 1 of each, got shape {shape}"
        )
    if not gradients.is_floating_point():
        raise ValueError(f"gradients must be floating point, got {gradients.dtype}")
    mixture.validate_finite(gradients, "gradients")
    members = shape[0]
    if members < 2:
        why = "input_gradient_similarity is undefined for one member: NaN is returned"
        warnings.warn(why, RuntimeWarning, stacklevel=2)
        return gradients.new_full(shape[1:2], torch.nan, dtype=torch.float64)
    total = gradients.new_zeros(shape[1:], dtype=torch.float64)
    directed = gradients.new_zeros(shape[1:2], dtype=torch.float64)
    for gradient in gradients:
        unit, nonzero = _directions(gradient.double())
        total += unit
        directed += nonzero
    pairs = total.square().sum(-1) - directed
    return (pairs / (members * (members - 1))).clamp_(-1.0, 1.0)


def jensen_gap(member_log_probs: MemberProbs, targets: Targets) -> PerSample:
    """Return the ensembling gain in NLL (Jensen gap) per sample, in nats.

    ``(1/M) sum_m -log p_m,y - (-log p̄_y) >= 0`` by Jensen's inequality, up to rounding.

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
    return mean_member - negative_log_likelihood(mixture.pool_log_probs(members), targets)


def brier_ambiguity(member_log_probs: MemberProbs, targets: Targets) -> PerSample:
    """Return the ensembling gain in Brier score per sample.

    ``(1/M) sum_m Brier(p_m, y) - Brier(p̄, y) = sum_c Var_m(p_m,c) >= 0``, the biased variance
    (over M). The difference of scores is computed; that it equals the variance, whatever the label,
    is the ambiguity decomposition.

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
    return mean_member - brier_score(mixture.pool_log_probs(members), targets)


def _directions(
    gradient: Float64[Tensor, "samples features"],
) -> tuple[Float64[Tensor, "samples features"], PerSample]:
    """Return unit vectors, zero for zero, and whether each is one of length 1."""
    # Scaled by the largest entry first, whose square neither overflows nor vanishes.
    largest = gradient.abs().amax(-1, keepdim=True)
    scaled = gradient / largest.where(largest > 0, torch.ones_like(largest))
    length = scaled.square().sum(-1, keepdim=True).sqrt()
    unit = scaled / length.where(length > 0, torch.ones_like(length))
    return unit, (largest > 0).double().squeeze(-1)
