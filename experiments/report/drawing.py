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
        are rounded to a hundredth of a point, and what nobody sees is left out.
    """
    import matplotlib

    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "deepens", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _smaller(buffer.getvalue())


_GLYPH = re.compile(r'<path id="([^"]*)"( d="[^"]*")? transform="scale\(0\.015625\)"/>')
_LETTER = re.compile(r'<use xlink:href="#([^"]*)"(?: transform="translate\((\S+) (\S+)\)")?/>')
_PLACE = re.compile(r'(?<= )([xy])="(-?[\d.]+)"')
_PATH = re.compile(r'(?<= )d="([^"]*)"')


def _smaller(drawing: str) -> str:
    """Write matplotlib's SVG in fewer characters that draw the same."""
    drawing = re.sub(r"<!--.*?-->|<\?xml.*?\?>|<!DOCTYPE.*?>", "", drawing, flags=re.DOTALL)
    names: dict[str, str] = {}

    def glyph(found: re.Match[str]) -> str:
        names[found[1]] = name = f"g{len(names)}"
        # A glyph is 64 times finer than needed at matplotlib's scale; a 16th can still not be seen.
        outline = _PATH.sub(lambda d: f'd="{_relative(d[1], 1 / 16)}"', found[2] or "")
        return f'<path id="{name}"{outline} transform="scale(.25)"/>'

    def letter(found: re.Match[str]) -> str:
        places = (
            f' {axis}="{_short(value, 1)}"'
            for axis, value in zip("xy", found.groups("0")[1:], strict=True)
            if float(value)
        )
        return f'<use xlink:href="#{names.get(found[1], found[1])}"{"".join(places)}/>'

    # Glyphs are set apart, so that their paths are not shortened twice.
    pieces = re.split(r"(<defs>.*?</defs>)", drawing, flags=re.DOTALL)
    for index, piece in enumerate(pieces):
        if _GLYPH.search(piece):
            pieces[index] = _GLYPH.sub(glyph, piece)
        else:
            pieces[index] = _PATH.sub(lambda d: f'd="{_relative(d[1], 100.0)}"', piece)
    drawing = _LETTER.sub(letter, "".join(pieces))
    drawing = _PLACE.sub(lambda found: f'{found[1]}="{_short(found[2], 2)}"', drawing)
    drawing = re.sub(r'style="[^"]*"', lambda style: re.sub(r"([:;]) ", r"\1", style[0]), drawing)
    drawing = drawing.replace("xlink:href", "href").replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    return re.sub(r"\s*\n\s*", "\n", _without_bare_groups(drawing)).strip() + "\n"


def _relative(path: str, scale: float) -> str:
    """Write a path relative to its own points, rounded to a share of the unit.

    Args:
        path: Matplotlib's: absolute, of M, L, Q, C and z.
        scale: How many steps of rounding a unit has. Above 1 the units stay; below, a step is the
            new unit.

    Returns:
        The path in small letters. Errors of rounding do not add up.
    """
    parts: list[str] = []
    here, start, last = (0, 0), (0, 0), ""
    unit = max(1, int(scale))
    for command, values in re.findall(r"([MLQCz])([^A-Za-z]*)", path):
        if command == "z":
            parts.append("z")
            here, last = start, "z"
            continue
        flat = [round(float(value) * scale) for value in values.split()]
        points = list(zip(flat[::2], flat[1::2], strict=True))
        small = "" if command == last and command != "M" else command.lower()
        for x, y in points:
            for step in (x - here[0], y - here[1]):
                text = f"{step / unit:g}"
                if text.startswith(("0.", "-0.")):
                    text = text.replace("0.", ".", 1)
                small += text if not small or small[-1].isalpha() or text[0] == "-" else f" {text}"
        if small[0].isdigit() or small[0] == ".":
            small = f" {small}"
        parts.append(small)
        here, last = points[-1], command
        start = here if command == "M" else start
    return "".join(parts)


def _short(value: str, decimals: int) -> str:
    """Round a number and leave out the zeros that it does not need."""
    text = re.sub(r"\.?0+$", "", f"{float(value):.{decimals}f}")
    text = re.sub(r"^(-?)0\.", r"\1.", text)
    return text if text not in ("", "-", "-0") else "0"


def _without_bare_groups(drawing: str) -> str:
    """Leave groups out that neither move nor style what they hold."""
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    held: list[bool] = []

    def keep(tag: re.Match[str]) -> str:
        if tag[0] == "</g>":
            return tag[0] if held.pop() else ""
        held.append(tag[0] != "<g>")
        return tag[0] if held[-1] else ""

    return re.sub(r"<g(?: [^>]*)?>|</g>", keep, drawing)


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
        >>> from deepens.experiments.report.drawing import thinned
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
