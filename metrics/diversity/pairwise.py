"""Measures of member pairs: who is right where, and how alike the predictions are.

With ``a`` the share of samples on which both of a pair are right, ``d`` on which both are wrong,
``b`` and ``c`` on which one alone is: every measure is the mean over pairs of a function of these
four, which are sums over samples and add up over batches and processes. One member has no pair:
NaN, with a warning. Logits, members first, that are not finite or empty, or targets that do not fit
them, are a ``ValueError``.
"""

import warnings
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ..core.mixture import first_largest, mixture_log_probs, validate_batch, validate_log_probs
from ..core.shapes import Logits, LogProbs, MemberProbs, PerSample, Scalar, Targets

Pairs = Float64[Tensor, "pairs"]


def q_statistic(logits: Logits, targets: Targets) -> Scalar:
    """Return Yule's Q of correctness, ``(a d - b c) / (a d + b c)``, averaged over pairs.

    In ``[-1, 1]``: 0 where errors are independent, lower is more diverse. NaN, with a warning,
    where some pair has ``a d + b c = 0`` (no errors, for example).

    Reference: Kuncheva & Whitaker (2003), Machine Learning 51
    """
    return q_of_shares(*pair_shares(joint_counts(logits, targets), "Q-statistic"))


def error_correlation(logits: Logits, targets: Targets) -> Scalar:
    """Return the correlation of correctness, averaged over pairs.

    ``(a d - b c) / sqrt((a + b)(c + d)(a + c)(b + d))``, Pearson's of two flags, in ``[-1, 1]``;
    lower is more diverse. NaN, with a warning, where some member is always right or always wrong.

    Reference: Kuncheva & Whitaker (2003), Machine Learning 51
    """
    return correlation_of_shares(*pair_shares(joint_counts(logits, targets), "error correlation"))


def double_fault(logits: Logits, targets: Targets) -> Scalar:
    """Return the share of samples on which both of a pair are wrong, ``d``, averaged over pairs.

    In ``[0, 1]``, at most the members' mean error rate; lower is more diverse.

    Example:
        >>> import torch
        >>> from deepens.metrics import double_fault
        >>> votes = torch.tensor([[0, 1, 1], [0, 1, 0]])
        >>> logits = torch.nn.functional.one_hot(votes, 2).float()
        >>> round(double_fault(logits, torch.tensor([0, 0, 0])).item(), 4)
        0.3333

    Reference: Giacinto & Roli (2001); Kuncheva & Whitaker (2003), Machine Learning 51
    """
    return pair_shares(joint_counts(logits, targets), "double fault")[3].mean()


def normalized_disagreement(logits: Logits, targets: Targets) -> Scalar:
    """Return disagreement over the error rate of the members, ``disagreement / (1 - accuracy)``.

    Disagreement is the mean share of member pairs that predict different classes, accuracy the
    members' mean (the authors divide by the error rate of one of the two). More accurate members
    disagree less; the quotient makes up for that. Higher is more diverse; NaN, with a warning,
    where no member errs.

    Reference: Fort et al. (2019), arXiv:1912.02757
    """
    validate_batch(logits, targets)
    return normalized_of_counts(vote_counts(first_largest(logits)[1], targets))


def ensemble_improvement_rate(logits: Logits, targets: Targets) -> Scalar:
    """Return by which share majority voting lowers the members' mean error rate.

    ``EIR = (mean_m err_m - err_vote) / mean_m err_m``

    Use it beside `normalized_disagreement`, the ratio of disagreement to error ``DER`` (the authors
    count a member with itself as a pair, which is ``(M - 1) / M`` times ours). Voting helps where
    members differ much for how often they err: for competent ensembles of C classes
    ``2 (C - 1) / C DER - (3 C - 4) / C <= EIR <= DER``, DER as theirs. Of classes with equally many
    votes the one of the larger mean probability wins, so that two members are as good as their
    mixture. In ``(-inf, 1]``: 0 for a single model; NaN, with a warning, where no member errs.

    Example:
        >>> import torch
        >>> from deepens.metrics import ensemble_improvement_rate
        >>> votes = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]])
        >>> logits = torch.nn.functional.one_hot(votes, 2).float()
        >>> round(ensemble_improvement_rate(logits, torch.zeros(4).long()).item(), 4)
        0.4

    Reference: Theisen et al. (2023), arXiv:2305.12313
    """
    validate_batch(logits, targets)
    votes = first_largest(logits)[1]
    return improvement_of_counts(majority_counts(votes, mixture_log_probs(logits), targets))


def majority_counts(
    votes: Int64[Tensor, "members samples"], pooled: LogProbs, targets: Targets
) -> Int64[Tensor, "two"]:
    """Count wrong majorities, once for each member, and wrong votes; counts add up."""
    support = torch.stack([(votes == vote).sum(0) for vote in votes])
    chance = pooled.gather(1, votes.T).T.masked_fill(support < support.amax(0), -torch.inf)
    # Of equal ones the first class, in whatever order members stand.
    majority = votes.masked_fill(chance < chance.amax(0), pooled.shape[1]).amin(0)
    return torch.stack([len(votes) * (majority != targets).sum(), (votes != targets).sum()])


