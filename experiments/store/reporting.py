"""Progress of a process without a terminal: kept in a file that another process reads and shows."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...datasets.plain_data import construct, parse_json
from .progress import Display, Task

WRITE_SECONDS = 0.3
"""Least seconds between two writes of a report that differ in their number of steps alone."""


@dataclass(frozen=True)
class Report:
    """How far a process is: steps of its present task, and all lines that it has said."""

    task: str = ""
    done: int = 0
    total: int = 0
    said: tuple[str, ...] = ()


def read_report(file: Path) -> Report:
    """The report of another process; an empty one where there is none that can be read."""
    try:
        return construct(Report, parse_json(file.read_text(encoding="utf-8")), str(file))
    except (OSError, ValueError):
        return Report()


class Reporter(Display):
    """A display whose tasks and lines go to a file; its folder exists."""

    def __init__(self, file: Path) -> None:
        super().__init__(quiet=True)
        self._file, self._said, self._written = file, list[str](), 0.0
        self._tasks: list[Task] = []

    def say(self, line: str) -> None:
        """Add a line to those that were said."""
        self._said.append(line)
        self.write()

    @contextmanager
    def task(self, name: str, total: int, *, still: bool = False) -> Iterator[Task]:
        """Report a task while its work is done inside, and afterwards the one around it."""
        task = _Reported(name, total, self)
        self._tasks.append(task)
        try:
            self.write()
            yield task
        finally:
            self._tasks.pop()

    def write(self, *, soon: bool = True) -> None:
        """Write the report now, or where it is not needed ``soon`` perhaps with a later one."""
        now = time.monotonic()
        if not soon and now - self._written < WRITE_SECONDS:
            return
        task = self._tasks[-1] if self._tasks else None
        steps = (task.name, task.done, task.total) if task else ("", 0, 0)
        aside = self._file.with_suffix(".new")
        fields = dict(zip(("task", "done", "total"), steps, strict=True))
        aside.write_text(json.dumps({**fields, "said": self._said}), encoding="utf-8")
        os.replace(aside, self._file)
        self._written = now


class _Reported(Task):
    """A task whose steps are reported."""

    def __init__(self, name: str, total: int, reporter: Reporter) -> None:
        self._reporter = reporter
        super().__init__(name, total, None, quiet=True)

    def _update(self, **fields: str) -> None:
        self._reporter.write(soon=False)
