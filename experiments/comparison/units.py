"""The trainings of a comparison, in the order in which they are done."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..config import CompareConfig, TrainConfig
from ..training.building import settle_batches
from .ensemble_methods import training_config
from .methods import Changes


@dataclass(frozen=True)
class Unit:
    """One training of a comparison: it needs no other, so that units may be done in any order.

    Attributes:
        replicate: Its number, from 0.
        runs: By method, the runs that come of it.
    """

    replicate: int
    runs: Mapping[str, TrainConfig]


def units_of(config: CompareConfig, changes: Mapping[str, Changes]) -> Iterator[Unit]:
    """List the trainings of a comparison, replicate by replicate.

    ``changes`` are the options of each method that trains something.
    """
    for replicate in range(config.replicates):
        for name, (options, _) in changes.items():
            run = settle_batches(training_config(config, name, replicate, options))
            yield Unit(replicate, {name: run})
