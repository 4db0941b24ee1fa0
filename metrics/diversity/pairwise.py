"""Measures of member pairs: who is right where, and how alike the predictions are.

With ``a`` the share of samples on which both of a pair are right, ``d`` on which both are wrong,
``b`` and ``c`` on which one alone is: every measure is the mean over pairs of a function of these
four, which are sums over samples and add up over batches and processes. One member has no pair:
NaN, with a warning.
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64, Int64, Integer
from torch import Tensor

from ..core.mixture import first_largest, validate_log_probs, validate_targets
from ..core.mixture import member_log_probs as log_probs_of
from ..core.streaming import EnsembleMetric, SampleMean, validate_batch

Pairs = Float64[Tensor, "pairs"]


def q_statistic(
    logits: Float[Tensor, "members samples classes"], targets: Integer[Tensor, "samples"]
) -> Float64[Tensor, ""]:
    """Return Yule's Q of correctness, ``(a d - b c) / (a d + b c)``, averaged over pairs.

    Args:
        logits: Raw outputs, members first.
        targets: Class indices.

    Returns:
        A scalar in ``[-1, 1]``: 0 where errors are independent, lower is more diverse. NaN, with a
        warning, where some pair has ``a d + b c = 0`` (no errors, for example).

    Raises:
        ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.

    Reference: Kuncheva & Whitaker (2003), Machine Learning 51
    """
    return _q_statistic(*_shares(joint_counts(logits, targets), "Q-statistic"))


def error_correlation(
    logits: Float[Tensor, "members samples classes"], targets: Integer[Tensor, "samples"]
) -> Float64[Tensor, ""]:
    """Return the correlation of correctness, averaged over pairs.

    ``(a d - b c) / sqrt((a + b)(c + d)(a + c)(b + d))``, Pearson's of two flags.

    Args:
        logits: Raw outputs, members first.
        targets: Class indices.

    Returns:
        A scalar in ``[-1, 1]``; lower is more diverse. NaN, with a warning, where some member is
        always right or always wrong.

    Raises:
        ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.

    Reference: Kuncheva & Whitaker (2003), Machine Learning 51
    """
    return _error_correlation(*_shares(joint_counts(logits, targets), "error correlation"))


def double_fault(
    logits: Float[Tensor, "members samples classes"], targets: Integer[Tensor, "samples"]
) -> Float64[Tensor, ""]:
    """Return the share of samples on which both of a pair are wrong, ``d``, averaged over pairs.

    Args:
        logits: Raw outputs, members first.
        targets: Class indices.

    Returns:
        A scalar in ``[0, 1]``, at most the members' mean error rate; lower is more diverse.

    Raises:
        ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.

    Example:
        >>> import torch
        >>> from deepens.metrics import double_fault
        >>> votes = torch.tensor([[0, 1, 1], [0, 1, 0]])
        >>> logits = torch.nn.functional.one_hot(votes, 2).float()
        >>> round(double_fault(logits, torch.tensor([0, 0, 0])).item(), 4)
        0.3333

    Reference: Giacinto & Roli (2001); Kuncheva & Whitaker (2003), Machine Learning 51
    """
    return _shares(joint_counts(logits, targets), "double fault")[3].mean()


def normalized_disagreement(
    logits: Float[Tensor, "members samples classes"], targets: Integer[Tensor, "samples"]
) -> Float64[Tensor, ""]:
    """Return disagreement over the error rate of the members, ``disagreement / (1 - accuracy)``.

    Disagreement is the mean share of member pairs that predict different classes, accuracy the
    members' mean. More accurate members disagree less; the quotient makes up for that. (The authors
    divide by the error rate of one of the two.)

    Args:
        logits: Raw outputs, members first.
        targets: Class indices.

    Returns:
        A scalar ``>= 0``; higher is more diverse. NaN, with a warning, where no member errs.

    Raises:
        ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.

    Reference: Fort et al. (2019), arXiv:1912.02757
    """
    validate_batch(logits, targets)
    _, votes = first_largest(logits)
    first, second = _pair_indices(len(votes))
    differing = votes[first] != votes[second]
    wrong = votes != targets
    pairs, predictions = torch.tensor(differing.numel()), torch.tensor(wrong.numel())
    return _normalized(differing.sum(), pairs, wrong.sum(), predictions)


def cosine_similarity(
    member_log_probs: Float[Tensor, "members samples classes"],
) -> Float64[Tensor, "samples"]:
    """Return how alike the members' probability vectors are, averaged over pairs.

    ``(|sum_m u_m|² - M) / (M (M - 1))`` with ``u_m = p_m / |p_m|``, the mean cosine in time linear
    in M.

    Args:
        member_log_probs: Each member's log-probabilities.

    Returns:
        One value in ``[0, 1]`` a sample: 1 where all agree. One member has no pair: NaN, with a
        warning.

    Raises:
        ValueError: If ``member_log_probs`` are logits.

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


