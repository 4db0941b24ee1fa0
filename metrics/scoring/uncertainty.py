"""Uncertainty scores read from the members' predictions; higher means more uncertain.

``log_probs`` are the mixture's, as `mixture_log_probs` gives them, ``member_log_probs`` each
member's, ``logits`` raw outputs, members first. All functions raise a ``ValueError`` for logits
where log-probabilities are due, and for logits that are empty, not finite or of a wrong shape.
Entropies and divergences are in nats.
"""

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from ..core.mixture import (
    confidence_of,
    first_largest,
    log_doubt,
    mean_of_members,
    pool_log_probs,
    validate_log_probs,
    validate_logits,
)
from ..core.shapes import Logits, LogProbs, MemberProbs, PerSample, Scores


def maximum_probability(log_probs: LogProbs) -> Scores:
    """Return each sample's confidence, ``max_c p_c``.

    In ``[1 / classes, 1]``; higher is *more* certain.

    Example:
        >>> import torch
        >>> from deepens.metrics import maximum_probability
        >>> maximum_probability(torch.tensor([[0.75, 0.25]]).log())
        tensor([0.7500])
    """
    validate_log_probs(log_probs)
    return confidence_of(log_probs)[0]


def maximum_softmax_score(log_probs: LogProbs) -> Scores:
    """Return the maximum softmax probability (MSP) as an uncertainty, ``1 - max_c p_c``.

    In ``[0, 1 - 1 / classes]``. Where a probability is so near to 1 that too little would be left
    of the difference, the other classes' probabilities are added up (`log_doubt`): samples are told
    apart up to gaps of 700 nats, where ``1 - p`` ends at 37.

    Example:
        >>> import torch
        >>> from deepens.metrics import maximum_softmax_score
        >>> maximum_softmax_score(torch.tensor([[0.75, 0.25]]).log())
        tensor([0.2500])

    Reference: Hendrycks & Gimpel (2017), arXiv:1610.02136
    """
    exact = 1.0 - maximum_probability(log_probs)
    rounded = exact < math.sqrt(torch.finfo(exact.dtype).eps)
    return torch.where(rounded, log_doubt(log_probs).exp(), exact)


def predictive_entropy(log_probs: LogProbs, *, probs: LogProbs | None = None) -> Scores:
    """Return each sample's entropy of the mixture, ``H[p̄] = -sum_c p̄_c log p̄_c``.

    In ``[0, log classes]``, in nats. ``probs`` are the probabilities, if they are at hand already.

    Example:
        >>> import torch
        >>> from deepens.metrics import predictive_entropy
        >>> round(predictive_entropy(torch.tensor([[0.5, 0.5]]).log()).item(), 4)
        0.6931
    """
    if probs is None:
        validate_log_probs(log_probs)
        probs = log_probs.exp()
    return _entropy(log_probs, probs)


def expected_entropy(member_log_probs: MemberProbs) -> Scores:
    """Return each sample's mean entropy of the members, ``(1/M) sum_m H[p_m]``.

    In ``[0, log classes]``, in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import expected_entropy
        >>> certain, unsure = [[1.0, 0.0]], [[0.5, 0.5]]
        >>> round(expected_entropy(torch.tensor([certain, unsure]).log()).item(), 4)
        0.3466
    """
    validate_log_probs(member_log_probs, "member_log_probs")
    return _entropy(member_log_probs, member_log_probs.exp()).mean(0)


def mutual_information(
    member_log_probs: MemberProbs,
    log_probs: LogProbs | None = None,
    *,
    member_probs: MemberProbs | None = None,
) -> PerSample:
    """Return each sample's mutual information of label and member.

    ``I = (1/M) sum_m KL(p_m || p̄) = H[p̄] - (1/M) sum_m H[p_m]``

    The first form is computed, in float64 and clamped at 0 per sample. One member has exactly 0;
    several identical members have 0 up to rounding (about 1e-16).

    Args:
        member_log_probs: Each member's log-probabilities; float64 ones if small values matter.
        log_probs: The mixture's, if they are at hand already; pooled from the members otherwise.
        member_probs: Each member's probabilities, if they are at hand already.

    Returns:
        One value in ``[0, log members]`` per sample, in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import mutual_information
        >>> opposed = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
        >>> round(mutual_information(opposed).item(), 4)
        0.6931

    Reference: Houlsby et al. (2011), arXiv:1112.5745
    """
    members = member_log_probs.double()
    if member_probs is None:
        validate_log_probs(members, "member_log_probs")
    probs = members.exp() if member_probs is None else member_probs.double()
    pooled = pool_log_probs(members, member_probs=probs) if log_probs is None else log_probs
    mixture = pooled.double()
    # One member after the other: its values stay in the cache.
    pairs = zip(probs, members, strict=True)
    total = sum(_sum_of_possible((own - mixture).mul_(p), p) for p, own in pairs)
    return torch.as_tensor(total).div_(len(members)).clamp_(min=0.0)


