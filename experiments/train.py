"""Train one ensemble: from a configuration to a run directory with weights and predictions."""

import csv
import dataclasses
import hashlib
import importlib.util
import io
import json
import logging
import math
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from ..datasets import DataModule, Pipeline, Splits, load
from ..ensembles import Ensemble, EnsembleModule, Objective
from .checkpoint import SafetensorsCheckpointIO, load_tensors, save_tensors
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
from .weights import hash_network, load_ensemble, of_base, save_ensemble, trained_base

MIXTURE = ("train/loss", "val/nll", "val/accuracy")
"""What a log says of all members that are trained together."""


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
    data = _data(config, form, splits, members=None)
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("tensorboard is not installed: pip install 'deepens[tensorboard]'")
    if special := _check_objective(config, module):
        display.say(special)
    run = Run.start(config)
    with exclusive(run.path):
        if not run.weights.exists():
            base, seconds = _base(config, form, splits, display)
            if base is not None:
                module = _module(config, form, base=base)
            start = None if base is None else hash_network(base)
            ensemble = module.ensemble
            with threads(suitable_threads(ensemble.member(0), form, config.batch_size)):
                if len(module.objective.fits(ensemble.num_members)) == 1:
                    trained = _fit(run, module, data, display, Stage.whole(run, start))
                else:
                    trained = _fit_in_turn(run, ensemble, splits, display, start, base, form)
            write_json(
                run.environment,
                describe_environment()
                | {"training_seconds": seconds + trained.seconds, "epochs": trained.epochs},
            )
            save_ensemble(run, ensemble, form, splits.training_fingerprint(), start=start)
            run.resume.unlink(missing_ok=True)
            (run.path / "best.safetensors").unlink(missing_ok=True)
            run.metrics.unlink(missing_ok=True)  # of weights that were deleted
        else:
            if module.ensemble.base is not None and base_run(config) and not config.save_base:
                _base(config, form, splits, display)  # one that was deleted is trained again
            load_ensemble(run)  # refuses what is damaged or another run's
            check_data(run, splits)
        shutil.rmtree(run.path / "fits", ignore_errors=True)
        if evaluated and (not run.metrics.exists() or predicted_data(run) != splits.fingerprint()):
            evaluate(run, predict=True, splits=splits, display=display)
    return run


def _check_objective(config: TrainConfig, module: EnsembleModule) -> str | None:
    """Refuse an objective that does not fit the run; say what is special about it.

    Raises:
        ValueError: The objective needs members together, or on one batch, and they are not.
    """
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
    return objective.check(module.ensemble)


def _data(
    config: TrainConfig, form: ImageFormat, splits: Splits, members: Sequence[int] | None
) -> DataModule:
    """The batches of some members, or of all."""
    shared = config.batches == "shared"
    return DataModule(
        splits,
        batch_size=config.batch_size,
        # A shared order is the first member's, whoever is trained by it.
        seeds=member_seeds(config, None if shared else members),
        shared=shared,
        pipeline=pipeline_for(config, form),
        eval_batch_size=EVALUATION_BATCH,
        workers=config.workers,
    )


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
    config: TrainConfig,
    form: ImageFormat,
    *,
    base: nn.Module | None = None,
    members: Sequence[int] | None = None,
) -> EnsembleModule:
    """What Lightning trains; a base comes from its own run, and is freshly built when absent."""
    ensemble = build_ensemble(config, form, base=base, members=members)
    if config.channels_last:
        ensemble.to(memory_format=torch.channels_last)
    alone = None if config.member is None else [config.member]
    return EnsembleModule(
        ensemble,
        build_objective(config),
        optimizer=config.tuning if FAMILIES[config.ensemble].has_base else config.optimizer,
        schedule=config.schedule,
        labels=alone if members is None else members,
    )


@dataclass(frozen=True)
class Stage:
    """One fit of a run: what it is called and where it keeps its files.

    Attributes:
        title: In the progress display.
        log: CSV of losses and validation metrics by epoch.
        resume: Training state to resume from.
        best: The best weights so far.
        start: Hash of the network that members start from, if there is one.
        context: The ensembles of the fits before.
    """

    title: str
    log: Path
    resume: Path
    best: Path
    start: str | None
    context: tuple[Ensemble, ...] = ()

    @classmethod
    def whole(cls, run: Run, start: str | None) -> "Stage":
        """The only fit of a run."""
        best = run.path / "best.safetensors"
        return cls(f"train {run.path}", run.path / "log.csv", run.resume, best, start)


@dataclass(frozen=True)
class Trained:
    """How long a fit took.

    Attributes:
        seconds: Of all its sittings.
        epochs: That were trained.
    """

    seconds: float
    epochs: int


