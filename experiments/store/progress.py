"""Progress for people: a bar with the time left in a terminal, plain lines in a pipe."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

LINE_SECONDS = 10.0
"""Seconds between two lines where the output is not a terminal."""


class Task:
    """One piece of long work, in equal steps: a line of ``bar``, or lines of text without one."""

    def __init__(self, name: str, total: int, bar: progress.Progress | None, quiet: bool) -> None:
        self.name, self.total, self.done = name, total, 0
        self._bar, self._quiet = bar, quiet
        self._started = self._said = time.monotonic()
        self._from = 0
        self._id = bar.add_task(name, total=total, note="") if bar else progress.TaskID(0)

    def start_at(self, done: int) -> None:
        """Count steps that an earlier, resumed process did."""
        self.done = self._from = done
        self._update()

    def leave_out(self, steps: int) -> None:
        """Leave out steps that will not be done, such as those that depend on a failed one."""
        self.total -= steps
        self._update()

    def advance(self, note: str = "") -> None:
        """Count one more step."""
        self.reach(self.done + 1, note)

    def reach(self, done: int, note: str = "") -> None:
        """Be at a number of steps, which perhaps other processes did."""
        self.done = done
        self._update(note=note)
        now = time.monotonic()
        silent = self._quiet or self._bar is not None or self.done <= self._from
        if not silent and now - self._said >= LINE_SECONDS and self.done < self.total:
            self._said = now
            fresh = max(1, self.done - self._from)
            left = (now - self._started) / fresh * (self.total - self.done)
            _say(f"{self.name}: {self.done} of {self.total}, {duration(left)} left. {note}")

    def finish(self) -> None:
        """Finish the task."""
        if self._bar is not None:
            self._bar.remove_task(self._id)
        elif not self._quiet:
            _say(f"{self.name}: done in {duration(time.monotonic() - self._started)}.")

    def _update(self, **fields: str) -> None:
        if self._bar is not None:
            self._bar.update(self._id, completed=self.done, total=self.total, **fields)  # type: ignore[arg-type]
            if not self._bar.live.auto_refresh:
                self._bar.refresh()


class Display:
    """Where tasks are shown and lines are said; with ``quiet`` nowhere. One at a time a process."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._bar: progress.Progress | None = None

    def say(self, line: str) -> None:
        """Print one line, above the bars."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            _say(line)

    @contextmanager
    def task(self, name: str, total: int, *, still: bool = False) -> Iterator[Task]:
        """Show a task while its work is done inside; tasks may stand inside one another.

        One that is ``still`` is drawn only where a step is done, so that drawing is no part of
        what is measured in between; it stands inside no other task.
        """
        outermost = self._bar is None and not self._quiet and self._console.is_terminal
        if outermost:
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
                console=self._console,
                transient=True,
                # Steps may take longer than the half minute over which speed is taken otherwise.
                speed_estimate_period=math.inf,
                auto_refresh=not still,
            )
            self._bar.start()
        task = Task(name, total, self._bar, self._quiet)
        try:
            yield task
            task.finish()
        finally:
            if outermost and self._bar is not None:
                self._bar.stop()
                self._bar = None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person reads them, such as ``3 min 5 s``.

    Example:
        >>> from deepens.experiments.store.progress import duration
        >>> duration(185.2)
        '3 min 5 s'
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
