"""Wall time of fits on several processes against the same fits one after the other.

``python -m deepens.experiments.benchmarks.jobs``: ``deepens compare`` of replicates of one network
on the digits, one thread each, by ``--jobs K`` and by ``--jobs 1``, in turns. Whole commands are
timed, with imports, the start of processes, evaluation, costs and report, which several processes
do not shorten: fits have to be long for the bound. On a machine with other work, wall times say
nothing; the processor time of all its processes tells what several cost more than one.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import harness

MOST = {2: 0.55}
"""Largest share of the time of one process, by the number of processes."""


@dataclass(frozen=True)
class Work(harness.Options):
    """What is measured."""

    rounds: int = harness.option(3, "measured rounds")
    jobs: int = harness.option(2, "processes")
    fits: int = harness.option(6, "replicates, each a fit on one core")
    backbone: str = harness.option("resnet8")
    width: float = harness.option(1.0)
    epochs: int = harness.option(400)


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    work = Work.parse(__doc__, arguments)
    print(harness.setting())
    print(
        f"{work.fits} fits of {work.backbone}, width {work.width:g}, {work.epochs} epochs of the "
        f"digits; {work.rounds} rounds\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        commands = [_Command(work, jobs, Path(folder)) for jobs in (1, work.jobs)]
        one, several = (harness.Candidate(f"--jobs {c.jobs}", c.seconds) for c in commands)
        measured = list(harness.compare([one, several], rounds=work.rounds, warmup=0).values())
    share = harness.ratio(measured[1].seconds, measured[0].seconds)
    rows = [("", "seconds (spread)", "share of one after the other (spread)", "processor time")]
    for each, command in zip(measured, commands, strict=True):
        of_one = str(harness.ratio(each.seconds, measured[0].seconds))
        processor = str(harness.ratio(command.processor, commands[0].processor))
        rows.append((each.name, str(harness.Spread.of(each.seconds)), of_one, processor))
    print(harness.table(rows) + "\n")
    claim = f"of the time of one after the other, {work.fits} fits on {work.jobs} processes"
    most = MOST.get(work.jobs)
    lines = [] if most is None else [harness.verdict(claim, share.median, most=most)]
    return harness.conclude(lines, work.out, measured)


class _Command:
    """A comparison by some processes, anew in a directory of its own at each call."""

    def __init__(self, work: Work, jobs: int, folder: Path) -> None:
        self.work, self.jobs, self.folder = work, jobs, folder
        self.processor: list[float] = []

    def seconds(self) -> float:
        """Train all, and return the wall time; the processor time is kept."""
        work, out = self.work, self.folder / f"{self.jobs}-{len(self.processor)}"
        words = [
            *(sys.executable, "-m", "deepens", "compare", "--data", "digits", "--device", "cpu"),
            *("--methods", "single", "--replicates", str(work.fits), "--draws", "100"),
            *("--epochs", str(work.epochs), "--corruptions", "none", "--jobs", str(self.jobs)),
            *("--backbone", work.backbone, "--width", str(work.width), "--out", str(out)),
            "--quiet",
        ]
        started, before = time.perf_counter(), _processor_seconds()
        subprocess.run(words, check=True, capture_output=True)
        self.processor.append(_processor_seconds() - before)
        return time.perf_counter() - started


def _processor_seconds() -> float:
    """Of all processes that were started by this one, and by those, and are over."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
