"""What a run fits on its validation images, temperatures and conformal sets, and its metrics.

Conformal sets are of the ensemble's unscaled prediction, fitted on ``val/conform``, where nothing
else is fitted; there is no coverage guarantee under shift.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from ...metrics.calibration.temperature import Temperature
from ...metrics.conformal import prediction_sets
from ...metrics.conformal.prediction_sets import ConformalSets
from ...metrics.core.catalogue import metrics_with
from ...metrics.core.mixture import mixture_log_probs
from ...metrics.suite import evaluate_values
from .predictions import values_of
from .temperatures import CALIBRATE, Values, fit_temperatures, scaled_metrics

CONFORM = "val/conform"
"""The split on which thresholds are fitted, and nothing else is."""

ALPHA = 0.1
"""Share of labels that a set may miss."""

COPIED = 0.05
"""Share of training images among validation images from which on nothing is fitted on them."""

LEAST_SHARE = 0.05
"""Sizes that fewer sets have are left out of the worst coverage by size, as chance dominates."""

CHUNK = 2**21  # logits worked on at a time


@dataclass
class ValidationFit:
    """Temperatures by way and conformal sets by score, fitted on validation images.

    Use it wherever labelled splits are evaluated: show it the validation splits by `fit`, then ask
    for the metrics of each split. What these images do not identify is NaN: temperatures that say
    so, and sets with a reason in ``sets_unidentified``. ``copied`` says how many images of a
    validation split are training images, on which networks are surer than on others.
    """

    temperatures: Mapping[str, Temperature] = field(default_factory=dict)
    sets: Mapping[str, ConformalSets] = field(default_factory=dict)
    copied: Mapping[str, int] = field(default_factory=dict)
    sets_unidentified: str = ""

    def fit(self, split: str, logits: Tensor, targets: Tensor | None) -> None:
        """Fit what is fitted on this split, if anything; logits are ``[M, N, C]``."""
        if targets is None or split not in (CALIBRATE, CONFORM):
            return
        copies, why = self.copied.get(split, 0), ""
        if copies >= max(1, COPIED * len(targets)):
            why = f"{copies} of {len(targets)} {split} images are training images"
        if split == CALIBRATE:
            self.temperatures = fit_temperatures(logits, targets, why)
        else:
            if not why and len(targets) < (least := prediction_sets.least_samples(ALPHA)):
                why = f"{len(targets)} {split} images, of at least {least} for {1 - ALPHA:.0%}"
            self.sets, self.sets_unidentified = fit_sets(logits, targets), why

    def metrics(self, split: str, logits: Tensor, targets: Tensor) -> Values:
        """Metrics of a labelled split at each temperature and of each kind of sets.

        Sets are not judged on the images on which they were fitted.
        """
        return {
            **scaled_metrics(logits, targets, self.temperatures),
            **({} if split == CONFORM else self._set_metrics(logits, targets)),
        }

    def _set_metrics(self, logits: Tensor, targets: Tensor) -> Values:
        if self.sets_unidentified:
            return dict.fromkeys(metrics_with(scope="conformal"), math.nan)
        return set_metrics(logits, targets, self.sets)

    def all_metrics(self, split: str, logits: Tensor, targets: Tensor) -> Values:
        """All metrics of a labelled split, such as one whose logits are not stored."""
        values = values_of(logits, targets, f"split {split}")
        return {**evaluate_values(values), **self.metrics(split, logits, targets)}


def fit_sets(logits: Tensor, targets: Tensor) -> dict[str, ConformalSets]:
    """Fit a threshold per nonconformity score, from logits ``[M, N, C]`` on ``val/conform``."""
    log_probs = mixture_log_probs(logits.double())
    scores = get_args(prediction_sets.Nonconformity)
    fit = prediction_sets.fit_conformal
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "alpha=.* needs >=", RuntimeWarning)  # said elsewhere
        return {score: fit(log_probs, targets, alpha=ALPHA, score=score) for score in scores}


def set_metrics(logits: Tensor, targets: Tensor, fitted: Mapping[str, ConformalSets]) -> Values:
    """Coverage and size of a labelled split's sets, as ``coverage_lac`` and so on."""
    members, _, classes = logits.shape
    size = max(1, CHUNK // (members * classes))
    sets: dict[str, list[Tensor]] = {score: [] for score in fitted}
    for number, part in enumerate(logits.split(size, dim=1)):
        log_probs = mixture_log_probs(part.double())
        for score, conformal in fitted.items():
            sets[score].append(conformal.sets(log_probs, first=number * size))
    metrics: Values = {}
    for score, parts in sets.items():
        quality = _metrics_of(prediction_sets.evaluate_sets(torch.cat(parts), targets))
        metrics |= {f"{name}_{score}": value for name, value in quality.items()}
    return metrics


def _metrics_of(quality: prediction_sets.SetQuality) -> dict[str, float]:
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
