"""Differences between methods: replicate means and paired bootstrap intervals."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from scipy import special
from torch import Tensor

from ..core.mixture import validate_share

Evaluation = Callable[..., Mapping[str, Tensor]]
"""A function of one integer weight tensor ``[draws, samples]`` per sample set, giving ``[draws]``
values of every metric by name."""

CHUNK = 2**16  # weights in memory at a time: 0.5 MB, so that a chunk of draws stays in the cache


@dataclass(frozen=True)
class Interval:
    """An estimate between the ends of its confidence interval.

    ``p_value`` is two-sided, of there being no difference.
    """

    estimate: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, eq=False)
class Draws:
    """A method's metrics on the data as they are, and on each bootstrap draw of the images.

    Attributes:
        observed: Metric name -> values, one per replicate.
        resampled: Metric name -> values, one per draw and replicate.
        sizes: Samples in each set. With ``draws`` and the ``seed`` it says which draws these are.
    """

    observed: Mapping[str, Float64[Tensor, "replicates"]]
    resampled: Mapping[str, Float64[Tensor, "draws replicates"]]
    sizes: tuple[int, ...]
    draws: int
    seed: int

    def only(self, names: Sequence[str]) -> "Draws":
        """Return the same draws of some of the metrics."""
        observed, resampled = (
            {name: values[name] for name in names} for values in (self.observed, self.resampled)
        )
        return Draws(observed, resampled, self.sizes, self.draws, self.seed)


@dataclass(frozen=True)
class ReplicateSummary:
    """Mean and spread over ``count`` replicates.

    The standard deviation has ``n - 1`` in the denominator, and is NaN for a single replicate.
    """

    mean: float
    standard_deviation: float
    count: int


def summarize_replicates(values: Sequence[float]) -> ReplicateSummary:
    """Return mean and standard deviation (``ddof = 1``) over replicates; none is a ``ValueError``.

    One replicate has no spread, which is NaN, not 0.

    Example:
        >>> from deepens.metrics import summarize_replicates
        >>> summarize_replicates([0.5, 1.0, 1.5])
        ReplicateSummary(mean=1.0, standard_deviation=0.5, count=3)
    """
    if len(values) < 1:
        raise ValueError("values must hold >= 1 replicate, got 0")
    defined = len(values) > 1 and all(map(math.isfinite, values))
    spread = statistics.stdev(values) if defined else math.nan
    return ReplicateSummary(statistics.fmean(values), spread, len(values))


def resampling_weights(
    num_samples: int, draws: int, generator: torch.Generator
) -> Int64[Tensor, "draws samples"]:
    """Draw bootstrap resamples as multinomial weights: how often each sample was drawn.

    Each row sums to ``num_samples``; no sample or no draw is a ``ValueError``.
    """
    if num_samples < 1 or draws < 1:
        raise ValueError(f"num_samples and draws must be >= 1, got {num_samples} and {draws}")
    chosen = torch.randint(num_samples, (draws, num_samples), generator=generator)
    one = torch.ones(1, 1, dtype=torch.int64).expand_as(chosen)
    return torch.zeros_like(chosen).scatter_add_(1, chosen, one)


def weight_chunks(
    sizes: Sequence[int], draws: int, seed: int, *, at_once: int = CHUNK
) -> Iterator[list[Tensor]]:
    """Yield `resampling_weights` of each set, some draws at a time."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, at_once // sum(sizes))  # of the sizes alone: the rows decide what is drawn
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        yield [resampling_weights(size, count, generator) for size in sizes]


