"""From logits to the few numbers a sample that every metric of the suite is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor

from .diversity import disagreement, pairwise_kl
from .mixture import member_log_probs, pool_log_probs, validate_logits, validate_values
from .scoring import brier_score, correctness, negative_log_likelihood
from .streaming import validate_batch
from .uncertainty import maximum_probability, mutual_information, predictive_entropy

_CHUNK = 2**18  # logits worked on at a time: 2 MB in float64, so that they stay in the cache


@dataclass(frozen=True)
class SampleValues:
    """What the suite needs to know of each sample, in float64.

    Attributes:
        confidence: Largest probability of the mixture.
        entropy: Entropy of the mixture, in nats.
        mutual_information: Mutual information of label and member, in nats.
        disagreement: Share of member pairs that predict different classes.
        nll: Negative log-likelihood of the mixture, in nats; None without labels.
        brier: Brier score of the mixture (0 to 2); None without labels.
        correct: Whether the most probable class is the label; None without labels.
        pairwise_kl: Mean divergence between two members' predictions, in nats.
        member_nll: Mean of the members' own negative log-likelihoods; None without labels.
        member_brier: Mean of the members' own Brier scores; None without labels.
        detectors: Further scores of OOD detection by name, higher for more uncertain samples.

    All from ``pairwise_kl`` on may be left out: only `evaluate_values` and `evaluate_ood_values`
    read them.
    """

    confidence: Float64[Tensor, "samples"]
    entropy: Float64[Tensor, "samples"]
    mutual_information: Float64[Tensor, "samples"]
    disagreement: Float64[Tensor, "samples"]
    nll: Float64[Tensor, "samples"] | None = None
    brier: Float64[Tensor, "samples"] | None = None
    correct: Bool[Tensor, "samples"] | None = None
    pairwise_kl: Float64[Tensor, "samples"] | None = None
    member_nll: Float64[Tensor, "samples"] | None = None
    member_brier: Float64[Tensor, "samples"] | None = None
    detectors: Mapping[str, Float64[Tensor, "samples"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in {**vars(self), **self.detectors}.items():
            if isinstance(values, Tensor):
                validate_values(values, name=name, num_samples=len(self))

    def __len__(self) -> int:
        return self.confidence.shape[0]


def sample_values(
    logits: Float[Tensor, "members samples classes"],
    targets: Integer[Tensor, "samples"] | None = None,
) -> SampleValues:
    """Return the per-sample values of an ensemble's logits, computed in float64.

    Args:
        logits: Raw outputs, members first, in any floating dtype.
        targets: Class indices; None for OOD images, which have no label among the classes.

    Returns:
        One number a sample and value; memory stays bounded, whatever the number of samples.

    Raises:
        ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.

    Example:
        >>> import torch
        >>> from deepens.metrics import sample_values
        >>> values = sample_values(torch.zeros(3, 2, 4), torch.tensor([0, 1]))
        >>> values.confidence.tolist(), values.correct.tolist()
        ([0.25, 0.25], [True, False])
    """
    if targets is None:
        validate_logits(logits)
    else:
        validate_batch(logits, targets)
    members, samples, classes = logits.shape
    size = max(1, _CHUNK // (members * classes))
    chunks = [
        _chunk_values(logits[:, start : start + size], targets, start)
        for start in range(0, samples, size)
    ]
    joined: dict[str, Any] = {name: torch.cat([c[name] for c in chunks]) for name in chunks[0]}
    return SampleValues(**joined)


def _chunk_values(logits: Tensor, targets: Tensor | None, start: int) -> dict[str, Tensor]:
    members = member_log_probs(logits.double())
    log_probs = pool_log_probs(members)
    probs = members.exp()
    values = {
        "confidence": maximum_probability(log_probs),
        "entropy": predictive_entropy(log_probs),
        "mutual_information": mutual_information(members, log_probs, member_probs=probs),
        "disagreement": disagreement(logits),
        "pairwise_kl": pairwise_kl(members, member_probs=probs),
    }
    if targets is not None:
        labels = targets[start : start + logits.shape[1]]
        values["nll"] = negative_log_likelihood(log_probs, labels)
        values["brier"] = brier_score(log_probs, labels)
        values["correct"] = correctness(log_probs, labels)
        of_label = labels.long().expand(len(members), -1).unsqueeze(-1)
        values["member_nll"] = -members.gather(-1, of_label).squeeze(-1).mean(0)
        # The ambiguity decomposition: cheaper than a Brier score for each member.
        ambiguity = (probs - probs.mean(0)).square_().sum(-1).mean(0)
        values["member_brier"] = values["brier"] + ambiguity
    return values
