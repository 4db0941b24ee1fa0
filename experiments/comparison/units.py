"""The trainings of a comparison, in the order in which they are done."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..config import CompareConfig, TrainConfig
from ..training.building import settle_batches
from ..training.independence import are_independent, networks_of
from .ensemble_methods import training_config
from .methods import Changes


@dataclass(frozen=True)
class Unit:
    """One training of a comparison: it needs no other, so that units may be done in any order.

    Attributes:
        replicate: Its number, from 0.
        runs: By method, the runs that come of it: one, or several that hold the same networks.
    """

    replicate: int
    runs: Mapping[str, TrainConfig]

    @property
    def whole(self) -> str:
        """The method with most members, of which the others' are the first ones."""
        return max(self.runs, key=lambda name: self.runs[name].members)


def units_of(config: CompareConfig, changes: Mapping[str, Changes]) -> Iterator[Unit]:
    """List the trainings of a comparison, replicate by replicate.

    Methods whose members are trained independently by the same recipe are one training where they
    share members: that of the largest. ``changes`` are the options of each method that trains
    something.
    """
    for replicate in range(config.replicates):
        found: dict[str, dict[str, TrainConfig]] = {}
        for name, (options, _) in changes.items():
            run = settle_batches(training_config(config, name, replicate, options))
            shared = config.share_members and are_independent(run)
            found.setdefault(networks_of(run) if shared else name, {})[name] = run
        yield from (Unit(replicate, runs) for runs in found.values())
