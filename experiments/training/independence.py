"""Which runs hold the same networks: an ensemble's first members are a smaller ensemble.

Where members are trained independently, member i depends on the options and on its own seed alone,
not on how many others there are. Runs that differ in ``members`` only, with one seed, so hold the
same networks.
"""

import hashlib
import json

from ..config import TrainConfig
from .building import build_objective


def are_independent(config: TrainConfig) -> bool:
    """Whether each member of a run is what it would be without the others.

    So it is in a deep ensemble whose members draw their own batches, where no objective compares
    members and no epoch is chosen by what all of them validate.

    Example:
        >>> from deepens.experiments.config import TrainConfig
        >>> from deepens.experiments.training.independence import are_independent
        >>> are_independent(TrainConfig()), are_independent(TrainConfig(keep="best"))
        (True, False)
    """
    if config.ensemble != "deep" or config.batches == "shared" or config.member is not None:
        return False
    if config.keep != "last" or config.early_stopping is not None:
        return False
    objective = build_objective(config)
    coupled = objective.couples_members or objective.shared_batch
    return not coupled and len(objective.fits(2)) == 1


def networks_of(config: TrainConfig) -> str:
    """Name the networks that a run's members are the first of, by its recipe and seed.

    Runs with the same name differ in their number of members alone. If members are independent,
    these are the same networks; else they have their seeds in common.

    Example:
        >>> from deepens.experiments.config import TrainConfig
        >>> from deepens.experiments.training.independence import networks_of
        >>> two, four, other = TrainConfig(members=2), TrainConfig(), TrainConfig(seed=1)
        >>> networks_of(two) == networks_of(four), networks_of(two) == networks_of(other)
        (True, False)
    """
    options = {**config.substance(), "members": None, "batches": "own"}
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
