"""Measures as the authors of window cascades define them, for comparisons with ours alone.

Ours never split a tie and keep a bound ("at most 5 % risk"); these cut between single samples and
take what comes nearest, from above or below.

Below, ``c_(1) >= ... >= c_(N)`` are confidences, ``S_k`` is the number of errors among the k most
confident samples, ``R_k = S_k / k`` and ``R_0 = 0``. Equal confidences keep the order in which the
samples come (in the authors' code: one that its sort does not promise). All is in float64, where
their curves are in float32.

Reference: Xia & Bouganis (2023), arXiv:2303.08010, and the code published with it
"""

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

SKIPPED = 500
"""Points at the start of a risk-coverage curve at which no risk is looked for: the first samples'
risks are noisy. Of the authors' tens of thousands of images they are few."""


def single_sample_risks(
    confidence: Float[Tensor, "samples"], correct: Bool[Tensor, "samples"]
) -> Float64[Tensor, "samples+1"]:
    """Return ``R_0 ... R_N``, the risk after every single sample.

    Args:
        confidence: Higher for more certain samples.
        correct: Whether the prediction is right.

    Returns:
        Risks at the coverages ``0, 1/N, ..., 1``.

    Example:
        >>> import torch
        >>> from deepens.experiments.nearest_definitions import single_sample_risks
        >>> single_sample_risks(torch.tensor([0.9, 0.8]), torch.tensor([True, False])).tolist()
        [0.0, 0.0, 0.5]
    """
    errors = (~correct)[confidence.argsort(descending=True, stable=True)].double().cumsum(0)
    accepted = torch.arange(1, len(errors) + 1, dtype=torch.float64)
    return torch.cat([errors.new_zeros(1), errors / accepted])


def coverage_at_nearest_risk(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    risk: float,
    *,
    skipped: int = SKIPPED,
) -> float:
    """Return the coverage at which the risk comes nearest to a target, from above or below.

    ``min(k*, N - 1) / N`` with ``k* = argmin_{k >= skipped} |R_k - risk|``, the first of several.

    Args:
        confidence: Higher for more certain samples.
        correct: Whether the prediction is right.
        risk: The target.
        skipped: Points at the start of the curve that are left out, coverage 0 being the first.

    Returns:
        A coverage, never 1.

    Raises:
        ValueError: If there are fewer samples than ``skipped``.
    """
    nearest = _nearest_risk(confidence, correct, risk, skipped)
    return min(nearest, len(confidence) - 1) / len(confidence)


def risk_at_nearest_coverage(
    confidence: Float[Tensor, "samples"], correct: Bool[Tensor, "samples"], coverage: float
) -> float:
    """Return ``R_k`` with ``k = argmin |k / N - coverage|``, the first of two.

    Args:
        confidence: Higher for more certain samples.
        correct: Whether the prediction is right.
        coverage: The target.

    Returns:
        The risk.
    """
    number = _nearest_number(len(confidence), coverage)
    return single_sample_risks(confidence, correct)[number].item()


def trapezoidal_aurc(
    confidence: Float[Tensor, "samples"], correct: Bool[Tensor, "samples"]
) -> float:
    """Return the area of the trapezoids below the risk-coverage curve from ``(0, 0)``.

    ``(1/N) sum_{k=1..N} (R_{k-1} + R_k) / 2``: without ties less than ours by ``R_N / (2 N)``.

    Args:
        confidence: Higher for more certain samples.
        correct: Whether the prediction is right.

    Returns:
        The area.
    """
    return torch.trapezoid(single_sample_risks(confidence, correct)).item() / len(confidence)


def false_positive_rate_at_nearest_recall(
    confidence: Float[Tensor, "id"], ood_confidence: Float[Tensor, "ood"], recall: float = 0.95
) -> float:
    """Return the share of OOD samples accepted where the accepted share of ID ones is nearest.

    ID is the positive class. ``FPR = P(c_ood >= t)`` with t the lowest of the scores, ID or OOD,
    at which ``|P(c_id >= t) - recall|`` is least.

    Args:
        confidence: Of ID samples, higher for more certain ones.
        ood_confidence: Of OOD samples.
        recall: Share of ID samples to accept.

    Returns:
        The share.
    """
    thresholds = torch.cat([confidence, ood_confidence]).unique()
    below = torch.searchsorted(confidence.sort().values, thresholds)
    accepted = 1.0 - below.double() / len(confidence)
    threshold = thresholds[_first_least((accepted - recall).abs())]
    return (ood_confidence >= threshold).double().mean().item()


