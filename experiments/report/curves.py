"""Figures of curves, a line a method: ROC, quality against severity, quality against epochs.

As in ``plots``, every function draws on the ``Axes`` that it is given, and methods differ in line
and marker as well as in colour.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...metrics.core.ranking import rank
from .drawing import GREY, colour, darkened, frame, label_at_right, line_style, marker, thinned

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import matplotlib.legend
    import matplotlib.lines

_THIN = 100  # points of a replicate's thin line, beside the 200 of the mean


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
        One point a block, and the origin.

    Raises:
        ValueError: If a score is not finite, or either side is empty.

    Example:
        >>> import torch
        >>> from deepens.experiments.report.curves import roc_curve
        >>> roc_curve(torch.tensor([0.1, 0.5]), torch.tensor([0.5, 0.8])).tolist()
        [[0.0, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 1.0]]
    """
    for name, scores in (("scores_id", scores_id), ("scores_ood", scores_ood)):
        if not len(scores):
            raise ValueError(f"{name} must hold >= 1 score, got 0")
    is_ood = torch.cat([torch.zeros(len(scores_id)), torch.ones(len(scores_ood))]).bool()
    counts = rank(torch.cat([scores_id, scores_ood])).cumulate(is_ood)
    rates = torch.stack([counts.unflagged / len(scores_id), counts.flagged / len(scores_ood)], -1)
    return np.concatenate([np.zeros((1, 2)), rates.numpy()])


def mean_curve(curves: Sequence[Float[np.ndarray, "_ 2"]]) -> Float[np.ndarray, "points 2"]:
    """Average ROC curves vertically: the mean true positive rate at every false positive rate.

    Where curves rise straight up, the mean does too, so that the area below the mean curve is the
    mean of their areas exactly.

    Args:
        curves: At least one, each from (0, 0) to (1, 1) and never falling.

    Returns:
        Two points at every false positive rate at which any curve bends: before and after a rise.
    """
    rates = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    limits = [
        np.mean([_limit(curve, rates, side) for curve in curves], axis=0)
        for side in ("left", "right")
    ]
    return np.stack([np.repeat(rates, 2), np.stack(limits, -1).ravel()], -1)


def area_under(curve: Float[np.ndarray, "points 2"]) -> float:
    """Return the area below a curve of straight lines, its points rising in x."""
    x, y = curve.T
    return float(np.diff(x) @ (y[1:] + y[:-1]) / 2)


def _limit(curve: np.ndarray, rates: np.ndarray, side: str) -> np.ndarray:
    """True positive rates just before (left) or after (right) a rise at given FPRs."""
    x, y = curve.T
    if side == "left":
        after = np.searchsorted(x, rates, side="left").clip(1)
    else:
        after = np.searchsorted(x, rates, side="right").clip(1, len(x) - 1)
    before = after - 1
    width = x[after] - x[before]
    share = np.divide(rates - x[before], width, out=np.ones_like(rates), where=width > 0)
    values = y[before] + share * (y[after] - y[before])
    return np.where(rates == 0, 0.0, values) if side == "left" else values


def roc_curves(
    axes: "matplotlib.axes.Axes", methods: Mapping[str, Sequence[Float[np.ndarray, "_ 2"]]]
) -> None:
    """Draw ROC curves: every replicate thin, their vertical mean bold, and the mean AUROC.

    The names stand below the diagonal, the largest area first. Where a curve runs there, they
    stand above it; where one does there too, under the axes.

    Args:
        axes: Where to draw.
        methods: Curves of each method's replicates, by its name; one without any is left out.
    """
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)))
    areas: dict[str, float] = {}
    handles = {}
    places = {name: index for index, name in enumerate(methods)}
    for index, (name, curves) in enumerate(methods.items()):
        if not curves:
            continue
        mean = mean_curve(curves)
        areas[name] = area_under(mean)
        for curve in curves if len(curves) > 1 else []:
            drawn = thinned(curve, at_most=_THIN)
            axes.plot(*drawn.T, color=colour(index), lw=0.6, alpha=0.45)
        (handles[name],) = axes.plot(
            *thinned(mean).T, color=colour(index), ls=line_style(index), lw=1.7
        )
    frame(axes, "False positives: share of test images", "True positives: share of OOD images")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    order = sorted(areas, key=lambda name: -areas[name])
    legend = _roc_legend(
        axes, [handles[name] for name in order], [f"{name} {areas[name]:.3f}" for name in order]
    )
    for name, text in zip(order, legend.get_texts(), strict=True):
        text.set_color(darkened(colour(places[name])))


