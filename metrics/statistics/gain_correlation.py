"""Do ensembles and larger networks improve the same images? Correlation of per-sample gains."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ..core.mixture import validate_finite, validate_share, validate_values
from ..core.shapes import PerSample, Scalar
from .draws import validate_draws, weight_chunks

CHUNK = 2**18  # weights in memory at a time, 2 MB
_CONSTANT = 1e-12  # a spread below this share of the values' size is rounding


@dataclass(frozen=True)
class Gains:
    """Per-sample losses of replicates of a method, each beside those of its base network.

    Losses that are empty, not finite, or differ in shape are a ``ValueError``.

    Args:
        losses: One row per replicate, of the ensemble or of the large network.
        base_losses: The same samples' losses under the replicate's base: a network of the small
            size, e.g. one of the ensemble's members.
    """

    losses: Float64[Tensor, "replicates samples"]
    base_losses: Float64[Tensor, "replicates samples"]

    def __post_init__(self) -> None:
        """Refuse anything but a table of losses."""
        for name, values in (("losses", self.losses), ("base_losses", self.base_losses)):
            if values.ndim != 2 or values.numel() < 1:
                raise ValueError(
                    f"{name} must have shape [replicates, samples], each >= 1, got "
                    f"{list(values.shape)}"
                )
            validate_finite(values, name)
        if self.losses.shape != self.base_losses.shape:
            raise ValueError(
                f"base_losses must have the shape of losses, {list(self.losses.shape)}, got "
                f"{list(self.base_losses.shape)}"
            )

    @property
    def differences(self) -> Float64[Tensor, "replicates samples"]:
        """Loss less the base's loss, in the loss's unit: below 0 the sample gains."""
        return self.losses.double() - self.base_losses.double()


@dataclass(frozen=True)
class CorrelationInterval:
    """A correlation, averaged over pairs of replicates, with its bootstrap interval over samples.

    NaN where some gain is constant; the ends, where one is constant in some draw.
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class GainCorrelations:
    """How alike the gains of ensembles and of large networks are, and each method's own.

    Attributes:
        ensemble_big: Over pairs of one ensemble and one large network.
        ensemble_ensemble: Over pairs of two ensembles: what R is between gains of one method.
        big_big: The same of two large networks.
    """

    ensemble_big: CorrelationInterval
    ensemble_ensemble: CorrelationInterval
    big_big: CorrelationInterval


def gain_correlation(first: PerSample, second: PerSample, *, metric: str = "loss") -> Scalar:
    """Return Pearson's correlation of two methods' gains over samples, in ``[-1, 1]``.

    With ``δ = loss(method) - loss(base)`` of each sample, and means taken off,

    ``R = sum_n δ_n δ'_n / sqrt(sum_n δ_n² sum_n δ'_n²)``

    **The two gains must have different base networks.** If they share one, its errors are in both,
    and R is about 0.5 where three networks err independently and alike. NaN, with a warning that
    names the ``metric``, where a gain is the same on all samples; gains that are empty, not finite,
    or of another length are a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics.statistics.gain_correlation import gain_correlation
        >>> first = torch.tensor([-0.3, -0.1, 0.0, 0.1]).double()
        >>> second = torch.tensor([-0.2, -0.2, 0.1, 0.0]).double()
        >>> round(gain_correlation(first, second).item(), 4)
        0.7482

    Reference: Abe et al. (2022), arXiv:2202.06985
    """
    validate_values(first, name="first")
    validate_values(second, name="second", num_samples=first.shape[0])
    gains = torch.stack([first.double(), second.double()])
    constant = _spread_is_rounding(gains, gains.abs().amax(-1))
    for flag, name in zip(constant.tolist(), ("first", "second"), strict=True):
        if flag:
            _warn(metric, f"the {name} gain")
    once = torch.ones_like(gains[:1])
    return _correlations(_moment_columns(gains, constant), constant, once)[0, 0, 1]


