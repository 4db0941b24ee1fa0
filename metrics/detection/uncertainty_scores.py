"""Uncertainty scores of member logits by name, for OOD detection."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from ..core.mixture import (
    member_log_probs,
    mixture_log_probs,
    pad_samples,
    to_float64,
    validate_logits,
)
from ..diversity.member_diversity import pairwise_kl
from ..scoring.uncertainty import (
    energy_score,
    expected_entropy,
    maximum_logit_score,
    maximum_softmax_score,
    mutual_information,
    predictive_entropy,
    probability_variance,
    reverse_mutual_information,
    variation_ratio,
)

Score = Callable[[Tensor], Tensor]


def _of_logits(function: Score) -> Score:
    """As the suite computes it, so that a score is the same in any batch."""

    def score(logits: Tensor) -> Tensor:
        validate_logits(logits)
        return function(to_float64(pad_samples(logits)))[: logits.shape[1]]

    return score


def _of_mixture(function: Score) -> Score:
    return _of_logits(lambda logits: function(mixture_log_probs(logits)))


def _of_members(function: Score) -> Score:
    return _of_logits(lambda logits: function(member_log_probs(logits)))


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "msp": _of_mixture(maximum_softmax_score),
        "entropy": _of_mixture(predictive_entropy),
        "mutual_information": _of_members(mutual_information),
        "max_logit": _of_logits(maximum_logit_score),
        "energy": _of_logits(energy_score),
        "expected_entropy": _of_members(expected_entropy),
        "reverse_mutual_information": _of_members(reverse_mutual_information),
        "pairwise_kl": _of_members(pairwise_kl),
        "variance": _of_members(probability_variance),
        "variation_ratio": _of_logits(variation_ratio),
    }
)
"""Score name -> function of member logits ``[members, samples, classes]``, in float64. Higher is
more uncertain. Of one member all from `mutual_information` on that compare members are 0."""


def validate_score(score: str) -> None:
    """Refuse the name of no score."""
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
