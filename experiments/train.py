"""Train one ensemble: from a configuration to a run directory with weights and predictions."""

import csv
import hashlib
import importlib.util
import io
import json
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from ..datasets import DataModule, Splits, load
from ..ensembles import EnsembleModule
from .checkpoint import SafetensorsCheckpointIO
from .configuration import TrainConfig
from .devices import compute_device, pipeline_for, suitable_threads, threads
from .evaluate import EVALUATION_BATCH, check_data, evaluate, predicted_data
from .families import (
    FAMILIES,
    ImageFormat,
    base_run,
    build_base,
    build_ensemble,
    build_objective,
    member_seeds,
)
from .progress import Display, Task
from .run import (
    Run,
    describe_environment,
    exclusive,
    training_seconds,
    write_json,
    write_whole_text,
)
from .weights import hash_network, load_ensemble, save_ensemble, trained_base


def train(
    config: TrainConfig,
    *,
    splits: Splits | None = None,
    display: Display | None = None,
    evaluated: bool = True,
) -> Run:
    """Train an ensemble, predict every split with it and evaluate the predictions.

    What is finished is not done again; what was interrupted goes on from its last checkpoint and
    ends in the same weights, bit for bit on a CPU.

    Args:
        config: What to train.
        splits: The data of ``config.data``, where it is loaded already.
        display: Where progress is shown.
        evaluated: Whether to predict and evaluate; a network that others build on need not be.

    Raises:
        ValueError: Options that do not fit, or an output directory that holds something else.
        FloatingPointError: The loss of a member went non-finite.
    """
    display = display or Display(quiet=config.quiet)
    splits = splits or load(config, watcher=display)
    form = ImageFormat.of(splits)
    # All that can be refused is made before the directory.
    module = _module(config, form)
    data = DataModule(
        splits,
        batch_size=config.batch_size,
        seeds=member_seeds(config),
        shared=config.batches == "shared",
        pipeline=pipeline_for(config, form),
        eval_batch_size=EVALUATION_BATCH,
        workers=config.workers,
    )
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard is not installed: pip install 'deepens[tensorboard]'")
    run = Run.start(config)
    with exclusive(run.path):
        if not run.weights.exists():
            base, seconds = _base(config, form, splits, display)
            if base is not None:
                module = _module(config, form, base=base)
            start = None if base is None else hash_network(base)
            ensemble = module.ensemble
            with threads(suitable_threads(ensemble.member(0), form, config.batch_size)):
                _fit(run, module, data, display, start=start, seconds_before=seconds)
            save_ensemble(run, ensemble, form, splits.training_fingerprint(), start=start)
            run.resume.unlink(missing_ok=True)
            (run.path / "best.safetensors").unlink(missing_ok=True)
            run.metrics.unlink(missing_ok=True)  # of weights that were deleted
        else:
            if module.ensemble.base is not None and base_run(config) and not config.save_base:
                _base(config, form, splits, display)  # one that was deleted is trained again
            load_ensemble(run)  # refuses what is damaged or another run's
            check_data(run, splits)
        if evaluated and (not run.metrics.exists() or predicted_data(run) != splits.fingerprint()):
            evaluate(run, predict=True, splits=splits, display=display)
    return run


def _base(
    config: TrainConfig, form: ImageFormat, splits: Splits, display: Display
) -> tuple[nn.Module | None, float]:
    """The network that a family starts from, trained if it is not yet, and the seconds it took."""
    if first := base_run(config):
        run = train(first, splits=splits, display=display, evaluated=False)
        return trained_base(first, form), training_seconds(run)
    if FAMILIES[config.ensemble].has_base:
        return build_base(config, form), 0.0
    return None, 0.0


def _module(
    config: TrainConfig, form: ImageFormat, *, base: nn.Module | None = None
) -> EnsembleModule:
    """What Lightning trains; a base comes from its own run, and is freshly built when absent."""
    ensemble = build_ensemble(config, form, base=base)
    if config.channels_last:
        ensemble.to(memory_format=torch.channels_last)
    return EnsembleModule(
        ensemble,
        build_objective(config),
        optimizer=config.tuning if FAMILIES[config.ensemble].has_base else config.optimizer,
        schedule=config.schedule,
        labels=None if config.member is None else [config.member],
    )


