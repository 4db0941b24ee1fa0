"""What a process does that carries out a unit of work for another one, which shows its progress."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...datasets import DataOptions, Splits, load
from ..config import Recipe, TrainConfig
from ..store.errors import CORRECTABLE, one_line
from ..store.progress import Display
from ..store.reporting import Reporter
from ..store.termination import Terminated, terminable
from .devices import threads
from .plugins import load_installed_plugins, load_plugins
from .train import train

Work = Callable[[Mapping[str, Any], Display], object]
"""A function of a module: it takes plain data and a display, and may be repeated."""

STOP = "stop"
"""The file in the folder of reports that asks all processes to end."""

ORPHAN_SECONDS = 5.0
"""How long a process may take to end when the one that started it is gone."""

POLL_SECONDS = 0.3
_loaded: dict[DataOptions, Splits] = {}


def carry_out(
    work: Work, options: Mapping[str, Any], plugins: tuple[str, ...], report: Path, folder: Path
) -> str | None:
    """Do a unit of work in this process, and return None, or the line of the error that ended it.

    SIGTERM ends it with a checkpoint; so does the file `STOP` beside the report. Paths in the
    options are relative to a folder.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, which asks by a file
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(report.parent / STOP, over), daemon=True)
    try:
        with terminable(), threads(1):
            watch.start()
            os.chdir(folder)
            load_installed_plugins()
            load_plugins(plugins)
            work(options, Reporter(report))
    except Terminated:
        return "its process was asked to end"
    except CORRECTABLE as error:
        return one_line(error)
    except Exception as error:
        if os.environ.get("DEEPENS_TRACEBACK"):
            raise
        kind = type(error).__name__
        return f"unexpected {kind}: {one_line(error)}; DEEPENS_TRACEBACK=1 shows where"
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)
    return None


def splits_of(config: Recipe, display: Display) -> Splits:
    """The data of a run, loaded once for all units of one process on the same data."""
    wanted = DataOptions(**{f.name: getattr(config, f.name) for f in fields(DataOptions)})
    if wanted not in _loaded:
        _loaded.clear()  # there may be no room for both
        _loaded[wanted] = load(wanted, watcher=display)
    return _loaded[wanted]


def train_member(options: Mapping[str, Any], display: Display) -> None:
    """Train the run of one member, without predicting: a `Work`."""
    config = TrainConfig.from_dict(options)
    train(config, splits=splits_of(config, display), display=display)


def end_with(parent: int) -> None:
    """End this process soon after the one that started it, with a checkpoint of what it does."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _watch(stop: Path, over: threading.Event) -> None:
    """End the work where that is asked for."""
    while not over.wait(POLL_SECONDS):
        if stop.exists():
            os.kill(os.getpid(), signal.SIGTERM)
            return
