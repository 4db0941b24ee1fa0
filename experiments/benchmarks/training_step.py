"""The time of a training step under Lightning and in a bare PyTorch loop.

``python -m deepens.experiments.benchmarks.training_step``: ResNet-8 of 16 to 64 channels on
CIFAR-shaped images. Both sides have the same networks, loader, objective, optimiser and schedule,
and neither logs nor checkpoints. A round is some steps inside an epoch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from ...datasets import Split, TensorLoader
from ...ensembles import EnsembleModule
from ...ensembles.backbones.pointwise import to_channels_last
from ..config import TrainConfig
from ..training.building import build_ensemble, build_objective
from ..training.devices import compute_device, pipeline_for, suitable_threads, threads
from ..training.fitting import plain_trainer, quiet_lightning
from ..training.registry import member_seeds
from . import harness

MOST_SLOWDOWN = 1.10
_UNTIMED = 3


@dataclass(frozen=True)
class Work(harness.DeviceOptions):
    """What is measured."""

    rounds: int = harness.option(7)
    steps: int = harness.option(20, "steps per round")
    images: int = harness.option(12_800, "CIFAR-shaped images in the set")
    batch_size: int = harness.option(128, "images per member and batch")
    backbone: str = harness.option("resnet8")
    members: tuple[int, ...] = harness.option((1, 3))
    precisions: tuple[str, ...] = harness.option(("32", "bf16-mixed"))
    threads: int | None = harness.option(
        None,
        "threads of both sides; 1 on a machine with other load; as in deepens train when absent",
        type=int,
    )
    processor_time: bool = harness.option(
        False, "measure this process's processor time, which other load hardly affects"
    )


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    work = Work.parse(__doc__, arguments)
    split, source = harness.cifar_split(work.images)
    print(harness.setting())
    print(f"{work.backbone}; batches of {work.batch_size}; images {source}")
    count = "deepens train's" if work.threads is None else work.threads
    kind = "processor" if work.processor_time else "wall"
    print(f"threads of both sides: {count}; {work.steps} steps a round, {kind} time\n")
    rows = [("", "bare loop", "Lightning", "ratio (spread)")]
    measurements, lines = [], []
    for precision in work.precisions:
        for members in work.members:
            name = f"{members} member{'s' * (members > 1)}, {precision}"
            config = make_config(work, members, precision)
            candidates = [
                harness.Candidate(f"bare, {name}", bare_steps(config, split, work)),
                harness.Candidate(f"Lightning, {name}", lightning_steps(config, split, work)),
            ]
            with threads(_suitable(config) if work.threads is None else work.threads):
                bare, ours = harness.compare(candidates, rounds=work.rounds).values()
            measurements += [bare, ours]
            theirs, own = (1000 * median_high(each.seconds) for each in (bare, ours))
            rows.append((name, f"{theirs:.1f} ms", f"{own:.1f} ms", str(ours.slowdown)))
            claim = f"step time over the bare loop's, {name}"
            lines.append(harness.verdict(claim, ours.slowdown.median, most=MOST_SLOWDOWN))
    print(harness.table(rows) + "\n")
    return harness.conclude(lines, work.out, measurements, source=source)


def make_config(work: Work, members: int, precision: str) -> TrainConfig:
    """The configuration that both sides train by."""
    return TrainConfig(
        backbone=work.backbone,
        members=members,
        precision=precision,  # type: ignore[arg-type]
        device=work.device or "auto",  # type: ignore[arg-type]
        batch_size=work.batch_size,
        crop_padding=4,
        flip=True,
    )


def _suitable(config: TrainConfig) -> int | None:
    image_format = harness.image_format()
    network = build_ensemble(config, image_format).member(0)
    return suitable_threads(network, image_format, config.batch_size)


def make_module(config: TrainConfig) -> EnsembleModule:
    """The ensemble, untrained, with what its training needs."""
    ensemble = build_ensemble(config, harness.image_format())
    if config.channels_last:
        to_channels_last(ensemble)
    return EnsembleModule(
        ensemble, build_objective(config), optimizer=config.optimizer, schedule=config.schedule
    )


def _loader(config: TrainConfig, split: Split) -> TensorLoader:
    return TensorLoader(
        split,
        batch_size=config.batch_size,
        seeds=member_seeds(config),
        shared=False,
        pipeline=pipeline_for(config, harness.image_format()),
    )


def bare_steps(config: TrainConfig, split: Split, work: Work) -> Callable[[], float]:
    """The loop of a plain script, on copies of the same networks."""
    device = compute_device(config)
    module = make_module(config)
    networks = [module.ensemble.member(index).to(device) for index in range(config.members)]
    parameters = [p for network in networks for p in network.parameters()]
    options = config.optimizer
    optimizer = torch.optim.SGD(
        parameters,
        lr=options.lr,
        momentum=options.momentum,
        nesterov=True,
        weight_decay=options.weight_decay,
    )
    multiplier = config.schedule.multiplier
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: multiplier(step, _UNTIMED + work.steps)
    )
    loader = _loader(config, split)
    mixed = config.precision == "bf16-mixed"

    def measure() -> float:
        clock = _Clock(work)
        for images, targets, _ in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                triples = zip(networks, images, targets, strict=True)
                losses = [F.cross_entropy(network(own), labels) for network, own, labels in triples]
                loss = torch.stack(losses).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if clock.ticked():
                break
        return clock.seconds_a_step

    return measure


def lightning_steps(config: TrainConfig, split: Split, work: Work) -> Callable[[], float]:
    """The fit of ``deepens train``, stopped inside its epoch."""
    module, loader = make_module(config), _loader(config, split)

    def measure() -> float:
        clock = _Clock(work)
        with TemporaryDirectory() as folder, quiet_lightning():
            trainer = plain_trainer(
                config,
                Path(folder),
                max_steps=clock.steps,
                logger=False,
                callbacks=[clock],
                enable_checkpointing=False,
            )
            trainer.fit(module, train_dataloaders=loader)
        return clock.seconds_a_step

    return measure


class _Clock(Callback):
    """Times some steps after a few that warm up."""

    def __init__(self, work: Work) -> None:
        self.steps = _UNTIMED + work.steps
        self._clock = time.process_time if work.processor_time else time.perf_counter
        self._done, self._started, self._stopped = 0, 0.0, 0.0

    def ticked(self) -> bool:
        """Count a step that has ended; true after the last."""
        self._done += 1
        if self._done == _UNTIMED:
            self._started = self._now()
        if self._done == self.steps:
            self._stopped = self._now()
        return self._done >= self.steps

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.ticked()

    @property
    def seconds_a_step(self) -> float:
        if self._done != self.steps:
            raise RuntimeError(f"a round must have {self.steps} steps, got {self._done}")
        return (self._stopped - self._started) / (self.steps - _UNTIMED)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._clock()


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
