"""Commands in processes of their own, which are stopped in the midst of their work."""

import csv
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deepens.experiments.store.checkpoint import load_tensors
from deepens.experiments.store.run import read_json

QUICK = ["--quiet", "true", "--device", "cpu", "--corruptions", "none"]
SECONDS = 120
PRELOADED = [
    *("lightning.pytorch", "torch.utils.flop_counter", "torchvision", "pandas", "sklearn.datasets"),
    *("deepens.experiments.cli.compare_command", "deepens.experiments.cli.commands"),
]


def results(path: Path) -> dict[str, object]:
    """All that must be the same, by file."""
    found: dict[str, object] = {}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.name == "metrics.json":
            found[name] = {k: v for k, v in read_json(file).items() if k != "predictions"}
        elif file.suffix == ".safetensors":
            tensors = load_tensors(file)[0]
            found[name] = {k: (v.dtype, v.flatten().tolist()) for k, v in tensors.items()}
        elif file.name in ("log.csv", "verdicts.csv", "temperature.json"):
            found[name] = file.read_text()
        elif file.name == "results.csv":
            with file.open() as lines:
                found[name] = [
                    (row["method"], row["split"], row["metric"], row["value"])
                    for row in csv.DictReader(lines)
                ]
        elif file.name.startswith("report."):
            found[name] = True
    return found


def _main(words: list[str], folder: Path, said: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    from deepens.experiments.cli import main

    sys.exit(main(words))


class Command:
    """`deepens WORDS` in a process of its own, and in a folder."""

    def __init__(self, words: list[str], folder: Path) -> None:
        # A server that has imported all forks the processes: they start at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.said_in = folder / f"said{len(list(folder.glob('said*')))}.txt"
        self.said_in.touch()
        self.process = context.Process(target=_main, args=(words, folder, self.said_in))
        self.process.start()

    @property
    def said(self) -> list[str]:
        return self.said_in.read_text(encoding="utf-8", errors="replace").splitlines()

    def wait(self) -> int:
        self.process.join(SECONDS)
        assert self.process.exitcode is not None, f"still running: {self.said}"
        return self.process.exitcode

    def signal_when(self, ready: Callable[[], bool], number: int, delay: float) -> int:
        """Send a signal so many seconds after something is there; return the exit status."""
        deadline = time.monotonic() + SECONDS
        while not ready() and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(self.process.pid, number)
        return self.wait()
