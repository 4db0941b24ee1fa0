"""Selective classification with OOD data (SCOD): errors and OOD images both count as failures.

A threshold on confidence is set on in-distribution (ID) samples; whatever scores at least as high
is accepted, ID or OOD.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from ..core.mixture import (
    confidence_of,
    mixture_log_probs,
    validate_flags,
    validate_targets,
    validate_values,
)
from ..core.streaming import EnsembleMetric
from .risk_coverage import risk_coverage_curve, validate_coverage


@dataclass(frozen=True)
class ScodCurve:
    """SCOD risk at every threshold that tells ID samples apart.

    Attributes:
        threshold: Distinct ID confidences, highest first; what is at or above one is accepted.
        coverage: Share of ID samples accepted.
        risk: SCOD risk among all that is accepted.
    """

    threshold: Float64[Tensor, "blocks"]
    coverage: Float64[Tensor, "blocks"]
    risk: Float64[Tensor, "blocks"]


def scod_curve(
    confidence: Float[Tensor, "id"],
    correct: Bool[Tensor, "id"],
    ood_confidence: Float[Tensor, "ood"],
    *,
    ood_cost: float = 1.0,
) -> ScodCurve:
    """Return the SCOD risk at every threshold on ID confidence.

    ``risk(t) = (ID errors accepted + beta OOD accepted) / (ID accepted + OOD accepted)``

    Args:
        confidence: Of ID samples: any score that is higher for more certain samples.
        correct: Whether the ID prediction is right.
        ood_confidence: The same score of OOD samples.
        ood_cost: beta, what an accepted OOD sample costs in ID errors.

    Returns:
        One point a block of equal ID confidences, from the smallest coverage to full coverage.

    Raises:
        ValueError: If an input is empty, not finite or of another length, or ``ood_cost`` is below
            0 or not finite.

    Example:
        >>> import torch
        >>> from deepens.metrics import scod_curve
        >>> curve = scod_curve(
        ...     torch.tensor([0.9, 0.5]), torch.tensor([True, False]), torch.tensor([0.7])
        ... )
        >>> [round(risk, 4) for risk in curve.risk.tolist()]
        [0.0, 0.6667]

    Reference: Xia & Bouganis (2022), arXiv:2207.07517
    """
    validate_values(ood_confidence, name="ood_confidence")
    _validate_cost(ood_cost)
    curve = risk_coverage_curve(confidence, correct)
    number = confidence.shape[0]
    accepted = curve.coverage * number
    ranked = ood_confidence.double().sort().values
    wrongly = (len(ranked) - torch.searchsorted(ranked, curve.threshold)).double()
    risk = (curve.risk * accepted + ood_cost * wrongly) / (accepted + wrongly)
    return ScodCurve(curve.threshold, curve.coverage, risk)


def scod_risk(
    confidence: Float[Tensor, "id"],
    correct: Bool[Tensor, "id"],
    ood_confidence: Float[Tensor, "ood"],
    *,
    coverage: float = 1.0,
    ood_cost: float = 1.0,
) -> Float64[Tensor, ""]:
    """Return the SCOD risk when at least the share `coverage` of ID samples is accepted.

    `scod_curve` at the first threshold, from the most confident down, that accepts as many.

    Args:
        confidence: Of ID samples: any score that is higher for more certain samples.
        correct: Whether the ID prediction is right.
        ood_confidence: The same score of OOD samples.
        coverage: Least share of ID samples to accept.
        ood_cost: beta, what an accepted OOD sample costs in ID errors.

    Returns:
        A scalar in ``[0, max(1, beta)]``; lower is better.

    Raises:
        ValueError: As `scod_curve`, or if ``coverage`` leaves ``(0, 1]``.

    Example:
        >>> import torch
        >>> from deepens.metrics import scod_risk
        >>> correct = torch.tensor([True, True, True, False])
        >>> scod_risk(torch.full((4,), 0.6), correct, torch.tensor([0.8]), ood_cost=0.5).item()
        0.3

    Reference: Xia & Bouganis (2022), arXiv:2207.07517
    """
    validate_coverage(coverage)
    curve = scod_curve(confidence, correct, ood_confidence, ood_cost=ood_cost)
    return curve.risk[int((curve.coverage < coverage).sum())]


class SCODRisk(EnsembleMetric):
    """SCOD risk by the mixture's confidence, as `scod_risk`; ten bytes a sample are kept.

    Args:
        coverage: Least share of ID samples to accept.
        ood_cost: beta, what an accepted OOD sample costs in ID errors.

    Raises:
        ValueError: If ``coverage`` leaves ``(0, 1]``, or ``ood_cost`` is below 0 or not finite.

    Example:
        >>> import torch
        >>> from deepens.metrics import SCODRisk
        >>> metric = SCODRisk(ood_cost=0.5)
        >>> logits = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
        >>> is_ood = torch.tensor([False, False, False, False, True])
        >>> metric.update(logits, torch.tensor([0, 0, 0, 1, -1]), is_ood)
        >>> metric.compute().item()
        0.3

    Reference: Xia & Bouganis (2022), arXiv:2207.07517
    """

    confidence: list[Tensor]
    correct: list[Tensor]
    is_ood: list[Tensor]

    def __init__(self, coverage: float = 1.0, ood_cost: float = 1.0) -> None:
        super().__init__()
        validate_coverage(coverage)
        _validate_cost(ood_cost)
        self.coverage, self.ood_cost = coverage, ood_cost
        for name in ("confidence", "correct", "is_ood"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        logits: Float[Tensor, "members batch classes"],
        targets: Integer[Tensor, "batch"],
        is_ood: Bool[Tensor, "batch"],
    ) -> None:
        """Add a batch, which may hold ID samples, OOD samples or both.

        Args:
            logits: Raw outputs, members first.
            targets: Class indices; those of OOD samples are not read.
            is_ood: Which samples are OOD.

        Raises:
            ValueError: If ``logits`` are not finite or empty, or the others do not fit them.
        """
        confidence, predicted = confidence_of(mixture_log_probs(logits.double()))
        samples, classes = logits.shape[1:]
        validate_flags(is_ood, name="is_ood", num_samples=samples)
        if targets.ndim == 1 and len(targets) == samples:
            targets = targets.masked_fill(is_ood, 0)
        validate_targets(targets, num_samples=samples, num_classes=classes)
        self.confidence.append(confidence)
        self.correct.append(predicted == targets)
        self.is_ood.append(is_ood)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the risk of all samples seen so far.

        Raises:
            ValueError: If no ID sample or no OOD sample was added.
        """
        confidence, correct, is_ood = (
            dim_zero_cat(state) if len(state) else torch.zeros(0, dtype=torch.bool)
            for state in (self.confidence, self.correct, self.is_ood)
        )
        ood = int(is_ood.sum())
        if not 0 < ood < len(is_ood):
            raise ValueError(
                f"SCODRisk needs >= 1 ID and >= 1 OOD sample, got {len(is_ood) - ood} and {ood}"
            )
        return scod_risk(
            confidence[~is_ood],
            correct[~is_ood],
            confidence[is_ood],
            coverage=self.coverage,
            ood_cost=self.ood_cost,
        )


def _validate_cost(ood_cost: float) -> None:
    if not 0 <= ood_cost < float("inf"):
        raise ValueError(f"ood_cost must be >= 0 and finite, got {ood_cost}")
