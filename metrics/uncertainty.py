"""Uncertainty scores read from the members' predictions; higher means more uncertain."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from .mixture import member_log_probs, mixture_log_probs, pool_log_probs
from .streaming import SampleMean


def maximum_probability(log_probs: Float[Tensor, "samples classes"]) -> Float[Tensor, "samples"]:
    """Return each sample's confidence, ``max_c p_c``.

    Args:
        log_probs: Log-probabilities, such as `mixture_log_probs` gives them.

    Returns:
        One value in ``[1 / classes, 1]`` a sample; higher is *more* certain.

    Example:
        >>> import torch
        >>> from deepens.metrics import maximum_probability
        >>> maximum_probability(torch.tensor([[0.75, 0.25]]).log())
        tensor([0.7500])
    """
    return log_probs.amax(-1).exp().clamp(max=1.0)  # rounding may leave 1 + 1e-16


def maximum_softmax_score(log_probs: Float[Tensor, "samples classes"]) -> Float[Tensor, "samples"]:
    """Return the maximum softmax probability (MSP) as an uncertainty, ``1 - max_c p_c``.

    Args:
        log_probs: Log-probabilities, such as `mixture_log_probs` gives them.

    Returns:
        One value in ``[0, 1 - 1 / classes]`` a sample; higher is more uncertain.

    Example:
        >>> import torch
        >>> from deepens.metrics import maximum_softmax_score
        >>> maximum_softmax_score(torch.tensor([[0.75, 0.25]]).log())
        tensor([0.2500])

    Reference: Hendrycks & Gimpel (2017), arXiv:1610.02136
    """
    return 1.0 - maximum_probability(log_probs)


def predictive_entropy(log_probs: Float[Tensor, "samples classes"]) -> Float[Tensor, "samples"]:
    """Return each sample's entropy of the mixture, ``H[p̄] = -sum_c p̄_c log p̄_c``.

    Args:
        log_probs: Log-probabilities of the mixture, as `mixture_log_probs` gives them.

    Returns:
        One value in ``[0, log classes]`` a sample, in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import predictive_entropy
        >>> round(predictive_entropy(torch.tensor([[0.5, 0.5]]).log()).item(), 4)
        0.6931
    """
    return _entropy(log_probs)


def expected_entropy(
    member_log_probs: Float[Tensor, "members samples classes"],
) -> Float[Tensor, "samples"]:
    """Return each sample's mean entropy of the members, ``(1/M) sum_m H[p_m]``.

    Args:
        member_log_probs: Each member's log-probabilities.

    Returns:
        One value in ``[0, log classes]`` a sample, in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import expected_entropy
        >>> certain, unsure = [[1.0, 0.0]], [[0.5, 0.5]]
        >>> round(expected_entropy(torch.tensor([certain, unsure]).log()).item(), 4)
        0.3466
    """
    return _entropy(member_log_probs).mean(0)


def mutual_information(
    member_log_probs: Float[Tensor, "members samples classes"],
    log_probs: Float[Tensor, "samples classes"] | None = None,
    *,
    member_probs: Float[Tensor, "members samples classes"] | None = None,
) -> Float64[Tensor, "samples"]:
    """Return each sample's mutual information of label and member.

    ``I = (1/M) sum_m KL(p_m || p̄) = H[p̄] - (1/M) sum_m H[p_m]``

    The first form is computed, in float64 and clamped at 0 a sample. One member has mutual
    information exactly 0; several identical members have 0 up to rounding (about 1e-16).

    Args:
        member_log_probs: Each member's log-probabilities; float64 ones if small values matter.
        log_probs: The mixture's, if they are at hand already; pooled from the members otherwise.
        member_probs: Each member's probabilities, if they are at hand already.

    Returns:
        One value in ``[0, log members]`` a sample, in nats.

    Example:
        >>> import torch
        >>> from deepens.metrics import mutual_information
        >>> opposed = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).log()
        >>> round(mutual_information(opposed).item(), 4)
        0.6931

    Reference: Houlsby et al. (2011), arXiv:1112.5745
    """
    members = member_log_probs.double()
    mixture = pool_log_probs(members) if log_probs is None else log_probs.double()
    probs = members.exp() if member_probs is None else member_probs.double()
    divergence = (members - mixture).mul_(probs)
    impossible = members == -torch.inf  # 0 log 0 = 0
    return divergence.masked_fill_(impossible, 0.0).sum(-1).mean(0).clamp_(min=0.0)


def _entropy(log_probs: Tensor) -> Tensor:
    return torch.special.entr(log_probs.exp()).sum(-1).clamp(min=0.0)


def _maximum_softmax(logits: Tensor) -> Tensor:
    return maximum_softmax_score(mixture_log_probs(logits.double()))


def _predictive_entropy(logits: Tensor) -> Tensor:
    return predictive_entropy(mixture_log_probs(logits.double()))


def _mutual_information(logits: Tensor) -> Tensor:
    return mutual_information(member_log_probs(logits.double()))


SCORES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "msp": _maximum_softmax,
        "entropy": _predictive_entropy,
        "mutual_information": _mutual_information,
    }
)
"""Score name -> function of member logits ``[members, samples, classes]``, in float64."""


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
