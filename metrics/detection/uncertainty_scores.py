"""Uncertainty scores of member logits by name, for OOD detection."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from ..core import mixture
from ..diversity.member_diversity import pairwise_kl
from ..scoring import uncertainty

Score = Callable[[Tensor], Tensor]


def _of_logits(function: Score) -> Score:
    """As the suite computes it, so that a score is the same in any batch."""

    def score(logits: Tensor) -> Tensor:
        mixture.validate_logits(logits)
        padded = mixture.samples_innermost(mixture.pad_samples(logits))
        return function(padded.double())[: logits.shape[1]]

    return score


def _of_mixture(function: Score) -> Score:
    return _of_logits(lambda logits: function(mixture.mixture_log_probs(logits)))


def _of_members(function: Score) -> Score:
    return _of_logits(lambda logits: function(mixture.member_log_probs(logits)))


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "msp": _of_mixture(uncertainty.maximum_softmax_score),
        "entropy": _of_mixture(uncertainty.predictive_entropy),
        "mutual_information": _of_members(uncertainty.mutual_information),
        "max_logit": _of_logits(uncertainty.maximum_logit_score),
        "energy": _of_logits(uncertainty.energy_score),
        "expected_entropy": _of_members(uncertainty.expected_entropy),
        "reverse_mutual_information": _of_members(uncertainty.reverse_mutual_information),
        "pairwise_kl": _of_members(pairwise_kl),
        "variance": _of_members(uncertainty.probability_variance),
        "variation_ratio": _of_logits(uncertainty.variation_ratio),
    }
)
"""Score name -> function of member logits ``[members, samples, classes]``, in float64. Higher is
more uncertain. Of one member all from `mutual_information` on that compare members are 0."""

RANKED: Mapping[str, Score] = MappingProxyType({**SCORES, "msp": _of_mixture(mixture.log_doubt)})
"""The same, to rank by: the MSP as its logarithm, in which no two samples tie by rounding."""
