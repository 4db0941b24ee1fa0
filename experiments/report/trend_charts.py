"""Charts of trends, one line per method: quality as a shift grows, and training by epochs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ...datasets import SplitName
from ..comparison.formatting import counted_text, number
from ..comparison.verdicts import Comparison, MethodSummary
from .chart_specs import axis, line_chart, small_multiples
from .curve_charts import Rows, line_of
from .model import Chart
from .splits import directed_label, metric_label

_SEVERITY_METRICS = ("accuracy", "nll", "ece")
_POINTS = 80
"""Epochs of a training curve that are drawn at most."""

_Log = Mapping[str, int | float]
_Value = Callable[[_Log], int | float | None]


def severity_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw metrics against the severity of the shift, as means over corruptions.

    Only severities that every corruption has are drawn, so that all points of a curve are means
    of the same ones. Severity 0 is the test images.
    """
    corruptions = _corruptions(comparison)
    common = sorted(set.intersection(*map(set, corruptions.values()))) if corruptions else []
    count = counted_text(len(corruptions), "corruption")
    for metric in _SEVERITY_METRICS if common else ():
        values = _severity_values(comparison, metric, list(corruptions), common)
        if not values:
            continue
        lines = [line_of(name, [0, *common], rows) for name, rows in values.items()]
        label = directed_label(metric)
        ends = "; ".join(
            f"{name} {number(float(rows[:, 0].mean()))} and {number(float(rows[:, -1].mean()))}"
            for name, rows in values.items()
        )
        yield Chart(
            f"severity-{metric}",
            f"{label} · mean over {count}",
            line_chart(comparison.names, lines, x=_severity(common), y=_free(label), points=True),
            f"{metric_label(metric)} on the test images and at severity {common[-1]}, mean over "
            f"{count}: {ends}.",
        )


def corruption_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw accuracy against severity for each corruption by itself, where there are several."""
    corruptions = _corruptions(comparison)
    lines, texts = [], []
    for corruption, severities in corruptions.items() if len(corruptions) > 1 else ():
        values = _severity_values(comparison, "accuracy", [corruption], severities)
        title = corruption.replace("_", " ")
        lines += [line_of(name, [0, *severities], rows, f=title) for name, rows in values.items()]
        ends = (f"{name} {number(float(rows[:, -1].mean()))}" for name, rows in values.items())
        if values:
            texts.append(f"{title}, severity {severities[-1]}: {', '.join(ends)}.")
    if lines:
        severities = sorted({severity for each in corruptions.values() for severity in each})
        x, y = _severity(severities), _free(directed_label("accuracy"))
        yield Chart(
            "severity-each",
            f"{directed_label('accuracy')} · each corruption",
            small_multiples(comparison.names, lines, x=x, y=y),
            f"Accuracy against severity for each corruption. {' '.join(texts)}",
        )


def _severity(severities: Sequence[int]) -> dict[str, Any]:
    title = "Severity of the shift (0: test images)"
    return axis("x", title, axis={"values": [0, *severities], "format": "d", "grid": False})


def _free(label: str) -> dict[str, Any]:
    return axis("y", label, scale={"zero": False})


def _corruptions(comparison: Comparison) -> dict[str, list[int]]:
    """Return the severities of each corruption, from slight to strong."""
    found: dict[str, set[int]] = {}
    for name in comparison.splits.values():
        if name.severity is not None:
            found.setdefault(name.name, set()).add(name.severity)
    return {name: sorted(severities) for name, severities in found.items()}


def _severity_values(
    comparison: Comparison, metric: str, corruptions: Sequence[str], severities: Sequence[int]
) -> dict[str, Rows]:
    """Return each method's values on the test images and at each severity, a row per replicate."""
    shifted = [[str(SplitName("shift", name, s)) for name in corruptions] for s in severities]
    found = {}
    for method in comparison.methods:
        rows = [[r.mean(g, metric) for g in (["test"], *shifted)] for r in method.replicates]
        if whole := [row for row in rows if all(map(math.isfinite, row))]:
            found[method.name] = np.array(whole)
    return found


def training_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw training loss, validation NLL and validation accuracy by epochs, as far as all reached.

    The training loss is the mean over members, so that its height does not depend on their number.
    """
    wanted: dict[str, _Value] = {
        "Training loss, mean over members\N{NO-BREAK SPACE}↓": _training_loss,
        "Validation NLL\N{NO-BREAK SPACE}↓": lambda row: row.get("val/nll"),
        "Validation accuracy\N{NO-BREAK SPACE}↑": lambda row: row.get("val/accuracy"),
    }
    for index, (label, value) in enumerate(wanted.items()):
        lines, texts = [], []
        for method in comparison.methods:
            curves = _epochs(method, value)
            if not curves:
                continue
            shortest = min(map(len, curves))
            kept = np.linspace(0, shortest - 1, min(shortest, _POINTS)).round().astype(int)
            rows = np.stack([curve[kept, 1] for curve in curves])
            lines.append(line_of(method.name, curves[0][kept, 0], rows))
            last = [float(curve[-1, 1]) for curve in curves]
            reached = sorted({int(curve[-1, 0]) for curve in curves})
            span = f"{reached[0]}" + (f" to {reached[-1]}" if len(reached) > 1 else "")
            texts.append(f"{method.name} {number(sum(last) / len(last))} after {span} epochs")
        if not lines:
            continue
        low = min(min(line["l"]) for line in lines)
        high = max(max(line["h"]) for line in lines)
        steep = "accuracy" not in label and 0 < 10 * low < high
        scale = {"type": "log"} if steep else {"zero": False}
        epochs = int(max(line["x"][-1] for line in lines))
        ticks = list(range(0, epochs + 1, -(-epochs // 8)))
        x = axis("x", "Epoch", axis={"format": "d", "values": ticks})
        yield Chart(
            f"training-{index + 1:02d}",
            label,
            line_chart(comparison.names, lines, x=x, y=axis("y", label, scale=scale)),
            f"{label[:-2]} by epochs. At the end, mean over replicates: {'; '.join(texts)}.",
        )


def _epochs(method: MethodSummary, value: _Value) -> list[Float[np.ndarray, "_ 2"]]:
    found = []
    for replicate in method.replicates:
        points = [(row["epoch"], value(row)) for row in replicate.log if "epoch" in row]
        known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        if known:
            found.append(np.array(known, dtype=float))
    return found


def _training_loss(row: _Log) -> int | float | None:
    """Mean over members; their sum, which is the loss that training follows, where it is alone."""
    members = [value for name, value in row.items() if name.startswith("train/loss_")]
    return sum(members) / len(members) if members else row.get("train/loss")
