"""Time that the product itself spends in a small comparison, relative to its fits.

``python -m deepens.experiments.benchmarks.product``: three methods on scikit-learn's digits, all
trained anew. Besides the fits there are the data, the evaluation with predictions, costs and
example pictures, the statistics with their tables, and the report.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...datasets import load
from ..comparison.compare import compare
from ..comparison.stored import load_comparison, write_tables
from ..config import CompareConfig
from ..report import write_markdown, write_report
from ..store.run import Run, training_seconds
from . import harness

FITS, ALL = "fits", "all besides fits"
DATA, EVALUATION = "data", "evaluation, costs, example pictures"
STATISTICS, REPORT = "statistics and tables", "report"


@dataclass(frozen=True)
class Work(harness.DeviceOptions):
    """What is measured."""

    rounds: int = harness.option(3)
    methods: tuple[str, ...] = harness.option(("single", "deep-2", "packed-2"))
    replicates: int = harness.option(3)
    epochs: int = harness.option(10)
    evaluate: str = harness.option("full", choices=["quick", "full"])


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    work = Work.parse(__doc__, arguments)
    print(harness.setting())
    count = f"{work.replicates} replicates, {work.epochs} epochs"
    print(f"{', '.join(work.methods)} on digits; {count}; {work.rounds} rounds\n")
    rounds = [phases(work) for _ in range(work.rounds + 1)][1:]  # the first one imports
    fits = tuple(each[FITS] for each in rounds)
    found = [
        harness.Measurement(name, tuple(each[name] for each in rounds), fits, over=FITS)
        for name in rounds[0]
    ]
    rows = [("", "s", "over the fits")]
    for each in found:
        rows.append((each.name, str(harness.Spread.of(each.seconds)), str(each.slowdown)))
    print(harness.table(rows) + "\n")
    return harness.conclude([], work.out, found)


def phases(work: Work) -> dict[str, float]:
    """Seconds of each part of one comparison that begins with nothing."""
    with TemporaryDirectory() as place:
        path = Path(place) / "comparison"
        config = CompareConfig(
            data="digits",
            backbone="small-cnn",
            methods=work.methods,
            replicates=work.replicates,
            epochs=work.epochs,
            evaluate=work.evaluate,  # type: ignore[arg-type]
            share_members=False,
            threads=work.threads,
            device=work.device or "auto",  # type: ignore[arg-type]
            out=str(path),
            quiet=True,
        )
        data, splits = _timed(lambda: load(config))
        whole, comparison = _timed(lambda: compare(config, splits=splits))
        statistics, _ = _timed(lambda: write_tables(load_comparison(path), path))
        page, _ = _timed(lambda: write_report(comparison, path / "report.html"))
        text, _ = _timed(lambda: write_markdown(comparison, path / "report.md"))
        report = page + text
        runs = [path / f"{name}-{i}" for name in work.methods for i in range(work.replicates)]
        fits = sum(training_seconds(Run.open(run)) for run in runs)
    evaluation = whole - fits - statistics
    return {
        FITS: fits,
        DATA: data,
        EVALUATION: evaluation,
        STATISTICS: statistics,
        REPORT: report,
        ALL: data + evaluation + statistics + report,
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