def improvement_of_counts(counts: Int64[Tensor, "two"]) -> Scalar:
    """Return the improvement rate of the counts of `majority_counts`."""
    majority, votes = counts.double()
    if not votes:
        _warn("ensemble improvement rate", "members without errors")
    return 1 - majority / votes


def vote_counts(votes: Int64[Tensor, "members samples"], targets: Targets) -> Int64[Tensor, "four"]:
    """Count differing pairs of votes, all pairs, wrong votes and all votes; counts add up."""
    first, second = _pair_indices(len(votes))
    differing, wrong = (votes[first] != votes[second]).sum(), (votes != targets).sum()
    pairs = len(first) * votes.shape[1]
    return torch.stack(
        [differing, differing.new_tensor(pairs), wrong, wrong.new_tensor(votes.numel())]
    )


def normalized_of_counts(counts: Int64[Tensor, "four"]) -> Scalar:
    """Return the normalized disagreement of the counts of `vote_counts`."""
    differing, pairs, wrong, predictions = counts.double()
    if not (pairs and wrong):
        _warn("normalized disagreement", "members without errors" if pairs else "one member")
        return differing * torch.nan
    return (differing / pairs) / (wrong / predictions)


def cosine_similarity(member_log_probs: MemberProbs) -> PerSample:
    """Return how alike the members' probability vectors are, averaged over pairs.

    ``(|sum_m u_m|² - M) / (M (M - 1))`` with ``u_m = p_m / |p_m|``, the mean cosine in time linear
    in M: in ``[0, 1]`` per sample, 1 where all agree. Logits in place of log-probabilities are a
    ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics import cosine_similarity
        >>> members = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]]).log()
        >>> round(cosine_similarity(members).item(), 4)
        0.3333
    """
    members = len(member_log_probs)
    validate_log_probs(member_log_probs, "member_log_probs")
    probs = member_log_probs.double().exp()
    if members < 2:
        _warn("cosine similarity", "one member")
        return probs.new_full(probs.shape[1:2], torch.nan)
    units = probs / probs.square().sum(-1, keepdim=True).sqrt()
    pairs = units.sum(0).square().sum(-1) - members
    return (pairs / (members * (members - 1))).clamp_(0.0, 1.0)


def joint_counts(logits: Logits, targets: Targets) -> Int64[Tensor, "four pairs"]:
    """Count, for each pair of members, the samples that both, one or none of them gets right.

    In rows: both right, the first alone, the second alone, both wrong; no column for one member.
    """
    validate_batch(logits, targets)
    return joint_counts_of(first_largest(logits)[1] == targets)


def joint_counts_of(right: Bool[Tensor, "members samples"]) -> Int64[Tensor, "four pairs"]:
    """Return `joint_counts` of who is right where."""
    right = right.double()
    first, second = _pair_indices(len(right))
    both = (right @ right.T)[first, second]
    own = right.sum(-1)
    alone, other = own[first] - both, own[second] - both
    return torch.stack([both, alone, other, right.shape[1] - both - alone - other]).long()


def pair_measures(
    counts: Int64[Tensor, "four pairs"], disagreement: Scalar
) -> Iterator[tuple[str, Scalar]]:
    """Yield the measures of pairs on a split, by name; NaN where the members' errors allow none."""
    both, alone, other, neither = shares = pair_shares(counts, "")
    yield "double_fault", neither.mean()
    error_rate = (neither + (alone + other) / 2).mean()
    undefined = error_rate.new_tensor(torch.nan)
    yield "normalized_disagreement", disagreement / error_rate if error_rate > 0 else undefined
    defined = (both * neither + alone * other).all()
    yield "q_statistic", q_of_shares(*shares) if defined else undefined
    defined = ((both + alone) * (other + neither) * (both + other) * (alone + neither)).all()
    yield "error_correlation", correlation_of_shares(*shares) if defined else undefined


def q_of_shares(both: Pairs, alone: Pairs, other: Pairs, neither: Pairs) -> Scalar:
    """Return Yule's Q of the four shares of each pair, averaged over pairs."""
    positive, negative = both * neither, alone * other
    if not (positive + negative).all():
        _warn("Q-statistic", "a pair without errors")
    return ((positive - negative) / (positive + negative)).mean()


def correlation_of_shares(both: Pairs, alone: Pairs, other: Pairs, neither: Pairs) -> Scalar:
    """Return the correlation from the four shares of each pair, averaged over pairs."""
    spread = (both + alone) * (other + neither) * (both + other) * (alone + neither)
    if not spread.all():
        _warn("error correlation", "a member that is always right, or always wrong")
    return ((both * neither - alone * other) / spread.sqrt()).mean()


def pair_shares(
    counts: Int64[Tensor, "four pairs"], title: str
) -> tuple[Pairs, Pairs, Pairs, Pairs]:
    """Return the shares of samples that both, one or none gets right; warns without a pair."""
    if counts.shape[1] < 1:
        _warn(title, "one member")
    both, alone, other, neither = counts.double() / counts.sum(0).clamp(min=1)
    return both, alone, other, neither


def _pair_indices(members: int) -> Int64[Tensor, "two pairs"]:
    return torch.triu_indices(members, members, offset=1)


def _warn(name: str, reason: str) -> None:
    warnings.warn(
        f"{name} is undefined for {reason}: NaN is returned", RuntimeWarning, stacklevel=4
    )
