"""Panels of curves: ROC, quality as a shift grows, and training."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from ..comparison.verdicts import Comparison, MethodSummary, Replicate
from . import curves, drawing
from .panel import Panel, drawn_once
from .splits import (
    SplitGroup,
    directed_label,
    kind_of,
    metric_label,
    number,
    replicate_value,
    split_title,
)

_SEVERITY_METRICS = ("accuracy", "nll", "ece")
_MULTIPLES = 6  # small figures of corruptions in one panel

Curve = Float[np.ndarray, "_ 2"]
_Value = Callable[[Mapping[str, int | float]], int | float | None]


@drawn_once
def roc_panels(comparison: Comparison) -> Iterator[Panel]:
    """Draw, for each OOD set, the ROC curves of all methods by predictive entropy.

    Args:
        comparison: What was measured.

    Yields:
        One panel a near or far set of which some method has per-image values.
    """
    splits = dict.fromkeys(
        split
        for method in comparison.methods
        for replicate in method.replicates
        for split in replicate.values
        if kind_of(split) in ("near_ood", "far_ood")
    )
    for split in sorted(splits, key=lambda name: kind_of(name) != "near_ood"):
        drawn = {m.name: _roc_curves(m.replicates, split) for m in comparison.methods}
        if not any(drawn.values()):
            continue
        figure = drawing.new_figure(height=4.2)
        curves.roc_curves(figure.add_subplot(), drawn)
        told = "; ".join(
            f"{name} {number(_mean([curves.area_under(curve) for curve in held]))}"
            for name, held in drawn.items()
            if held
        )
        yield Panel(
            split_title(split),
            drawing.svg_text(figure),
            f"ROC curves of test images against {split_title(split)} by predictive entropy. Mean "
            f"area under the curve: {told}.",
        )


def _roc_curves(replicates: Sequence[Replicate], split: str) -> list[Curve]:
    return [
        curves.roc_curve(replicate.values["test"].entropy, replicate.values[split].entropy)
        for replicate in replicates
        if {"test", split} <= replicate.values.keys()
    ]


@drawn_once
def severity_panels(comparison: Comparison) -> Iterator[Panel]:
    """Draw metrics against the severity of the shift, then accuracy for each corruption alone.

    The means are over corruptions, at the severities that every one of them has, so that all
    points of a curve are means of the same ones. Severity 0 is the test images.

    Args:
        comparison: What was measured.

    Yields:
        One panel a metric, and one for every few corruptions; ``group`` is ``Mean over
        corruptions`` or ``Each corruption``. None where nothing is shifted.
    """
    corruptions = _corruptions(comparison)
    if not corruptions:
        return
    common = sorted(set.intersection(*map(set, corruptions.values())))
    count = f"{len(corruptions)} corruption{'' if len(corruptions) == 1 else 's'}"
    for metric in _SEVERITY_METRICS if common else ():
        values = _severity_values(comparison, metric, list(corruptions), common)
        if not any(map(len, values.values())):
            continue
        figure = drawing.new_figure()
        curves.severity_curves(
            figure.add_subplot(), values, severities=[0, *common], label=directed_label(metric)
        )
        yield Panel(
            f"{directed_label(metric)} · mean over {count}",
            drawing.svg_text(figure),
            f"{metric_label(metric)} on the test images and at severity {common[-1]}, mean over "
            f"{count}: {_ends(values)}.",
            "Mean over corruptions",
        )
    if len(corruptions) > 1:
        yield from _corruption_panels(comparison, corruptions)


def _corruptions(comparison: Comparison) -> dict[str, list[int]]:
    """Return the severities of each corruption, from slight to strong."""
    found: dict[str, set[int]] = {}
    for method in comparison.methods:
        for replicate in method.replicates:
            for split in replicate.metrics:
                name, _, severity = split.removeprefix("shift/").rpartition("/")
                if kind_of(split) == "shift" and name and severity.isdecimal():
                    found.setdefault(name, set()).add(int(severity))
    return {name: sorted(severities) for name, severities in found.items()}


def _severity_values(
    comparison: Comparison, metric: str, corruptions: Sequence[str], severities: Sequence[int]
) -> dict[str, Float[np.ndarray, "replicates severities"]]:
    """Return each method's values on the test images and at each severity, a row a replicate."""
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
        found[method.name] = np.array(whole).reshape(len(whole), len(groups))
    return found


def _ends(values: Mapping[str, Float[np.ndarray, "_ severities"]]) -> str:
    return "; ".join(
        f"{name} {number(float(rows[:, 0].mean()))} and {number(float(rows[:, -1].mean()))}"
        for name, rows in values.items()
        if len(rows)
    )


