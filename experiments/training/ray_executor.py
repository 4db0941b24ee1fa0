"""Units of work as tasks of a Ray cluster, whose machines share the directories of the runs.

Ray places a task where the processor cores and the part of a GPU are free that it takes, and queues
the others; machines that join late are used. What a task does is all in its run's directory, so
that nothing but its options and the line of an error goes through Ray.

Reference: Moritz et al. (2018), Ray, arXiv:1712.05889
"""

import contextlib
import importlib.util
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from .executor import Call

CONNECT_SECONDS = 8.0
"""How long a cluster may take to answer."""


class RayExecutor:
    """Calls as tasks of a running Ray cluster.

    Args:
        address: HOST:PORT, or auto for the cluster to which this machine belongs.
        slots: How many calls Ray may hold at once; None for all.
        threads: Processor cores that each takes.
        gpus: GPUs that each takes; a part below 1 lets several share one.

    Raises:
        ValueError: No machine of the cluster has what a call takes.
    """

    def __init__(self, address: str, slots: int | None, threads: int, gpus: float) -> None:
        self.slots = slots
        import ray

        self._ray: Any = ray
        self._begun = not ray.is_initialized()
        if self._begun:
            with _own_signals():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            self._check(threads, gpus)
        except ValueError:
            self.close()
            raise
        remote = self._ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)
        self._task = remote(_carry_out)
        self._tasks: list[Any] = []

    def submit(self, call: Call) -> "Future[str | None]":
        """Let Ray do a call when there is room for it."""
        task = self._task.remote(call)
        self._tasks.append(task)
        future: Future[str | None] = task.future()
        return future

    def close(self, *, kill: bool = False) -> None:
        """Leave the cluster, where it was joined for this."""
        for task in self._tasks if kill else ():
            with contextlib.suppress(Exception):  # it is over, or its machine is gone
                self._ray.cancel(task, force=True)
        if self._begun:
            self._ray.shutdown()

    def _check(self, threads: int, gpus: float) -> None:
        """Refuse what no machine of the cluster has, for which Ray would wait without an end."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for name, kind, wanted in (("threads", "CPU", threads), ("gpus_per_fit", "GPU", gpus)):
            most = max((machine.get(kind, 0.0) for machine in machines), default=0.0)
            if wanted > most:
                raise ValueError(
                    f"{name} must be <= {most:g}, the most {kind}s of a machine in the Ray "
                    f"cluster, got {wanted:g}"
                )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this process does on SIGTERM, which Ray would take over."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


def _carry_out(call: Call) -> str | None:
    return call()


def check_ray(address: str) -> None:
    """Refuse, by a ValueError and soon, an address at which no Ray cluster answers.

    Ray itself tries for minutes, and longer where something else answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            "executor ray needs Ray, which is not installed: pip install 'deepens[ray]'"
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal()):
        raise ValueError(f"address must be auto or HOST:PORT, got {address!r}")
    words = [sys.executable, "-m", "ray.scripts.scripts", "status"]
    words += [] if address == "auto" else ["--address", address]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=CONNECT_SECONDS)
        answer = (asked.stderr.splitlines() or [""])[-1] if asked.returncode else None
    except subprocess.TimeoutExpired:
        answer = f"nothing for {CONNECT_SECONDS:.0f} s"
    if answer is not None:
        why = " ".join(answer.split())[:200]
        raise ValueError(
            f"no Ray cluster answers at address {address} ({why}); start one by `ray start "
            "--head`, or name another by --address HOST:PORT"
        )
