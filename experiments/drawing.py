"""What all figures share: colours, markers, frames, names beside lines, and the SVG itself.

Matplotlib loads when the first figure is made, never on import, and no window system is needed.
"""

import heapq
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

# Okabe and Ito's colours, which stay apart under the common colour-vision deficiencies. Their
# yellow is left out: it cannot be read on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
GREY = "#5f6670"

POINTS = 200
"""Points of a curve that are drawn at most: more cannot be seen, and make the page heavy."""


def new_figure(width: float = 4.4, height: float = 3.3) -> "matplotlib.figure.Figure":
    """Make an empty figure outside pyplot's global list.

    Args:
        width: Inches.
        height: Inches.

    Returns:
        A figure that lays itself out when it is drawn.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_text(figure: "matplotlib.figure.Figure") -> str:
    """Draw a figure as SVG that is the same on every run and refers to nothing outside itself.

    Args:
        figure: The figure to draw.

    Returns:
        The SVG document; its text is drawn as paths, so that no font has to be installed. Places
        are rounded to a hundredth of a point and spaces left out, to make it smaller.
    """
    import matplotlib

    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "deepens", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    drawing = re.sub(r'(?<= )(d|x|y)="([^"]*)"', _smaller, buffer.getvalue())
    drawing = re.sub(r'style="[^"]*"', lambda style: re.sub(r"([:;]) ", r"\1", style[0]), drawing)
    return re.sub(r"\n\s+", "\n", drawing)


def _smaller(attribute: re.Match[str]) -> str:
    def short(number: re.Match[str]) -> str:
        return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")

    value = re.sub(r"-?\d+\.\d+", short, attribute[2])
    value = re.sub(r"\s*([A-Za-z])\s*", r"\1", value).strip()
    return f'{attribute[1]}="{value}"'


def colour(index: int) -> str:
    """Return the colour of the method at a place in the comparison."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Return the marker of the method at a place in the comparison."""
    return MARKERS[index % len(MARKERS)]


def line_style(index: int) -> str | tuple[int, tuple[int, ...]]:
    """Return the line style of the method at a place in the comparison."""
    return LINES[index % len(LINES)]


def darkened(colour: str) -> tuple[float, float, float]:
    """Darken a colour until text in it has enough contrast on white."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    return 0.65 * red, 0.65 * green, 0.65 * blue


def frame(axes: "matplotlib.axes.Axes", x: str, y: str) -> None:
    """Name both axes and take away what distracts.

    Args:
        axes: Which to frame.
        x: What stands under it.
        y: What stands left of it.
    """
    axes.set_xlabel(x, fontsize=9.5)
    axes.set_ylabel(y, fontsize=9.5)
    axes.tick_params(labelsize=8.5, length=3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e6ea", lw=0.6)
    axes.set_axisbelow(True)


def label_at_right(
    axes: "matplotlib.axes.Axes", ends: Sequence[tuple[str, float, float, str]]
) -> None:
    """Write names in a column right of the axes, none over another, each tied to its point.

    Args:
        axes: Axes on which everything else is drawn already.
        ends: Name, x, y and colour of each.
    """
    if not ends:
        return
    axes.autoscale_view()  # The limits have to be final before heights are read from them.
    heights = axes.transAxes.inverted().transform(
        axes.transData.transform([(x, y) for _, x, y, _ in ends])
    )[:, 1]
    for (name, x, y, tint), height in zip(ends, _spread(heights, 0.075), strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.04, height),
            textcoords="axes fraction",
            color=darkened(tint),
            fontsize=9.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": tint,
                "lw": 0.7,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 4,
            },
        )


def _spread(positions: np.ndarray, gap: float) -> np.ndarray:
    """Move positions in [0, 1] apart until all keep the gap, crowds growing to both sides."""
    order = np.argsort(positions)
    steps = gap * np.arange(len(positions))
    wanted = positions[order] - steps
    # The one pushes a crowd up, the other down; both keep the gap, and so does what lies halfway.
    up = np.maximum.accumulate(wanted)
    down = np.minimum.accumulate(wanted[::-1])[::-1]
    ceiling = max(1.0, steps[-1]) - steps[-1]
    placed = np.empty_like(wanted)
    placed[order] = ((up + down) / 2).clip(0, ceiling) + steps
    return placed


def thinned(
    curve: Float[np.ndarray, "points 2"], *, at_most: int = POINTS
) -> Float[np.ndarray, "kept 2"]:
    """Leave points of a curve out where straight lines between the others look the same.

    Beginning with its two ends, the point that lies furthest from the line drawn so far is kept,
    until there are enough of them; distances are shares of the curve's width and height (Ramer,
    Douglas and Peucker, with a number of points in place of a tolerance).

    ========  ===========  ======================
    argument  shape        unit
    ========  ===========  ======================
    curve     [points 2]   x and y of each point
    returned  [kept 2]     the same
    ========  ===========  ======================

    Args:
        curve: Points in the order in which they are joined.
        at_most: How many to keep, at least 2.

    Returns:
        The curve itself where it is short enough.

    Raises:
        ValueError: If ``at_most`` is below 2.

    Example:
        >>> import numpy as np
        >>> from deepens.experiments.drawing import thinned
        >>> thinned(np.array([[0.0, 0], [1, 1], [2, 2], [3, 0]]), at_most=3).tolist()
        [[0.0, 0.0], [2.0, 2.0], [3.0, 0.0]]
    """
    if at_most < 2:
        raise ValueError(f"at_most must be >= 2, got {at_most}")
    if len(curve) <= at_most:
        return curve
    size = np.ptp(curve, axis=0)
    scaled = curve / np.where(size > 0, size, 1.0)
    kept = {0, len(curve) - 1}
    # The widest gap first; heapq keeps the least, hence the sign.
    waiting = [_furthest(scaled, 0, len(curve) - 1)]
    while len(kept) < at_most and waiting:
        distance, index, first, last = heapq.heappop(waiting)
        if distance == 0:
            break
        kept.add(index)
        for part in ((first, index), (index, last)):
            if part[1] - part[0] > 1:
                heapq.heappush(waiting, _furthest(scaled, *part))
    return curve[sorted(kept)]


def _furthest(curve: np.ndarray, first: int, last: int) -> tuple[float, int, int, int]:
    """Find the point between two that is furthest from their line: (-distance, index, ends)."""
    distances = distance_to_line(curve[first + 1 : last], curve[first], curve[last])
    index = int(distances.argmax())
    return -float(distances[index]), first + 1 + index, first, last


def distance_to_line(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return how far points ``[n, 2]`` are from the line that joins two, which may coincide."""
    along = end - start
    squared = float(along @ along)
    share = ((points - start) @ along / squared).clip(0, 1) if squared else np.zeros(len(points))
    return np.hypot(*(points - start - share[:, None] * along).T)
