"""A plugin as another package would write it: a family with options of its own."""

from dataclasses import dataclass

import deepens
from deepens.ensembles import DeepEnsemble
from deepens.experiments.training.building import build_network


@dataclass(frozen=True)
class Toy:
    """Members of a toy ensemble.

    Args:
        slimness: Factor by which each member is narrower than the network.
    """

    slimness: float = 1.0

    def __post_init__(self) -> None:
        if self.slimness < 1:
            raise ValueError(f"toy.slimness must be >= 1, got {self.slimness}")


def build(config, image_format, base, seeds):
    """A deep ensemble of slimmer networks."""
    width = config.width / config.toy.slimness
    return DeepEnsemble(lambda: build_network(config, image_format, width), seeds=seeds)


deepens.register_family(
    "toy", build, description="{members} slim {backbone} to play with", options={"toy": Toy}
)
