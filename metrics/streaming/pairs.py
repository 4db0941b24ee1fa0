"""Measures of member pairs batch by batch: only counts of who is right where are kept."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.mixture import first_largest, mixture_log_probs
from ..core.shapes import Scalar
from ..diversity import pairwise
from .base import Batch, LabelledMetric, Labels


class PairMetric(LabelledMetric):
    """A measure of pairs of ``num_members`` members from who is right where; four counts a pair.

    A concrete metric names itself and a `function` of the four shares of each pair.
    """

    function: Callable[..., Tensor]
    title: str
    counts: Tensor

    def __init__(self, num_members: int) -> None:
        super().__init__()
        if num_members < 2:
            raise ValueError(f"num_members must be >= 2, got {num_members}")
        self.num_members = num_members
        pairs = num_members * (num_members - 1) // 2
        self.add_state("counts", torch.zeros(4, pairs, dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, logits: Batch, targets: Labels) -> None:
        """Add the counts of a batch."""
        if len(logits) != self.num_members:
            raise ValueError(f"logits must have {self.num_members} members, got {len(logits)}")
        self.counts += pairwise.joint_counts_of(first_largest(logits)[1] == targets)

    def compute(self) -> Scalar:
        """Return the measure of all samples seen so far."""
        self.require_samples(self.counts.sum())
        return type(self).function(*pairwise.pair_shares(self.counts, self.title))


class QStatistic(PairMetric):
    """Yule's Q of the members' correctness, as `q_statistic`.

    Example:
        >>> import torch
        >>> from deepens.metrics import QStatistic
        >>> votes = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
        >>> metric = QStatistic(num_members=2)
        >>> metric(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(4).long())
        tensor(0., dtype=torch.float64)
    """

    title = "Q-statistic"
    function = pairwise.q_of_shares


class ErrorCorrelation(PairMetric):
    """Correlation of the members' correctness, as `error_correlation`.

    Example:
        >>> import torch
        >>> from deepens.metrics import ErrorCorrelation
        >>> votes = torch.tensor([[0, 1], [0, 1]])
        >>> metric = ErrorCorrelation(num_members=2)
        >>> metric(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(2).long())
        tensor(1., dtype=torch.float64)
    """

    title = "error correlation"
    function = pairwise.correlation_of_shares


class DoubleFault(PairMetric):
    """Share of samples on which both of a pair are wrong, as `double_fault`.

    Example:
        >>> import torch
        >>> from deepens.metrics import DoubleFault
        >>> votes = torch.tensor([[0, 1], [0, 1]])
        >>> metric = DoubleFault(num_members=2)
        >>> metric(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(2).long())
        tensor(0.5000, dtype=torch.float64)
    """

    title = "double fault"
    function = lambda both, alone, other, neither: neither.mean()  # noqa: E731


class NormalizedDisagreement(LabelledMetric):
    """Disagreement over the members' error rate, as `normalized_disagreement`; four counts.

    Example:
        >>> import torch
        >>> from deepens.metrics import NormalizedDisagreement
        >>> votes = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
        >>> metric = NormalizedDisagreement()
        >>> metric(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(4).long())
        tensor(1., dtype=torch.float64)
    """

    votes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("votes", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, logits: Batch, targets: Labels) -> None:
        """Add the counts of a batch."""
        self.votes += pairwise.vote_counts(first_largest(logits)[1], targets)

    def compute(self) -> Scalar:
        """Return the ratio of all samples seen so far."""
        self.require_samples(self.votes[3])
        return pairwise.normalized_of_counts(self.votes)


class EnsembleImprovementRate(LabelledMetric):
    """Share of the members' errors that voting saves, as `ensemble_improvement_rate`; three counts.

    Example:
        >>> import torch
        >>> from deepens.metrics import EnsembleImprovementRate
        >>> votes = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]])
        >>> metric = EnsembleImprovementRate()
        >>> metric(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(4).long())
        tensor(0.4000, dtype=torch.float64)
    """

    counts: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, logits: Batch, targets: Labels) -> None:
        """Add the counts of a batch."""
        _, votes = first_largest(logits)
        self.counts += pairwise.majority_counts(votes, mixture_log_probs(logits), targets)
        self.seen += len(targets)

    def compute(self) -> Scalar:
        """Return the rate of all samples seen so far."""
        self.require_samples(self.seen)
        return pairwise.improvement_of_counts(self.counts)
