"""Units of work in several processes: placed by an executor, tried again once, shown as one.

A unit is a fit in a run directory, resumable and idempotent: what a process that ended has left is
continued by the next one.
"""

import functools
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..store.progress import Display, Task
from ..store.reporting import Report, read_report
from ..store.termination import GRACE_SECONDS, Terminated
from .executor import Executor
from .worker import STOP, Work, carry_out

TRIES = 2
"""How often a unit is tried that fails or whose process is killed."""

POLL_SECONDS = 0.5
"""Time between two looks at the reports of the processes."""

KILLED = (
    *("TerminatedWorkerError", "WorkerCrashedError", "LocalRayletDiedError", "NodeDiedError"),
    *("OutOfMemoryError", "ObjectLostError", "OwnerDiedError"),
)
"""Names of the errors by which executors say that a process or its machine is gone."""

STEPS = 100
"""Steps of the progress of all units together."""


@dataclass(frozen=True)
class WorkUnit:
    """A unit of work: ``work(options, display)``, with plain data, in any process.

    Attributes:
        name: What a person reads of it, such as its directory.
        work: A function of a module.
        options: Its argument, plain data.
        cost: Relative to that of other units: costly ones begin first.
        plugins: Modules to import before.
        after: Names of the units that must be finished before.
    """

    name: str
    work: Work
    options: Mapping[str, Any]
    cost: float = 1.0
    plugins: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def run_units(
    units: Sequence[WorkUnit], executor: Executor, display: Display, *, title: str, folder: Path
) -> None:
    """Carry out units, costly ones first, each after those that it needs, and show how far all are.

    A unit that fails is tried again once, and the others are finished before its error is raised.
    An interrupt, or a request to end, is passed on to the processes, which save checkpoints.

    Args:
        units: With different names.
        executor: Where they run; it is closed in the end.
        display: Where all of it is shown.
        title: What it is shown as.
        folder: A directory that all processes reach, for their reports, while it lasts.

    Raises:
        ValueError: Units failed twice: their names, and the reason of the first.
    """
    with tempfile.TemporaryDirectory(prefix=".reports-", dir=folder) as reports:
        job = _Job(units, executor, display, Path(reports))
        killed = True
        try:
            with display.task(title, STEPS) as task, job.stopping():
                job.carry_out(task)
            killed = False
        finally:
            executor.close(kill=killed)
    job.raise_failures()


@dataclass
class _Running:
    unit: WorkUnit
    report: Path
    lines: int = 0
    share: float = 0.0


@dataclass
class _Job:
    """Units of which some wait, some run and some are done."""

    units: Sequence[WorkUnit]
    executor: Executor
    display: Display
    reports: Path
    waiting: list[WorkUnit] = field(default_factory=list)
    running: "dict[Future[str | None], _Running]" = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.waiting = sorted(self.units, key=lambda unit: -unit.cost)

    def carry_out(self, task: Task) -> None:
        self._start()
        while self.running:
            done, _ = wait(self.running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                self._settle(future)
            self._start()
            self._show(task)

    def _start(self) -> None:
        """Start what may start."""
        slots = self.executor.slots
        for unit in list(self.waiting):
            if slots is not None and len(self.running) >= slots:
                return
            if not self.finished.issuperset(unit.after):
                continue
            self.waiting.remove(unit)
            number = self.tries[unit.name] = self.tries.get(unit.name, 0) + 1
            place = [each.name for each in self.units].index(unit.name)
            report = self.reports.absolute() / f"{place}-{number}.json"
            what = (unit.work, unit.options, unit.plugins)
            call = functools.partial(carry_out, *what, report, Path.cwd())
            self.running[self.executor.submit(call)] = _Running(unit, report)

    def _settle(self, future: "Future[str | None]") -> None:
        """Take note of a unit that ended, and let it wait for another try if it failed."""
        running = self.running.pop(future)
        unit, error = running.unit, future.exception()
        self._say(running)
        reason = future.result() if error is None else _killed(error)
        if reason is None:
            self.finished.add(unit.name)
        elif self.tries[unit.name] < TRIES:
            self.display.say(f"{unit.name}: {reason}; it is tried again")
            self.waiting.insert(0, unit)
        else:
            self.failed[unit.name] = reason
            self.display.say(f"{unit.name}: {reason}")

    def _show(self, task: Task) -> None:
        """Show how far all units are together, by their costs, and what runs."""
        whole = sum(unit.cost for unit in self.units) or 1.0
        done = sum(unit.cost for unit in self.units if unit.name in self.finished | {*self.failed})
        now = []
        for each in self.running.values():
            report = self._say(each)
            each.share = max(each.share, report.done / max(1, report.total))
            done += each.unit.cost * min(0.95, each.share)
            steps = f" {report.done}/{report.total}" if report.total else ""
            now.append(f"{Path(each.unit.name).name}{steps}")
        note = f"{len(self.finished)} of {len(self.units)} done; {'; '.join(now[:4])}"
        task.reach(int(STEPS * done / whole), note + "; ..." * (len(now) > 4))

    def _say(self, running: _Running) -> Report:
        """Say what a process has said since, but nothing twice."""
        report = read_report(running.report)
        for line in report.said[running.lines :]:
            if line not in self.said:
                self.said.add(line)
                self.display.say(line)
        running.lines = max(running.lines, len(report.said))
        return report

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Let processes save checkpoints where this one is interrupted or asked to end."""
        try:
            yield
        except (KeyboardInterrupt, Terminated):
            (self.reports / STOP).touch()
            self.display.say(
                f"{len(self.running)} fits save their checkpoints, for at most "
                f"{GRACE_SECONDS:.0f} s; a second signal ends them at once"
            )
            deadline = time.monotonic() + GRACE_SECONDS + 5
            left = set(self.running)
            while left and time.monotonic() < deadline:
                left = wait(left, timeout=POLL_SECONDS).not_done
            raise

    def raise_failures(self) -> None:
        """Refuse to go on where units failed."""
        if not self.failed:
            return
        name, reason = next(iter(self.failed.items()))
        others = [each for each in self.failed if each != name]
        more = f"; so did {', '.join(others[:5])}{', ...' * (len(others) > 5)}" if others else ""
        raise ValueError(
            f"{name} failed twice: {reason}{more}; what the others did is kept, and the same "
            "command tries again"
        )


def _killed(error: BaseException) -> str:
    """Why a process that gave no answer is gone, as far as its executor knows."""
    ended = re.search(r"SIG[A-Z]+\(-?\d+\)|EXIT\(\d+\)", str(error))
    how = f" ({ended[0]})" if ended else ""
    if type(error).__name__ in KILLED:
        return f"its process was killed{how}, as where memory runs out"
    return f"its process failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
