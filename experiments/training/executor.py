"""Where units of work run: executors place calls in processes and know nothing of training."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from joblib import cpu_count
from joblib.externals.loky.process_executor import ProcessPoolExecutor

from ..config import Recipe

Call = Callable[[], str | None]
"""A unit's work as a process is given it; it returns the line of the error that ended it."""


class Executor(Protocol):
    """Places calls in processes."""

    slots: int | None
    """How many calls can be there at once; None where the executor queues them itself."""

    parent: int
    """The process without which the calls are to end, on the same machine; 0 for none."""

    def submit(self, call: Call) -> "Future[str | None]":
        """Start a call, or queue it; an exception is that of a process that was killed."""

    def close(self, *, kill: bool = False) -> None:
        """End all processes; what they do is over, or is to be killed."""


class LocalExecutor:
    """Processes on this machine, by loky, each of which computes on some threads.

    A process that is killed takes no other with it: each belongs to a pool of its own.
    """

    def __init__(self, jobs: int, threads: int = 1) -> None:
        self.slots: int | None = jobs
        self.parent = os.getpid()
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._environment = dict.fromkeys(names, str(threads))
        self._free: list[ProcessPoolExecutor] = []
        self._all: list[ProcessPoolExecutor] = []

    def submit(self, call: Call) -> "Future[str | None]":
        """Start a call in a process that is free, or in a new one."""
        pool = self._free.pop() if self._free else self._new()
        future: Future[str | None] = pool.submit(call)
        future.add_done_callback(functools.partial(self._done, pool))
        return future

    def close(self, *, kill: bool = False) -> None:
        """End all processes."""
        for pool in self._all:
            pool.shutdown(wait=True, kill_workers=kill)

    def _new(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(max_workers=1, timeout=None, env=self._environment)
        self._all.append(pool)
        return pool

    def _done(self, pool: ProcessPoolExecutor, future: "Future[str | None]") -> None:
        if not future.cancelled() and future.exception() is None:
            self._free.append(pool)


def check_jobs(config: Recipe) -> None:
    """Refuse more processes, with all their threads, than this machine has processor cores."""
    jobs, threads, cores = config.jobs or 1, config.threads or 1, cpu_count()
    if config.jobs is not None and jobs > 1 and jobs * threads > cores:
        each = f" of {threads} threads" if threads > 1 else ""
        raise ValueError(
            f"jobs must be <= {max(1, cores // threads)}: there are {cores} processor cores here, "
            f"got {jobs} jobs{each}"
        )
