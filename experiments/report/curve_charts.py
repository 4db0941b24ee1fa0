"""Charts of curves, one line per method: ROC, risk-coverage, severity of a shift, training."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...datasets import SplitName
from ...metrics.core.ranking import rank
from ...metrics.selective.risk_coverage import risk_coverage_curve
from ..comparison.formatting import number
from ..comparison.verdicts import Comparison, MethodSummary, Replicate
from .chart_specs import GREY, axis, diagonal, line_chart, small_multiples
from .charts import Graded, graded
from .model import Chart
from .splits import (
    SplitGroup,
    directed_label,
    kind_of,
    metric_label,
    replicate_value,
    split_title,
)

_SEVERITY_METRICS = ("accuracy", "nll", "ece")
_COVERAGES = np.concatenate([np.arange(1, 10) / 200, np.arange(5, 101) / 100])
# False positive rates at which ROC curves are averaged, denser where they rise.
_RATES = np.concatenate([np.arange(10) / 200, np.arange(5, 20) / 100, np.arange(10, 51) / 50])
_POINTS = 80
"""Epochs of a training curve that are drawn at most."""

Rows = Float[np.ndarray, "replicates points"]
_Log = Mapping[str, int | float]
_Value = Callable[[_Log], int | float | None]


def _line(
    name: str, x: Sequence[int | float] | np.ndarray, rows: Rows, **more: Any
) -> dict[str, Any]:
    """Return a line's mean over replicates and, where there are several, their range."""
    line = {"m": name, "x": _short(x), "y": _short(rows.mean(0)), **more}
    if len(rows) > 1:
        return line | {"l": _short(rows.min(0)), "h": _short(rows.max(0))}
    return line | {"l": line["y"], "h": line["y"]}


def _short(values: Sequence[int | float] | np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in np.asarray(values, dtype=float)]


def roc_curve(
    scores_id: Float[Tensor, "id"], scores_ood: Float[Tensor, "ood"]
) -> Float[np.ndarray, "points 2"]:
    """Return the ROC curve of telling OOD images from ID ones, OOD being the positive class.

    ``(N_b / N, P_b / P)`` for every block b of equal scores, from the highest down: the ID and OOD
    images that score at least as high. Blocks are joined by straight lines, so that a tie counts
    half and the area below is the AUROC exactly.

    ==========  ===========  =============================================
    argument    shape        unit
    ==========  ===========  =============================================
    scores_id   [id]         any score that is higher for OOD images
    scores_ood  [ood]        the same
    returned    [points 2]   false and true positive rate, from (0, 0) to (1, 1)
    ==========  ===========  =============================================

    Args:
        scores_id: Uncertainties of the in-distribution images.
        scores_ood: Uncertainties of the OOD images.

    Returns:
        One point per block, and the origin.

    Raises:
        ValueError: If a score is not finite, or either side is empty.

    Example:
        >>> import torch
        >>> from deepens.experiments.report.curve_charts import roc_curve
        >>> roc_curve(torch.tensor([0.1, 0.5]), torch.tensor([0.5, 0.8])).tolist()
        [[0.0, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 1.0]]
    """
    for name, scores in (("scores_id", scores_id), ("scores_ood", scores_ood)):
        if not len(scores):
            raise ValueError(f"{name} must have >= 1 score, got 0")
    is_ood = torch.cat([torch.zeros(len(scores_id)), torch.ones(len(scores_ood))]).bool()
    counts = rank(torch.cat([scores_id, scores_ood])).cumulate(is_ood)
    rates = torch.stack([counts.unflagged / len(scores_id), counts.flagged / len(scores_ood)], -1)
    return np.concatenate([np.zeros((1, 2)), rates.numpy()])


def rates_at(
    curve: Float[np.ndarray, "points 2"], rates: Float[np.ndarray, "rates"]
) -> Float[np.ndarray, "rates"]:
    """Return the true positive rate of a ROC curve at false positive rates, after any rise there.

    Use it to average curves vertically.

    Example:
        >>> import numpy as np
        >>> from deepens.experiments.report.curve_charts import rates_at
        >>> curve = np.array([[0.0, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 1.0]])
        >>> rates_at(curve, np.array([0.0, 0.25, 1.0])).tolist()
        [0.5, 0.75, 1.0]
    """
    return np.interp(rates, *curve.T)