def _fit(
    run: Run,
    module: EnsembleModule,
    data: DataModule,
    display: Display,
    *,
    start: str | None,
    seconds_before: float,
) -> None:
    config = run.config
    module.objective.prepare(data.splits["train"].image_batches())
    files = SafetensorsCheckpointIO(_identity(run, data, start))
    best = BestWeights(run.path / "best.safetensors")
    with (
        display.task(f"train {run.path}", config.epochs) as task,
        quiet_lightning(),
        _interruptible(),
    ):
        recorder = Recorder(run.path / "log.csv", run.resume, config.checkpoint_seconds, task)
        callbacks: list[Any] = [best, recorder] if config.keep == "best" else [recorder]
        if config.early_stopping is not None:
            callbacks.append(EarlyStopping("val/nll", patience=config.early_stopping))
        trainer = plain_trainer(
            config,
            run.path,
            max_epochs=config.epochs,
            logger=TensorBoardLogger(run.path, name="tensorboard") if config.tensorboard else False,
            callbacks=callbacks,
            plugins=[files],
        )
        trainer.fit(module, data, ckpt_path=run.resume if run.resume.exists() else None)
    if config.keep == "best":
        module.load_state_dict(module.with_base(files.load_checkpoint(best.file)["state_dict"]))
    module.ensemble.set_step(None)
    module.ensemble.cpu()
    write_json(
        run.environment,
        describe_environment()
        | {"training_seconds": seconds_before + recorder.seconds, "epochs": recorder.epochs},
    )


def plain_trainer(config: TrainConfig, folder: Path, **options: Any) -> Trainer:
    """Lightning's trainer, on one device and in the precision of a run, without its own display."""
    return Trainer(
        accelerator="gpu" if compute_device(config).type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if config.precision == "bf16-mixed" else "32-true",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def _identity(run: Run, data: DataModule, start: str | None) -> str:
    """What a training checkpoint belongs to: the options that matter, the data and the base."""
    options = run.config.substance() | {"data": data.splits.training_fingerprint()}
    if start is not None:
        options |= {"start": start}
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


class BestWeights(Checkpoint):
    """Keeps the weights of the epoch with the least validation NLL, the first of equals.

    Args:
        file: Where they are kept.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.least = math.inf

    def state_dict(self) -> dict[str, Any]:
        """The least NLL so far."""
        return {"least": self.least}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an earlier process; epochs after its checkpoint are done again."""
        self.least = state_dict["least"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if they are the best so far."""
        nll = float(trainer.callback_metrics["val/nll"])
        if nll < self.least:
            self.least = nll
            trainer.save_checkpoint(self.file, weights_only=True)


class Recorder(Checkpoint):
    """Keeps the log by epochs, and the checkpoint to resume from.

    The log is part of the checkpoint, so that a resumed run's log ends like an uninterrupted one's.

    Args:
        log_file: The CSV file.
        resume: The file of the checkpoint.
        interval: Seconds between two checkpoints.
        task: Where progress is shown.
    """

    def __init__(self, log_file: Path, resume: Path, interval: float, task: Task) -> None:
        self.log_file, self.resume, self.interval, self.task = log_file, resume, interval, task
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._before = 0.0
        self._started = self._saved = time.monotonic()

    @property
    def epochs(self) -> int:
        """Epochs trained so far."""
        return len(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The log so far and the time it took."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an earlier log."""
        self.rows = state_dict["rows"]
        self.seconds = self._before = state_dict["seconds"]
        self.task.start_at(len(self.rows))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = self._saved = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row, show progress, and save a checkpoint when it is time."""
        now = time.monotonic()
        self.seconds = self._before + now - self._started
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        epoch = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": rate}
        self.rows.append(epoch | metrics)
        write_whole_text(self.log_file, _as_csv(self.rows))
        nll = metrics.get("val/nll", math.nan)
        self.task.advance(f"train loss {metrics['train/loss']:.4f}, val NLL {nll:.4f}")
        # A stop is not part of a checkpoint: a run that is about to stop repeats its last epochs.
        if now - self._saved >= self.interval and not trainer.should_stop:
            trainer.save_checkpoint(self.resume)
            self._saved = time.monotonic()


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Undo that Lightning turns an interrupt into an exit and ignores the next ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice for people who write loops: ours have a progress display."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=r".*(LeafSpec|TreeSpec).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