def threshold_at_nearest_risk(
    confidence: Float[Tensor, "samples"],
    correct: Bool[Tensor, "samples"],
    risk: float,
    *,
    skipped: int = SKIPPED,
) -> float:
    """Return ``c_(k*+1)``, k* as in `coverage_at_nearest_risk`: one sample more is accepted.

    Args:
        confidence: Higher for more certain samples.
        correct: Whether the prediction is right.
        risk: The target.
        skipped: Points at the start of the curve that are left out.

    Returns:
        tau.

    Raises:
        ValueError: If there are fewer samples than ``skipped``, or the nearest risk is that of
            all samples, after which none follows.
    """
    return _next_confidence(confidence, _nearest_risk(confidence, correct, risk, skipped))


def threshold_at_nearest_coverage(confidence: Float[Tensor, "samples"], coverage: float) -> float:
    """Return ``c_(k+1)`` with ``k = argmin |k / N - coverage|``: one sample more is accepted.

    Args:
        confidence: Higher for more certain samples.
        coverage: The target.

    Returns:
        tau.

    Raises:
        ValueError: If all samples come nearest, after which none follows.
    """
    return _next_confidence(confidence, _nearest_number(len(confidence), coverage))


def threshold_at_nearest_rate(confidence: Float[Tensor, "samples"], rate: float) -> float:
    """Return the confidence t at which the accepted share of ID samples is nearest to a rate.

    ``t = argmin_{t in c} |P(c >= t) - rate|``, the highest of two. The authors read it off an ROC
    curve against OOD scores drawn at random, whose corners leave some t out; here all count.

    Args:
        confidence: Of ID samples, higher for more certain ones.
        rate: The target.

    Returns:
        tau.
    """
    values, numbers = confidence.unique(return_counts=True)
    accepted = numbers.flip(0).cumsum(0).double() / len(confidence)
    return values.flip(0)[_first_least((accepted - rate).abs())].item()


def clamped_window(
    confidence: Float[Tensor, "samples"], threshold: float, width: float = 0.1
) -> tuple[float, float]:
    """Return ``[Q(max(q - width, 0)), Q(min(q + width, 1))]``, q a percentile rank of tau.

    ``q = (#{c < tau} + #{c <= tau} + [tau in c]) / (2 N)``: half a sample more than ours, where tau
    is one of the confidences. Ends at 0 and 1 are the extreme confidences, where ours are infinite.

    Args:
        confidence: Higher for more certain samples.
        threshold: tau.
        width: Share of the samples on either side.

    Returns:
        The two ends.
    """
    values = confidence.double()
    lower, upper = int((values < threshold).sum()), int((values <= threshold).sum())
    place = (lower + upper + (lower < upper)) / (2 * len(values))
    low, high = max(place - width, 0.0), min(place + width, 1.0)
    return values.quantile(low).item(), values.quantile(high).item()


def _nearest_risk(confidence: Tensor, correct: Tensor, risk: float, skipped: int) -> int:
    if not 0 <= skipped <= len(confidence):
        raise ValueError(
            f"skipped must lie in [0, {len(confidence)}], the number of samples, got {skipped}; "
            "take more samples or skip fewer"
        )
    risks = single_sample_risks(confidence, correct)[skipped:]
    return skipped + _first_least((risks - risk).abs())


def _nearest_number(samples: int, coverage: float) -> int:
    return _first_least((torch.arange(samples + 1).double() / samples - coverage).abs())


def _next_confidence(confidence: Tensor, number: int) -> float:
    if number == len(confidence):
        raise ValueError(
            f"no sample follows the {number} at which the target comes nearest; choose another"
        )
    return confidence.sort(descending=True).values[number].item()


def _first_least(distance: Tensor) -> int:
    """The first of equal ones, which argmin does not promise."""
    return int((distance == distance.min()).nonzero()[0])
