"""Where units of work run: executors place calls in processes and know nothing of training."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, runtime_checkable

from joblib.externals.loky.process_executor import ProcessPoolExecutor

from .worker import end_with

Call = Callable[[], str | None]
"""A unit's work as a process is given it; it returns the line of the error that ended it."""


@runtime_checkable
class Executor(Protocol):
    """Places calls in processes."""

    slots: int | None
    """How many calls can be there at once; None where the executor queues them itself."""

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
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._environment = dict.fromkeys(names, str(threads))
        self._pools: list[tuple[ProcessPoolExecutor, Future[str | None]]] = []

    def submit(self, call: Call) -> "Future[str | None]":
        """Start a call in a process that is free, or in a new one."""
        pool = self._free()
        future: Future[str | None] = pool.submit(call)
        self._pools.append((pool, future))
        return future

    def close(self, *, kill: bool = False) -> None:
        """End all processes."""
        for pool, _ in self._pools:
            pool.shutdown(wait=True, kill_workers=kill)

    def _free(self) -> ProcessPoolExecutor:
        for place, (pool, future) in enumerate(self._pools):
            if future.done():
                del self._pools[place]
                if future.exception() is None:
                    return pool
                pool.shutdown(wait=True, kill_workers=True)
                return self._new()
        return self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=1,
            timeout=None,
            env=self._environment,
            initializer=end_with,
            initargs=(os.getpid(),),
        )
