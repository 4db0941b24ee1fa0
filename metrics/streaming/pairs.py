"""Measures of member pairs batch by batch: only counts of who is right where are kept."""

from collections.abc import Callable

import torch
from jaxtyping import Float64, Integer
from torch import Tensor

from ..core.mixture import first_largest
from ..diversity.pairwise import (
    correlation_of_shares,
    joint_counts_of,
    normalized_of_counts,
    pair_shares,
    q_of_shares,
    vote_counts,
)
from .base import LabelledMetric


class PairMetric(LabelledMetric):
    """A measure of member pairs from who is right where; four counts per pair are kept.

    A concrete metric names itself and a `function` of the four shares of each pair.

    Args:
        num_members: M, the number of members.

    Raises:
        ValueError: If ``num_members`` is below 2.
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

    def add(
        self, logits: Float64[Tensor, "members batch classes"], targets: Integer[Tensor, "batch"]
    ) -> None:
        """Add the counts of a batch."""
        if len(logits) != self.num_members:
            raise ValueError(f"logits must have {self.num_members} members, got {len(logits)}")
        self.counts += joint_counts_of(first_largest(logits)[1] == targets)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the measure of all samples seen so far."""
        self.require_samples(self.counts.sum())
        return type(self).function(*pair_shares(self.counts, self.title))


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
    function = q_of_shares


class ErrorCorrelation(PairMetric):
    """Correlation of the members' correctness, as `error_correlation`.

    Example:
        >>> import torch
        >>> from deepens.metrics import ErrorCorrelation
        >>> metric = ErrorCorrelation(num_members=2)
        >>> votes = torch.tensor([[0, 1], [0, 1]])
        >>> metric.update(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(2).long())
        >>> metric.compute().item()
        1.0
    """

    title = "error correlation"
    function = correlation_of_shares


class DoubleFault(PairMetric):
    """Share of samples on which both of a pair are wrong, as `double_fault`.

    Example:
        >>> import torch
        >>> from deepens.metrics import DoubleFault
        >>> metric = DoubleFault(num_members=2)
        >>> votes = torch.tensor([[0, 1], [0, 1]])
        >>> metric.update(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(2).long())
        >>> metric.compute().item()
        0.5
    """

    title = "double fault"
    function = lambda both, alone, other, neither: neither.mean()  # noqa: E731


class NormalizedDisagreement(LabelledMetric):
    """Disagreement over the members' error rate, as `normalized_disagreement`; four counts.

    Example:
        >>> import torch
        >>> from deepens.metrics import NormalizedDisagreement
        >>> metric = NormalizedDisagreement()
        >>> votes = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]])
        >>> metric.update(torch.nn.functional.one_hot(votes, 2).float(), torch.zeros(4).long())
        >>> metric.compute().item()
        1.0
    """

    votes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("votes", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")

    def add(
        self, logits: Float64[Tensor, "members batch classes"], targets: Integer[Tensor, "batch"]
    ) -> None:
        """Add the counts of a batch."""
        self.votes += vote_counts(first_largest(logits)[1], targets)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the ratio of all samples seen so far."""
        self.require_samples(self.votes[3])
        return normalized_of_counts(self.votes)
