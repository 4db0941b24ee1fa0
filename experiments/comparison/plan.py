"""What a comparison will do, before anything is trained: costs, gaps in the design, and time."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from ...datasets import Splits
from ...datasets.image_format import ImageFormat
from ...ensembles import Ensemble
from ...ensembles.policies.calibration import FEWEST
from ..config import CompareConfig, TrainConfig
from ..cost.macs import count_macs
from ..evaluation.temperatures import CALIBRATE
from ..training.building import build_ensemble, settle_batches
from ..training.devices import compute_device, suitable_threads, threads
from ..training.precision import training_step
from ..training.registry import check_sharing
from .ensemble_methods import training_config
from .methods import Changes, Method
from .partners import without_equal
from .units import units_of


@dataclass(frozen=True)
class PlannedMethod:
    """A method of a comparison: its MACs per image and the estimated seconds of a training.

    Cascades have neither: they cost what their images need, and train nothing. A method whose
    members are the first ones of another's, its ``source``, is trained with that.
    """

    name: str
    macs: int | None = None
    seconds: float | None = None
    batches: str = ""
    members: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Plan:
    """The methods, and what will be missing from the results unless options change."""

    methods: tuple[PlannedMethod, ...]
    warnings: tuple[str, ...]
    replicates: int
    precision: str = "32"

    @property
    def seconds(self) -> float:
        """Of all trainings, one after the other."""
        return self.replicates * sum(method.seconds or 0.0 for method in self.methods)


def make_plan(
    config: CompareConfig,
    methods: Mapping[str, Method],
    changes: Mapping[str, Changes],
    splits: Splits,
    *,
    timed: bool = False,
) -> Plan:
    """Count what each method costs, and find ensembles without a partner and cascades that fail.

    With ``timed``, one step of each method's training is measured; its time stands for all steps.
    What an objective does beyond one forward and one backward pass is not in it.
    """
    once, sources = replace(config, replicates=1), dict[str, str]()
    for unit in units_of(once, changes):
        sources |= dict.fromkeys(unit.runs, unit.whole)
    rows = [
        _planned(
            settle_batches(training_config(config, n, 0, changes[n][0])),
            n,
            splits,
            timed and sources[n] == n,
            "" if sources[n] == n else sources[n],
        )
        if n in changes
        else PlannedMethod(n)
        for n in methods
    ]
    planned = {row.name: row for row in rows}
    singles = [n for n in changes if changes[n][0].get("members", config.members) == 1]
    warnings = [
        *_partners(config, changes, planned, singles),
        *_cascades(config, methods, changes, splits),
        *_cascades_under_shift(config, methods, changes, splits),
    ]
    return Plan(tuple(rows), tuple(warnings), config.replicates, config.precision)


def _planned(
    run: TrainConfig, name: str, splits: Splits, timed: bool, source: str
) -> PlannedMethod:
    check_sharing(run)
    image_format, seconds = ImageFormat.of(splits), None
    if run.image_size is not None:
        image_format = replace(image_format, size=(run.image_size, run.image_size))
    with torch.random.fork_rng(devices=[]):
        ensemble = build_ensemble(run, image_format)
        macs = count_macs(ensemble.eval(), image_format.shape)
        if timed:
            size = min(run.batch_size, len(splits["train"]))
            steps = run.epochs * max(1, len(splits["train"]) // size)
            seconds = steps * _step_seconds(run, ensemble, size, image_format)
    return PlannedMethod(name, macs, seconds, run.batches, run.members, source)


def _step_seconds(
    run: TrainConfig, ensemble: Ensemble, size: int, image_format: ImageFormat
) -> float:
    """Seconds of the second of two steps: the first one warms up."""
    images = torch.rand(size, *image_format.shape, device=compute_device(run))
    ensemble.to(images.device).train()
    with threads(run.threads or suitable_threads(ensemble.member(0), image_format, size)):
        training_step(ensemble, images, run.precision)
        started = time.perf_counter()
        training_step(ensemble, images, run.precision)
        return time.perf_counter() - started


def _partners(
    config: CompareConfig,
    changes: Mapping[str, Changes],
    planned: Mapping[str, PlannedMethod],
    singles: list[str],
) -> Iterator[str]:
    """Say which ensembles will have no single model of equal cost, and what becomes of them."""
    costs = {name: planned[name].macs or 0 for name in singles}
    epochs = {name: changes[name][0].get("epochs", config.epochs) for name in singles}
    # One that is trained longer is none to interpolate from.
    alike = {name: cost for name, cost in costs.items() if epochs[name] == config.epochs}
    for name, row in planned.items():
        if name in singles or row.macs is None:
            continue
        if any(abs(cost / row.macs - 1) <= config.cost_tolerance for cost in costs.values()):
            continue
        yield without_equal(name, row.macs, alike, config, planned=True)


def _cascades_under_shift(
    config: CompareConfig,
    methods: Mapping[str, Method],
    changes: Mapping[str, Changes],
    splits: Splits,
) -> Iterator[str]:
    """Say which cascades will not be known on corrupted images, whose logits are not kept."""
    cascades = [name for name, method in methods.items() if method.over in changes]
    if cascades and splits.names("shift") and config.predicts_corrupted and not config.keep_logits:
        yield (
            f"{', '.join(cascades)} will have no measures and no verdicts under shift, which need "
            "members' logits on corrupted images; give --keep-logits true to keep these"
        )


def _cascades(
    config: CompareConfig,
    methods: Mapping[str, Method],
    changes: Mapping[str, Changes],
    splits: Splits,
) -> list[str]:
    """Cascades whose last window would rest on too few calibration images.

    Each window passes about twice its half width of a stage's images on to the next.
    """
    images = len(splits[CALIBRATE]) if CALIBRATE in splits.names() else 0
    passing = min(1.0, 2 * config.cascade.width)
    found = []
    for name, method in methods.items():
        if method.over not in changes or method.policy != "window" or not passing:
            continue
        members = changes[method.over][0].get("members", config.members)
        share = passing ** max(0, members - 2)
        if images * share < FEWEST:
            needed = math.ceil(FEWEST / share)
            found.append(
                f"{name} will have no answer: its last window would rest on about "
                f"{images * share:.0f} of {images} calibration images, of at least {FEWEST}; give "
                f"--validation-size {needed}, fewer members, or a larger --cascade.width"
            )
    return found
