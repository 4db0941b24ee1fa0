"""Bootstrap draws of the images, and methods' metrics on each of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Evaluation = Callable[..., Mapping[str, Tensor]]
"""A function of one integer weight tensor ``[draws, samples]`` per sample set, giving ``[draws]``
values of every metric by name."""

CHUNK = 2**16  # weights in memory at a time: 0.5 MB, so that a chunk of draws stays in the cache


@dataclass(frozen=True, eq=False)
class Draws:
    """A method's metrics on the data as they are, and on each bootstrap draw of the images.

    Attributes:
        observed: Metric name -> values, one per replicate.
        resampled: Metric name -> values, one per draw and replicate.
        sizes: Samples in each set. With ``draws`` and the ``seed`` it says which draws these are.
        networks: Per replicate, a name that is the same in all replicates that have networks in
            common, of whatever methods; empty where a replicate has none in common with any. None
            at all: no replicate has.
    """

    observed: Mapping[str, Float64[Tensor, "replicates"]]
    resampled: Mapping[str, Float64[Tensor, "draws replicates"]]
    sizes: tuple[int, ...]
    draws: int
    seed: int
    networks: tuple[str, ...] = ()

    def only(self, names: Sequence[str]) -> "Draws":
        """Return the same draws of some of the metrics."""
        observed, resampled = (
            {name: values[name] for name in names} for values in (self.observed, self.resampled)
        )
        return Draws(observed, resampled, self.sizes, self.draws, self.seed, self.networks)

    def beside(self, other: "Draws") -> "Draws":
        """Return the draws of this method's and another's replicates, as those of one method."""
        validate_same_draws(self, other)
        observed, resampled = (
            {name: torch.cat([values, others[name]], -1) for name, values in mine.items()}
            for mine, others in (
                (self.observed, other.observed),
                (self.resampled, other.resampled),
            )
        )
        networks = (*self.named_networks, *other.named_networks)
        return Draws(observed, resampled, self.sizes, self.draws, self.seed, networks)

    @property
    def named_networks(self) -> tuple[str, ...]:
        """One name per replicate."""
        count = next((len(values) for values in self.observed.values()), 0)
        return self.networks or ("",) * count


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


def bootstrap_draws(
    evaluations: Sequence[Evaluation],
    *,
    sizes: Sequence[int],
    draws: int = 1000,
    seed: int = 0,
    networks: Sequence[str] = (),
) -> Draws:
    """Evaluate a method on bootstrap draws, to be compared with any number of others.

    `paired_bootstrap` of two methods is `paired_intervals` of their draws; where each of several
    methods is compared with each of others, this evaluates every one of them once. Methods drawn
    apart with the same ``sizes``, ``draws`` and ``seed`` are paired all the same. ``networks`` are
    names of what replicates have in common with those of other methods, as in `Draws`: one for each
    evaluation, or none. Other arguments and errors as `paired_bootstrap`.
    """
    if not evaluations:
        raise ValueError("evaluations must hold >= 1 replicate, got 0")
    if networks and len(networks) != len(evaluations):
        raise ValueError(
            f"networks must name each of the {len(evaluations)} replicates, got {len(networks)}"
        )
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
        tuple(networks),
    )


def validate_draws(draws: int) -> None:
    """Refuse fewer than two bootstrap draws."""
    if draws < 2:
        raise ValueError(f"draws must be >= 2, got {draws}")


def validate_same_draws(first: Draws, second: Draws) -> None:
    """Refuse two methods that were drawn apart in another way, or have other metrics."""
    for name in ("sizes", "draws", "seed"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ValueError(
                f"first and second must be drawn with the same {name}, got {ours} and {theirs}: "
                "draw both alike"
            )
    _validate_names([first.observed, second.observed])


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