def roc_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw, for each OOD set, the ROC curves of all methods by predictive entropy."""
    splits = dict.fromkeys(
        split
        for method in comparison.methods
        for replicate in method.replicates
        for split in replicate.values
        if kind_of(split) in ("near_ood", "far_ood")
    )
    names = [method.name for method in comparison.methods]
    ordered = sorted(splits, key=lambda name: kind_of(name) != "near_ood")
    for index, split in enumerate(ordered):
        lines, areas = [], []
        for method in comparison.methods:
            held = [r for r in method.replicates if {"test", split} <= r.values.keys()]
            if held:
                curves = [_rates(replicate, split) for replicate in held]
                lines.append(_line(method.name, _RATES, np.stack(curves)))
                known = [r.metrics.get(split, {}).get("auroc_entropy", math.nan) for r in held]
                areas.append(f"{method.name} {number(sum(known) / len(known))}")
        x = axis("x", "False positive rate (test images)", scale={"domain": [0, 1]})
        y = axis("y", "True positive rate (OOD images)", scale={"domain": [0, 1]})
        yield Chart(
            f"roc-{index + 1:02d}",
            split_title(split),
            line_chart(names, lines, x=x, y=y, below=[diagonal()], size=(300, 300)),
            f"ROC curves of test images against {split_title(split)} by predictive entropy. Mean "
            f"area under the curve: {'; '.join(areas)}.",
        )


def _rates(replicate: Replicate, split: str) -> Float[np.ndarray, "rates"]:
    curve = roc_curve(replicate.values["test"].entropy, replicate.values[split].entropy)
    return rates_at(curve, _RATES)


def risk_at(coverage: Float[np.ndarray, "_"], replicate: Graded) -> Float[np.ndarray, "_"]:
    """Return the selective risk at given coverages, so that replicates can be averaged.

    Args:
        coverage: Shares of images accepted, in (0, 1], rising.
        replicate: Confidences and whether each prediction was correct.

    Returns:
        The errors among the accepted, one share for each coverage.
    """
    curve = risk_coverage_curve(replicate.confidence, replicate.correct)
    return np.interp(coverage, curve.coverage.numpy(), curve.risk.numpy())


def risk_coverage_chart(comparison: Comparison) -> Iterator[Chart]:
    """Draw the risk-coverage curves of all methods together, and dotted those of the oracle."""
    lines, oracles, texts = [], [], []
    for method in comparison.methods:
        replicates = graded(method)
        if not replicates:
            continue
        risks = np.stack([risk_at(_COVERAGES, each) for each in replicates])
        error = np.mean([1 - each.correct.double().mean().item() for each in replicates])
        lines.append(_line(method.name, _COVERAGES, risks))
        oracle = np.maximum(0, 1 - (1 - error) / _COVERAGES)
        oracles.append({"m": method.name, "x": _short(_COVERAGES), "y": _short(oracle)})
        half = np.mean([risk_at(np.array([0.5, 1.0]), each) for each in replicates], axis=0)
        texts.append(f"{method.name} {number(float(half[0]))} and {number(float(half[1]))}")
    if not lines:
        return
    x = axis("x", "Coverage: share of images accepted", scale={"domain": [0, 1]})
    y = axis("y", "Risk: error rate among accepted")
    below = {
        "data": {"values": oracles},
        "transform": [{"filter": "indexof(hidden, datum.m) < 0"}, {"flatten": ["x", "y"]}],
        "mark": {"type": "line", "strokeDash": [1, 3], "strokeWidth": 1, "color": GREY},
        "encoding": {"x": x, "y": y, "detail": {"field": "m"}},
    }
    names = [method.name for method in comparison.methods]
    yield Chart(
        "risk-coverage-01",
        "Risk-coverage curves, test images",
        line_chart(names, lines, x=x, y=y, below=[below], size=(460, 280)),
        "Risk-coverage curves on the test images. Error rate among the most confident half and "
        f"among all images: {'; '.join(texts)}.",
    )


def severity_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw metrics against the severity of the shift, as means over corruptions.

    Only severities that every corruption has are drawn, so that all points of a curve are means
    of the same ones. Severity 0 is the test images.
    """
    corruptions = _corruptions(comparison)
    common = sorted(set.intersection(*map(set, corruptions.values()))) if corruptions else []
    count = f"{len(corruptions)} corruption{'' if len(corruptions) == 1 else 's'}"
    names = [method.name for method in comparison.methods]
    for metric in _SEVERITY_METRICS if common else ():
        values = _severity_values(comparison, metric, list(corruptions), common)
        if not values:
            continue
        lines = [_line(name, [0, *common], rows) for name, rows in values.items()]
        label = directed_label(metric)
        ends = "; ".join(
            f"{name} {number(float(rows[:, 0].mean()))} and {number(float(rows[:, -1].mean()))}"
            for name, rows in values.items()
        )
        yield Chart(
            f"severity-{metric}",
            f"{label} · mean over {count}",
            line_chart(names, lines, x=_severity(common), y=_free(label), points=True),
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
        lines += [_line(name, [0, *severities], rows, f=title) for name, rows in values.items()]
        ends = (f"{name} {number(float(rows[:, -1].mean()))}" for name, rows in values.items())
        if values:
            texts.append(f"{title}, severity {severities[-1]}: {', '.join(ends)}.")
    if lines:
        names = [method.name for method in comparison.methods]
        severities = sorted({severity for each in corruptions.values() for severity in each})
        x, y = _severity(severities), _free(directed_label("accuracy"))
        yield Chart(
            "severity-each",
            f"{directed_label('accuracy')} · each corruption",
            small_multiples(names, lines, x=x, y=y),
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
    for method in comparison.methods:
        for replicate in method.replicates:
            for split in replicate.metrics:
                name = SplitName.parse(split)
                if name.severity is not None:
                    found.setdefault(name.name, set()).add(name.severity)
    return {name: sorted(severities) for name, severities in found.items()}


def _severity_values(
    comparison: Comparison, metric: str, corruptions: Sequence[str], severities: Sequence[int]
) -> dict[str, Rows]:
    """Return each method's values on the test images and at each severity, a row per replicate."""
    groups = [SplitGroup("", ("test",))] + [
        SplitGroup("", tuple(f"shift/{name}/{severity}" for name in corruptions))
        for severity in severities
    ]
    found = {}
    for method in comparison.methods:
        rows = [
            [replicate_value(replicate, group, metric) for group in groups]
            for replicate in method.replicates
        ]
        whole = [row for row in rows if all(map(math.isfinite, row))]
        if whole:
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
    names = [method.name for method in comparison.methods]
    for index, (label, value) in enumerate(wanted.items()):
        lines, texts = [], []
        for method in comparison.methods:
            curves = _epochs(method, value)
            if not curves:
                continue
            shortest = min(map(len, curves))
            kept = np.unique(
                np.linspace(0, shortest - 1, min(shortest, _POINTS)).round().astype(int)
            )
            rows = np.stack([curve[kept, 1] for curve in curves])
            lines.append(_line(method.name, curves[0][kept, 0], rows))
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
            line_chart(names, lines, x=x, y=axis("y", label, scale=scale)),
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
