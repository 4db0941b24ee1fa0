"""Effective robustness at matched in-distribution accuracy."""

import math
from dataclasses import dataclass

import scipy
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..core.mixture import validate_share, validate_values

FEWEST_FOR_INTERVALS = 5
"""Single models from which on there are intervals; the scatter of fewer is hardly known."""


@dataclass(frozen=True)
class RobustnessLine:
    """The line ``logit(acc_ood) = intercept + slope logit(acc_id)``."""

    intercept: float
    slope: float

    def predict(self, id_accuracy: Float[Tensor, "models"]) -> Float64[Tensor, "models"]:
        """Return the accuracy under shift that the line gives, ``σ(a + b logit(acc_id))``."""
        logits = _logits(id_accuracy, "id_accuracy")
        return (self.intercept + self.slope * logits).sigmoid()


@dataclass(frozen=True)
class EffectiveRobustness:
    """Effective robustness of models, in shares of samples and in logits, with intervals' ends.

    Attributes:
        estimate: Accuracy under shift less the line's, one per model. The interval from ``low`` to
            ``high`` holds 0 for 95 % of models that are as robust as single models; NaN with fewer
            than 5 of these.
        logit_estimate: ``logit(acc_ood)`` less the line's logit.
        line: As fitted on the single models.
    """

    estimate: Float64[Tensor, "models"]
    low: Float64[Tensor, "models"]
    high: Float64[Tensor, "models"]
    logit_estimate: Float64[Tensor, "models"]
    logit_low: Float64[Tensor, "models"]
    logit_high: Float64[Tensor, "models"]
    line: RobustnessLine


def fit_robustness_line(
    id_accuracy: Float[Tensor, "singles"], ood_accuracy: Float[Tensor, "singles"]
) -> RobustnessLine:
    """Fit the accuracy under shift on that without, over single models, both in logits.

    Least squares: ``b = sum_i (x_i - x̄)(y_i - ȳ) / sum_i (x_i - x̄)²`` and ``a = ȳ - b
    x̄`` with ``x = logit(acc_id)`` and ``y = logit(acc_ood)``, accuracies of the same single
    models.

    Raises:
        ValueError: If there are fewer than 3 models, accuracies leave ``(0, 1)`` or differ in
            number, or all models are equally accurate without shift.

    Example:
        >>> import torch
        >>> from deepens.metrics.statistics.effective_robustness import fit_robustness_line
        >>> line = fit_robustness_line(torch.tensor([0.5, 0.8, 0.9]), torch.tensor([0.3, 0.6, 0.7]))
        >>> round(line.intercept, 4), round(line.slope, 4)
        (-0.8031, 0.7855)
        >>> [round(value, 4) for value in line.predict(torch.tensor([0.85])).tolist()]
        [0.6363]

    Reference: Taori et al. (2020), arXiv:2007.00644
    """
    x, y = _singles(id_accuracy, ood_accuracy, ("id_accuracy", "ood_accuracy"))
    return _fit(x, y)


