"""Proper scores and accuracy, per sample and over a split.

All take log-probabilities, such as `mixture_log_probs` gives them, and class indices, and raise a
``ValueError`` for logits, or for labels that are not integers in ``[0, classes)``, one per sample.
"""

import torch
from torch import Tensor

from ..core.mixture import first_largest, validate_log_probs, validate_targets
from ..core.shapes import Flags, LogProbs, Scores, Targets


def negative_log_likelihood(log_probs: LogProbs, targets: Targets) -> Scores:
    """Return each sample's negative log-likelihood, ``-log p_y >= 0``, in nats; lower is better.

    Example:
        >>> import torch
        >>> from deepens.metrics import negative_log_likelihood
        >>> log_probs = torch.tensor([[0.5, 0.5]]).log()
        >>> round(negative_log_likelihood(log_probs, torch.tensor([1])).item(), 4)
        0.6931
    """
    _validate(log_probs, targets)
    return -log_probs.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


def brier_score(log_probs: LogProbs, targets: Targets, *, probs: LogProbs | None = None) -> Scores:
    """Return each sample's Brier score, ``sum_c (p_c - [c = y])²``; lower is better.

    The sum over classes, so it lies in ``[0, 2]`` (some libraries divide by the number of classes).
    ``probs`` are the probabilities, if they are at hand already.

    Example:
        >>> import torch
        >>> from deepens.metrics import brier_score
        >>> brier_score(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([1]))
        tensor([0.5000])
    """
    if probs is None:
        _validate(log_probs, targets)
    gaps = log_probs.exp() if probs is None else probs.clone()
    labels = targets.long().unsqueeze(-1)
    gaps.scatter_add_(-1, labels, -torch.ones_like(labels, dtype=gaps.dtype))
    return gaps.square_().sum(-1)


def correctness(log_probs: LogProbs, targets: Targets) -> Flags:
    """Return whether each sample's most probable class is its label, ``argmax_c p_c = y``.

    Of several most probable classes the first counts; the mean is the accuracy.

    Example:
        >>> import torch
        >>> from deepens.metrics import correctness
        >>> correctness(torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log(), torch.tensor([0, 1]))
        tensor([ True, False])
    """
    _validate(log_probs, targets)
    return first_largest(log_probs)[1] == targets


def top_k_correctness(log_probs: LogProbs, targets: Targets, *, k: int) -> Flags:
    """Return whether each label is among the k most probable classes; their mean is top-k accuracy.

    Of equally probable classes the first come first, as in `correctness`, which this is for k = 1.
    A k below 1 is a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics import top_k_correctness
        >>> probs = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
        >>> top_k_correctness(probs.log(), torch.tensor([1, 2]), k=2)
        tensor([ True, False])
    """
    _validate(log_probs, targets)
    validate_k(k)
    labels = targets.long().unsqueeze(-1)
    own = log_probs.gather(-1, labels)
    earlier = torch.arange(log_probs.shape[-1], device=log_probs.device) < labels
    before = (log_probs > own) | ((log_probs == own) & earlier)
    return before.sum(-1) < k


def validate_k(k: int) -> None:
    """Refuse a number of classes below 1."""
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")


def _validate(log_probs: Tensor, targets: Tensor) -> None:
    if log_probs.ndim != 2:
        raise ValueError(
            "log_probs must have 2 dimensions [samples, classes], got shape "
            f"{list(log_probs.shape)}"
        )
    samples, classes = log_probs.shape
    validate_log_probs(log_probs)
    validate_targets(targets, num_samples=samples, num_classes=classes)
