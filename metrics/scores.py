"""Uncertainty scores of member logits by name, by which OOD images are told from others."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxtyping import Float64
from torch import Tensor

from .diversity import pairwise_kl
from .mixture import member_log_probs, mixture_log_probs
from .streaming import SampleMean
from .uncertainty import (
    energy_score,
    expected_entropy,
    maximum_logit_score,
    maximum_probability,
    maximum_softmax_score,
    mutual_information,
    predictive_entropy,
    probability_variance,
    reverse_mutual_information,
    variation_ratio,
)

Score = Callable[[Tensor], Tensor]


def _of_mixture(function: Score) -> Score:
    return lambda logits: function(mixture_log_probs(logits.double()))


def _of_members(function: Score) -> Score:
    return lambda logits: function(member_log_probs(logits.double()))


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "msp": _of_mixture(maximum_softmax_score),
        "entropy": _of_mixture(predictive_entropy),
        "mutual_information": _of_members(mutual_information),
        "max_logit": maximum_logit_score,
        "energy": energy_score,
        "expected_entropy": _of_members(expected_entropy),
        "reverse_mutual_information": _of_members(reverse_mutual_information),
        "pairwise_kl": _of_members(pairwise_kl),
        "variance": _of_members(probability_variance),
        "variation_ratio": variation_ratio,
    }
)
"""Score name -> function of member logits ``[members, samples, classes]``, in float64. Higher is
more uncertain. Of one member all from `mutual_information` on that compare members are 0."""


class MeanConfidence(SampleMean):
    """Mean over samples of the mixture's largest probability.

    Example:
        >>> import torch
        >>> from deepens.metrics import MeanConfidence
        >>> metric = MeanConfidence()
        >>> metric.update(torch.zeros(3, 2, 4), torch.tensor([0, 1]))
        >>> metric.compute().item()
        0.25
    """

    def per_sample(self, logits: Tensor, targets: Tensor) -> Float64[Tensor, "samples"]:
        """Return the mixture's confidences."""
        return maximum_probability(mixture_log_probs(logits))


class MutualInformation(SampleMean):
    """Mean over samples of the mutual information of label and member, in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import MutualInformation
        >>> metric = MutualInformation()
        >>> metric.update(torch.randn(1, 5, 4), torch.zeros(5, dtype=torch.int64))
        >>> metric.compute().item()
        0.0
    """

    def per_sample(self, logits: Tensor, targets: Tensor) -> Float64[Tensor, "samples"]:
        """Return the mutual informations."""
        return mutual_information(member_log_probs(logits))
