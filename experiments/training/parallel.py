"""Training by several processes with Lightning's strategies: who writes, and how all end."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console

from ..config import TrainConfig
from ..store.errors import FAILED, UNEXPECTED
from ..store.progress import Display
from .places import LostProcessError, by_slurm, place_of

WATCH_SECONDS = 0.2
NOTICE_SECONDS = 3.0
"""How long the first process has to notice by itself that another ended."""

_LOST = re.compile(r"gloo|nccl|c10d|TCPStore|Connection (closed|reset)|Broken pipe", re.IGNORECASE)
AGAIN = "the same command continues from the last checkpoint"


def trainer_options(config: TrainConfig) -> dict[str, Any]:
    """What Lightning's trainer is told of its processes."""
    place = place_of(config)
    if place.count == 1:
        return {"devices": 1}
    slurm = [SLURMEnvironment(auto_requeue=False)] if by_slurm(place.count) else []
    return {
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "strategy": Watched(),
        "plugins": slurm,
        "use_distributed_sampler": False,
    }


def wait_for_all() -> None:
    """Wait until every process that trains together is here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


class SameWork(Callback):
    """Refuses processes that do not train the same, from the same checkpoint."""

    def __init__(self, identity: str, resume: Path) -> None:
        self.mine, self.resume = [identity, resume.exists()], resume

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare with the first process, before anything is trained."""
        if (first := trainer.strategy.broadcast(self.mine)) != self.mine:
            seen = "data" if first[0] != self.mine[0] else f"checkpoint {self.resume}"
            raise ValueError(
                f"the {seen} of this process is not the first one's: all machines must have the "
                "same --data and share --out"
            )


class Watched(DDPStrategy):
    """Lightning's DDP; a process that ends early ends all, with one line.

    Lightning's own observer would kill the first process too, which then could say nothing.
    """

    def setup_environment(self) -> None:
        """Take the started processes over before they are waited for."""
        started: list[Any] = getattr(self.launcher, "procs", [])
        _watch.take(list(started))
        started.clear()
        super().setup_environment()


class _Watch:
    """The processes that this one started, and a thread that sees when one ends early."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.inside = False
        self._over = threading.Event()

    def take(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Watch processes from now on."""
        if processes:
            self.processes += processes
            threading.Thread(target=self._run, name="processes", daemon=True).start()

    def lost(self, wait: float = 0.0) -> LostProcessError | None:
        """The error of a process that ended early, for which may be waited."""
        end = time.monotonic() + wait
        while True:
            for rank, process in enumerate(self.processes, start=1):
                if status := process.poll():
                    told = status if status in (FAILED, UNEXPECTED) else None
                    how = f"by signal {-status}" if status < 0 else f"with status {status}"
                    line = f"process {rank} of {len(self.processes) + 1} ended early, {how}"
                    return LostProcessError(f"{line}; {AGAIN}", told)
            if time.monotonic() >= end:
                return None
            time.sleep(WATCH_SECONDS / 4)

    def end(self, *, kill: bool) -> None:
        """Watch no longer; with ``kill``, end what was started."""
        self._over.set()
        for process in self.processes if kill else ():
            process.kill()
            process.wait()

    def _run(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            if (lost := self.lost()) is None:
                continue
            if not self._over.wait(NOTICE_SECONDS):  # computing, or waiting on a GPU
                self.end(kill=True)
                Console(stderr=True).show_cursor()  # a bar had hidden it
                if lost.told is None:
                    Display().say(f"deepens: {lost}")
                os._exit(FAILED if lost.told is None else lost.told)
            return


_watch = _Watch()


@contextmanager
def together(config: TrainConfig) -> Iterator[None]:
    """Train inside; where one process ends early, all do, each with its own error.

    Raises:
        LostProcessError: Another process ended early.
    """
    if place_of(config).count == 1:
        yield
        return
    if _watch.inside:  # the training of a base
        yield
        wait_for_all()
        return
    _watch.inside = True
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    try:
        yield
        wait_for_all()
    except BaseException as error:
        lost = None
        if isinstance(error, RuntimeError):
            lost = _watch.lost(NOTICE_SECONDS if _LOST.search(str(error)) else 0.0)
            if lost is None and _LOST.search(str(error)):
                lost = LostProcessError(f"another process of the training ended early; {AGAIN}")
        _watch.end(kill=True)
        if lost is not None:
            raise lost from error
        raise
    finally:
        _watch.inside = False
    _watch.end(kill=False)