def effective_robustness(
    id_accuracy: Float[Tensor, "models"],
    ood_accuracy: Float[Tensor, "models"],
    *,
    single_id_accuracy: Float[Tensor, "singles"],
    single_ood_accuracy: Float[Tensor, "singles"],
    level: float = 0.95,
) -> EffectiveRobustness:
    """Return how far models lie above the line of single models.

    ``ρ = acc_ood - σ(a + b logit(acc_id))``, in logits ``logit(acc_ood) - a - b logit(acc_id)``,
    with a and b by `fit_robustness_line`; above 0 is more robust than single models as accurate.

    The models to judge are, e.g., an ensemble's replicates, their accuracies in ``(0, 1)``; beyond
    the single models' range the line is extended, as the authors do.

    Intervals are those of a prediction: single models scatter about their line, and so would one
    more. With n of them, ``x̄`` and s² the mean of ``x = logit(acc_id)`` and the squared residuals
    over ``n - 2``, and Student's quantile t at ``n - 2`` degrees of freedom, the reach in logits is

    ``t s sqrt(1 + 1 / n + (x - x̄)² / Σ_i (x_i - x̄)²)``,

    and in shares the line's two ends are turned back by σ. A new single model, measured as the
    others are (its own run, or the mean of as many), has 0 in its interval with the probability
    ``level`` where scatter is normal and even; what leaves 0 out is more than scatter. With fewer
    than five single models there is none.

    Raises:
        ValueError: As `fit_robustness_line`, or if there is no model, or ``level`` is out of
            range.

    Example:
        >>> import torch
        >>> from deepens.metrics.statistics.effective_robustness import effective_robustness
        >>> found = effective_robustness(
        ...     torch.tensor([0.85]),
        ...     torch.tensor([0.68]),
        ...     single_id_accuracy=torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9]),
        ...     single_ood_accuracy=torch.tensor([0.3, 0.41, 0.49, 0.6, 0.7]),
        ... )
        >>> round(found.estimate.item(), 4), round(found.logit_estimate.item(), 4)
        (0.0384, 0.1714)
        >>> bool(found.low < found.estimate < found.high)
        True

    Reference: Taori et al. (2020), arXiv:2007.00644; Abe et al. (2022), arXiv:2202.06985
    """
    validate_share(level, "level", "(0, 1)")
    names = ("single_id_accuracy", "single_ood_accuracy")
    x, y = _singles(single_id_accuracy, single_ood_accuracy, names)
    model_x = _logits(id_accuracy, "id_accuracy")
    model_y = _logits(ood_accuracy, "ood_accuracy", num_models=len(model_x))
    line = _fit(x, y)
    expected = line.intercept + line.slope * model_x
    reach = torch.full_like(expected, math.nan)
    if len(x) >= FEWEST_FOR_INTERVALS:
        freedom = len(x) - 2
        squared = (y - line.intercept - line.slope * x).square().sum() / freedom
        centred = x - x.mean()
        leverage = 1 / len(x) + (model_x - x.mean()).square() / centred.square().sum()
        student = -float(scipy.special.stdtrit(freedom, (1.0 - level) / 2.0))
        reach = student * (squared * (1 + leverage)).sqrt()
    shares = ood_accuracy.double()
    logits = model_y - expected
    return EffectiveRobustness(
        shares - expected.sigmoid(),
        shares - (expected + reach).sigmoid(),
        shares - (expected - reach).sigmoid(),
        logits,
        logits - reach,
        logits + reach,
        line,
    )


def _fit(x: Tensor, y: Tensor) -> RobustnessLine:
    """Return the least-squares line."""
    centred = x - x.mean()
    slope = ((centred * (y - y.mean())).sum() / centred.square().sum()).item()
    return RobustnessLine(y.mean().item() - slope * x.mean().item(), slope)


def _singles(
    id_accuracy: Tensor, ood_accuracy: Tensor, names: tuple[str, str]
) -> tuple[Float64[Tensor, "singles"], Float64[Tensor, "singles"]]:
    """Return the logits of the accuracies of single models, if a line can be fitted."""
    x = _logits(id_accuracy, names[0])
    y = _logits(ood_accuracy, names[1], num_models=len(x))
    if len(x) < 3:
        raise ValueError(f"{names[0]} must hold >= 3 single models to fit a line, got {len(x)}")
    if x.min() == x.max():
        raise ValueError(
            f"{names[0]} must differ between single models, got {id_accuracy[0].item():.6g} for "
            "all: add single models of another size"
        )
    return x, y


def _logits(
    accuracy: Tensor, name: str, *, num_models: int | None = None
) -> Float64[Tensor, "models"]:
    """Return ``log(p / (1 - p))``, or refuse what has none."""
    validate_values(accuracy, name=name)
    if num_models is not None and len(accuracy) != num_models:
        raise ValueError(f"{name} must hold {num_models} models, got {len(accuracy)}")
    outside = accuracy[(accuracy <= 0) | (accuracy >= 1)]
    if len(outside):
        raise ValueError(
            f"{name} must lie in (0, 1), where the logit is finite, got {outside[0].item():.6g}"
        )
    return accuracy.double().logit()