def joint_counts(
    logits: Float[Tensor, "members samples classes"], targets: Integer[Tensor, "samples"]
) -> Int64[Tensor, "four pairs"]:
    """Count, for each pair of members, the samples that both, one or none of them gets right.

    Args:
        logits: Raw outputs, members first.
        targets: Class indices.

    Returns:
        Rows: both right, the first alone, the second alone, both wrong; no column for one member.

    Raises:
        ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.
    """
    validate_batch(logits, targets)
    validate_targets(targets, num_samples=logits.shape[1], num_classes=logits.shape[2])
    right = (first_largest(logits)[1] == targets).double()
    first, second = _pair_indices(len(right))
    both = (right @ right.T)[first, second]
    own = right.sum(-1)
    alone, other = own[first] - both, own[second] - both
    return torch.stack([both, alone, other, right.shape[1] - both - alone - other]).long()


def pair_measures(
    counts: Int64[Tensor, "four pairs"], disagreement: Float64[Tensor, ""]
) -> Iterator[tuple[str, Float64[Tensor, ""]]]:
    """Yield the measures of pairs on a split, by name; NaN where the members' errors allow none.

    Args:
        counts: As `joint_counts` gives them, of at least one pair.
        disagreement: Mean share of member pairs that predict different classes.

    Yields:
        ``double_fault, normalized_disagreement, q_statistic, error_correlation``.
    """
    both, alone, other, neither = shares = _shares(counts, "")
    yield "double_fault", neither.mean()
    error_rate = (neither + (alone + other) / 2).mean()
    undefined = error_rate.new_tensor(torch.nan)
    yield "normalized_disagreement", disagreement / error_rate if error_rate > 0 else undefined
    defined = (both * neither + alone * other).all()
    yield "q_statistic", _q_statistic(*shares) if defined else undefined
    defined = ((both + alone) * (other + neither) * (both + other) * (alone + neither)).all()
    yield "error_correlation", _error_correlation(*shares) if defined else undefined


