"""The few numbers per sample that every metric of the suite is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from .binning import BinSums
from .mixture import validate_values
from .shapes import Flags, PerSample


@dataclass(frozen=True)
class SampleValues:
    """What the suite needs to know of each sample, in float64.

    Attributes:
        confidence: Largest probability of the mixture.
        log_doubt: ``log(1 - confidence)`` as `log_doubt` has it, by which samples are ranked; where
            it is not given, that of the confidence.
        precision: Type in which probabilities were given, within whose rounding of the edge of a
            bin a confidence is on it; of logits float64.
        entropy: Entropy of the mixture, in nats.
        mutual_information: Mutual information of label and member, in nats.
        disagreement: Share of member pairs that predict different classes.
        nll: Negative log-likelihood of the mixture, in nats; None without labels.
        brier: Brier score of the mixture (0 to 2); None without labels.
        correct: Whether the most probable class is the label; None without labels.
        predicted: The most probable class.
        targets: The label; None without labels.
        more: What only `evaluate_values` and `evaluate_ood_values` read; may be left out.
        detectors: Further scores of OOD detection by name, higher for more uncertain samples.
    """

    confidence: PerSample
    entropy: PerSample
    mutual_information: PerSample
    disagreement: PerSample
    nll: PerSample | None = None
    brier: PerSample | None = None
    correct: Flags | None = None
    predicted: Int64[Tensor, "samples"] | None = None
    targets: Int64[Tensor, "samples"] | None = None
    more: "MoreValues | None" = None
    detectors: Mapping[str, PerSample] = field(default_factory=dict)
    log_doubt: PerSample | None = None
    precision: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        more = {} if self.more is None else vars(self.more)
        for name, values in {**vars(self), **self.detectors, **more}.items():
            if isinstance(values, Tensor):
                validate_values(values, name=name, num_samples=len(self))

    def __len__(self) -> int:
        return self.confidence.shape[0]

    @property
    def ranked(self) -> PerSample:
        """What samples are ranked by, higher for less certain ones: the logarithm of the MSP."""
        if self.log_doubt is not None:
            return self.log_doubt
        return (-self.confidence).log1p().clamp(min=torch.finfo(self.confidence.dtype).min)


@dataclass(frozen=True)
class MoreValues:
    """Values behind the secondary metrics of a split, which are not resampled.

    Attributes:
        pairwise_kl: Mean divergence between two members' predictions, in nats.
        cosine: Mean cosine between two members' probabilities; None for one member.
        member_nll: Mean of the members' own negative log-likelihoods; None without labels.
        member_brier: Mean of the members' own Brier scores; None without labels.
        among_five: Whether the label is among the five most probable classes; None without labels,
            or with no more than five classes.
        sums: What is summed over samples; None without labels.
    """

    pairwise_kl: PerSample
    cosine: PerSample | None = None
    member_nll: PerSample | None = None
    member_brier: PerSample | None = None
    among_five: Flags | None = None
    sums: "LabelledSums | None" = None


@dataclass(frozen=True)
class LabelledSums:
    """Sums over labelled samples.

    Attributes:
        classes: Over bins of each class's probability.
        pairs: Of two members' being right, as `joint_counts`.
        majority: Of wrong majorities and wrong votes, as `majority_counts`.
    """

    classes: BinSums
    pairs: Int64[Tensor, "four pairs"]
    majority: Int64[Tensor, "two"]

    def __add__(self, other: "LabelledSums") -> "LabelledSums":
        return LabelledSums(
            self.classes + other.classes,
            self.pairs + other.pairs,
            self.majority + other.majority,
        )
