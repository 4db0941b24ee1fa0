"""One fit of an ensemble by Lightning, resumable: its checkpoints, its log and its objective."""

import functools
import hashlib
import json
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from ...datasets import DataModule, Pipeline
from ...datasets.image_format import ImageFormat
from ...ensembles import Ensemble, EnsembleModule, Objective
from ...ensembles.averaging import WeightAverage
from ..config import TrainConfig
from ..cost.energy import EnergyMeter, monitor_for, total_joules
from ..store.checkpoint import load_tensors, save_tensors
from ..store.progress import Display, Task
from ..store.run import Run, csv_text, write_whole_text
from ..store.termination import Terminated, Termination
from ..store.training_checkpoint import SafetensorsCheckpointIO
from .devices import compute_device, keep_threads, pipeline_for
from .parallel import SameWork, trainer_options
from .places import place_of

ENOUGH_IMAGES = 5000
"""Training images from which layers are initialised."""


@dataclass(frozen=True)
class Stage:
    """One fit of a run: its title and the files of its log, its checkpoint and its best weights.

    ``start`` is the hash of the network that members start from, if there is one; ``context`` are
    the ensembles of the fits before.
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
    """Cost of a fit, all sessions together; None where the energy could not be measured.

    ``threads`` is their number; earlier versions stored none.
    """

    seconds: float
    epochs: int
    joules: float | None = None
    threads: int | None = None


def fit(
    run: Run, module: EnsembleModule, data: DataModule, display: Display, stage: Stage
) -> Trained:
    """Train a module's members to the end, resuming from the stage's checkpoint if there is one."""
    config = run.config
    _initialise(module.ensemble, data, pipeline_for(config, ImageFormat.of(data.splits)))
    identity = identity_of(run, data, stage.start)
    _prepare(run, module.objective, data, identity, stage)
    files = SafetensorsCheckpointIO(identity)
    # Energy and time are those of the whole training, and measured once.
    monitor = monitor_for(compute_device(config), config.devices) if _measures(config) else None
    best = BestWeights(stage.best)
    with (
        display.task(stage.title, config.epochs) as task,
        quiet_lightning(),
        _interruptible(),
        EnergyMeter(monitor) as meter,
    ):
        keep = functools.partial(keep_threads, config, display=display)
        recorder = Recorder(stage, config.checkpoint_seconds, task, meter, keep)
        callbacks: list[Any] = [best, recorder] if config.keep == "best" else [recorder]
        if config.average != "none":
            callbacks.insert(0, WeightAverage(config.average, config.averaging))
        if config.early_stopping is not None:
            callbacks.append(EarlyStopping("val/nll", patience=config.early_stopping))
        if place_of(config).count > 1:
            callbacks.append(SameWork(identity, stage.resume))
        trainer = plain_trainer(
            config,
            run.path,
            max_epochs=config.epochs,
            logger=TensorBoardLogger(run.path, name="tensorboard") if config.tensorboard else False,
            callbacks=callbacks,
            plugins=[files],
        )
        trainer.fit(module, data, ckpt_path=stage.resume if stage.resume.exists() else None)
        recorder.termination.stop_if_asked()  # after the last epoch's end
    if config.keep == "best":
        module.load_state_dict(module.with_base(files.load_checkpoint(best.file)["state_dict"]))
    module.ensemble.set_step(None)
    module.objective.set_step(None)
    module.ensemble.cpu()
    return Trained(recorder.seconds, len(recorder.rows), recorder.joules, torch.get_num_threads())


def _measures(config: TrainConfig) -> bool:
    """Whether this process can tell the energy of all: the first, of one machine."""
    return place_of(config).first and config.num_nodes == 1


def _prepare(run: Run, objective: Objective, data: DataModule, identity: str, stage: Stage) -> None:
    """Prepare the objective; what it computes from the images is stored with the run."""
    file = run.path / "objective.safetensors"
    kept = not stage.context
    writes = kept and place_of(run.config).first
    if kept and file.exists():
        buffers, content = load_tensors(file)
        if not isinstance(content, dict) or content.get("identity") != identity:
            raise ValueError(f"{file} belongs to another run; delete it and run again")
        objective.restore(buffers)
    pipeline = pipeline_for(run.config, ImageFormat.of(data.splits))
    objective.prepare(_AsSeen(data, pipeline), stage.context)
    if writes and not file.exists() and (buffers := dict(objective.state_dict())):
        save_tensors(file, buffers, {"identity": identity})


def _initialise(ensemble: Ensemble, data: DataModule, pipeline: Pipeline) -> None:
    """Let layers that start from training images do so, from some of all of these."""
    layers: list[Any] = [part for part in ensemble.modules() if hasattr(part, "initialise")]
    if layers:
        chosen = list(_AsSeen(data, pipeline).some(ENOUGH_IMAGES))
        for layer in layers:
            layer.initialise(chosen)


class _AsSeen:
    """The training images as the network sees them, without augmentation."""

    def __init__(self, data: DataModule, pipeline: Pipeline) -> None:
        self._split, self._pipeline = data.splits["train"], pipeline

    def __len__(self) -> int:
        return len(self._split)

    def __iter__(self) -> Iterator[Tensor]:
        for images in self._split.image_batches():
            yield self._pipeline.normalized(images.to(self._pipeline.device))

    def some(self, count: int) -> Iterator[Tensor]:
        """Batches of about so many images, evenly spread over all."""
        every = -(-len(self) // count)
        return (images[::every] for images in self)


def plain_trainer(config: TrainConfig, folder: Path, **options: Any) -> Trainer:
    """Lightning's trainer, on the devices and in the precision of a run, without its display."""
    how = trainer_options(config)
    options["plugins"] = [*options.get("plugins", []), *how.pop("plugins", [])]
    return Trainer(
        accelerator="gpu" if compute_device(config).type == "cuda" else "cpu",
        **how,
        precision="bf16-mixed" if config.precision == "bf16-mixed" else "32-true",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def identity_of(run: Run, data: DataModule, start: str | None) -> str:
    """What a training checkpoint belongs to: the options that matter, the data and the base."""
    options = run.config.substance() | {"data": data.splits.training_fingerprint()}
    if start is not None:
        options |= {"start": start}
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


class BestWeights(Checkpoint):
    """Keeps the weights of the epoch with the lowest validation NLL, the first of equals."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.least = math.inf

    def state_dict(self) -> dict[str, Any]:
        """The least NLL so far."""
        return {"least": self.least}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from an earlier process; epochs after its checkpoint are repeated."""
        self.least = state_dict["least"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights if they are the best so far."""
        nll = float(trainer.callback_metrics["val/nll"])
        if nll < self.least:
            self.least = nll
            trainer.save_checkpoint(self.file, weights_only=True)


class Recorder(Checkpoint):
    """Keeps the log by epochs, and every so many seconds the checkpoint to resume from.

    The log is part of the checkpoint, so that a resumed run's log ends like an uninterrupted one's.
    Of several processes, which all have one, the first writes, and all stop together.
    """

    def __init__(
        self,
        stage: Stage,
        interval: float,
        task: Task,
        meter: EnergyMeter,
        keep_threads: Callable[[int | None], None],
    ) -> None:
        self.stage, self.interval, self.task, self.meter = stage, interval, task, meter
        self.keep_threads = keep_threads
        self.rows: list[dict[str, Any]] = []
        self.seconds = self._before = 0.0
        self.joules: float | None = 0.0
        self._joules_before: float | None = 0.0
        self._started = self._saved = time.monotonic()
        self.termination = Termination()

    def state_dict(self) -> dict[str, Any]:
        """The log so far, the time and energy it took, and the number of threads."""
        threads = torch.get_num_threads()
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "joules": self.joules,
            "threads": threads,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from an earlier log, on as many threads, which decide the last bits."""
        self.keep_threads(state_dict.get("threads"))  # earlier versions had none
        self.rows = state_dict["rows"]
        self.seconds = self._before = state_dict["seconds"]
        self.joules = self._joules_before = state_dict.get("joules")  # earlier versions had none
        self.task.start_at(len(self.rows))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = self._saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning, which would stop in the midst of an epoch."""
        self.termination.take_over()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop without a checkpoint where an epoch takes longer than SIGTERM lets it."""
        self.termination.stop_if_late()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's row, show progress, and save a checkpoint when it is time."""
        now = time.monotonic()
        self.seconds = self._before + now - self._started
        self.joules = total_joules([self._joules_before, self.meter.joules()])
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        epoch = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": rate}
        self.rows.append(epoch | metrics)
        if trainer.is_global_zero:
            write_whole_text(self.stage.log, csv_text(self.rows))
        nll = metrics.get("val/nll", math.nan)
        loss, shown = (f"{v:.4f}" if v < 1e5 else f"{v:.3g}" for v in (metrics["train/loss"], nll))
        self.task.advance(f"train loss {loss}, val NLL {shown}")
        # A stop is not part of a checkpoint: a run that is about to stop repeats its last epochs.
        decide = trainer.strategy.reduce_boolean_decision
        self.termination.asked = decide(self.termination.asked, all=False)
        due = decide(now - self._saved >= self.interval or self.termination.asked, all=False)
        if due and not trainer.should_stop:
            trainer.save_checkpoint(self.stage.resume)
            self._saved = time.monotonic()
        self.termination.stop_if_asked()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Keep an interrupt an interrupt: Lightning turns it into an exit and ignores later ones."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Terminated:
        raise
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:  # one that Python did not set
                    signal.signal(number, handler)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice to those who write their own loops."""
    names = ("lightning.pytorch", "lightning.fabric")
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in before:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=r".*(LeafSpec|TreeSpec).*")
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
