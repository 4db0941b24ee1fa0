"""Train an ensemble and evaluate it: what `deepens train` does, and each run of a comparison."""

from ...datasets import Splits, load
from ..config import TrainConfig
from ..store.data_record import IMAGES, keep_data_record
from ..store.progress import Display
from ..store.run import Run, check_claim
from ..training.building import check_options, settle_batches
from ..training.devices import threads
from ..training.registry import check_sharing
from ..training.train import train
from .detectors import choose_detectors
from .evaluate import evaluate
from .predict_splits import say_if_unjudged
from .predictions import EvaluatedRun, Predictions, metrics_are_current


def train_and_evaluate(
    config: TrainConfig, *, splits: Splits | None = None, display: Display | None = None
) -> EvaluatedRun:
    """Train an ensemble, predict every split with it and evaluate the predictions.

    Finished work is not repeated; an interrupted training resumes from its last checkpoint and
    ends in the same weights, bit for bit on a CPU. A finished run is predicted again only where
    its data changed or a detector is missing.

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
    if config.jobs is not None:
        from ..training.executor import settle_jobs  # its libraries take their time to import

        config = settle_jobs(config)
    config = settle_batches(config, display)
    check_sharing(config)
    check_options(config)
    check_claim(config.directory(), config)
    detectors = choose_detectors(config.detectors)
    loaded = splits is None
    if splits is None:
        splits = load(config, watcher=display)
        say_if_unjudged(detectors, splits, display)

    if config.jobs is not None and config.jobs > 1:
        from ..training.fit_members import fit_members

        fit_members(config, display)
    data = splits

    def finish(run: Run) -> None:
        before = Predictions(run)
        predicted = (
            metrics_are_current(run)
            and before.data == data.fingerprint()
            and set(detectors) <= set(before.detectors)
        )
        if not predicted:
            evaluate(run, predict=True, splits=data, display=display)
        # A comparison keeps one for all its runs.
        if loaded and not (predicted and (run.path / IMAGES).exists()):
            keep_data_record(run.path, data)

    with threads(config.threads):
        run = train(config, splits=data, display=display, then=finish)
    return EvaluatedRun(run.path, run.config)
