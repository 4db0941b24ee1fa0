"""What the commands do: call the library, and print what a person wants to see."""

import math
from collections.abc import Mapping
from pathlib import Path

from ..config import AssembleConfig, EvaluateConfig, TrainConfig
from ..evaluation.assemble import assemble
from ..evaluation.evaluate import evaluate
from ..evaluation.predictions import load_metrics
from ..evaluation.train_and_evaluate import train_and_evaluate
from ..store.progress import Display
from ..store.run import Run

SHOWN = ("n", "accuracy", "nll", "brier", "ece", "aurc", "auroc_msp", "auroc_entropy")


def run_train(config: TrainConfig) -> int:
    """Train, and print the metrics."""
    run = train_and_evaluate(config, display=Display(quiet=config.quiet))
    return _show(run, load_metrics(run))


def run_evaluate(config: EvaluateConfig) -> int:
    """Evaluate, and print the metrics."""
    run = Run.open(config.run, device=config.device)
    metrics = evaluate(
        run,
        predict=config.predict,
        detectors=config.detectors,
        display=Display(quiet=config.quiet),
    )
    return _show(run, metrics)


def run_assemble(config: AssembleConfig) -> int:
    """Assemble, and print the metrics."""
    paths = [Path(path) for path in config.runs]
    run = assemble(paths, config.out, display=Display(quiet=config.quiet))
    return _show(run, load_metrics(run))


def _show(run: Run, metrics: Mapping[str, Mapping[str, int | float]]) -> int:
    width = max(len(name) for name in metrics)
    print(" ".join([f"{'split':{width}}", *(f"{name:>13}" for name in SHOWN)]))
    for split, values in metrics.items():
        print(" ".join([f"{split:{width}}", *(_cell(values.get(name)) for name in SHOWN)]))
    print(f"all metrics: {run.metrics}")
    return 0


def _cell(value: int | float | None) -> str:
    if value is None:
        return f"{'':>13}"
    if math.isnan(value):
        return f"{'undefined':>13}"
    return f"{int(value):>13}" if float(value).is_integer() and value > 1 else f"{value:>13.4f}"
