"""Train one ensemble: from a configuration to a run directory with weights."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ... import datasets, ensembles
from ...datasets import Splits, load
from ...datasets.image_format import ImageFormat
from ...ensembles import Ensemble
from ...ensembles.backbones import architecture_only
from ..config import TrainConfig
from ..cost.energy import total_joules
from ..store.environment import describe_environment
from ..store.progress import Display
from ..store.run import (
    Run,
    check_claim,
    check_file_names,
    read_json,
    settled,
    training_joules,
    training_seconds,
    write_json,
)
from .building import (
    build_base,
    build_ensemble,
    check_options,
    check_size,
    settle_batches,
)
from .devices import (
    say_if_other_threads,
    suitable_threads,
    threads,
    threads_of_each,
)
from .fits import batches_of, fit_in_turn, module_of
from .parts import check_parts, check_processes, say_norms
from .places import Place, place_of
from .precision import settle_precision
from .registry import base_run, check_sharing, family_of
from .weights import check_data, hash_network, load_ensemble, save_ensemble, trained_base

if TYPE_CHECKING:
    from .fitting import Trained


def train(
    config: TrainConfig,
    *,
    splits: Splits | None = None,
    display: Display | None = None,
    then: Callable[[Run], object] = lambda run: None,
) -> Run:
    """Train an ensemble, without evaluating it.

    A finished run is not trained again; an interrupted one resumes from its last checkpoint and
    ends in the same weights, bit for bit on a CPU. To get predictions and metrics too, call
    `train_and_evaluate`.

    Args:
        config: What to train.
        splits: The data of ``config.data``, where it is loaded already.
        display: Where progress is shown; nowhere by default.
        then: Is called with the trained run, while no other process may work in its directory.

    Returns:
        The run, whose weights exist.

    Raises:
        ValueError: Options that do not fit, or an output directory that holds something else.
        FloatingPointError: The loss of a member became non-finite.
    """
    place = check_processes(config)
    display = display if display and place.first else Display(quiet=True)
    config = settle_batches(config, display)
    check_sharing(config)
    check_options(config)
    if place.first:
        check_claim(config.directory(), config)
    config = settled(config.directory(), config)
    splits = splits or load(config, watcher=display)
    image_format = ImageFormat.of(splits)
    # All that can be refused is made before the directory.
    check_size(config, image_format, config.members)
    module = module_of(config, image_format, display=display)
    data = batches_of(config, image_format, splits, members=None)
    if special := _check_objective(config, module, image_format):
        display.say(special)
    check_parts(config, module.objective)
    check_file_names(config.directory(), splits.names())
    with _started(config, place) as run:
        if not run.weights.exists():
            config = settle_precision(run.config, lambda: module.ensemble, splits, display)
            run = Run(run.path, config)
            from .parallel import together  # after all refusals: Lightning takes seconds to import

            with together(config):
                _train(run, module, data, splits, display)
        else:
            if module.ensemble.base is not None and base_run(config) and not config.save_base:
                _base(config, image_format, splits, display)  # a deleted one is trained again
            load_ensemble(run)  # refuses what is damaged or another run's
            check_data(run, splits)
            had = read_json(run.environment).get("fit_threads")  # earlier versions stored none
            say_if_other_threads(config, had, display)
        if place.first:
            shutil.rmtree(run.path / "fits", ignore_errors=True)
            then(run)
    return run


@contextmanager
def _started(config: TrainConfig, place: Place) -> Iterator[Run]:
    """The run, which the first process claims for all."""
    if place.first:
        with Run.start(config) as run:
            yield run
    else:
        yield Run(config.directory(), config)


def _train(
    run: Run,
    module: "ensembles.EnsembleModule",
    data: "datasets.DataModule",
    splits: Splits,
    display: Display,
) -> None:
    """Train a run to the end and write its weights."""
    from .fitting import Stage, fit
    from .parallel import wait_for_all

    config, image_format = run.config, ImageFormat.of(splits)
    place = place_of(config)
    base, before = _base(config, image_format, splits, display)
    if base is not None:
        module = module_of(config, image_format, base=base)
        _check_objective(config, module, image_format)  # another object, not yet checked
    start = None if base is None else hash_network(base)
    ensemble = module.ensemble
    say_norms(place, ensemble, config.batch_size, display)
    count = suitable_threads(ensemble.member(0), image_format, config.batch_size)
    with threads(config.threads or count or threads_of_each(config)):
        if len(module.objective.fits(ensemble.num_members)) == 1:
            trained = fit(run, module, data, display, Stage.whole(run, start))
        else:
            trained = fit_in_turn(run, ensemble, splits, display, start, base)
        fit_threads = torch.get_num_threads()  # a resumed fit keeps those of its checkpoint
    wait_for_all()  # what others still read stays there
    if not place.first:
        return
    cost = {
        "training_seconds": before.seconds + trained.seconds,
        "training_joules": total_joules([before.joules, trained.joules]),
        "epochs": trained.epochs,
        "fit_threads": fit_threads,
    }
    write_json(run.environment, describe_environment() | cost)
    save_ensemble(run, ensemble, image_format, splits.training_fingerprint(), start=start)
    run.resume.unlink(missing_ok=True)
    (run.path / "best.safetensors").unlink(missing_ok=True)
    run.metrics.unlink(missing_ok=True)  # of weights that were deleted


def _check_objective(
    config: TrainConfig, module: "ensembles.EnsembleModule", image_format: ImageFormat
) -> str | None:
    """Refuse an objective that does not fit the run, or return what its user must know."""
    objective = module.objective
    if objective.couples_members and config.member is not None:
        raise ValueError(
            f"objective {config.objective} trains each member by the others, so that none can be "
            "trained alone; leave --member out"
        )
    if objective.shared_batch and config.batches == "own" and module.ensemble.num_members > 1:
        raise ValueError(
            f"objective {config.objective} compares members on one batch, but batches: own gives "
            "each its own; set --batches shared"
        )
    check_sharing(config, shares=_shares_parameters(config, module.ensemble, image_format))
    special = objective.check(module.ensemble)
    objective.check_images(image_format.shape)
    return special


def _shares_parameters(config: TrainConfig, ensemble: Ensemble, image_format: ImageFormat) -> bool:
    """Whether the whole ensemble shares parameters, of which a run may train one member."""
    if config.member is None or config.members == 1:
        return ensemble.shares_parameters
    whole = dataclasses.replace(config, member=None)
    with architecture_only(), torch.random.fork_rng(devices=[]):
        return build_ensemble(whole, image_format, members=[0, 1]).shares_parameters


def _base(
    config: TrainConfig, image_format: ImageFormat, splits: Splits, display: Display
) -> tuple[nn.Module | None, "Trained"]:
    """The network that a family starts from, trained if it is not yet, and the cost of that."""
    from .fitting import Trained

    if first := base_run(config):
        run = train(first, splits=splits, display=display)
        took = Trained(training_seconds(run), first.epochs, training_joules(run))
        return trained_base(first, image_format), took
    fresh = build_base(config, image_format) if family_of(config).has_base else None
    return fresh, Trained(0.0, 0, 0.0)
