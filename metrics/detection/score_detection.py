"""OOD detection by a score of any name: four metrics from one sort."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.catalogue import detection_key
from ..core.mixture import validate_values
from ..core.ranking import CumulativeCounts, rank
from ..core.shapes import PerDraw, Scalar
from .ood import auroc_from_counts, average_precision_from_counts, false_positive_rate_from_counts


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
        >>> from deepens.metrics.detection.score_detection import detect
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