def paired_bootstrap(
    first: Sequence[Evaluation],
    second: Sequence[Evaluation],
    *,
    sizes: Sequence[int],
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the difference ``first - second`` of every metric, with a confidence interval.

    With θ the difference of replicate means on the data as they are, the interval holds both things
    that a claim about two *methods* is unsure of, added as variances are:

    - *Images*: the same difference over bootstrap draws, each with one multinomial weight vector a
      sample set, shared by both methods and all their replicates (paired): an image that is hard
      for both does not blur their difference. ID and OOD sets have vectors of their own. With q
      the quantiles over the draws, ``c = 2 θ - q_{1/2}`` is the centre, corrected for the bias
      that resampling adds to metrics such as the ECE, ``l = q_{1 - α/2} - q_{1/2}`` and
      ``u = q_{1/2} - q_{α/2}`` are the basic interval's arms.
    - *Replicates*: which networks training happened to give. ``e² = s₁² / R₁ + s₂² / R₂`` from the
      replicates' own spread (ddof 1), with Student's quantile t at Welch's degrees of freedom
      ``ν = (σ² + e²)² / (s₁⁴ / (R₁² (R₁ - 1)) + s₂⁴ / (R₂² (R₂ - 1)))``, σ² the draws' variance.

    The interval is ``[c - sqrt((l t / z)² + (e t)²), c + sqrt((u t / z)² + (e t)²)]`` with z the
    normal quantile; where the spread is nothing, the basic bootstrap interval over images. (To
    resample the replicates as well, as images are, is short by the factor ``(R - 1) / R`` in
    variance: with three replicates, nominal 95 % intervals then miss up to a quarter of the time
    where the spread of replicates dominates.)

    The p-value of no difference is ``2 T_ν(-|c| / sqrt(σ² + e²))``, T being Student's distribution
    function (the normal one where ``e = 0``); several are adjusted by `holm_adjusted`. It treats
    draws as normal, which the interval does not: near 5 % the two may differ.

    **A method with one replicate** says nothing about its spread: its term is left out, and the
    interval speaks of the networks at hand, not of the methods.

    Args:
        first: One evaluation per replicate of one method, e.g. `SplitEvaluation` objects.
        second: The same for the other method; the numbers of replicates may differ.
        sizes: Samples in each set, in the order in which evaluations take weights: ``[N]`` for a
            split, ``[N_id, N_ood]`` for OOD detection.
        draws: Number of bootstrap draws.
        level: Confidence level of the intervals.
        seed: Seed of the resampling; the image weights depend on it, ``sizes`` and ``draws`` only.

    Returns:
        Metric name -> difference and interval; NaN where a metric is undefined in some draw.

    Raises:
        ValueError: If a method has no replicate, evaluations name different metrics, or ``sizes``,
            ``draws`` or ``level`` are out of range.

    Example:
        >>> import torch
        >>> from deepens.metrics import paired_bootstrap
        >>> hits = torch.arange(100) % 2
        >>> accuracy = lambda weights: {"accuracy": (weights * hits).sum(-1) / weights.sum(-1)}
        >>> paired_bootstrap([accuracy], [accuracy], sizes=[100])
        {'accuracy': Interval(estimate=0.0, low=0.0, high=0.0, p_value=1.0)}
    """
    if not first or not second:
        raise ValueError(
            f"first and second must hold >= 1 replicate, got {len(first)} and {len(second)}"
        )
    validate_share(level, "level", "(0, 1)")
    ours, theirs = (
        bootstrap_draws(each, sizes=sizes, draws=draws, seed=seed) for each in (first, second)
    )
    return paired_intervals(ours, theirs, level=level)


def bootstrap_draws(
    evaluations: Sequence[Evaluation], *, sizes: Sequence[int], draws: int = 1000, seed: int = 0
) -> Draws:
    """Evaluate a method on bootstrap draws, to be compared with any number of others.

    `paired_bootstrap` of two methods is `paired_intervals` of their draws; where each of several
    methods is compared with each of others, this evaluates every one of them once. Methods drawn
    apart with the same ``sizes``, ``draws`` and ``seed`` are paired all the same. Arguments and
    errors as `paired_bootstrap`.
    """
    if not evaluations:
        raise ValueError("evaluations must hold >= 1 replicate, got 0")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be >= 1, got {list(sizes)}")
    validate_draws(draws)
    once = [torch.ones(1, size, dtype=torch.int64) for size in sizes]
    observed = _evaluate_all(evaluations, once)
    chunks = [_evaluate_all(evaluations, weights) for weights in weight_chunks(sizes, draws, seed)]
    return Draws(
        {name: values[0] for name, values in observed.items()},
        {name: torch.cat([chunk[name] for chunk in chunks]) for name in observed},
        tuple(sizes),
        draws,
        seed,
    )


def paired_intervals(first: Draws, second: Draws, *, level: float = 0.95) -> dict[str, Interval]:
    """Return the difference ``first - second`` of every metric, as `paired_bootstrap` does.

    Both are `bootstrap_draws` of the same draws of the same images; others, different metrics, or a
    ``level`` out of range are a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics.statistics.bootstrap import bootstrap_draws, paired_intervals
        >>> share = lambda hits: lambda weights: {"share": (weights * hits).sum(-1) / 100}
        >>> three = [torch.arange(100) < count for count in (90, 80, 70)]
        >>> best, *others = (bootstrap_draws([share(hits)], sizes=[100]) for hits in three)
        >>> found = [paired_intervals(best, each)["share"] for each in others]
        >>> [round(each.estimate, 2) for each in found], found[0].low > 0
        ([0.1, 0.2], True)
    """
    validate_share(level, "level", "(0, 1)")
    for name in ("sizes", "draws", "seed"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ValueError(
                f"first and second must be drawn with the same {name}, got {ours} and {theirs}: "
                "draw both alike"
            )
    _validate_names([first.observed, second.observed])
    tail = (1.0 - level) / 2.0
    quantiles = torch.tensor([tail, 0.5, 1.0 - tail], dtype=torch.float64)
    intervals = {}
    for name, values in first.observed.items():
        groups = (values, second.observed[name])
        differences = first.resampled[name].mean(1) - second.resampled[name].mean(1)
        estimate = (groups[0].mean() - groups[1].mean()).item()
        below, middle, above = differences.quantile(quantiles).tolist()
        centre = 2 * estimate - middle
        image_variance = differences.var().item()
        error, freedom = _replicate_error(groups, image_variance)
        student = -float(special.stdtrit(freedom, tail))
        factor = student / -float(special.ndtri(tail)) if math.isfinite(freedom) else 1.0
        reach = student * math.sqrt(error)
        intervals[name] = Interval(
            estimate,
            centre - math.hypot((above - middle) * factor, reach),
            centre + math.hypot((middle - below) * factor, reach),
            _p_value(centre, image_variance + error, freedom),
        )
    return intervals


def validate_draws(draws: int) -> None:
    """Refuse fewer than two bootstrap draws."""
    if draws < 2:
        raise ValueError(f"draws must be >= 2, got {draws}")


def _p_value(centre: float, variance: float, freedom: float) -> float:
    if variance > 0:
        return 2 * float(special.stdtr(freedom, -abs(centre) / math.sqrt(variance)))
    return math.nan if math.isnan(variance) else float(centre == 0.0)


def _replicate_error(groups: Sequence[Tensor], image_variance: float) -> tuple[float, float]:
    """Return the variance of the mean that comes from the replicates' spread, and Welch's ν."""
    several = [group for group in groups if len(group) > 1]
    errors = [group.var().item() / len(group) for group in several]
    error = math.fsum(errors)
    if not error > 0:  # no spread, or NaN, of a metric that is undefined in some replicate
        return error, math.inf
    spread = sum(e**2 / (len(group) - 1) for e, group in zip(errors, several, strict=True))
    return error, (image_variance + error) ** 2 / spread


def _evaluate_all(
    evaluations: Sequence[Evaluation], weights: Sequence[Tensor]
) -> dict[str, Float64[Tensor, "draws replicates"]]:
    results = [evaluation(*weights) for evaluation in evaluations]
    _validate_names(results)
    return {
        name: torch.stack([result[name].double().cpu() for result in results], dim=1)
        for name in results[0]
    }


def _validate_names(results: Sequence[Mapping[str, Tensor]]) -> None:
    names = list(results[0])
    for result in results:
        if set(result) != set(names):
            raise ValueError(
                f"evaluations must name the same metrics, got {names} and {list(result)}"
            )
