"""Effective robustness at matched in-distribution accuracy."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..core.mixture import validate_share, validate_values
from .draws import resampling_weights, validate_draws


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
        estimate: Accuracy under shift less the line's, one per model.
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
    intercept, slope = _fit(x, y, torch.ones(1, len(x), dtype=torch.float64, device=x.device))
    return RobustnessLine(intercept.item(), slope.item())


def effective_robustness(
    id_accuracy: Float[Tensor, "models"],
    ood_accuracy: Float[Tensor, "models"],
    *,
    single_id_accuracy: Float[Tensor, "singles"],
    single_ood_accuracy: Float[Tensor, "singles"],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> EffectiveRobustness:
    """Return how far models lie above the line of single models.

    ``ρ = acc_ood - σ(a + b logit(acc_id))``, in logits ``logit(acc_ood) - a - b logit(acc_id)``,
    with a and b by `fit_robustness_line`; above 0 is more robust than single models as accurate.

    The models to judge are, e.g., an ensemble's replicates, their accuracies in ``(0, 1)``; beyond
    the single models' range the line is extended, as the authors do. Intervals of the given
    ``level`` are quantiles over bootstrap draws of the single models, each with a line of its own;
    draws of models that are all equally accurate without shift are drawn again. They say how sure
    the *line* is: what the model itself would have been with another seed shows in the spread of
    its replicates' estimates (`summarize_replicates`). With fewer than about ten single models they
    are too short.

    Raises:
        ValueError: As `fit_robustness_line`, or if there is no model, or ``draws`` or ``level`` are
            out of range.

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
    validate_draws(draws)
    validate_share(level, "level", "(0, 1)")
    names = ("single_id_accuracy", "single_ood_accuracy")
    x, y = _singles(single_id_accuracy, single_ood_accuracy, names)
    model_x = _logits(id_accuracy, "id_accuracy")
    model_y = _logits(ood_accuracy, "ood_accuracy", num_models=len(model_x))
    once = torch.ones(1, len(x), dtype=torch.float64, device=x.device)
    weights = torch.cat([once, _resample(x, draws, seed)])
    intercepts, slopes = _fit(x, y, weights)
    expected = intercepts[:, None] + slopes[:, None] * model_x
    tail = (1.0 - level) / 2.0
    quantiles = x.new_tensor([tail, 1.0 - tail])
    shares, logits = ood_accuracy.double() - expected.sigmoid(), model_y - expected
    low, high = shares[1:].quantile(quantiles, dim=0)
    logit_low, logit_high = logits[1:].quantile(quantiles, dim=0)
    line = RobustnessLine(intercepts[0].item(), slopes[0].item())
    return EffectiveRobustness(shares[0], low, high, logits[0], logit_low, logit_high, line)


def _fit(
    x: Tensor, y: Tensor, weights: Tensor
) -> tuple[Float64[Tensor, "draws"], Float64[Tensor, "draws"]]:
    """Return intercept and slope of the least-squares line of each draw."""
    total = weights.sum(-1, keepdim=True)
    x_mean, y_mean = ((weights * each).sum(-1, keepdim=True) / total for each in (x, y))
    weighted = weights * (x - x_mean)
    slope = (weighted * (y - y_mean)).sum(-1) / (weighted * (x - x_mean)).sum(-1)
    return y_mean[:, 0] - slope * x_mean[:, 0], slope


def _resample(x: Tensor, draws: int, seed: int) -> Float64[Tensor, "draws singles"]:
    """Draw weights of resamples that hold two models of different accuracy."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[Tensor] = []
    while sum(len(part) for part in kept) < draws:
        weights = resampling_weights(len(x), draws, generator).to(x.device)
        largest = x.masked_fill(weights == 0, -torch.inf).amax(-1)
        smallest = x.masked_fill(weights == 0, torch.inf).amin(-1)
        kept.append(weights[largest > smallest].double())
    return torch.cat(kept)[:draws]


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
