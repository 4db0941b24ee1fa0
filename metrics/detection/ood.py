"""Out-of-distribution (OOD) detection: do OOD images score higher than in-distribution (ID) ones?

Scores: higher is more uncertain, and OOD is the positive class throughout (average precision also
with ID positive). All metrics read one ranking, count ties exactly, and take unbounded scores.
``P_b`` and ``N_b`` count OOD and ID samples at or above the score of tie block b.

All measures take these arguments, and return one value in ``[0, 1]`` per draw, a scalar without
weights; NaN, with a warning, where ID or OOD samples are missing:

Args:
    scores: Uncertainties of ID and OOD samples; higher means OOD.
    is_ood: Which samples are OOD.
    weights: How often each sample counts, one row per bootstrap draw; once each by default.

Raises:
    ValueError: If an input is empty, not finite or of another length, or an option leaves its
        range.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.catalogue import detection_key
from ..core.mixture import validate_choice, validate_share, validate_values
from ..core.ranking import CumulativeCounts, area_from_counts, rank, where_both
from ..core.shapes import Flags, PerDraw, Scalar, Scores, Weights

Positive = Literal["ood", "id"]
Area = Literal["steps", "trapezoids"]


def area_under_roc(scores: Scores, is_ood: Flags, weights: Weights | None = None) -> PerDraw:
    """Return the area under the ROC curve, ``P(s_ood > s_id) + P(s_ood = s_id) / 2``.

    Higher is better; 0.5 if all scores are equal.

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
    scores: Scores,
    is_ood: Flags,
    *,
    positive: Positive = "ood",
    area: Area = "steps",
    weights: Weights | None = None,
) -> PerDraw:
    """Return the area under the precision-recall curve as average precision, a step function.

    ``AP = sum_b (recall_b - recall_{b-1}) precision_b``, from the highest score down; with ID
    ``positive``, from the lowest score up. Higher is better, chance being the share of the positive
    class.

    Some libraries join the points by straight lines instead, ``precision_b + precision_{b-1}``
    halved in place of ``precision_b``, from precision 1 at recall 0: offered as
    ``area="trapezoids"``, for comparisons with theirs. Between points that is too optimistic (Davis
    & Goadrich, 2006).

    Example:
        >>> import torch
        >>> from deepens.metrics import average_precision
        >>> is_ood = torch.tensor([False, True, False, True])
        >>> round(average_precision(torch.tensor([0.1, 0.4, 0.5, 0.8]), is_ood).item(), 4)
        0.8333
    """
    counts = rank(scores).cumulate(is_ood, weights)
    return average_precision_from_counts(counts, positive=positive, area=area)


def false_positive_rate(
    scores: Scores,
    is_ood: Flags,
    *,
    true_positive_rate: float = 0.95,
    weights: Weights | None = None,
) -> PerDraw:
    """Return the share of ID samples flagged when the given share of OOD samples is found.

    ``N_b / N`` at the first tie block b, from the highest score down, with ``P_b / P >=
    true_positive_rate``, which is in ``(0, 1]``; lower is better. Authors with ID positive report
    another number for the same scores.

    Example:
        >>> import torch
        >>> from deepens.metrics import false_positive_rate
        >>> is_ood = torch.tensor([False, True, False, True])
        >>> false_positive_rate(torch.tensor([0.1, 0.4, 0.5, 0.8]), is_ood).item()
        0.5
    """
    counts = rank(scores).cumulate(is_ood, weights)
    return false_positive_rate_from_counts(counts, true_positive_rate=true_positive_rate)


def auroc_from_counts(counts: CumulativeCounts) -> PerDraw:
    """Return the AUROC; NaN, with a warning, where ID or OOD samples are missing."""
    return _where_defined(area_from_counts(counts), counts, "AUROC")