class PairMetric(EnsembleMetric):
    """A measure of member pairs from who is right where; four counts a pair are kept.

    A concrete metric implements `evaluate` and names itself.

    Args:
        num_members: M, the number of members.

    Raises:
        ValueError: If ``num_members`` is below 2.
    """

    title: str
    counts: Tensor

    def __init__(self, num_members: int) -> None:
        super().__init__()
        if num_members < 2:
            raise ValueError(f"num_members must be >= 2, got {num_members}")
        self.num_members = num_members
        pairs = num_members * (num_members - 1) // 2
        self.add_state("counts", torch.zeros(4, pairs, dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def evaluate(self, both: Pairs, alone: Pairs, other: Pairs, neither: Pairs) -> Tensor:
        """Return the measure from the four shares of each pair."""

    def update(
        self, logits: Float[Tensor, "members batch classes"], targets: Integer[Tensor, "batch"]
    ) -> None:
        """Add a batch.

        Args:
            logits: Raw outputs, members first.
            targets: Class indices.

        Raises:
            ValueError: If ``logits`` are not finite or empty or of other members, or ``targets`` do
                not fit them.
        """
        counts = joint_counts(logits, targets)
        if len(logits) != self.num_members:
            raise ValueError(f"logits must have {self.num_members} members, got {len(logits)}")
        self.counts += counts

    def compute(self) -> Float64[Tensor, ""]:
        """Return the measure of all samples seen so far.

        Raises:
            ValueError: If no batch was added.
        """
        if not self.counts.any():
            raise ValueError(f"{type(self).__name__} needs >= 1 sample, got 0: call update first")
        return self.evaluate(*_shares(self.counts, self.title))


class QStatistic(PairMetric):
    """Yule's Q of the members' correctness, as `q_statistic`.

    Example:
        >>> import torch
        >>> from deepens.metrics import QStatistic
        >>> metric = QStatistic(num_members=2)
        >>> votes = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
        >>> metric.update(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(4).long())
        >>> metric.compute().item()
        0.0
    """

    title = "Q-statistic"

    def evaluate(self, both: Pairs, alone: Pairs, other: Pairs, neither: Pairs) -> Tensor:
        """Return Q, averaged over pairs."""
        return _q_statistic(both, alone, other, neither)


class ErrorCorrelation(PairMetric):
    """Correlation of the members' correctness, as `error_correlation`."""

    title = "error correlation"

    def evaluate(self, both: Pairs, alone: Pairs, other: Pairs, neither: Pairs) -> Tensor:
        """Return the correlation, averaged over pairs."""
        return _error_correlation(both, alone, other, neither)


class DoubleFault(PairMetric):
    """Share of samples on which both of a pair are wrong, as `double_fault`."""

    title = "double fault"

    def evaluate(self, both: Pairs, alone: Pairs, other: Pairs, neither: Pairs) -> Tensor:
        """Return the share, averaged over pairs."""
        return neither.mean()


class CosineSimilarity(SampleMean):
    """Mean over samples of the cosine of the members' probabilities, as `cosine_similarity`.

    Example:
        >>> import torch
        >>> from deepens.metrics import CosineSimilarity
        >>> metric = CosineSimilarity()
        >>> metric.update(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long))
        >>> round(metric.compute().item(), 4)
        1.0
    """

    def per_sample(
        self, logits: Float64[Tensor, "members batch classes"], targets: Integer[Tensor, "batch"]
    ) -> Float64[Tensor, "batch"]:
        """Return the cosines."""
        return cosine_similarity(log_probs_of(logits))


class NormalizedDisagreement(EnsembleMetric):
    """Disagreement over the members' error rate, as `normalized_disagreement`.

    Four whole numbers are kept. NaN, with a warning, for one member or members without errors.

    Example:
        >>> import torch
        >>> from deepens.metrics import NormalizedDisagreement
        >>> metric = NormalizedDisagreement()
        >>> votes = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
        >>> metric.update(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(4).long())
        >>> metric.compute().item()
        1.0
    """

    differing: Tensor
    pairs: Tensor
    wrong: Tensor
    predictions: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("differing", "pairs", "wrong", "predictions"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, logits: Float[Tensor, "members batch classes"], targets: Integer[Tensor, "batch"]
    ) -> None:
        """Add a batch.

        Args:
            logits: Raw outputs, members first.
            targets: Class indices.

        Raises:
            ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.
        """
        validate_batch(logits, targets)
        _, votes = first_largest(logits)
        first, second = _pair_indices(len(votes))
        self.differing += (votes[first] != votes[second]).sum()
        self.pairs += len(first) * votes.shape[1]
        self.wrong += (votes != targets).sum()
        self.predictions += votes.numel()

    def compute(self) -> Float64[Tensor, ""]:
        """Return the ratio of all samples seen so far.

        Raises:
            ValueError: If no batch was added.
        """
        if self.predictions == 0:
            raise ValueError("NormalizedDisagreement needs >= 1 sample, got 0: call update first")
        return _normalized(self.differing, self.pairs, self.wrong, self.predictions)


def _normalized(differing: Tensor, pairs: Tensor, wrong: Tensor, predictions: Tensor) -> Tensor:
    if not (pairs and wrong):
        reason = "members without errors" if pairs else "one member"
        _warn("normalized disagreement", reason)
        return differing.double() * torch.nan
    return (differing.double() / pairs) / (wrong.double() / predictions)


def _q_statistic(both: Pairs, alone: Pairs, other: Pairs, neither: Pairs) -> Tensor:
    positive, negative = both * neither, alone * other
    if not (positive + negative).all():
        _warn("Q-statistic", "a pair without errors")
    return ((positive - negative) / (positive + negative)).mean()


def _error_correlation(both: Pairs, alone: Pairs, other: Pairs, neither: Pairs) -> Tensor:
    spread = (both + alone) * (other + neither) * (both + other) * (alone + neither)
    if not spread.all():
        _warn("error correlation", "a member that is always right, or always wrong")
    return ((both * neither - alone * other) / spread.sqrt()).mean()


def _shares(counts: Tensor, title: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
