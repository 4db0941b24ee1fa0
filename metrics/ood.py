"""Out-of-distribution (OOD) detection: do OOD images score higher than in-distribution (ID) ones?

Scores: higher is more uncertain, and OOD is the positive class throughout (average precision also
with ID positive). All metrics read one ranking, count ties exactly, and take unbounded scores.

Below, ``P_b`` and ``N_b`` count OOD and ID samples at or above the score of tie block b.
"""

import warnings
from abc import abstractmethod
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from .mixture import validate_logits, validate_values
from .ranking import CumulativeCounts, rank
from .streaming import EnsembleMetric
from .uncertainty import SCORES


def area_under_roc(
    scores: Float[Tensor, "samples"],
    is_ood: Bool[Tensor, "samples"],
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the area under the ROC curve, ``P(s_ood > s_id) + P(s_ood = s_id) / 2``.

    Args:
        scores: Uncertainties of ID and OOD samples; higher means OOD.
        is_ood: Which samples are OOD.
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` a draw (a scalar without weights); higher is better. NaN, with a
        warning, where ID or OOD samples are missing; 0.5 if all scores are equal.

    Raises:
        ValueError: If an input is empty, not finite, or of another length.

    Example:
        >>> import torch
        >>> from deepens.metrics import area_under_roc
        >>> is_ood = torch.tensor([False, False, True, True])
        >>> area_under_roc(torch.tensor([0.1, 0.4, 0.4, 0.8]), is_ood).item()
        0.875

    Reference: Hendrycks & Gimpel (2017), arXiv:1610.02136
    """
    return auroc_from_counts(rank(scores).cumulate(is_ood, weights))


def average_precision(
    scores: Float[Tensor, "samples"],
    is_ood: Bool[Tensor, "samples"],
    *,
    positive: Literal["ood", "id"] = "ood",
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the area under the precision-recall curve as average precision, a step function.

    ``AP = sum_b (recall_b - recall_{b-1}) precision_b``, from the highest score down; with ID
    positive, from the lowest score up.

    Args:
        scores: Uncertainties of ID and OOD samples; higher means OOD.
        is_ood: Which samples are OOD.
        positive: The class to be found.
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` a draw (a scalar without weights); higher is better, chance being
        the share of the positive class. NaN, with a warning, where ID or OOD samples are missing.

    Raises:
        ValueError: If an input is empty, not finite, or of another length.

    Example:
        >>> import torch
        >>> from deepens.metrics import average_precision
        >>> is_ood = torch.tensor([False, True, False, True])
        >>> round(average_precision(torch.tensor([0.1, 0.4, 0.5, 0.8]), is_ood).item(), 4)
        0.8333
    """
    counts = rank(scores).cumulate(is_ood, weights)
    return average_precision_from_counts(counts, positive=positive)


def false_positive_rate(
    scores: Float[Tensor, "samples"],
    is_ood: Bool[Tensor, "samples"],
    *,
    true_positive_rate: float = 0.95,
    weights: Integer[Tensor, "*draws samples"] | None = None,
) -> Float64[Tensor, "*draws"]:
    """Return the share of ID samples flagged when the given share of OOD samples is found.

    ``N_b / N`` at the first tie block b, from the highest score down, with
    ``P_b / P >= true_positive_rate``. OOD is the positive class; authors with ID positive report
    another number for the same scores.

    Args:
        scores: Uncertainties of ID and OOD samples; higher means OOD.
        is_ood: Which samples are OOD.
        true_positive_rate: Least share of OOD samples to find.
        weights: How often each sample counts, one row a bootstrap draw; once each by default.

    Returns:
        One value in ``[0, 1]`` a draw (a scalar without weights); lower is better. NaN, with a
        warning, where ID or OOD samples are missing.

    Raises:
        ValueError: If an input is empty, not finite or of another length, or
            ``true_positive_rate`` leaves ``(0, 1]``.

    Example:
        >>> import torch
        >>> from deepens.metrics import false_positive_rate
        >>> is_ood = torch.tensor([False, True, False, True])
        >>> false_positive_rate(torch.tensor([0.1, 0.4, 0.5, 0.8]), is_ood).item()
        0.5
    """
    counts = rank(scores).cumulate(is_ood, weights)
    return false_positive_rate_from_counts(counts, true_positive_rate=true_positive_rate)


def auroc_from_counts(counts: CumulativeCounts) -> Float64[Tensor, "*draws"]:
    """Return the AUROC, ``sum_b n_b (P_b - p_b / 2) / (N P)``, n and p being a block's own counts.

    Args:
        counts: Samples and OOD samples, from the highest score down.

    Returns:
        One value a draw.
    """
    dot = torch.linalg.vecdot
    pairs = dot(counts.block_unflagged, counts.flagged)
    ties = dot(counts.block_unflagged, counts.block_flagged)
    area = (pairs - 0.5 * ties) / (counts.unflagged[..., -1] * counts.flagged[..., -1])
    return _where_defined(area, counts, "AUROC")


def average_precision_from_counts(
    counts: CumulativeCounts, *, positive: Literal["ood", "id"] = "ood"
) -> Float64[Tensor, "*draws"]:
    """Return the average precision; with ID positive, the same counts are read from below.

    Args:
        counts: Samples and OOD samples, from the highest score down.
        positive: The class to be found.

    Returns:
        One value a draw.

    Raises:
        ValueError: If ``positive`` is neither ``"ood"`` nor ``"id"``.
    """
    _validate_positive(positive)
    if positive == "ood":
        gained, found, accepted = counts.block_flagged, counts.flagged, counts.total
    else:  # at or below a block's score lies what was not counted before the block began
        gained = counts.block_unflagged
        found = counts.unflagged[..., -1:] - counts.unflagged + gained
        accepted = counts.total[..., -1:] - counts.total + counts.block_total
    area = torch.linalg.vecdot(gained, found / accepted.clamp(min=1)) / gained.sum(-1)
    return _where_defined(area, counts, f"average precision ({positive} positive)")


def false_positive_rate_from_counts(
    counts: CumulativeCounts, *, true_positive_rate: float = 0.95
) -> Float64[Tensor, "*draws"]:
    """Return the false positive rate at the first block that reaches the true positive rate.

    Args:
        counts: Samples and OOD samples, from the highest score down.
        true_positive_rate: Least share of OOD samples to find.

    Returns:
        One value a draw.

    Raises:
        ValueError: If ``true_positive_rate`` leaves ``(0, 1]``.
    """
    _validate_rate(true_positive_rate)
    short = counts.flagged / counts.flagged[..., -1:] < true_positive_rate
    first = short.sum(-1, keepdim=True)  # the true positive rate never falls along the ranking
    rate = counts.unflagged.gather(-1, first).squeeze(-1) / counts.unflagged[..., -1]
    return _where_defined(rate, counts, f"FPR at {true_positive_rate:.0%} TPR")


def _where_defined(value: Tensor, counts: CumulativeCounts, name: str) -> Tensor:
    missing = (counts.flagged[..., -1] == 0) | (counts.unflagged[..., -1] == 0)
    if missing.any():
        warnings.warn(
            f"{name} is undefined without both ID and OOD samples: NaN is returned",
            RuntimeWarning,
            stacklevel=3,
        )
    return value.masked_fill(missing, torch.nan)


def _validate_positive(positive: str) -> None:
    if positive not in ("ood", "id"):
        raise ValueError(f"positive must be 'ood' or 'id', got {positive!r}")


def _validate_rate(true_positive_rate: float) -> None:
    if not 0 < true_positive_rate <= 1:
        raise ValueError(f"true_positive_rate must lie in (0, 1], got {true_positive_rate}")


class OODMetric(EnsembleMetric):
    """A metric of OOD detection by one of `SCORES`; per-sample scores are all that is kept.

    A concrete metric implements `evaluate`.

    Args:
        score: ``"msp"``, ``"entropy"`` or ``"mutual_information"``.

    Raises:
        ValueError: If there is no such score.
    """

    scores: list[Tensor]
    is_ood: list[Tensor]

    def __init__(self, score: str = "msp") -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        self.score = score
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("is_ood", [], dist_reduce_fx="cat")

    @abstractmethod
    def evaluate(
        self, scores: Float64[Tensor, "samples"], is_ood: Bool[Tensor, "samples"]
    ) -> Float64[Tensor, ""]:
        """Return the metric of all samples."""

    def update(
        self, logits: Float[Tensor, "members batch classes"], is_ood: Bool[Tensor, "batch"]
    ) -> None:
        """Add a batch, which may hold ID samples, OOD samples or both.

        Args:
            logits: Raw outputs, members first.
            is_ood: Which samples are OOD.

        Raises:
            ValueError: If ``logits`` are not finite or empty, or ``is_ood`` does not fit them.
        """
        validate_logits(logits)
        validate_values(is_ood, name="is_ood", num_samples=logits.shape[1])
        self.scores.append(SCORES[self.score](logits))
        self.is_ood.append(is_ood)

    def compute(self) -> Float64[Tensor, ""]:
        """Return the metric of all samples seen so far; NaN, with a warning, without both classes.

        Raises:
            ValueError: If no batch was added.
        """
        return self.evaluate(dim_zero_cat(self.scores), dim_zero_cat(self.is_ood))


class OODAreaUnderROC(OODMetric):
    """AUROC of OOD detection, as `area_under_roc`.

    Example:
        >>> import torch
        >>> from deepens.metrics import OODAreaUnderROC
        >>> metric = OODAreaUnderROC(score="entropy")
        >>> metric.update(torch.tensor([[[5.0, 0.0], [0.0, 0.0]]]), torch.tensor([False, True]))
        >>> metric.compute().item()
        1.0
    """

    higher_is_better = True

    def evaluate(self, scores: Tensor, is_ood: Tensor) -> Float64[Tensor, ""]:
        """Return the AUROC of all samples."""
        return area_under_roc(scores, is_ood)


class OODAveragePrecision(OODMetric):
    """Average precision of OOD detection, as `average_precision`.

    Args:
        score: ``"msp"``, ``"entropy"`` or ``"mutual_information"``.
        positive: The class to be found, ``"ood"`` or ``"id"``.

    Raises:
        ValueError: If there is no such score or class.
    """

    higher_is_better = True

    def __init__(self, score: str = "msp", positive: Literal["ood", "id"] = "ood") -> None:
        super().__init__(score)
        _validate_positive(positive)
        self.positive: Literal["ood", "id"] = positive

    def evaluate(self, scores: Tensor, is_ood: Tensor) -> Float64[Tensor, ""]:
        """Return the average precision of all samples."""
        return average_precision(scores, is_ood, positive=self.positive)


class OODFalsePositiveRate(OODMetric):
    """False positive rate of OOD detection, as `false_positive_rate`.

    Args:
        score: ``"msp"``, ``"entropy"`` or ``"mutual_information"``.
        true_positive_rate: Least share of OOD samples to find.

    Raises:
        ValueError: If there is no such score, or ``true_positive_rate`` leaves ``(0, 1]``.
    """

    higher_is_better = False

    def __init__(self, score: str = "msp", true_positive_rate: float = 0.95) -> None:
        super().__init__(score)
        _validate_rate(true_positive_rate)
        self.true_positive_rate = true_positive_rate

    def evaluate(self, scores: Tensor, is_ood: Tensor) -> Float64[Tensor, ""]:
        """Return the false positive rate over all samples."""
        return false_positive_rate(scores, is_ood, true_positive_rate=self.true_positive_rate)
