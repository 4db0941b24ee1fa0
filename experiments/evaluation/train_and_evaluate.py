"""Train an ensemble and evaluate it: what `deepens train` does, and each run of a comparison."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from ...datasets import Splits, load
from ..config import TrainConfig
from ..store.data_record import IMAGES, keep_data_record
from ..store.progress import Display
from ..store.run import Run, check_claim, settled
from ..training.building import check_options, settle_batches
from ..training.devices import threads
from ..training.registry import check_sharing
from ..training.sharing import train_shared
from ..training.train import train
from ..training.weights import check_data, load_ensemble
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
        The run, with predictions and metrics.

    Raises:
        ValueError: Options that do not fit, or an output directory that holds something else.
        FloatingPointError: The loss of a member became non-finite.
    """
    display = display or Display(quiet=True)
    config = settle_batches(_with_threads(config), display)
    check_sharing(config)
    check_options(config)
    check_claim(config.directory(), config)
    config = settled(config.directory(), config)
    detectors = choose_detectors(config.detectors)
    loaded = splits is None
    if splits is None:
        splits = load(config, watcher=display)
        say_if_unjudged(detectors, splits, display)

    data = splits

    def finish(run: Run) -> None:
        predicted = _is_predicted(run, data)
        if not predicted:
            _evaluate(run, data, display)
        # A comparison keeps one for all its runs.
        if loaded and not (predicted and (run.path / IMAGES).exists()):
            keep_data_record(run.path, data)

    run = _train(config, splits, display, finish)
    return EvaluatedRun(run.path, run.config)


def _with_threads(config: TrainConfig) -> TrainConfig:
    """The run with the number of threads that its jobs have."""
    if config.jobs is None:
        return config
    from ..training.executor import settle_jobs  # its libraries take their time to import

    return settle_jobs(config)


def _train(
    config: TrainConfig, splits: Splits, display: Display, then: Callable[[Run], object]
) -> Run:
    """Train a run by as many processes and threads as it says."""
    if config.jobs is not None and config.jobs > 1:
        from ..training.fit_members import fit_members

        fit_members(config, splits, display)
    with threads(config.threads):
        return train(config, splits=splits, display=display, then=then)


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
    runs = [settle_batches(_with_threads(config)) for config in configs]
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

    _train(whole, splits, display, finish)
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
