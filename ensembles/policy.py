"""The abstraction of a policy: how many stages run on an image, and whether its answer is given."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..metrics.core.mixture import first_largest, log_doubt, mixture_log_probs, validate_choice
from ..metrics.scoring.uncertainty import energy_score, maximum_probability

CONFIDENCES = ("msp", "log_msp", "energy")
"""Confidence scores: the mixture's maximum softmax probability p; ``-log(1 - p)``, which tells
images apart whose p rounds to 1; or minus the energy."""


@dataclass(frozen=True)
class Answers:
    """What a cascade predicts for each image.

    Attributes:
        log_probs: Log-probabilities of the mixture of the stages that ran.
        confidence: Its score, higher for more certain images.
        stage: How many stages ran, from 1.
        accepted: Whether the confidence reaches the threshold.
    """

    log_probs: Float64[Tensor, "images classes"]
    confidence: Float64[Tensor, "images"]
    stage: Int64[Tensor, "images"]
    accepted: Bool[Tensor, "images"]

    def __len__(self) -> int:
        return len(self.confidence)

    @property
    def predicted(self) -> Int64[Tensor, "images"]:
        """The most probable class; of several the first."""
        return first_largest(self.log_probs)[1]

    def reached(self, num_stages: int) -> Float64[Tensor, "stages"]:
        """Return the share of images that each stage ran on: 1 for the first, then ever less."""
        stages = torch.arange(1, num_stages + 1, device=self.stage.device)
        return (self.stage[:, None] >= stages).double().mean(0)

    @classmethod
    def join(cls, parts: "Sequence[Answers]") -> "Answers":
        """Put the answers for consecutive images together."""
        names = [field.name for field in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class Policy(ABC):
    """Decides after each stage whether an image continues, and in the end on its answer.

    After stage m the mixture of the members so far, ``p̄(m)``, has the confidence ``S(m)``, which is
    ``max_c p̄(m)_c`` ("msp"), ``-log(1 - max_c p̄(m)_c)`` ("log_msp") or the members' mean
    ``logsumexp_c z`` ("energy"; of ``log p̄`` it would be 0). The image continues if
    `should_continue` says so; otherwise ``p̄(m)`` and ``S(m)`` are its answer, which is accepted if
    ``S(m) >= threshold``.

    Args:
        num_stages: K, stages that there are.
        confidence: ``"msp"``, ``"log_msp"`` or ``"energy"``.
        threshold: Least confidence of an accepted answer.

    Raises:
        ValueError: If there is no stage or no such confidence, or the threshold is NaN.
    """

    def __init__(
        self, num_stages: int, *, confidence: str = "msp", threshold: float = -torch.inf
    ) -> None:
        if num_stages < 1:
            raise ValueError(f"num_stages must be >= 1, got {num_stages}")
        validate_choice(confidence, "confidence", CONFIDENCES)
        if threshold != threshold:
            raise ValueError("threshold must be a number, got NaN")
        self.num_stages, self.confidence, self.threshold = num_stages, confidence, threshold

    @abstractmethod
    def should_continue(
        self, stage: int, confidence: Float[Tensor, "images"]
    ) -> Bool[Tensor, "images"]:
        """Return which images continue after a stage, from 1 to K - 1, by their confidence."""

    def judge(self, logits: Float[Tensor, "members images classes"]) -> Answers:
        """Return the answers of the members of all stages that ran, as if no stage followed.

        ``stage`` is left at 0.

        Raises:
            ValueError: If ``logits`` are empty, of a wrong shape or dtype, or not finite.
        """
        exact = logits.double()
        log_probs = mixture_log_probs(exact)
        if self.confidence == "energy":
            score = -energy_score(exact)
        elif self.confidence == "log_msp":
            score = -log_doubt(log_probs)
        else:
            score = maximum_probability(log_probs)
        stage = torch.zeros(score.shape, dtype=torch.int64, device=score.device)
        return Answers(log_probs, score, stage, score >= self.threshold)
