"""Selective classification with OOD data (SCOD): errors and OOD images both count as failures.

A threshold on confidence is set on in-distribution (ID) samples; whatever scores at least as high
is accepted, ID or OOD.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.mixture import validate_share, validate_values
from ..core.shapes import Scalar
from .risk_coverage import RiskCoverageCurve, risk_coverage_curve


class ScodCurve(RiskCoverageCurve):
    """SCOD risk among all that is accepted, and the share of ID samples, at every ID confidence."""


def scod_curve(
    confidence: Float[Tensor, "id"],
    correct: Bool[Tensor, "id"],
    ood_confidence: Float[Tensor, "ood"],
    *,
    ood_cost: float = 1.0,
) -> ScodCurve:
    """Return the SCOD risk at every threshold on ID confidence.

    ``risk(t) = (ID errors accepted + beta OOD accepted) / (ID accepted + OOD accepted)``, one point
    per block of equal ID confidences, from the smallest coverage to full coverage

    Args:
        confidence: Of ID samples: any score that is higher for more certain samples.
        correct: Whether the ID prediction is right.
        ood_confidence: The same score of OOD samples.
        ood_cost: beta, what an accepted OOD sample costs in ID errors.

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
    validate_cost(ood_cost)
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
) -> Scalar:
    """Return the SCOD risk when at least the share `coverage` of ID samples is accepted.

    `scod_curve` at the first threshold, from the most confident down, that accepts as many: a
    scalar in ``[0, max(1, beta)]``, lower is better. Other arguments and errors as `scod_curve`; a
    coverage outside ``(0, 1]`` is a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics import scod_risk
        >>> correct = torch.tensor([True, True, True, False])
        >>> scod_risk(torch.full((4,), 0.6), correct, torch.tensor([0.8]), ood_cost=0.5).item()
        0.3

    Reference: Xia & Bouganis (2022), arXiv:2207.07517
    """
    validate_share(coverage, "coverage")
    curve = scod_curve(confidence, correct, ood_confidence, ood_cost=ood_cost)
    return curve.risk[int((curve.coverage < coverage).sum())]


def validate_cost(ood_cost: float) -> None:
    """Refuse a cost below 0, or one that is not finite."""
    if not 0 <= ood_cost < float("inf"):
        raise ValueError(f"ood_cost must be >= 0 and finite, got {ood_cost}")
