"""Charts as Vega-Lite specifications: marks, axes and legends, around data that is given.

Every specification is a plain dictionary, whose data are lists per line that Vega flattens. Methods
differ in colour, dash and shape alike, and every chart has the parameter ``hidden``, the list of
methods that are not drawn. Text takes the colour of its surroundings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]

# Okabe and Ito's colours, which stay apart under the common colour-vision deficiencies. Their
# yellow is left out: it cannot be read on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "currentColor", "#E69F00", "#56B4E9")
DASHES = ((1, 0), (6, 3), (8, 3, 2, 3), (2, 2), (10, 2, 2, 2, 2, 2))
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
GREY = "#7d8590"

CONFIG: Spec = {
    "background": "transparent",
    "aria": False,  # the description beside each chart says more than its marks do one by one
    "font": "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        **{"labelColor": "currentColor", "titleColor": "currentColor", "titleFontWeight": "normal"},
        **{"domainColor": GREY, "tickColor": GREY, "gridColor": GREY, "gridOpacity": 0.22},
        **{"labelFontSize": 11, "titleFontSize": 12, "titlePadding": 6},
    },
    "legend": {
        **{"labelColor": "currentColor", "titleColor": "currentColor", "orient": "bottom"},
        **{"columns": 4, "title": None, "labelFontSize": 11.5, "labelLimit": 170},
        **{"symbolStrokeWidth": 2},
    },
    "header": {"labelColor": "currentColor", "labelFontSize": 11.5, "titleColor": "currentColor"},
    "text": {"color": "currentColor"},
    "title": {"color": "currentColor"},
}
"""What all charts share."""

WIDTH = 380
UNIT = {"domain": [0, 1]}
HIDDEN = {"params": [{"name": "hidden", "value": []}]}
SHOWN = {"filter": "indexof(hidden, datum.m) < 0"}


PICK: Spec = {
    "params": [{"name": "pick", "select": {"type": "point", "fields": ["m"]}, "bind": "legend"}]
}


def scale_of(names: Sequence[str], values: Sequence[Any]) -> Spec:
    """Assign values to names in order, from the start again where there are too few."""
    repeated = [values[index % len(values)] for index in range(len(names))]
    return {"domain": list(names), "range": repeated}


def by_method(names: Sequence[str], *, dash: bool = False, shape: bool = False) -> Spec:
    """Encode the method, in ``m``, by colour and, as asked, dash and shape."""

    def encoding(values: Sequence[Any], **options: Any) -> Spec:
        return {"field": "m", "type": "nominal", "scale": scale_of(names, values), **options}

    # Opaque, though the first mark with this scale may be a band.
    legend = {"symbolOpacity": 1, **({"symbolType": "stroke"} if dash and not shape else {})}
    found: Spec = {"color": encoding(COLOURS, legend=legend)}
    if dash:
        found["strokeDash"] = encoding(DASHES)
    if shape:
        found["shape"] = encoding(SHAPES)
    return found


def axis(field: str, title: str, **options: Any) -> Spec:
    """Encode a number; options of the scale are passed as ``scale``, of the axis as ``axis``."""
    return {"field": field, "type": "quantitative", "title": title, **options}


def mark(kind: str, encoding: Spec, **options: Any) -> Spec:
    """Make a layer of marks."""
    return {"mark": {"type": kind, **options}, "encoding": encoding}


def span(y: Spec) -> Spec:
    """Encode the interval from ``l`` to ``h`` on the axis of a number."""
    return {"y": {**y, "field": "l"}, "y2": {"field": "h"}}


def picked(low: float = 0.08, high: float = 1) -> Spec:
    """Let a click in the legend set off one method; all others fade."""
    return {"condition": {"param": "pick", "value": high}, "value": low}


Rows = Sequence[Mapping[str, Any]]


def framed(rows: Rows, layers: Sequence[Spec], *, width: int, height: Any, **more: Any) -> Spec:
    """Make a chart of layers, of whose methods some may be hidden."""
    size = {"width": width, "height": height}
    data = {"data": {"values": list(rows)}, "transform": [SHOWN]}
    return {**HIDDEN, **size, **data, "layer": list(layers), **more}


def line_chart(
    names: Sequence[str],
    rows: Rows,
    *,
    x: Spec,
    y: Spec,
    points: bool = False,
    below: Sequence[Spec] = (),
    size: tuple[int, int] = (WIDTH, 250),
) -> Spec:
    """Draw one line per method with a band: ``m``, and lists ``x``, ``y``, ``l`` and ``h``.

    The order of ``names`` sets the colours; `axis` makes the encodings ``x`` and ``y``. ``points``
    marks the points of the lines by shapes; layers ``below`` have data of their own.
    """
    bands = any("l" in row for row in rows)
    tooltip = [
        {"field": "m", "title": "Method"},
        *({"field": each["field"], "title": each["title"], "format": ".4~g"} for each in (x, y)),
    ]
    colour = by_method(names, dash=True, shape=points)
    shape = {"shape": colour.pop("shape")} if points else {}
    place, plain = {"x": x, "y": y}, {"color": colour["color"]}
    layers = list(below)
    if bands:
        band = {"x": x, **span(y), **plain, "opacity": picked(0.02, 0.14)}
        layers.append(mark("area", band, clip=True))
    line = {**place, **colour, "opacity": picked()}
    layers.append({**PICK, **mark("line", line, strokeWidth=1.8, clip=True)})
    fade = picked(0.0) if points else {"value": 0}
    dots = {**place, **plain, **shape, "tooltip": tooltip, "opacity": fade}
    name = {"name": "marks" if points else "hover"}
    layers.append(name | mark("point", dots, filled=True, size=40 if points else 60))
    lists = ["x", "y", "l", "h"] if bands else ["x", "y"]
    steps = [SHOWN, {"flatten": lists}]
    return framed(rows, layers, width=size[0], height=size[1], transform=steps)


def diagonal() -> Spec:
    """Draw the diagonal of the unit square, as a layer."""
    place = {each: {"field": each, "type": "quantitative"} for each in ("x", "y")}
    line = mark("line", place, color=GREY, strokeDash=[5, 4], strokeWidth=1)
    return {"data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]}, **line}


def small_multiples(
    names: Sequence[str], rows: Rows, *, x: Spec, y: Spec, columns: int = 3
) -> Spec:
    """Draw line charts of one scale beside each other, one per value of ``f``."""
    spec = line_chart(names, rows, x=x, y=y, points=True, size=(190, 130))
    parts = {key: spec.pop(key) for key in ("width", "height", "layer")}
    facet = {"field": "f", "type": "nominal", "title": None, "sort": None}
    return {**spec, "facet": facet, "columns": columns, "spec": parts}


def quality_chart(names: Sequence[str], rows: Rows, *, cost: str, unit: str, label: str) -> Spec:
    """Draw quality against cost, on a log axis: replicates, their mean and one sd around it.

    Rows hold ``m``, cost ``x``, mean ``y``, ends ``l`` and ``h`` of the bar, values ``v`` of the
    replicates and finished text ``t``. Prefixes of costs that are counts are chosen here.
    """
    counted = unit in ("", "MACs")
    ticks = {"format": "~s" if counted else "~g", "tickCount": 5}
    title = f"{cost} (log)" if counted else f"{cost} ({unit}, log)"
    x = axis("x", title, scale={"type": "log", "nice": False, "padding": 24}, axis=ticks)
    y = axis("y", label, scale={"zero": False, "nice": True, "padding": 8})
    colour, shape = by_method(names)["color"], by_method(names, shape=True)["shape"]
    common = {"x": x, "color": colour, "opacity": picked()}
    single = {**common, "y": {**y, "field": "v"}}
    means = {**common, "y": y, "shape": shape, "tooltip": [{"field": "t", "title": "Result"}]}
    layers = (
        {
            "transform": [{"flatten": ["v"]}],
            **mark("tick", single, thickness=1.2, width=12, orient="horizontal"),
        },
        mark("rule", {**common, **span(y)}, strokeWidth=1.6),
        {**PICK, **mark("point", means, filled=True, size=90)},
    )
    return framed(rows, layers, width=WIDTH, height=240)
