"""Test accuracy and training time of runs, as CSV: ``accuracy_in_time RUN...``."""

import csv
import json
import sys
from pathlib import Path


def rows(runs: list[Path]) -> list[dict[str, str]]:
    """One row for each run that is evaluated."""
    found = []
    for run in runs:
        metrics, environment = run / "metrics.json", run / "environment.json"
        if metrics.exists() and environment.exists():
            known = json.loads(metrics.read_text(encoding="utf-8"))
            of_test = known["test"]
            took = json.loads(environment.read_text(encoding="utf-8"))["training_seconds"]
            row = {name: f"{of_test[name]:.4f}" for name in ("accuracy", "nll", "ece")}
            found.append({"run": run.name, **row, "training_seconds": f"{took:.1f}"})
    return found


if __name__ == "__main__":
    names = ("run", "accuracy", "nll", "ece", "training_seconds")
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows([Path(name) for name in sys.argv[1:]]))
