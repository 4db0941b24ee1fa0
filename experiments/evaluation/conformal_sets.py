"""Conformal sets of a run: fitted on ``val/conform``, evaluated on every labelled split.

Nothing else is fitted on these images, not even the temperature. Sets are of the ensemble's
unscaled prediction; there is no coverage guarantee under shift.
"""

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from ...metrics.conformal.prediction_sets import (
    ConformalSets,
    Nonconformity,
    SetQuality,
    evaluate_sets,
    fit_conformal,
)
from ...metrics.core.mixture import mixture_log_probs

CONFORM = "val/conform"
"""The split on which thresholds are fitted, and nothing else is."""

ALPHA = 0.1
"""Share of labels that a set may miss."""

LEAST_SHARE = 0.05
"""Sizes that fewer sets have are left out of the worst coverage by size, as chance dominates."""

CHUNK = 2**21  # logits worked on at a time


def fit_sets(logits: Tensor, targets: Tensor) -> dict[str, ConformalSets]:
    """Fit a threshold per nonconformity score, from logits ``[M, N, C]`` on ``val/conform``."""
    log_probs = mixture_log_probs(logits.double())
    scores: tuple[Nonconformity, ...] = get_args(Nonconformity)
    return {score: fit_conformal(log_probs, targets, alpha=ALPHA, score=score) for score in scores}


def set_metrics(
    logits: Tensor, targets: Tensor, fitted: Mapping[str, ConformalSets]
) -> dict[str, int | float]:
    """Coverage and size of a labelled split's sets, as ``coverage_lac`` and so on."""
    members, _, classes = logits.shape
    size = max(1, CHUNK // (members * classes))
    sets: dict[str, list[Tensor]] = {score: [] for score in fitted}
    for number, part in enumerate(logits.split(size, dim=1)):
        log_probs = mixture_log_probs(part.double())
        for score, conformal in fitted.items():
            sets[score].append(conformal.sets(log_probs, first=number * size))
    metrics: dict[str, int | float] = {}
    for score, parts in sets.items():
        quality = _metrics_of(evaluate_sets(torch.cat(parts), targets))
        metrics |= {f"{name}_{score}": value for name, value in quality.items()}
    return metrics


def _metrics_of(quality: SetQuality) -> dict[str, float]:
    often = quality.size_counts >= LEAST_SHARE * quality.size_counts.sum()
    by_size = quality.size_coverage[1:][often[1:]]  # without the empty ones, which hold no label
    by_class = quality.class_coverage[~quality.class_coverage.isnan()]
    return {
        "coverage": quality.coverage,
        "set_size": quality.mean_size,
        "empty_sets": quality.empty,
        # Where nearly all sets are empty, that is their coverage.
        "worst_size_coverage": by_size.min().item() if len(by_size) else quality.coverage,
        "worst_class_coverage": by_class.min().item(),
    }
