"""Figures of the report as embedded SVG, each described in a sentence with its numbers."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import torch
from jaxtyping import Float
from torch import Tensor

from .. import plots
from ..comparison import Comparison, MethodSummary
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

_QUALITIES = ("accuracy", "nll", "brier", "ece")
_OOD_QUALITIES = ("auroc_entropy",)


@dataclass(frozen=True)
class Panel:
    """One figure of the report.

    Args:
        title: What stands above it.
        svg: The drawing.
        alternative: A sentence for those who cannot see it.
    """

    title: str
    svg: str
    alternative: str

    def html(self) -> str:
        """Write the figure with its drawing inside the page."""
        drawing = base64.b64encode(self.svg.encode()).decode()
        return (
            f"<figure><figcaption>{escape(self.title)}</figcaption>"
            f'<img src="data:image/svg+xml;base64,{drawing}" alt="{escape(self.alternative)}">'
            "</figure>"
        )


def quality_panels(comparison: Comparison) -> Iterator[Panel]:
    """Draw the main metrics against MACs: on the test images, and OOD on means of near and far.

    Args:
        comparison: What was measured.

    Yields:
        One panel a metric and group of splits that has it.
    """
    # The means follow the sets that they are taken over, so the last group of a kind stays.
    for group in {kind_of(group.splits[0]): group for group in split_groups(comparison)}.values():
        wanted = _QUALITIES if group.splits == ("test",) else _OOD_QUALITIES
        for metric in metrics_of(comparison, group):
            if metric in wanted:
                yield _quality_panel(comparison, group, metric)


def _quality_panel(comparison: Comparison, group: SplitGroup, metric: str) -> Panel:
    points = [
        plots.MethodPoint(
            method.name, method.cost.macs, tuple(method_values(method, group, metric))
        )
        for method in comparison.methods
    ]
    label = directed_label(metric)
    figure = plots.new_figure()
    plots.quality_against_cost(figure.add_subplot(), points, label=label)
    told = "; ".join(
        f"{point.name} {number(mean_and_spread(point.qualities)[0])} at {point.macs:,} MACs"
        for point in points
    )
    title = f"{label} · {group.title}"
    alternative = (
        f"{metric_label(metric)} against MACs, {group.title}. Means over replicates: {told}."
    )
    return Panel(title, plots.svg_text(figure), alternative)


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
        figure = plots.new_figure(height=4.2)
        above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        plots.reliability_diagram(above, graded)
        plots.confidence_histogram(below, graded)
        confidence = torch.cat([replicate.confidence for replicate in graded]).double().mean()
        accuracy = torch.cat([replicate.correct for replicate in graded]).double().mean()
        gap = confidence.item() - accuracy.item()
        yield Panel(
            method.name,
            plots.svg_text(figure),
            f"Reliability diagram of {method.name} on the test images: mean confidence "
            f"{number(confidence.item())}, accuracy {number(accuracy.item())}, so "
            f"{'over' if gap > 0 else 'under'}-confident by {number(abs(gap))} on average.",
        )


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
    figure = plots.new_figure(width=5.0, height=3.5)
    plots.risk_coverage(figure.add_subplot(), methods)
    told = "; ".join(f"{name} {_risks(graded)}" for name, graded in methods.items() if graded)
    yield Panel(
        "Risk against coverage, test images",
        plots.svg_text(figure),
        f"Risk-coverage curves on the test images. Error among the most confident half and "
        f"among all images: {told}.",
    )


def _risks(graded: list[plots.Graded]) -> str:
    half = [plots.risk_at([0.5, 1.0], replicate) for replicate in graded]
    means = [sum(risks) / len(half) for risks in zip(*half, strict=True)]
    return f"{number(means[0])} and {number(means[1])}"


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
        figure = plots.new_figure()
        plots.score_histograms(
            figure.add_subplot(), scores, label="Predictive entropy (nats)", highest=highest
        )
        told = ", ".join(
            f"{number(values.double().median().item())} on {images}"
            for images, values in scores.items()
        )
        yield Panel(
            name,
            plots.svg_text(figure),
            f"Histograms of the predictive entropy of {name}: median {told}.",
        )


def _graded(method: MethodSummary) -> list[plots.Graded]:
    return [
        plots.Graded(values.confidence, values.correct.bool())
        for replicate in method.replicates
        if (values := replicate.values.get("test")) is not None and values.correct is not None
    ]


def _entropies_by_kind(method: MethodSummary) -> dict[str, Float[Tensor, "_"]]:
    """Pool the entropies over replicates and over the sets of a kind."""
    found: dict[str, list[Tensor]] = {"test": [], "near_ood": [], "far_ood": []}
    for replicate in method.replicates:
        for split, values in replicate.values.items():
            if kind_of(split) in found:
                found[kind_of(split)].append(values.entropy)
    names = {"test": "test", "near_ood": "near OOD", "far_ood": "far OOD"}
    return {names[kind]: torch.cat(values) for kind, values in found.items() if values}
