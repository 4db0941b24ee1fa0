"""The curve of a cascade: quality against average cost, of windows and of the baselines."""

from collections.abc import Sequence

from ..evaluation.cascade_measures import Point
from ..report.chart_specs import axis, line_chart
from ..report.render import svg

_POLICIES = ("window", "single threshold", "first stage", "all stages")


def draw_curves(points: Sequence[Point], label: str) -> str:
    """Draw quality, measured by ``label``, against average MACs, as SVG."""
    rows = []
    for name in _POLICIES:
        mine = sorted((each for each in points if each.policy == name), key=lambda each: each.macs)
        if mine:
            quality = [each.quality for each in mine]
            rows.append({"m": name, "x": [each.macs for each in mine], "y": quality})
    x = axis("x", "Average MACs per image, over the first stage's", scale={"zero": False})
    y = axis("y", f"{label}, test images", scale={"zero": False})
    return svg(line_chart(_POLICIES, rows, x=x, y=y, points=True, size=(460, 300)))
