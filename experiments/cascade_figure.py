"""The curve of a cascade: quality against average cost, of windows and of the baselines."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

_STYLES = {
    "window": {"color": "#0072b2", "marker": "o", "ls": "-"},
    "single threshold": {"color": "#d55e00", "marker": "s", "ls": "--"},
    "first stage": {"color": "#555555", "marker": "D", "ls": ""},
    "all stages": {"color": "#009e73", "marker": "^", "ls": ""},
}


def draw_curves(points: Sequence[Mapping[str, Any]], label: str) -> str:
    """Draw quality against average multiply-accumulates.

    Args:
        points: Policy, macs (over the first stage's) and quality of each.
        label: The measure of quality.

    Returns:
        SVG.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, style in _STYLES.items():
        mine = sorted(
            (point for point in points if point["policy"] == name), key=lambda point: point["macs"]
        )
        options: dict[str, Any] = {"lw": 1.5, "ms": 5, **style}
        if mine:
            axes.plot(
                [point["macs"] for point in mine],
                [point["quality"] for point in mine],
                label=name,
                **options,
            )
    axes.set(xlabel="Average MACs an image, over the first stage's", ylabel=f"{label}, test images")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