def gain_correlations(
    ensembles: Gains,
    bigs: Gains,
    *,
    metric: str = "loss",
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> GainCorrelations:
    """Return the correlation of ensembles' and large networks' gains, beside both nulls.

    Each is the mean of `gain_correlation` over pairs of replicates: of an ensemble and a large
    network, of two ensembles, of two large networks. The latter two say what R comes to for gains
    of one method, whose networks err by chance, too: ensembles and large networks improve the same
    samples as far as can be seen if the first is as large as they are, and not if it is near 0.

    There are >= 2 ensembles without a common member and >= 2 large networks, of the same samples,
    and no two bases are the same network. Intervals of the given ``level`` are quantiles over
    bootstrap draws of the samples, the same for all three. They speak of the networks at hand, and
    not of others that training might have given. ``metric`` says what the losses are, for messages.

    Raises:
        ValueError: If there are fewer than 2 replicates, samples differ in number, two replicates
            have the same losses or the same base, or ``draws`` or ``level`` are out of range.

    Example:
        >>> import torch
        >>> from deepens.metrics.statistics.gain_correlation import Gains, gain_correlations
        >>> generator = torch.Generator().manual_seed(0)
        >>> normal = lambda *shape: torch.randn(shape, generator=generator).double()
        >>> hardness = normal(1, 2000).exp()  # a hard sample gains more, from either method
        >>> ensembles = Gains(normal(2, 2000), hardness + normal(2, 2000))
        >>> bigs = Gains(normal(2, 2000), hardness + normal(2, 2000))
        >>> found = gain_correlations(ensembles, bigs, metric="nll", draws=200)
        >>> correlation = found.ensemble_big
        >>> correlation.low < correlation.estimate < correlation.high
        True
        >>> abs(correlation.estimate - found.ensemble_ensemble.estimate) < 0.1
        True

    Reference: Abe et al. (2022), arXiv:2202.06985
    """
    validate_draws(draws)
    validate_share(level, "level", "(0, 1)")
    _validate_together(ensembles, bigs)
    gains = torch.cat([ensembles.differences, bigs.differences])
    losses = torch.cat([ensembles.losses, bigs.losses])
    base_losses = torch.cat([ensembles.base_losses, bigs.base_losses])
    sizes = torch.cat([losses, base_losses], -1).double().abs().amax(-1)
    constant = _spread_is_rounding(gains, sizes)
    for flag, name in zip(constant.tolist(), _names("", ensembles, bigs), strict=True):
        if flag:
            _warn(metric, f"the gain of {name}")
    columns = _moment_columns(gains, constant)
    estimate = _correlations(columns, constant, torch.ones_like(gains[:1]))
    drawn = torch.cat(
        [
            _correlations(columns, constant, weights.to(gains.device))
            for [weights] in weight_chunks(gains.shape[1:], draws, seed, at_once=CHUNK)
        ]
    )
    split = len(ensembles.losses)
    ensemble, big = slice(None, split), slice(split, None)
    return GainCorrelations(
        *(
            _interval(_pair_mean(estimate, *axes), _pair_mean(drawn, *axes), level)
            for axes in ((ensemble, big), (ensemble, ensemble), (big, big))
        )
    )


def _moment_columns(gains: Tensor, constant: Tensor) -> Float64[Tensor, "moments samples"]:
    """Return what sums to first and second moments: standardized gains, and all their products."""
    centred = gains - gains.mean(-1, keepdim=True)
    scale = centred.square().mean(-1, keepdim=True).sqrt().masked_fill(constant[:, None], 1.0)
    centred = centred / scale
    return torch.cat([centred, (centred[:, None] * centred).flatten(0, 1)])


def _correlations(
    columns: Tensor, constant: Tensor, weights: Tensor
) -> Float64[Tensor, "draws gains gains"]:
    """Return all correlations of each draw, NaN where a gain is constant."""
    count = len(constant)
    sums = weights.double() @ columns.T / columns.shape[1]
    means, moments = sums[:, :count], sums[:, count:].unflatten(1, (count, count))
    covariance = moments - means[:, :, None] * means[:, None]
    variance = covariance.diagonal(dim1=1, dim2=2)
    missing = constant | (variance <= _CONSTANT * moments.diagonal(dim1=1, dim2=2))
    scale = variance.masked_fill(missing, torch.nan).sqrt()
    return (covariance / scale[:, :, None] / scale[:, None]).clamp(-1.0, 1.0)


def _pair_mean(correlations: Tensor, first: slice, second: slice) -> Float64[Tensor, "draws"]:
    block = correlations[:, first, second]
    if first != second:
        return block.mean((1, 2))
    count = block.shape[1]
    row, column = torch.triu_indices(count, count, offset=1)
    return block[:, row, column].mean(-1)


def _interval(estimate: Tensor, drawn: Tensor, level: float) -> CorrelationInterval:
    tail = (1.0 - level) / 2.0
    ends = drawn.quantile(drawn.new_tensor([tail, 1.0 - tail])).tolist()
    return CorrelationInterval(estimate.item(), *ends)


def _spread_is_rounding(gains: Tensor, sizes: Tensor) -> Tensor:
    return gains.amax(-1) - gains.amin(-1) <= _CONSTANT * sizes


def _names(prefix: str, ensembles: Gains, bigs: Gains) -> list[str]:
    """Name all replicates, as they come when those of the two methods are put together."""
    return [
        f"{prefix}{name}[{index}]"
        for name, gains in (("ensembles", ensembles), ("bigs", bigs))
        for index in range(len(gains.losses))
    ]


def _validate_together(ensembles: Gains, bigs: Gains) -> None:
    counts = [len(ensembles.losses), len(bigs.losses)]
    if min(counts) < 2:
        raise ValueError(
            f"ensembles and bigs must hold >= 2 replicates each, which the nulls compare, got "
            f"{counts[0]} and {counts[1]}"
        )
    number = ensembles.losses.shape[1]
    if bigs.losses.shape[1] != number:
        raise ValueError(f"bigs must hold {number} samples, got {bigs.losses.shape[1]}")
    for kind in ("losses", "base_losses"):
        rows = torch.cat([getattr(ensembles, kind), getattr(bigs, kind)])
        names = _names(f"{kind} of ", ensembles, bigs)
        for second, row in enumerate(rows):
            for first in range(second):
                # A constant loss is nothing random that two gains could share.
                if torch.equal(rows[first], row) and (row != row[0]).any():
                    raise ValueError(
                        f"{names[first]} and {names[second]} must differ, got the same values: "
                        "what two gains share correlates them; take networks of other seeds"
                    )


def _warn(metric: str, what: str) -> None:
    why = f"since {what} is the same on all samples: NaN is returned"
    warnings.warn(f"gain correlation of {metric} is undefined, {why}", RuntimeWarning, stacklevel=3)
