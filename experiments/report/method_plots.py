"""Figures of a comparison: quality against cost, calibration, selective prediction, OOD scores.

Every function draws on a matplotlib ``Axes`` that it is given and keeps no state. Matplotlib loads
when the first figure is made, never on import, and no window system is needed. Methods differ in
marker and line as well as in colour, and carry their name beside them instead of in a legend.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...metrics.calibration.reliability import ReliabilityBins, reliability_bins
from ...metrics.selective.risk_coverage import risk_coverage_curve
from .drawing import COLOURS, GREY, POINTS, colour, frame, label_at_right, line_style, marker

if TYPE_CHECKING:
    import matplotlib.axes

_AROUND = (-0.02, 1.02)  # limits that leave a point at 0 or 1 whole


@dataclass(frozen=True)
class MethodPoint:
    """One method in a plane of quality against cost.

    Args:
        name: The label that is drawn beside the point.
        cost: What one image costs, in whatever unit all methods share.
        qualities: The metric's value, one a replicate.
    """

    name: str
    cost: int | float
    qualities: tuple[float, ...]


@dataclass(frozen=True)
class Graded:
    """Confidences of one replicate and whether each prediction was right.

    Args:
        confidence: Probability of the predicted class, ``[N]``.
        correct: Whether the predicted class is the label, ``[N]``.
    """

    confidence: Float[Tensor, "samples"]
    correct: Bool[Tensor, "samples"]


def quality_against_cost(
    axes: "matplotlib.axes.Axes",
    points: Sequence[MethodPoint],
    *,
    label: str,
    cost: str = "MACs per image",
    unit: str = "",
    bounds: tuple[float, float] | None = None,
) -> None:
    """Draw quality against cost, on a log axis: every replicate, the mean and one sd around it.

    Replicates stand a little to the left of their mean, where its bar does not cover them.

    Args:
        axes: Where to draw.
        points: One a method. Replicates without a finite value are left out, and so are methods
            without a finite cost above zero.
        label: Name of the metric, with its direction.
        cost: Name of the cost.
        unit: The unit in which the points give it, such as ``"s"``; its prefixes are chosen here.
        bounds: Least and largest possible value of the metric, at which the bars end.
    """
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator
    from matplotlib.transforms import ScaledTranslation

    least, largest = bounds or (-np.inf, np.inf)
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes that are drawn on stand in one
    aside = ScaledTranslation(-7 / 72, 0, figure.dpi_scale_trans)
    ends: list[tuple[str, float, float, str]] = []
    for index, point in enumerate(points):
        values = np.array([value for value in point.qualities if np.isfinite(value)])
        if not len(values) or not (np.isfinite(point.cost) and point.cost > 0):
            continue
        tint, shape = colour(index), marker(index)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        mean = values.mean()
        dots = axes.scatter(
            [point.cost] * len(values), values, s=14, color=tint, marker=shape, alpha=0.6, lw=0
        )
        # Moved only now, so that the limits of the axes are those of the values.
        dots.set_offset_transform(axes.transData + aside)
        axes.errorbar(
            [point.cost],
            [mean],
            np.clip([[min(spread, mean - least)], [min(spread, largest - mean)]], 0, None),
            color=tint,
            marker=shape,
            markersize=7,
            capsize=3,
            lw=1.2,
            markeredgecolor="white",
        )
        ends.append((point.name, float(point.cost), float(mean), tint))
    axes.set_xscale("log")
    frame(axes, f"{cost} (log)", label)
    axes.margins(x=0.15, y=0.12)
    axes.autoscale_view()
    axes.set_xlim(axes.get_xlim())  # Other ticks would change limits that are left free.
    axes.xaxis.set_major_locator(FixedLocator(_log_ticks(*axes.get_xlim())))
    axes.xaxis.set_major_formatter(EngFormatter(unit))
    axes.xaxis.set_minor_locator(NullLocator())
    label_at_right(axes, ends)


def _log_ticks(low: float, high: float, *, most: int = 5, gap: float = 0.19) -> list[float]:
    """Return round numbers for a log axis: as many as keep a gap, in shares of its length."""
    from matplotlib.ticker import MaxNLocator

    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    choices = [[step * 10.0**k for k in decades for step in steps] for steps in ((1, 2, 5), (1, 3))]
    choices += [[10.0**k for k in decades if k % every == 0] for every in (1, 2, 3, 6, 9)]
    choices += [list(MaxNLocator(n, steps=[1, 2, 5, 10]).tick_values(low, high)) for n in (4, 3, 2)]
    best: list[float] = []
    for choice in choices:
        ticks = [float(tick) for tick in choice if low <= tick <= high]
        gaps = np.diff(np.log(ticks)) / np.log(high / low)
        if len(best) < len(ticks) <= most and all(gaps >= gap):
            best = ticks
    return best or [float(f"{np.sqrt(low * high):.2g}")]


def reliability_diagram(axes: "matplotlib.axes.Axes", replicates: Sequence[Graded]) -> None:
    """Draw accuracy against confidence in equal-width bins, beside the diagonal.

    Replicates are pooled. The bars are 95 % Wilson intervals for the images that *one* replicate
    has in the bin, on average: the images are the same ones in every replicate.

    Args:
        axes: Where to draw.
        replicates: At least one, all on the same images.
    """
    bins = _pooled_bins(replicates)
    used = bins.counts > 0
    counts = bins.counts[used].double().numpy() / len(replicates)
    accuracy = bins.accuracy[used].double().numpy()
    low, high = _wilson(accuracy, counts)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)))
    axes.errorbar(
        bins.confidence[used].double().numpy(),
        accuracy,
        np.stack([accuracy - low, high - accuracy]).clip(0),
        color=COLOURS[0],
        marker="o",
        markersize=5,
        lw=1.2,
        elinewidth=1,
        capsize=2,
    )
    axes.text(0.03, 0.97, "under-confident", color=GREY, fontsize=8.5, va="top")
    axes.text(0.97, 0.03, "over-confident", color=GREY, fontsize=8.5, ha="right")
    frame(axes, "", "Accuracy")
    axes.set(xlim=_AROUND, ylim=_AROUND)


def confidence_histogram(axes: "matplotlib.axes.Axes", replicates: Sequence[Graded]) -> None:
    """Draw how many images fall in each bin of a reliability diagram, on a log axis.

    Args:
        axes: Where to draw, usually under the diagram.
        replicates: At least one, all on the same images; counts are means over them.
    """
    from matplotlib.ticker import LogLocator

    counts = _pooled_bins(replicates).counts.double().numpy() / len(replicates)
    edges = np.linspace(0, 1, len(counts) + 1)
    # On a log axis an empty bin has no height, and one image of one replicate has to be seen.
    axes.bar((edges[:-1] + edges[1:]) / 2, counts, width=0.9 / len(counts), color="#8fb8d6")
    axes.set_yscale("log")
    frame(axes, "Confidence", "Images")
    axes.set(xlim=_AROUND, ylim=(0.5 / len(replicates), None))
    axes.yaxis.set_major_locator(LogLocator(numticks=20))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")


def risk_coverage(axes: "matplotlib.axes.Axes", methods: Mapping[str, Sequence[Graded]]) -> None:
    """Draw the error among accepted images against the share accepted, and the oracle's curve.

    Solid or patterned lines are means over replicates, bands their range, and the thin dotted
    lines the oracle: the same errors, all of them rejected first.

    Args:
        axes: Where to draw.
        methods: Replicates of each method, by its name; a method without any is left out.
    """
    coverage = (np.arange(1, POINTS + 1) / POINTS).tolist()
    ends: list[tuple[str, float, float, str]] = []
    for index, (name, replicates) in enumerate(methods.items()):
        if not replicates:
            continue
        tint = colour(index)
        risks = np.stack([risk_at(coverage, replicate) for replicate in replicates])
        errors = np.mean([1 - replicate.correct.double().mean().item() for replicate in replicates])
        axes.fill_between(coverage, risks.min(0), risks.max(0), color=tint, alpha=0.12, lw=0)
        axes.plot(coverage, risks.mean(0), color=tint, ls=line_style(index), lw=1.6)
        oracle = np.maximum(0, 1 - (1 - errors) / np.array(coverage))
        axes.plot(coverage, oracle, color=tint, ls=":", lw=0.8, alpha=0.8)
        ends.append((name, 1.0, float(risks.mean(0)[-1]), tint))
    frame(axes, "Coverage: share of images accepted", "Risk: errors among accepted")
    axes.set(xlim=(0, 1), ylim=(0, None))
    label_at_right(axes, ends)


def score_histograms(
    axes: "matplotlib.axes.Axes",
    scores: Mapping[str, Float[Tensor, "_"]],
    *,
    label: str,
    highest: float,
) -> None:
    """Draw how one uncertainty score is distributed on several sets of images.

    Args:
        axes: Where to draw.
        scores: Per-image scores by the name of the set; the first is in-distribution.
        label: Name of the score, with its unit.
        highest: Right end of the axis, so that several figures can share it.
    """
    edges = np.linspace(0, highest if highest > 0 else 1.0, 31)
    styles = (("#0072B2", "-", 0.3), ("#E69F00", "--", 0.15), ("#000000", ":", 0.05))
    for index, (name, values) in enumerate(scores.items()):
        tint, line, fill = styles[index % len(styles)]
        counts, _ = np.histogram(values.double().numpy(), edges)
        shares = counts / max(1, len(values))
        axes.stairs(shares, edges, fill=True, color=tint, alpha=fill)
        axes.stairs(shares, edges, color=tint, ls=line, lw=1.5, label=name)
    frame(axes, label, "Share of images")
    axes.legend(frameon=False, fontsize=8.5)


def risk_at(coverage: Sequence[float], replicate: Graded) -> list[float]:
    """Return the selective risk at given coverages, so that replicates can be averaged.

    Args:
        coverage: Shares of images accepted, in (0, 1], rising.
        replicate: Confidences and whether each prediction was right.

    Returns:
        The errors among the accepted, one share for each coverage.
    """
    curve = risk_coverage_curve(replicate.confidence, replicate.correct)
    return np.interp(coverage, curve.coverage.numpy(), curve.risk.numpy()).tolist()


def _pooled_bins(replicates: Sequence[Graded]) -> ReliabilityBins:
    return reliability_bins(
        torch.cat([replicate.confidence for replicate in replicates]),
        torch.cat([replicate.correct for replicate in replicates]),
    )


def _wilson(share: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval for a share of n, which stays inside [0, 1] at either end."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return centre - half, centre + half
