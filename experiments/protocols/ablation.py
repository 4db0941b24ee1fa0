"""The table of a grid in which one choice is changed at a time: ``ablation GRID_DIRECTORY``."""

import csv
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "aurc": "AURC"}


def table(grid: Path) -> Iterator[str]:
    """Yield the rows of a Markdown table: test metrics of each cell, mean ± standard deviation."""
    yield f"| choice | seeds | {' | '.join(METRICS.values())} |"
    yield "|---|---|" + "---|" * len(METRICS)
    for file in sorted(grid.glob("*/results.csv"), key=lambda file: file.stat().st_mtime):
        with file.open(newline="", encoding="utf-8") as rows:
            found = [row for row in csv.DictReader(rows) if row["split"] == "test"]
        values = {
            name: [float(row["value"]) for row in found if row["metric"] == name]
            for name in METRICS
        }
        cells = [
            f"{statistics.fmean(each):.4f} ± {statistics.stdev(each) if len(each) > 1 else 0:.4f}"
            for each in values.values()
        ]
        yield f"| {file.parent.name} | {len(values['accuracy'])} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(table(Path(sys.argv[1]))))
