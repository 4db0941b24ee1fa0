"""Figures of the report as embedded SVG, each described in a sentence with its numbers."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...metrics.core.catalogue import METRICS
from ..comparison.verdicts import Comparison, MethodSummary
from ..cost.measurement import Cost
from ..evaluation.predictions import is_encoded
from . import drawing
from . import method_plots as plots
from .curve_panels import roc_panels, severity_panels, training_panels
from .diversity import decomposition_panels
from .panel import Panel, drawn_once
from .splits import (
    SplitGroup,
    directed_label,
    kind_of,
    mean_and_spread,
    method_values,
    metric_label,
    metrics_of,
    number,
    split_groups,
)

__all__ = [
    "Panel",
    "decomposition_panels",
    "ood_panels",
    "quality_panels",
    "reliability_panels",
    "risk_coverage_panel",
    "roc_panels",
    "severity_panels",
    "training_panels",
]

_MAIN = ("accuracy", "nll")
_QUALITIES = (*_MAIN, "brier", "ece")
_OOD_QUALITIES = ("auroc_entropy",)


@dataclass(frozen=True)
class _Axis:
    """One way to say what a method costs.

    Attributes:
        group: Which figures stand together.
        label: What stands at the axis.
        unit: The unit in which ``amount`` gives it.
        amount: What a method costs, NaN where that is unknown.
        told: The amount in words.
        note: What tells two axes of a group apart.
        metrics: What is drawn against it on the test images; all of them against each cost would
            fill pages.
    """

    group: str
    label: str
    unit: str
    amount: Callable[[Cost], int | float]
    told: Callable[[int | float], str]
    note: str = ""
    metrics: tuple[str, ...] = _MAIN


_COSTS = (
    _Axis(
        "MACs",
        "MACs per image",
        "",
        lambda cost: cost.macs,
        lambda a: f"{a:,} MACs",
        metrics=_QUALITIES,
    ),
    _Axis("Parameters", "Parameters", "", lambda cost: cost.parameters, lambda a: f"{a:,}"),
    _Axis(
        "Latency",
        "Latency, one image at a time",
        "s",
        lambda cost: cost.latency_ms_batch1 / 1e3,
        lambda a: f"{1e3 * a:.3g} ms",
        "batch 1",
    ),
    _Axis(
        "Latency",
        "Latency per image, 256 at a time",
        "s",
        lambda cost: cost.latency_ms_batch256 / 1e3,
        lambda a: f"{1e3 * a:.3g} ms",
        "batch 256",
    ),
    _Axis(
        "Training compute",
        "Training MACs",
        "",
        lambda cost: math.nan if cost.training_macs is None else cost.training_macs,
        lambda a: f"{a:.3g} MACs",
    ),
    _Axis(
        "Energy",
        "Energy per image, 256 at a time",
        "J",
        lambda cost: math.nan if cost.joules_per_image is None else cost.joules_per_image,
        lambda a: f"{1e3 * a:.3g} mJ",
    ),
)


@drawn_once
def quality_panels(comparison: Comparison) -> Iterator[Panel]:
    """Draw the main metrics against each cost: on the test images, and OOD on means of the sets.

    Args:
        comparison: What was measured.

    Yields:
        One panel a cost, metric and group of splits that has it; ``group`` names the cost.
    """
    # The means follow the sets that they are taken over, so the last group of a kind stays.
    groups = {
        (kind_of(group.splits[0]), is_encoded(group.splits[0])): group
        for group in split_groups(comparison)
    }
    for axis in _COSTS:
        if not any(_known(axis.amount(method.cost)) for method in comparison.methods):
            continue
        for group in groups.values():
            wanted = axis.metrics if group.splits == ("test",) else _OOD_QUALITIES
            for metric in metrics_of(comparison, group):
                if metric in wanted:
                    yield _quality_panel(comparison, group, metric, axis)


def _known(amount: int | float) -> bool:
    return math.isfinite(amount) and amount > 0


def _quality_panel(comparison: Comparison, group: SplitGroup, metric: str, axis: _Axis) -> Panel:
    points = [
        plots.MethodPoint(
            method.name, axis.amount(method.cost), tuple(method_values(method, group, metric))
        )
        for method in comparison.methods
    ]
    label = directed_label(metric)
    figure = drawing.new_figure()
    plots.quality_against_cost(
        figure.add_subplot(),
        points,
        label=label,
        cost=axis.label,
        unit=axis.unit,
        bounds=METRICS[metric].bounds if metric in METRICS else None,
    )
    told = "; ".join(
        f"{point.name} {number(mean_and_spread(point.qualities)[0])} at "
        f"{axis.told(point.cost) if _known(point.cost) else 'unknown cost'}"
        for point in points
    )
    return Panel(
        " · ".join(filter(None, (label, group.title, axis.note))),
        drawing.svg_text(figure),
        f"{metric_label(metric)} against {axis.label[0].lower() if axis.unit else axis.label[0]}"
        f"{axis.label[1:]}, {group.title}. Means over replicates: {told}.",
        axis.group,
    )


@drawn_once
def reliability_panels(comparison: Comparison) -> Iterator[Panel]:
    """Draw a reliability diagram a method, on the test images.

    Args:
        comparison: What was measured.

    Yields:
        One panel a method that has per-image values on the test images.
    """
    for method in comparison.methods:
        graded = _graded(method)
        if not graded:
            continue
        figure = drawing.new_figure(height=4.2)
        above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        plots.reliability_diagram(above, graded)
        plots.confidence_histogram(below, graded)
        confidence = torch.cat([replicate.confidence for replicate in graded]).double().mean()
        accuracy = torch.cat([replicate.correct for replicate in graded]).double().mean()
        gap = confidence.item() - accuracy.item()
        yield Panel(
            method.name,
            drawing.svg_text(figure),
            f"Reliability diagram of {method.name} on the test images: mean confidence "
            f"{number(confidence.item())}, accuracy {number(accuracy.item())}, so "
            f"{'over' if gap > 0 else 'under'}-confident by {number(abs(gap))} on average.",
        )


@drawn_once
def risk_coverage_panel(comparison: Comparison) -> Iterator[Panel]:
    """Draw the risk-coverage curves of all methods together, on the test images.

    Args:
        comparison: What was measured.

    Yields:
        One panel, or none where no method has per-image values.
    """
    methods = {method.name: _graded(method) for method in comparison.methods}
    if not any(methods.values()):
        return
    figure = drawing.new_figure(width=5.0, height=3.5)
    plots.risk_coverage(figure.add_subplot(), methods)
    told = "; ".join(f"{name} {_risks(graded)}" for name, graded in methods.items() if graded)
    yield Panel(
        "Risk against coverage, test images",
        drawing.svg_text(figure),
        f"Risk-coverage curves on the test images. Error among the most confident half and "
        f"among all images: {told}.",
    )


def _risks(graded: list[plots.Graded]) -> str:
    half = [plots.risk_at([0.5, 1.0], replicate) for replicate in graded]
    means = [sum(risks) / len(half) for risks in zip(*half, strict=True)]
    return f"{number(means[0])} and {number(means[1])}"


@drawn_once
def ood_panels(comparison: Comparison) -> Iterator[Panel]:
    """Draw how predictive entropy is distributed on test, near and far images, a panel a method.

    Args:
        comparison: What was measured.

    Yields:
        One panel a method that has per-image values on at least one OOD set.
    """
    entropies = {method.name: _entropies_by_kind(method) for method in comparison.methods}
    highest = max(
        (values.max().item() for scores in entropies.values() for values in scores.values()),
        default=0.0,
    )
    for name, scores in entropies.items():
        if len(scores) < 2 or "test" not in scores:
            continue
        figure = drawing.new_figure()
        plots.score_histograms(
            figure.add_subplot(), scores, label="Predictive entropy (nats)", highest=highest
        )
        told = ", ".join(
            f"{number(values.double().median().item())} on {images}"
            for images, values in scores.items()
        )
        yield Panel(
            name,
            drawing.svg_text(figure),
            f"Histograms of the predictive entropy of {name}: median {told}.",
        )


def _graded(method: MethodSummary) -> list[plots.Graded]:
    return [
        plots.Graded(values.confidence, values.correct.bool())
        for replicate in method.replicates
        if (values := replicate.values.get("test")) is not None and values.correct is not None
    ]


def _entropies_by_kind(method: MethodSummary) -> dict[str, Float[Tensor, "_"]]:
    """Pool the entropies over replicates and over the sets of a kind, each in one encoding."""
    found: dict[str, list[Tensor]] = {"test": [], "near_ood": [], "far_ood": []}
    for replicate in method.replicates:
        for split, values in replicate.values.items():
            if kind_of(split) in found and not is_encoded(split):
                found[kind_of(split)].append(values.entropy)
    names = {"test": "test", "near_ood": "near OOD", "far_ood": "far OOD"}
    return {names[kind]: torch.cat(values) for kind, values in found.items() if values}
