"""How quality grows with the number of members: deep-ensemble equivalents, and a power law."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from scipy import optimize
from torch import Tensor

from ..core.mixture import validate_finite
from .bootstrap import contrast_intervals
from .draws import Draws

STEPS, HALVINGS = 8, 8
"""Of the way between two sizes: tried for an interval's ends, and then between two of these."""

EXPONENTS = (-8.0, -0.01)
"""Bounds of the exponent of a power law."""


Curve = Sequence[tuple[int, Draws]]
"""Number of members and draws of ensembles of different sizes."""


@dataclass(frozen=True)
class Equivalent:
    """Independent members of a deep ensemble that a method is worth, with its interval's ends.

    ``inf`` is more than the largest ensemble has; 1 is no better than one network.
    """

    estimate: float
    low: float
    high: float


def deep_ensemble_equivalent(
    method: Draws,
    sizes: Curve,
    *,
    higher_is_better: bool = False,
    level: float = 0.95,
) -> dict[str, Equivalent]:
    """Return the number of independent members that a method is worth, by every metric.

    Use it to put methods of all kinds on one scale: a packed ensemble may be worth 2.3 members of
    a deep ensemble. The authors take the log-likelihood at the best temperature. With ``v`` the
    method's mean metric and ``d(l)`` that of deep ensembles of l members, straight between their
    sizes,

    ``DEE = min {l >= 1: d(l) <= v}``

    (``>=`` where higher is better), ``inf`` where the largest ensemble is not as good. The interval
    holds the sizes l of which ``v - d(l)`` is not shown to differ from 0, by `contrast_intervals`
    at ``level``: both methods' replicates and the choice of images are in it. It ends at ``inf``
    where the largest ensemble is among them.

    Args:
        method: Its `bootstrap_draws`.
        sizes: Number of members and draws of deep ensembles of the same networks, one network (1)
            among them.
        higher_is_better: Of all the metrics.
        level: Confidence level of the intervals.

    Raises:
        ValueError: If sizes do not start at 1 or are fewer than two, or two are the same; and as
            `contrast_intervals`.

    Example:
        >>> import torch
        >>> from deepens.metrics import bootstrap_draws
        >>> from deepens.metrics.statistics.ensemble_size import deep_ensemble_equivalent
        >>> def errors(*counts):  # of 100 images
        ...     flags = [torch.arange(100) < count for count in counts]
        ...     shares = [lambda w, f=f: {"error": (w * f).sum(-1) / 100} for f in flags]
        ...     return bootstrap_draws(shares, sizes=[100])
        >>> sizes = [(1, errors(20, 20)), (2, errors(14, 14)), (4, errors(10, 10))]
        >>> round(deep_ensemble_equivalent(errors(13, 13), sizes)["error"].estimate, 4)
        2.5

    Reference: Ashukha et al. (2020), arXiv:2002.06470
    """
    ordered = sorted(sizes, key=lambda each: each[0])
    counts = [count for count, _ in ordered]
    if len(counts) < 2 or counts[0] != 1 or len(set(counts)) < len(counts):
        raise ValueError(f"sizes must be different numbers of members from 1 on, got {counts}")
    sign = -1.0 if higher_is_better else 1.0
    return {
        name: _equivalent(
            method.only([name]), [(c, each.only([name])) for c, each in ordered], sign, level
        )
        for name in method.observed
    }


def _equivalent(method: Draws, sizes: Curve, sign: float, level: float) -> Equivalent:
    """The equivalent of draws of one metric."""
    counts = [count for count, _ in sizes]
    own, *curve = (
        sign * values.mean().item()
        for each in (method, *(draws for _, draws in sizes))
        for values in each.observed.values()
    )
    if not all(map(math.isfinite, (own, *curve))):
        return Equivalent(*(math.nan,) * 3)
    estimate = _first_as_good(counts, curve, own)

    def alike(size: int | float) -> bool:
        contrast = [(1.0, method), *_parts(sizes, size)]
        (found,) = contrast_intervals(contrast, level=level).values()
        return found.low <= 0 <= found.high

    grid = {
        lower + (upper - lower) * step / STEPS
        for lower, upper in itertools.pairwise(counts)
        for step in range(STEPS)
    }
    tried = sorted({*grid, counts[-1], min(estimate, counts[-1])})
    accepted = [place for place, size in enumerate(tried) if alike(size)]
    if not accepted:
        return Equivalent(estimate, min(estimate, float(counts[-1])), estimate)
    first, last = accepted[0], accepted[-1]
    low = _edge(alike, tried[first], tried[first - 1]) if first else float(tried[0])
    high = math.inf
    if last < len(tried) - 1:
        high = _edge(alike, tried[last], tried[last + 1])
    return Equivalent(estimate, min(low, estimate), max(high, estimate))


def _parts(sizes: Curve, size: int | float) -> list[tuple[float, Draws]]:
    """What to take off for ``d`` at a size, straight between the two around it."""
    for (lower, first), (upper, second) in itertools.pairwise(sizes):
        if size <= upper:
            share = (size - lower) / (upper - lower)
            parts = [(share - 1.0, first), (-share, second)]
            return [part for part in parts if part[0]]
    raise ValueError(f"size must be <= {sizes[-1][0]}, got {size}")


def _edge(alike: Callable[[int | float], bool], inside: int | float, outside: int | float) -> float:
    """Halve the way between a size that is alike and one that is not."""
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if alike(middle) else (inside, middle)
    return inside


def _first_as_good(counts: Sequence[int], losses: Sequence[float], own: float) -> float:
    """Return the first size at which straight lines through the losses come down to one's own."""
    if losses[0] <= own:
        return float(counts[0])
    for index, loss in enumerate(losses[1:]):
        if loss <= own:
            share = (losses[index] - own) / (losses[index] - loss)
            return counts[index] + share * (counts[index + 1] - counts[index])
    return math.inf