def _fit_in_turn(
    run: Run,
    ensemble: Ensemble,
    splits: Splits,
    display: Display,
    start: str | None,
    base: nn.Module | None,
    form: ImageFormat,
) -> Trained:
    """Fit after fit, each with those before it as its context; each is kept when it is done."""
    config, folder = run.config, run.path / "fits"
    folder.mkdir(exist_ok=True)
    context: list[Ensemble] = []
    seconds, epochs, logs = 0.0, 0, []
    for number, members in enumerate(build_objective(config).fits(config.members)):
        module = _module(config, form, base=base, members=members)
        data = _data(config, form, splits, members)
        stage = Stage(
            f"train {run.path}, member {', '.join(map(str, members))}",
            folder / f"{number}.csv",
            folder / f"{number}-resume.safetensors",
            folder / f"{number}-best.safetensors",
            start,
            tuple(context),
        )
        identity = _identity(run, data, start)
        done = folder / f"{number}.safetensors"
        part = module.ensemble
        if done.exists():
            tensors, content = load_tensors(done)
            if content.get("identity") != identity:
                raise ValueError(f"{done} belongs to another run; delete it and run again")
            part.load_state_dict(tensors, strict=part.base is None)
            trained = Trained(content["seconds"], content["epochs"])
        else:
            trained = _fit(run, module, data, display, stage)
            state = {k: v for k, v in part.state_dict().items() if not of_base(k)}
            save_tensors(done, state, {"identity": identity} | dataclasses.asdict(trained))
        with torch.no_grad():
            for position, index in enumerate(members):
                target = ensemble.member_state(index)
                for name, value in part.member_state(position).items():
                    target[name].copy_(value)
        context.append(part.eval())
        seconds, epochs = seconds + trained.seconds, max(epochs, trained.epochs)
        logs.append(stage.log.read_text(encoding="utf-8"))
    write_whole_text(run.path / "log.csv", _side_by_side(logs))
    return Trained(seconds, epochs)


def _side_by_side(logs: Sequence[str]) -> str:
    """Logs of fits after each other as one, epoch beside epoch; the train loss is their sum."""
    tables = [list(csv.DictReader(io.StringIO(log))) for log in logs]
    rows = []
    for epoch in range(max(map(len, tables))):
        there = [table[epoch] for table in tables if epoch < len(table)]
        own = [{k: v for k, v in row.items() if k not in MIXTURE} for row in there]
        joined = {name: value for row in own for name, value in row.items()}
        joined["train/loss"] = repr(sum(float(row["train/loss"]) for row in there))
        rows.append(joined)
    return _as_csv(rows)


def _fit(
    run: Run, module: EnsembleModule, data: DataModule, display: Display, stage: Stage
) -> Trained:
    config = run.config
    identity = _identity(run, data, stage.start)
    _prepare(run, module.objective, data, identity, stage)
    files = SafetensorsCheckpointIO(identity)
    best = BestWeights(stage.best)
    with (
        display.task(stage.title, config.epochs) as task,
        quiet_lightning(),
        _interruptible(),
    ):
        recorder = Recorder(stage.log, stage.resume, config.checkpoint_seconds, task)
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
        trainer.fit(module, data, ckpt_path=stage.resume if stage.resume.exists() else None)
    if config.keep == "best":
        module.load_state_dict(module.with_base(files.load_checkpoint(best.file)["state_dict"]))
    module.ensemble.set_step(None)
    module.ensemble.cpu()
    return Trained(recorder.seconds, recorder.epochs)


def _prepare(run: Run, objective: Objective, data: DataModule, identity: str, stage: Stage) -> None:
    """Prepare the objective; what it computes from the images is kept with the run."""
    file = run.path / "objective.safetensors"
    kept = not stage.context
    if kept and file.exists():
        buffers, content = load_tensors(file)
        if not isinstance(content, dict) or content.get("identity") != identity:
            raise ValueError(f"{file} belongs to another run; delete it and run again")
        objective.restore(buffers)
    objective.prepare(
        _AsSeen(data, pipeline_for(run.config, ImageFormat.of(data.splits))), stage.context
    )
    if kept and not file.exists() and (buffers := dict(objective.state_dict())):
        save_tensors(file, buffers, {"identity": identity})


class _AsSeen:
    """The training images as the network sees them, without augmentation."""

    def __init__(self, data: DataModule, pipeline: Pipeline) -> None:
        self._split, self._pipeline = data.splits["train"], pipeline

    def __len__(self) -> int:
        return len(self._split)

    def __iter__(self) -> Iterator[Tensor]:
        for images in self._split.image_batches():
            yield self._pipeline.normalized(images.to(self._pipeline.device))


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