def _corruption_panels(
    comparison: Comparison, corruptions: Mapping[str, Sequence[int]]
) -> Iterator[Panel]:
    """Draw accuracy for each corruption, a few small figures of the same scale in a panel."""
    drawn = {}
    for name, severities in corruptions.items():
        values = _severity_values(comparison, "accuracy", [name], severities)
        if any(map(len, values.values())):
            drawn[name] = values
    panels = math.ceil(len(drawn) / _MULTIPLES)
    ends = [i * len(drawn) // panels for i in range(panels + 1)] if panels else []
    names = [method.name for method in comparison.methods]
    low, high = _range([rows for values in drawn.values() for rows in values.values()])
    for start, stop in pairwise(ends):
        chosen = list(drawn)[start:stop]
        rows = math.ceil(len(chosen) / 2)
        figure = drawing.new_figure(height=0.7 + 1.7 * rows)
        curves.method_key(figure, names)
        grid = list(figure.subplots(rows, 2, sharey=True, squeeze=False).flat)
        for axes, name in zip(grid, chosen, strict=False):
            curves.severity_curves(
                axes, drawn[name], severities=[0, *corruptions[name]], label="", named=False
            )
            axes.set_title(name.replace("_", " "), fontsize=9)
            axes.set_ylim(low, high)
        for axes in grid[len(chosen) :]:
            axes.remove()
        figure.supylabel(directed_label("accuracy"), fontsize=9.5)
        figure.supxlabel("Severity (0: test images)", fontsize=9.5)
        told = " ".join(
            f"{name.replace('_', ' ')}, severity {corruptions[name][-1]}: {_last(drawn[name])}."
            for name in chosen
        )
        yield Panel(
            f"{directed_label('accuracy')} · {chosen[0].replace('_', ' ')}"
            f"{' to ' + chosen[-1].replace('_', ' ') if len(chosen) > 1 else ''}",
            drawing.svg_text(figure),
            f"Accuracy against severity for each corruption. {told}",
            "Each corruption",
        )


def _last(values: Mapping[str, Float[np.ndarray, "_ severities"]]) -> str:
    return ", ".join(
        f"{name} {number(float(rows[:, -1].mean()))}" for name, rows in values.items() if len(rows)
    )


def _range(values: Sequence[Float[np.ndarray, "_ _"]]) -> tuple[float, float]:
    held = np.concatenate([rows.ravel() for rows in values]) if values else np.array([0.0, 1.0])
    margin = 0.06 * float(np.ptp(held)) or 0.05
    return float(held.min()) - margin, float(held.max()) + margin


@drawn_once
def training_panels(comparison: Comparison) -> Iterator[Panel]:
    """Draw training loss, validation NLL and validation accuracy by epochs, all methods together.

    The training loss is the mean over members, so that its height does not depend on their number.

    Args:
        comparison: What was measured.

    Yields:
        One panel a value that some run has logged.
    """
    wanted: dict[str, _Value] = {
        "Training loss, mean over members\N{NO-BREAK SPACE}↓": _training_loss,
        "Validation NLL\N{NO-BREAK SPACE}↓": lambda row: row.get("val/nll"),
        "Validation accuracy\N{NO-BREAK SPACE}↑": lambda row: row.get("val/accuracy"),
    }
    for label, value in wanted.items():
        drawn = {method.name: _epochs(method, value) for method in comparison.methods}
        if not any(drawn.values()):
            continue
        figure = drawing.new_figure(width=4.8)
        curves.training_curves(
            figure.add_subplot(), drawn, label=label, falling="accuracy" not in label
        )
        told = "; ".join(
            f"{name} {number(_mean([float(curve[-1, 1]) for curve in held]))} after "
            f"{_span([int(curve[-1, 0]) for curve in held])} epochs"
            for name, held in drawn.items()
            if held
        )
        yield Panel(
            label,
            drawing.svg_text(figure),
            f"{label[:-2]} by epochs. At the end, mean over replicates: {told}.",
        )


def _epochs(method: MethodSummary, value: _Value) -> list[Curve]:
    found = []
    for replicate in method.replicates:
        points = [(row["epoch"], value(row)) for row in replicate.log if "epoch" in row]
        known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        if known:
            found.append(np.array(known, dtype=float))
    return found


def _training_loss(row: Mapping[str, int | float]) -> int | float | None:
    """Mean over members; their sum, which is the loss that training follows, where it is alone."""
    members = [value for name, value in row.items() if name.startswith("train/loss_")]
    return sum(members) / len(members) if members else row.get("train/loss")


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