@dataclass(frozen=True)
class PowerLaw:
    """``limit + gain M^exponent`` with an exponent below 0."""

    limit: float
    gain: float
    exponent: float

    def predict(self, members: int | float) -> float:
        """Return the loss of an ensemble of so many members."""
        return self.limit + self.gain * members**self.exponent


def fit_power_law(members: Float[Tensor, "sizes"], losses: Float[Tensor, "sizes"]) -> PowerLaw:
    """Fit ``c + b M^a`` to the losses of ensembles of M members, by least squares.

    Use it on the NLL at the best temperature, which follows such a law closely; ``c`` is what
    infinitely many members would reach. The exponent is searched in ``[-8, -0.01]``, the other two
    follow from it.

    Raises:
        ValueError: If there are fewer than 3 different sizes, one is below 1, or what is given is
            not finite or not of one length.

    Example:
        >>> import torch
        >>> from deepens.metrics.statistics.ensemble_size import fit_power_law
        >>> members = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
        >>> law = fit_power_law(members, 0.3 + 0.1 * members**-0.8)
        >>> round(law.limit, 4), round(law.gain, 4), round(law.exponent, 4)
        (0.3, 0.1, -0.8)

    Reference: Lobacheva et al. (2020), arXiv:2007.08483
    """
    validate_finite(members, "members")
    validate_finite(losses, "losses")
    if members.shape != losses.shape or members.ndim != 1:
        raise ValueError(
            f"losses must have one value per size, got shapes {list(members.shape)} and "
            f"{list(losses.shape)}"
        )
    if len(members.unique()) < 3 or members.min() < 1:
        raise ValueError(
            f"members must be >= 3 different sizes of >= 1 member, got {members.tolist()}"
        )
    sizes, values = members.double(), losses.double()
    log_bounds = [math.log(-each) for each in EXPONENTS]

    def residual(log_exponent: float) -> float:
        limit, gain = _line(sizes, values, -math.exp(log_exponent))
        left = values - limit - gain * sizes ** -math.exp(log_exponent)
        return left.square().sum().item()

    # A coarse search first: the residual may have more than one valley.
    least, most = sorted(log_bounds)
    grid = torch.linspace(least, most, 65, dtype=torch.float64).tolist()
    best = min(range(len(grid)), key=lambda place: residual(grid[place]))
    ends = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    result = optimize.minimize_scalar(
        residual, bounds=ends, method="bounded", options={"xatol": 1e-10}
    )
    exponent = -math.exp(min((result.x, *ends), key=residual))
    return PowerLaw(*_line(sizes, values, exponent), exponent)


def _line(
    sizes: Float64[Tensor, "sizes"], losses: Float64[Tensor, "sizes"], exponent: float
) -> tuple[float, float]:
    """Return limit and gain of least squares at an exponent."""
    powers = sizes**exponent
    centred = powers - powers.mean()
    gain = (centred @ (losses - losses.mean()) / centred.square().sum()).item()
    return (losses.mean() - gain * powers.mean()).item(), gain


@dataclass(frozen=True)
class Extrapolation:
    """What a power law predicts for more members, what they reach, and the difference.

    Attributes:
        law: As fitted on the smaller ensembles.
        low: Lower end of the interval of ``predicted - observed``, and ``high`` its upper one.
    """

    law: PowerLaw
    predicted: float
    observed: float
    low: float
    high: float


def extrapolate_power_law(
    sizes: Curve, larger: tuple[int, Draws], *, level: float = 0.95
) -> dict[str, Extrapolation]:
    """Fit `fit_power_law` to ensembles of some sizes, and compare a larger one with it.

    Use it to learn whether more members are worth training before they are. To first order the
    prediction is a weighted sum of the fitted losses, with its gradient as weights: its difference
    to the larger ensemble's loss has the interval of `contrast_intervals`.

    Args:
        sizes: Number of members and `bootstrap_draws` of the ensembles to fit, >= 3 of them.
        larger: The same of the ensemble to predict.
        level: Confidence level of the intervals.

    Raises:
        ValueError: As `fit_power_law` and `contrast_intervals`.

    Reference: Lobacheva et al. (2020), arXiv:2007.08483
    """
    members = torch.tensor([count for count, _ in sizes], dtype=torch.float64)
    count, target = larger
    found = {}
    for name in target.observed:
        losses = torch.stack([draws.observed[name].double().mean() for _, draws in sizes])
        law = fit_power_law(members, losses)
        weights = _gradient(members, losses, count)
        parts = [(w, draws.only([name])) for w, (_, draws) in zip(weights, sizes, strict=True)]
        interval = contrast_intervals([*parts, (-1.0, target.only([name]))], level=level)[name]
        predicted, observed = law.predict(count), target.observed[name].mean().item()
        shift = (predicted - observed) - interval.estimate  # from the tangent through 0
        ends = interval.low + shift, interval.high + shift
        found[name] = Extrapolation(law, predicted, observed, *ends)
    return found


def _gradient(members: Tensor, losses: Tensor, count: int) -> list[float]:
    """Return the derivative of the prediction by each loss, from both sides."""
    spread = (losses.max() - losses.min()).item()
    step = 1e-4 * (spread or 1.0)
    found = []
    for place in range(len(losses)):
        moved = torch.zeros_like(losses)
        moved[place] = step
        up, down = (
            fit_power_law(members, losses + each).predict(count) for each in (moved, -moved)
        )
        found.append((up - down) / (2 * step))
    return found
