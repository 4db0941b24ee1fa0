"""What a run fits on its validation images, temperatures and conformal sets, and its metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...metrics.calibration.temperature import Temperature
from ...metrics.conformal.prediction_sets import ConformalSets
from ...metrics.suite import evaluate_values
from .conformal_sets import CONFORM, fit_sets, set_metrics
from .predictions import values_of
from .temperatures import CALIBRATE, fit_temperatures, scaled_metrics, temperature_metrics


@dataclass
class ValidationFit:
    """Temperatures and conformal sets, fitted on validation images and kept under shift.

    Use it wherever labelled splits are evaluated: show it the validation splits by `fit`, then ask
    for the metrics of each split.

    Attributes:
        temperatures: By way, once ``val/calibrate`` was seen.
        sets: By nonconformity score, once ``val/conform`` was seen.
    """

    temperatures: Mapping[str, Temperature] = field(default_factory=dict)
    sets: Mapping[str, ConformalSets] = field(default_factory=dict)

    def fit(self, split: str, logits: Tensor, targets: Tensor | None) -> None:
        """Fit what is fitted on this split, if anything; logits are ``[M, N, C]``."""
        if targets is not None and split == CALIBRATE:
            self.temperatures = fit_temperatures(logits, targets)
        if targets is not None and split == CONFORM:
            self.sets = fit_sets(logits, targets)

    def metrics(self, split: str, logits: Tensor, targets: Tensor) -> dict[str, int | float]:
        """Metrics of a labelled split at each temperature and of each kind of sets.

        Sets are not judged on the images on which they were fitted.
        """
        return {
            **scaled_metrics(logits, targets, self.temperatures),
            **temperature_metrics(self.temperatures),
            **({} if split == CONFORM else set_metrics(logits, targets, self.sets)),
        }

    def all_metrics(self, split: str, logits: Tensor, targets: Tensor) -> dict[str, int | float]:
        """All metrics of a labelled split, such as one whose logits are not stored."""
        values = values_of(logits, targets, f"split {split}")
        return {**evaluate_values(values), **self.metrics(split, logits, targets)}