def _roc_legend(
    axes: "matplotlib.axes.Axes", handles: "Sequence[matplotlib.lines.Line2D]", names: list[str]
) -> "matplotlib.legend.Legend":
    """Write the legend in the first place that no curve crosses."""
    style = {
        "title": "AUROC",
        "title_fontsize": 8.5,
        "fontsize": 8.5,
        "handlelength": 2.6,
        "framealpha": 0.85,
        "edgecolor": "none",
    }
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes that are drawn on stand in one
    for place in ("lower right", "upper left"):
        legend = axes.legend(handles, names, loc=place, **style)
        figure.draw_without_rendering()
        box = legend.get_window_extent()
        crossing = (
            line.get_path().transformed(axes.transData).intersects_bbox(box, filled=False)
            for line in axes.lines[1:]  # the first is the diagonal
        )
        if not any(crossing):
            return legend
    legend.remove()
    return figure.legend(handles, names, loc="outside lower center", ncols=2, **style)


def severity_curves(
    axes: "matplotlib.axes.Axes",
    methods: Mapping[str, Float[np.ndarray, "_ severities"]],
    *,
    severities: Sequence[int],
    label: str,
    named: bool = True,
) -> None:
    """Draw a metric against the severity of a shift: means over replicates, and their range.

    Args:
        axes: Where to draw.
        methods: Values of each method, a row a replicate; one without any is left out.
        severities: Severity of each column; 0 is the test images.
        label: Name of the metric, with its direction.
        named: Write the methods' names at the right.
    """
    ends: list[tuple[str, float, float, str]] = []
    for index, (name, values) in enumerate(methods.items()):
        if not len(values):
            continue
        mean, tint = values.mean(0), colour(index)
        axes.fill_between(severities, values.min(0), values.max(0), color=tint, alpha=0.13, lw=0)
        axes.plot(
            severities,
            mean,
            color=tint,
            ls=line_style(index),
            marker=marker(index),
            markersize=5 if named else 3.5,
            markeredgecolor="white",
            markeredgewidth=1 if named else 0.4,
            lw=1.5 if named else 1.2,
        )
        ends.append((name, float(severities[-1]), float(mean[-1]), tint))
    frame(axes, "Severity of the shift (0: test images)" if named else "", label)
    axes.set_xticks(severities)
    axes.margins(x=0.05, y=0.08)
    if named:
        label_at_right(axes, ends)


def method_key(figure: "matplotlib.figure.Figure", names: Sequence[str]) -> None:
    """Write the methods' names above a figure of several axes, each beside its line.

    Args:
        figure: The figure.
        names: Names in the order of the comparison, which sets colour, line and marker.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(i), ls=line_style(i), marker=marker(i), markersize=5, lw=1.5)
        for i in range(len(names))
    ]
    key = figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=min(3, len(names)),
        frameon=False,
        fontsize=8.5,
        handlelength=2.6,
    )
    for index, text in enumerate(key.get_texts()):
        text.set_color(darkened(colour(index)))


def training_curves(
    axes: "matplotlib.axes.Axes",
    methods: Mapping[str, Sequence[Float[np.ndarray, "_ 2"]]],
    *,
    label: str,
    falling: bool = False,
) -> None:
    """Draw a value by epochs: every replicate thin, and their mean bold as far as all reached.

    Args:
        axes: Where to draw.
        methods: ``(epoch, value)`` of each method's replicates; one without any is left out.
        label: Name of the value, with its direction.
        falling: The value falls towards zero: the axis is logarithmic if it falls to a tenth.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    ends: list[tuple[str, float, float, str]] = []
    for index, (name, replicates) in enumerate(methods.items()):
        if not replicates:
            continue
        tint = colour(index)
        for curve in replicates if len(replicates) > 1 else []:
            axes.plot(*thinned(curve, at_most=_THIN).T, color=tint, lw=0.6, alpha=0.45)
        shortest = min(map(len, replicates))
        mean = np.mean([curve[:shortest] for curve in replicates], axis=0)
        dot = marker(index) if shortest == 1 else None  # a line of one point cannot be seen
        axes.plot(*thinned(mean).T, color=tint, ls=line_style(index), lw=1.7, marker=dot)
        ends.append((name, float(mean[-1, 0]), float(mean[-1, 1]), tint))
    frame(axes, "Epoch", label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    values = np.concatenate(
        [c[:, 1] for curves in methods.values() for c in curves] or [np.ones(1)]
    )
    if falling and 0 < 10 * values.min() < values.max():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    label_at_right(axes, ends)