def reverse_mutual_information(
    member_log_probs: MemberProbs, log_probs: LogProbs | None = None
) -> PerSample:
    """Return each sample's reverse mutual information, ``(1/M) sum_m KL(p̄ || p_m)``, in nats.

    In float64, clamped at 0 per sample, with arguments as `mutual_information`. Together they make
    up the expected pairwise divergence: ``pairwise KL = (MI + RMI) M / (M - 1)``. One member has
    exactly 0. Where a member rules out a class that another does not, it is infinite.

    Example:
        >>> import torch
        >>> from deepens.metrics import reverse_mutual_information
        >>> members = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()
        >>> round(reverse_mutual_information(members).item(), 4)
        0.2231

    Reference: Malinin & Gales (2021), arXiv:2002.07650
    """
    members = member_log_probs.double()
    validate_log_probs(members, "member_log_probs")
    pooled = log_probs
    if pooled is None:
        pooled = pool_log_probs(members, member_probs=members.exp())
    mixture = pooled.double()
    alike = members == mixture  # also where both are -inf: 0 log 0 = 0
    divergence = (mixture - members).mul_(mixture.exp()).masked_fill_(alike, 0.0)
    return divergence.sum(-1).mean(0).clamp_(min=0.0)


def maximum_logit_score(logits: Logits) -> PerSample:
    """Return the maximum logit as an uncertainty, ``-(1/M) sum_m max_c z_mc``, of any sign.

    It knows the size of the logits, which the softmax forgets, and so depends on a shift of them;
    log-probabilities would not do.

    Example:
        >>> import torch
        >>> from deepens.metrics import maximum_logit_score
        >>> maximum_logit_score(torch.tensor([[[3.0, 1.0]], [[5.0, 0.0]]])).item()
        -4.0

    Reference: Hendrycks et al. (2022), arXiv:1911.11132
    """
    validate_logits(logits)
    return -logits.amax(-1).double().mean(0)


def energy_score(logits: Logits) -> PerSample:
    """Return the energy as an uncertainty, ``-(1/M) sum_m logsumexp_c z_mc``, of any sign.

    Of each member's logits: the mixture's log-probabilities would give exactly 0 everywhere.

    Example:
        >>> import torch
        >>> from deepens.metrics import energy_score
        >>> round(energy_score(torch.zeros(2, 1, 10)).item(), 4)
        -2.3026

    Reference: Liu et al. (2020), arXiv:2010.03759
    """
    validate_logits(logits)
    return -logits.double().logsumexp(-1).mean(0)


def variation_ratio(logits: Logits) -> PerSample:
    """Return each sample's share of members that do not vote for the class with most votes.

    ``1 - max_c (1/M) sum_m [argmax z_m = c]``, one of ``0, 1/M, ..., 1 - 1/M``, hence with many
    ties; of several largest logits (or log-probabilities) a member votes for the first. One member
    has exactly 0.

    Example:
        >>> import torch
        >>> from deepens.metrics import variation_ratio
        >>> votes = torch.tensor([[0], [0], [1]])
        >>> variation_ratio(torch.nn.functional.one_hot(votes, 3).float())
        tensor([0.3333], dtype=torch.float64)

    Reference: Freeman (1965); Gal (2016), PhD thesis, section 3.3.1
    """
    validate_logits(logits)
    return variation_of_votes(first_largest(logits)[1])


def variation_of_votes(votes: Int64[Tensor, "members samples"]) -> PerSample:
    """Return the `variation_ratio` of the classes that the members predict."""
    agreeing = torch.stack([(votes == vote).sum(0) for vote in votes]).amax(0)
    return 1.0 - agreeing.double() / len(votes)


def probability_variance(member_log_probs: MemberProbs) -> PerSample:
    """Return the variance of the members' probabilities, summed over classes, in ``[0, 1]``.

    ``sum_c (1/M) sum_m (p_mc - p̄_c)²``, the biased variance, which is the ambiguity of the Brier
    score. One member has exactly 0.

    Example:
        >>> import torch
        >>> from deepens.metrics import probability_variance
        >>> members = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()
        >>> round(probability_variance(members).item(), 4)
        0.18

    Reference: Gal et al. (2017), arXiv:1703.02910
    """
    validate_log_probs(member_log_probs, "member_log_probs")
    probs = member_log_probs.double().exp()
    return (probs - mean_of_members(probs)).square_().sum(-1).mean(0)


def _entropy(log_probs: Tensor, probs: Tensor) -> Tensor:
    return (0.0 - _sum_of_possible(probs * log_probs, probs)).clamp_(min=0.0)


def _sum_of_possible(products: Tensor, probs: Tensor) -> Tensor:
    """``sum_c p_c v_c`` of the products, whatever the value of what is impossible."""
    total = products.sum(-1)
    if math.isfinite(total.sum().item()):
        return total
    return products.masked_fill_(probs == 0.0, 0.0).sum(-1)
