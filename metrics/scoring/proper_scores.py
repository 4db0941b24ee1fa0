"""Proper scores and accuracy, per sample and over a split."""

import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor

from ..core.mixture import first_largest, mixture_log_probs, validate_log_probs, validate_targets
from ..core.streaming import SampleMean


def negative_log_likelihood(
    log_probs: Float[Tensor, "samples classes"], targets: Integer[Tensor, "samples"]
) -> Float[Tensor, "samples"]:
    """Return each sample's negative log-likelihood, ``-log p_y``.

    Args:
        log_probs: Log-probabilities, such as `mixture_log_probs` gives them.
        targets: Class indices.

    Returns:
        One value >= 0 a sample, in nats; lower is better.

    Raises:
        ValueError: If ``log_probs`` are logits, or ``targets`` are not integers in
            ``[0, classes)``, one a sample.

    Example:
        >>> import torch
        >>> from deepens.metrics import negative_log_likelihood
        >>> log_probs = torch.tensor([[0.5, 0.5]]).log()
        >>> round(negative_log_likelihood(log_probs, torch.tensor([1])).item(), 4)
        0.6931
    """
    _validate(log_probs, targets)
    return -log_probs.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


def brier_score(
    log_probs: Float[Tensor, "samples classes"], targets: Integer[Tensor, "samples"]
) -> Float[Tensor, "samples"]:
    """Return each sample's Brier score, ``sum_c (p_c - [c = y])²``.

    The sum over classes, so it lies in ``[0, 2]`` (some libraries divide by the number of classes).

    Args:
        log_probs: Log-probabilities, such as `mixture_log_probs` gives them.
        targets: Class indices.

    Returns:
        One value in ``[0, 2]`` a sample; lower is better.

    Raises:
        ValueError: If ``log_probs`` are logits, or ``targets`` are not integers in
            ``[0, classes)``, one a sample.

    Example:
        >>> import torch
        >>> from deepens.metrics import brier_score
        >>> brier_score(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([1]))
        tensor([0.5000])
    """
    _validate(log_probs, targets)
    gaps = log_probs.exp()
    labels = targets.long().unsqueeze(-1)
    gaps.scatter_add_(-1, labels, -torch.ones_like(labels, dtype=gaps.dtype))
    return gaps.square_().sum(-1)


def correctness(
    log_probs: Float[Tensor, "samples classes"], targets: Integer[Tensor, "samples"]
) -> Bool[Tensor, "samples"]:
    """Return whether each sample's most probable class is its label, ``argmax_c p_c = y``.

    Of several most probable classes the first counts.

    Args:
        log_probs: Log-probabilities, such as `mixture_log_probs` gives them.
        targets: Class indices.

    Returns:
        One flag a sample; their mean is the accuracy.

    Raises:
        ValueError: If ``log_probs`` are logits, or ``targets`` are not integers in
            ``[0, classes)``, one a sample.

    Example:
        >>> import torch
        >>> from deepens.metrics import correctness
        >>> correctness(torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log(), torch.tensor([0, 1]))
        tensor([ True, False])
    """
    _validate(log_probs, targets)
    return first_largest(log_probs)[1] == targets


def top_k_correctness(
    log_probs: Float[Tensor, "samples classes"], targets: Integer[Tensor, "samples"], *, k: int
) -> Bool[Tensor, "samples"]:
    """Return whether each label is among the k most probable classes.

    Of equally probable classes the first come first, as in `correctness`, which this is for k = 1.

    Args:
        log_probs: Log-probabilities, such as `mixture_log_probs` gives them.
        targets: Class indices.
        k: How many classes count.

    Returns:
        One flag a sample; their mean is the top-k accuracy.

    Raises:
        ValueError: If ``log_probs`` are logits, ``targets`` are not integers in ``[0, classes)``,
            one a sample, or ``k`` is below 1.

    Example:
        >>> import torch
        >>> from deepens.metrics import top_k_correctness
        >>> probs = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
        >>> top_k_correctness(probs.log(), torch.tensor([1, 2]), k=2)
        tensor([ True, False])
    """
    _validate(log_probs, targets)
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    labels = targets.long().unsqueeze(-1)
    own = log_probs.gather(-1, labels)
    earlier = torch.arange(log_probs.shape[-1], device=log_probs.device) < labels
    before = (log_probs > own) | ((log_probs == own) & earlier)
    return before.sum(-1) < k


def _validate(log_probs: Tensor, targets: Tensor) -> None:
    if log_probs.ndim != 2:
        raise ValueError(
            "log_probs must have 2 dimensions [samples, classes], got shape "
            f"{list(log_probs.shape)}"
        )
    samples, classes = log_probs.shape
    validate_log_probs(log_probs)
    validate_targets(targets, num_samples=samples, num_classes=classes)


class Accuracy(SampleMean):
    """Share of samples whose most probable class, under the mixture, is the label.

    Example:
        >>> import torch
        >>> from deepens.metrics import Accuracy
        >>> metric = Accuracy()
        >>> metric.update(torch.eye(3)[None], torch.tensor([0, 1, 1]))
        >>> round(metric.compute().item(), 4)
        0.6667
    """

    higher_is_better = True

    def per_sample(self, logits: Tensor, targets: Tensor) -> Float64[Tensor, "samples"]:
        """Return 1 where the mixture is right, else 0."""
        return correctness(mixture_log_probs(logits), targets).double()


class TopKAccuracy(SampleMean):
    """Share of samples whose label is among the k most probable classes, as `top_k_correctness`.

    Args:
        k: How many classes count.

    Raises:
        ValueError: If ``k`` is below 1.

    Example:
        >>> import torch
        >>> from deepens.metrics import TopKAccuracy
        >>> metric = TopKAccuracy(k=2)
        >>> metric.update(torch.tensor([[[3.0, 2.0, 1.0]]]), torch.tensor([1]))
        >>> metric.compute().item()
        1.0
    """

    higher_is_better = True

    def __init__(self, k: int = 5) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be >= 1, got {k}")
        self.k = k
        # Or two numbers of classes would be taken for one metric by torchmetrics.
        self.add_state(f"of_{k}", torch.zeros((), dtype=torch.int8), dist_reduce_fx="sum")

    def per_sample(self, logits: Tensor, targets: Tensor) -> Float64[Tensor, "samples"]:
        """Return 1 where the label is among them, else 0."""
        return top_k_correctness(mixture_log_probs(logits), targets, k=self.k).double()


class NegativeLogLikelihood(SampleMean):
    """Mean negative log-likelihood of the mixture, in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import NegativeLogLikelihood
        >>> metric = NegativeLogLikelihood()
        >>> metric.update(torch.zeros(4, 2, 10), torch.tensor([3, 7]))
        >>> round(metric.compute().item(), 4)
        2.3026
    """

    higher_is_better = False

    def per_sample(self, logits: Tensor, targets: Tensor) -> Float64[Tensor, "samples"]:
        """Return the mixture's negative log-likelihoods."""
        return negative_log_likelihood(mixture_log_probs(logits), targets)


class BrierScore(SampleMean):
    """Mean Brier score of the mixture, summed over classes (0 to 2).

    Example:
        >>> import torch
        >>> from deepens.metrics import BrierScore
        >>> metric = BrierScore()
        >>> metric.update(torch.zeros(4, 2, 2), torch.tensor([0, 1]))
        >>> metric.compute().item()
        0.5
    """

    higher_is_better = False

    def per_sample(self, logits: Tensor, targets: Tensor) -> Float64[Tensor, "samples"]:
        """Return the mixture's Brier scores."""
        return brier_score(mixture_log_probs(logits), targets)
