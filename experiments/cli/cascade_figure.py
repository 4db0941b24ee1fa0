"""The curve of a cascade: quality against average cost, of windows and of the baselines."""

from collections.abc import Sequence

from ..evaluation.cascade_measures import Point
from ..report.drawing import colour, frame, line_style, marker, new_figure, svg_text

_LINES = ("window", "single threshold")
_POINTS = ("first stage", "all stages")


def draw_curves(points: Sequence[Point], label: str) -> str:
    """Draw quality against average multiply-accumulates.

    Args:
        points: Cost and quality of each policy.
        label: The measure of quality.

    Returns:
        SVG.
    """
    figure = new_figure(6.0, 4.0)
    axes = figure.add_subplot()
    for index, name in enumerate((*_LINES, *_POINTS)):
        mine = sorted(
            (point for point in points if point.policy == name), key=lambda point: point.macs
        )
        if mine:
            axes.plot(
                [point.macs for point in mine],
                [point.quality for point in mine],
                color=colour(index),
                marker=marker(index),
                ls=line_style(index) if name in _LINES else "",
                lw=1.5,
                ms=5,
                label=name,
            )
    frame(axes, "Average MACs per image, over the first stage's", f"{label}, test images")
    axes.legend(frameon=False)
    return svg_text(figure)
