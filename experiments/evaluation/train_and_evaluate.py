"""Train an ensemble and evaluate it: what `deepens train` does, and each run of a comparison."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from ...datasets import Splits, load
from ...datasets.image_format import ImageFormat
from ..config import ONE_PROCESS, TrainConfig
from ..store.data_record import IMAGES, keep_data_record
from ..store.progress import Display
from ..store.run import Run, check_claim, settled
from ..training.building import build_ensemble, check_options, settle_batches
from ..training.devices import threads
from ..training.members import join_trained_members, members_apart
from ..training.parts import check_processes
from ..training.precision import settle_precision
from ..training.registry import check_sharing
from ..training.sharing import train_shared
from ..training.train import train
from ..training.weights import check_data, load_ensemble
from ..training.worker import splits_of
from .detectors import choose_detectors
from .evaluate import evaluate
from .predict_splits import say_if_unjudged
from .predictions import EvaluatedRun, Predictions, extent_of, metrics_are_current


def train_and_evaluate(
    config: TrainConfig, *, splits: Splits | None = None, display: Display | None = None
) -> EvaluatedRun:
    """Train an ensemble, predict what ``config.evaluate`` says and evaluate the predictions.

    Finished work is not repeated; an interrupted training resumes from its last checkpoint and
    ends in the same weights, bit for bit on a CPU. A finished run is predicted again only where
    its data changed or a detector is missing; what a quick evaluation left out is added.

    Args:
        config: What to train.
        splits: The data of ``config.data``, where it is loaded already.
        display: Where progress is shown; nowhere by default.

    Returns:
        The run, with predictions and metrics; of several processes the first makes these.

    Raises:
        ValueError: Options that do not fit, or an output directory that holds something else.
        FloatingPointError: The loss of a member became non-finite.
    """
    display = display or Display(quiet=True)
    place = check_processes(config)
    if config.jobs is not None or config.in_processes:
        from ..training.processes import settle_jobs  # its libraries take their time to import

        config = settle_jobs(config)
    config = settle_batches(config, display)
    check_sharing(config)
    check_options(config)
    if place.first:
        check_claim(config.directory(), config)
    config = settled(config.directory(), config)
    detectors = choose_detectors(config.detectors)
    loaded = splits is None
    if splits is None:
        splits = load(config, watcher=display)
        say_if_unjudged(detectors, splits, display)

    data = splits
    if config.in_processes and not is_finished(config, lambda: data):
        config = _fit_in_processes(config, data, display)

    def finish(run: Run) -> None:
        predicted = _is_predicted(run, data)
        if not predicted:
            _evaluate(run, data, display)
        # A comparison keeps one for all its runs.
        if loaded and not (predicted and (run.path / IMAGES).exists()):
            keep_data_record(run.path, data)

    with threads(config.threads):
        run = train(config, splits=data, display=display, then=finish)
    return EvaluatedRun(run.path, run.config)


def train_and_evaluate_together(
    configs: Sequence[TrainConfig], *, splits: Splits, display: Display
) -> list[EvaluatedRun]:
    """Train runs that hold the same networks, each network once, and evaluate each run.

    The run with most members is trained, the members of the others are its first ones, and one
    pass over the images predicts for all of them. A run beside these, of an earlier sitting, that
    has members of theirs gives them too.

    Args:
        configs: The same but for the number of members and the directory.
        splits: Their data.
        display: Where progress is shown.

    Returns:
        The runs, in this order.

    Raises:
        ValueError, FloatingPointError: As `train_and_evaluate`.
    """
    runs = [settle_batches(config) for config in configs]
    whole, *smaller = sorted(runs, key=lambda config: -config.members)
    with threads(whole.threads):
        donor = train_shared(whole, splits, display)

    def finish(run: Run) -> None:
        for config in smaller:
            train_shared(config, splits, display)
        with ExitStack() as locks:
            parts = [locks.enter_context(Run.start(config)) for config in smaller]
            for part in parts:
                load_ensemble(part)  # refuses what is damaged
                check_data(part, splits)
            missing = [part for part in parts if not _is_predicted(part, splits)]
            if not _is_predicted(run, splits):
                known = None if donor is None else Predictions(donor)
                _evaluate(run, splits, display, parts=missing, known=_of_at_least(run, known))
                return
            for part in missing:
                _evaluate(part, splits, display, known=Predictions(run))

    with threads(whole.threads):
        train(whole, splits=splits, display=display, then=finish)
    return [EvaluatedRun(config.directory(), config) for config in runs]


def _evaluate(
    run: Run,
    splits: Splits,
    display: Display,
    parts: Sequence[Run] = (),
    known: Predictions | None = None,
) -> None:
    """Predict a run, without what a quick evaluation of it made already, and evaluate it.

    What was measured once is measured again where the data changed.
    """
    extent: Literal["quick", "full"] = run.config.evaluate
    extent = "full" if extent_of(run) == "full" else extent
    known = Predictions(run) if _is_usable(run, splits) else known
    given: dict[str, Any] = {"parts": parts, "known": known, "display": display}
    evaluate(run, predict=True, extent=extent, splits=splits, **given)


def _is_predicted(run: Run, splits: Splits) -> bool:
    """Whether the run has all the metrics of this data that it is to have."""
    if not _is_usable(run, splits):
        return False
    before = Predictions(run)
    asked_for = run.config.predicts_corrupted and before.unpredicted
    return before.extent == "full" or not (run.config.evaluates_fully or asked_for)


def _is_usable(run: Run, splits: Splits) -> bool:
    """Whether the run has metrics of this data, by all its detectors."""
    before, detectors = Predictions(run), choose_detectors(run.config.detectors)
    return (
        metrics_are_current(run)
        and before.data == splits.fingerprint()
        and set(detectors) <= set(before.detectors)
    )


def _of_at_least(run: Run, known: Predictions | None) -> Predictions | None:
    """Predictions of all members of a run; none where they are of fewer."""
    return known if known is not None and known.num_members >= run.config.members else None


def _fit_in_processes(config: TrainConfig, splits: Splits, display: Display) -> TrainConfig:
    """Let other processes do all of it, unless one of this machine would do it alone.

    The run with its precision is returned, which all processes are to have.
    """
    from ..training.processes import Training, fit_in_processes

    if config.executor == "local" and not members_apart(config):
        if not Run(config.directory(), config).weights.exists():
            display.say(
                f"{config.directory()} is trained by this process alone: its members cannot be "
                "trained one by one, or are in the midst of a common training"
            )
        return config
    with Run.start(config) as run:
        image_format = ImageFormat.of(splits)
        config = settle_precision(
            run.config, lambda: build_ensemble(config, image_format, members=[0]), splits, display
        )
    alone = dataclasses.replace(config, **ONE_PROCESS)
    fit_in_processes(config, [Training([alone])], finish_runs, display)
    return config


def finish_runs(options: Mapping[str, Any], display: Display) -> None:
    """Train and evaluate the runs of one training: the work of a process.

    ``options["runs"]`` are their options, and ``options["together"]`` says whether they share
    networks. Members that other processes trained are put together.
    """
    configs = [TrainConfig.from_dict(each) for each in options["runs"]]
    join_trained_members(max(configs, key=lambda config: config.members), display)
    given: dict[str, Any] = {"splits": splits_of(configs[0], display), "display": display}
    if options["together"]:
        train_and_evaluate_together(configs, **given)
    else:
        train_and_evaluate(configs[0], **given)


def is_finished(config: TrainConfig, splits: Callable[[], Splits]) -> bool:
    """Whether a run has its weights, and all the metrics of its data that it is to have.

    The data are not asked for where there are no weights.
    """
    run = Run(config.directory(), config)
    return run.weights.exists() and _is_predicted(run, splits())
