"""Charts of single methods and of quality against cost, each described by its main numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...datasets import SplitName
from ...metrics.calibration.reliability import reliability_bins
from ...metrics.core.catalogue import METRICS
from ..comparison.formatting import mean_and_sd, number
from ..comparison.single_models import is_single
from ..comparison.verdicts import Comparison, MethodSummary, shown_copies
from ..cost.axes import AXES, Axis
from .chart_specs import COLOURS, quality_chart
from .diagram_specs import gain_chart, histogram_chart, reliability_chart
from .model import Chart
from .splits import (
    SplitGroup,
    directed_label,
    groups_by_kind,
    labelled_groups,
    mean_and_spread,
    metric_label,
    metrics_of,
)

_BINS = 30
_MAIN = ("accuracy", "nll")
_QUALITIES = {
    "macs": (*_MAIN, "brier", "ece"),
    **dict.fromkeys(("parameters", "latency", "throughput", "compute", "energy"), _MAIN),
}
"""Key of a kind of cost -> the metrics of the test images that are drawn against it."""


@dataclass(frozen=True)
class Graded:
    """Confidences of one replicate and whether each prediction was correct.

    Args:
        confidence: Probability of the predicted class, ``[N]``.
        correct: Whether the predicted class is the label, ``[N]``.
        certainty: What images are ranked by where probabilities round to 1; the confidence if None.
    """

    confidence: Float[Tensor, " samples"]
    correct: Bool[Tensor, " samples"]
    certainty: Float[Tensor, " samples"] | None = None


def graded(method: MethodSummary) -> list[Graded]:
    """Return the replicates that have per-image values on the test images."""
    return [
        Graded(values.confidence, values.correct.bool(), -values.ranked)
        for replicate in method.replicates
        if (values := replicate.values.get("test")) is not None and values.correct is not None
    ]


def quality_charts(comparison: Comparison) -> dict[str, list[Chart]]:
    """Draw the main metrics against each cost: on the test images, and OOD on means of the sets.

    Returns:
        Kind of cost -> a chart per metric and group of splits that has it.
    """
    found: dict[str, list[Chart]] = {}
    for axis in AXES:
        amounts = [axis.of(method.cost) for method in comparison.methods]
        if axis.key not in _QUALITIES or not any(map(math.isfinite, amounts)):
            continue
        for group in groups_by_kind(comparison):
            wanted = _QUALITIES[axis.key] if group.splits == ("test",) else ("auroc_entropy",)
            for metric in metrics_of(comparison, group):
                if metric in wanted:
                    here = found.setdefault(axis.label, [])
                    name = f"quality-{sum(map(len, found.values())) + 1:02d}"
                    here.append(_quality_chart(comparison, group, metric, axis, name))
    return found


def _quality_chart(
    comparison: Comparison, group: SplitGroup, metric: str, axis: Axis, name: str
) -> Chart:
    least, largest = METRICS[metric].bounds if metric in METRICS else (-math.inf, math.inf)
    label = directed_label(metric)
    rows, texts = [], []
    for method in comparison.methods:
        values, cost = method.values(group.splits, metric), axis.of(method.cost)
        mean, spread = mean_and_spread(values)
        at = axis.text(cost) if math.isfinite(cost) else "unknown cost"
        texts.append(f"{method.name} {number(mean)} at {at}")
        if values and math.isfinite(cost):
            half = spread if math.isfinite(spread) else 0.0
            rows.append(
                {
                    **{"m": method.name, "x": cost, "y": mean, "v": values},
                    **{"l": max(mean - half, least), "h": min(mean + half, largest)},
                    "t": f"{method.name}: {mean_and_sd(mean, spread)} at {at}",
                }
            )
    return Chart(
        name,
        f"{label} · {group.title}",
        quality_chart(comparison.names, rows, cost=axis.label, unit=axis.unit, label=label),
        f"{metric_label(metric)} against {axis.label}, {group.title}. Means over replicates: "
        f"{'; '.join(texts)}.",
    )


def reliability_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw a reliability diagram per method that has per-image values on the test images."""
    for index, method in enumerate(comparison.methods):
        replicates = graded(method)
        if not replicates:
            continue
        confidence = torch.cat([each.confidence for each in replicates])
        correct = torch.cat([each.correct for each in replicates])
        sure, accuracy = confidence.double().mean().item(), correct.double().mean().item()
        gap = sure - accuracy
        bins = _bins(confidence, correct, len(replicates))
        yield Chart(
            f"reliability-{index + 1:02d}",
            method.name,
            reliability_chart(bins, COLOURS[index % len(COLOURS)]),
            f"Reliability diagram of {method.name} on the test images: mean confidence "
            f"{number(sure)}, accuracy {number(accuracy)}, so {'over' if gap > 0 else 'under'}"
            f"-confident by {number(abs(gap))} on average.",
        )


