"""The time of a training step under Lightning and in a bare PyTorch loop.

``python -m deepens.experiments.benchmarks.training_step``: ResNet-8 of 16 to 64 channels on
CIFAR-shaped images. Both sides have the same networks, loader, objective, optimiser and schedule,
and nobody's logs or checkpoints. A round is some steps of an epoch in which nothing else happens.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from ...datasets import Split, TensorLoader
from ...datasets.image_format import ImageFormat
from ...ensembles import EnsembleModule
from ..config import TrainConfig
from ..training.building import build_ensemble, build_objective
from ..training.devices import compute_device, pipeline_for, suitable_threads, threads
from ..training.fitting import plain_trainer, quiet_lightning
from ..training.registry import member_seeds
from .harness import Candidate, compare, setting, table, verdict, write
from .loader import MEAN, SIZE, STD, cifar_split

MOST_SLOWDOWN = 1.10
_UNTIMED = 3


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Args:
        images: CIFAR-shaped images of the set.
        steps: Steps of a round.
        rounds: Rounds that count.
        backbone: The network.
        clock: What tells the time, in seconds.
        batch_size: Images a member and batch.
    """

    images: int = 12_800
    steps: int = 20
    rounds: int = 7
    backbone: str = "resnet8"
    clock: Callable[[], float] = time.perf_counter
    batch_size: int = 128


def main(arguments: Sequence[str] | None = None) -> bool:
    """Measure, print and judge.

    Args:
        arguments: Of the command line.

    Returns:
        Whether the bound is kept.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=Work.rounds)
    parser.add_argument("--steps", type=int, default=Work.steps)
    parser.add_argument("--images", type=int, default=Work.images)
    parser.add_argument("--batch-size", type=int, default=Work.batch_size)
    parser.add_argument("--backbone", default=Work.backbone)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--precisions", nargs="+", default=["32", "bf16-mixed"])
    parser.add_argument(
        "--threads",
        type=int,
        help="of both sides, 1 on a machine that does other work; as deepens train when absent",
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count this process's processor time, which what else the machine does hardly changes",
    )
    parser.add_argument("--out", help="a JSON file for every round")
    given = parser.parse_args(arguments)
    clock = time.process_time if given.processor_time else time.perf_counter
    work = Work(given.images, given.steps, given.rounds, given.backbone, clock, given.batch_size)
    split, source = cifar_split(work.images)
    print(setting())
    said = "deepens train's" if given.threads is None else given.threads
    print(f"{work.backbone}; batches of {work.batch_size}; images {source}")
    kind = "processor" if given.processor_time else "wall"
    print(f"threads of both sides: {said}; {work.steps} steps a round, {kind} time\n")
    rows: list[tuple[str, ...]]
    rows = [("", "bare loop", "Lightning", "ratio (spread)")]
    measurements, lines = [], []
    for precision in given.precisions:
        for members in given.members:
            name = f"{members} member{'s' * (members > 1)}, {precision}"
            config = make_config(work, members, precision)
            count = _suitable(config) if given.threads is None else given.threads
            with threads(count):
                found = compare(_candidates(name, config, split, work), rounds=work.rounds)
            bare, ours = found[f"bare, {name}"], found[f"Lightning, {name}"]
            measurements += [bare, ours]
            times = (f"{1000 * _middle(each.seconds):.1f} ms" for each in (bare, ours))
            rows.append((name, *times, str(ours.slowdown)))
            claim = f"step time over the bare loop's, {name}"
            lines.append(verdict(claim, ours.slowdown.median, most=MOST_SLOWDOWN))
    print(table(rows) + "\n\n" + "\n".join(lines))
    write(given.out, measurements, source=source)
    return not any(line.endswith("BROKEN") for line in lines)


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def make_config(work: Work, members: int, precision: str) -> TrainConfig:
    """The configuration that both sides train by."""
    return TrainConfig.from_dict(
        {
            "backbone": work.backbone,
            "members": members,
            "precision": precision,
            "batch_size": work.batch_size,
            "crop_padding": 4,
            "flip": True,
        }
    )


def _form() -> ImageFormat:
    return ImageFormat(tuple(map(str, range(10))), 3, SIZE, MEAN, STD)


def _suitable(config: TrainConfig) -> int | None:
    network = build_ensemble(config, _form()).member(0)
    return suitable_threads(network, _form(), config.batch_size)


def _candidates(name: str, config: TrainConfig, split: Split, work: Work) -> list[Candidate]:
    return [
        Candidate(f"bare, {name}", bare_steps(config, split, work)),
        Candidate(f"Lightning, {name}", lightning_steps(config, split, work)),
    ]


def make_module(config: TrainConfig) -> EnsembleModule:
    """The ensemble, untrained, with what its training needs."""
    ensemble = build_ensemble(config, _form())
    if config.channels_last:
        ensemble.to(memory_format=torch.channels_last)
    return EnsembleModule(
        ensemble,
        build_objective(config),
        optimizer=config.optimizer,
        schedule=config.schedule,
    )


def _loader(config: TrainConfig, split: Split) -> TensorLoader:
    return TensorLoader(
        split,
        batch_size=config.batch_size,
        seeds=member_seeds(config),
        shared=False,
        pipeline=pipeline_for(config, _form()),
    )


def bare_steps(config: TrainConfig, split: Split, work: Work) -> Callable[[], float]:
    """The loop that a script would hold, on copies of the same networks."""
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
                loss = torch.stack(
                    [
                        F.cross_entropy(network(own), answers)
                        for network, own, answers in zip(networks, images, targets, strict=True)
                    ]
                ).sum()
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
                callbacks=[_Ticker(clock)],
                enable_checkpointing=False,
            )
            trainer.fit(module, train_dataloaders=loader)
        return clock.seconds_a_step

    return measure


class _Clock:
    """Times some steps behind a few that warm up."""

    def __init__(self, work: Work) -> None:
        self.steps, self._clock = _UNTIMED + work.steps, work.clock
        self._done, self._started, self._stopped = 0, 0.0, 0.0

    def ticked(self) -> bool:
        """Count a step that has ended; true after the last."""
        self._done += 1
        if self._done == _UNTIMED:
            self._started = self._now()
        if self._done == self.steps:
            self._stopped = self._now()
        return self._done >= self.steps

    @property
    def seconds_a_step(self) -> float:
        if self._done != self.steps:
            raise RuntimeError(f"a round must have {self.steps} steps, got {self._done}")
        return (self._stopped - self._started) / (self.steps - _UNTIMED)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._clock()


class _Ticker(Callback):
    def __init__(self, clock: _Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.clock.ticked()


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