def average_precision_from_counts(
    counts: CumulativeCounts, *, positive: Positive = "ood", area: Area = "steps"
) -> PerDraw:
    """Return the average precision; with ID positive, the same counts are read from below."""
    validate_choice(positive, "positive", get_args(Positive))
    validate_choice(area, "area", get_args(Area))
    if positive == "ood":
        gained, found, accepted = counts.block_flagged, counts.flagged, counts.total
    else:  # at or below a block's score lies what was not counted before the block began
        gained = counts.block_unflagged
        found = counts.unflagged[..., -1:] - counts.unflagged + gained
        accepted = counts.total[..., -1:] - counts.total + counts.block_total
    precision = found / accepted.clamp(min=1)
    if area == "trapezoids":
        precision = precision.masked_fill(accepted == 0, 1.0)  # blocks of weight 0 before the first
        one = torch.ones_like(precision[..., :1])
        if positive == "ood":
            before = torch.cat([one, precision[..., :-1]], dim=-1)
        else:
            before = torch.cat([precision[..., 1:], one], dim=-1)
        precision = (precision + before) / 2
    value = torch.linalg.vecdot(gained, precision) / gained.sum(-1)
    return _where_defined(value, counts, f"average precision ({positive} positive)")


def false_positive_rate_from_counts(
    counts: CumulativeCounts, *, true_positive_rate: float = 0.95
) -> PerDraw:
    """Return the false positive rate at the first block that reaches the true positive rate."""
    validate_share(true_positive_rate, "true_positive_rate")
    short = counts.flagged / counts.flagged[..., -1:] < true_positive_rate
    first = short.sum(-1, keepdim=True)  # the true positive rate never falls along the ranking
    rate = counts.unflagged.gather(-1, first).squeeze(-1) / counts.unflagged[..., -1]
    return _where_defined(rate, counts, f"FPR at {true_positive_rate:.0%} TPR")


def _where_defined(value: Tensor, counts: CumulativeCounts, name: str) -> Tensor:
    return where_both(value, counts, f"{name} is undefined without both ID and OOD samples")


def detection_metrics(
    score: str, counts: CumulativeCounts, *, by_member: bool = False
) -> dict[str, PerDraw]:
    """Return AUROC, both average precisions and FPR95 of a score."""
    results = {
        "auroc": auroc_from_counts(counts),
        "aupr_out": average_precision_from_counts(counts, positive="ood"),
        "aupr_in": average_precision_from_counts(counts, positive="id"),
        "fpr95": false_positive_rate_from_counts(counts),
    }
    return {
        detection_key(measure, score, by_member=by_member): value
        for measure, value in results.items()
    }


def detect(
    score: str,
    id_scores: Float[Tensor, "id"],
    ood_scores: Float[Tensor, "ood"],
    *,
    by_member: bool = False,
) -> dict[str, Scalar]:
    """Return `detection_metrics` of the scores of two sets, higher for more uncertain images.

    Ties count half. Scores that are empty or not finite are a ``ValueError``; ``by_member`` says
    that they are a member's own.

    Example:
        >>> import torch
        >>> from deepens.metrics.detection.ood import detect
        >>> detect("knn", torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))["auroc_knn"]
        tensor(0.8750, dtype=torch.float64)
    """
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        validate_values(scores, name=name)
    scores = torch.cat([id_scores, ood_scores])
    is_ood = torch.arange(len(scores), device=scores.device) >= len(id_scores)
    return detection_metrics(score, rank(scores).cumulate(is_ood), by_member=by_member)


def evaluate_members(
    id_scores: Mapping[str, Float[Tensor, "members id"]],
    ood_scores: Mapping[str, Float[Tensor, "_ ood"]],
) -> dict[str, float]:
    """Return OOD detection by each member's own scores, averaged over members.

    Args:
        id_scores: Scores of the ID set by detector, higher for more uncertain samples.
        ood_scores: The same members' scores of the OOD set; another number of members is refused.

    Returns:
        The metrics of `detect` by their keys ending in ``_member``, of each detector that both
        have.
    """
    results = {}
    for name in id_scores:
        if name not in ood_scores:
            continue
        own, others = id_scores[name], ood_scores[name]
        if len(own) != len(others):
            raise ValueError(
                f"ood_scores must be of the {len(own)} members of id_scores, got {len(others)}"
            )
        each = [detect(name, *pair, by_member=True) for pair in zip(own, others, strict=True)]
        for key in each[0]:
            results[key] = torch.stack([found[key] for found in each]).mean().item()
    return results