def _bins(confidence: Tensor, correct: Tensor, replicates: int) -> list[dict[str, float]]:
    """Bin all replicates together; intervals are for the images of one replicate on average."""
    bins = reliability_bins(confidence, correct)
    edges = np.linspace(0, 1, len(bins.counts) + 1)
    rows = []
    for index, count in enumerate(bins.counts.tolist()):
        row = {"a": edges[index], "b": edges[index + 1], "n": count / replicates}
        if count:
            share = float(bins.accuracy[index])
            low, high = wilson(share, count / replicates)
            row |= {"x": float(bins.confidence[index]), "y": share, "l": low, "h": high}
        rows.append({key: round(float(value), 5) for key, value in row.items()})
    return rows


def wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval for a share of n, which stays inside [0, 1] at either end.

    Example:
        >>> from deepens.experiments.report.charts import wilson
        >>> [round(end, 3) for end in wilson(0.5, 100)]
        [0.404, 0.596]
    """
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def entropy_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw how predictive entropy is distributed on test, near and far images, one per method."""
    entropies = {method.name: _entropies(method) for method in comparison.methods}
    highest = max(
        (values.max().item() for sets in entropies.values() for values in sets.values()),
        default=0.0,
    )
    edges = np.linspace(0, highest or 1.0, _BINS + 1)
    for index, (name, sets) in enumerate(entropies.items()):
        if len(sets) < 2 or "test images" not in sets:
            continue
        rows = []
        for kind, values in sets.items():
            shares = np.histogram(values.double().numpy(), edges)[0] / len(values)
            heights = [*shares.round(5).tolist(), 0.0]
            rows.append({"m": kind, "x": edges.round(4).tolist(), "y": heights})
        halves = {kind: values.double().median().item() for kind, values in sets.items()}
        medians = ", ".join(f"{number(half)} on {kind}" for kind, half in halves.items())
        yield Chart(
            f"ood-{index + 1:02d}",
            name,
            histogram_chart(rows, list(sets), "Predictive entropy (nats)"),
            f"Histograms of the predictive entropy of {name}: median {medians}.",
        )


def _entropies(method: MethodSummary) -> dict[str, Float[Tensor, " _"]]:
    """Pool the entropies over replicates and the sets of a kind (their `shown_copies`)."""
    names = {"test": "test images", "near_ood": "near OOD", "far_ood": "far OOD"}
    found: dict[str, list[Tensor]] = {kind: [] for kind in names}
    for replicate in method.replicates:
        for split in shown_copies(replicate.values):
            if (kind := SplitName.parse(split).kind) in found:
                found[kind].append(replicate.values[split].entropy)
    return {names[kind]: torch.cat(values) for kind, values in found.items() if values}


def gain_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw how pooling leads from the members' mean NLL to the ensemble's, for test and shift."""
    for group in labelled_groups(comparison):
        found = {method.name: _terms(method, group) for method in comparison.methods}
        rows = [_gain(name, terms) for name, terms in found.items() if terms]
        if any(row["x"] != row["y"] for row in rows):
            yield Chart(
                f"diversity-{group.kind}",
                f"Ensembling gain in NLL (Jensen gap) · {group.title}",
                gain_chart(comparison.names, rows, "NLL (nats)\N{NO-BREAK SPACE}↓"),
                f"Mean NLL of the members and NLL of the ensemble, {group.title}. Means over "
                f"replicates: {'; '.join(str(row['t']) for row in rows)}.",
            )


def _terms(method: MethodSummary, group: SplitGroup) -> list[tuple[float, float]]:
    """Return NLL and Jensen gap of the replicates that have both; a single model has no gap."""
    single = is_single(method)
    terms = [
        (each.mean(group.splits, "nll"), 0.0 if single else each.mean(group.splits, "jensen_gap"))
        for each in method.replicates
    ]
    return [pair for pair in terms if all(map(math.isfinite, pair))]


def _gain(name: str, terms: Sequence[tuple[float, float]]) -> dict[str, object]:
    pooled = [nll for nll, _ in terms]
    members = [nll + gap for nll, gap in terms]
    end, start = mean_and_spread(pooled)[0], mean_and_spread(members)[0]
    gap = mean_and_spread([gap for _, gap in terms])[0]
    text = f"{name}, a single model: {number(end)}"
    if any(gap for _, gap in terms):
        parts = f"members {number(start)} minus a Jensen gap of {number(gap)}"
        text = f"{name}: {parts} is {number(end)}"
    return {"m": name, "x": start, "y": end, "u": members, "v": pooled, "t": text}
