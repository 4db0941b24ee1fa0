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
_HIDDEN = {"params": [{"name": "hidden", "value": []}]}
_SHOWN = {"filter": "indexof(hidden, datum.m) < 0"}


def _scale(names: Sequence[str], values: Sequence[Any]) -> Spec:
    repeated = [values[index % len(values)] for index in range(len(names))]
    return {"domain": list(names), "range": repeated}


def by_method(names: Sequence[str], *, dash: bool = False, shape: bool = False) -> Spec:
    """Encode the method, in ``m``, by colour and, as asked, dash and shape."""
    # Opaque, though the first mark with this scale may be a band.
    legend = {"symbolOpacity": 1, **({"symbolType": "stroke"} if dash and not shape else {})}
    colour = {"field": "m", "type": "nominal", "scale": _scale(names, COLOURS), "legend": legend}
    found: Spec = {"color": colour}
    if dash:
        found["strokeDash"] = {"field": "m", "type": "nominal", "scale": _scale(names, DASHES)}
    if shape:
        found["shape"] = {"field": "m", "type": "nominal", "scale": _scale(names, SHAPES)}
    return found


def axis(field: str, title: str, **options: Any) -> Spec:
    """Encode a number; options of the scale are passed as ``scale``, of the axis as ``axis``."""
    return {"field": field, "type": "quantitative", "title": title, **options}


def _picked(low: float = 0.08) -> Spec:
    """Let a click in the legend set off one method; all others fade."""
    return {"condition": {"param": "pick", "value": 1}, "value": low}


_PICK: Spec = {
    "params": [{"name": "pick", "select": {"type": "point", "fields": ["m"]}, "bind": "legend"}]
}


def line_chart(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    x: Spec,
    y: Spec,
    points: bool = False,
    below: Sequence[Spec] = (),
    size: tuple[int, int] = (WIDTH, 250),
) -> Spec:
    """Draw one line per method with a band: ``m``, and lists ``x``, ``y``, ``l`` and ``h``.

    Args:
        names: All methods, in the order that sets their colours.
        rows: One per line.
        x: Encoding of the abscissa; `axis` makes it.
        y: Encoding of the ordinate.
        points: Mark the points of the lines by the methods' shapes.
        below: Further layers, drawn first, with data of their own.
        size: Width and height in pixels.
    """
    bands = any("l" in row for row in rows)
    lists = ["x", "y", "l", "h"] if bands else ["x", "y"]
    tooltip = [
        {"field": "m", "title": "Method"},
        {"field": "x", "title": x["title"], "format": ".4~g"},
        {"field": "y", "title": y["title"], "format": ".4~g"},
    ]
    line = {"type": "line", "strokeWidth": 1.8, "clip": True}
    colour = by_method(names, dash=True, shape=points)
    shape = {"shape": colour.pop("shape")} if points else {}
    layers: list[Spec] = []
    if bands:
        layers.append(
            {
                "mark": {"type": "area", "clip": True},
                "encoding": {
                    **{"x": x, "y": {**y, "field": "l"}, "y2": {"field": "h"}},
                    **{
                        "color": colour["color"],
                        "opacity": {**_picked(0.02), "condition": {"param": "pick", "value": 0.14}},
                    },
                },
            }
        )
    layers.append(
        {**_PICK, "mark": line, "encoding": {"x": x, "y": y, **colour, "opacity": _picked()}}
    )
    layers.append(
        {
            "name": "marks" if points else "hover",
            "mark": {"type": "point", "filled": True, "size": 40 if points else 60},
            "encoding": {
                **{"x": x, "y": y, "color": colour["color"], **shape, "tooltip": tooltip},
                "opacity": _picked(0.0) if points else {"value": 0},
            },
        }
    )
    return {
        **_HIDDEN,
        **{"width": size[0], "height": size[1]},
        "data": {"values": list(rows)},
        "transform": [_SHOWN, {"flatten": lists}],
        "layer": [*below, *layers],
    }


def diagonal() -> Spec:
    """Draw the diagonal of the unit square, as a layer."""
    return {
        "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
        "mark": {"type": "line", "color": GREY, "strokeDash": [5, 4], "strokeWidth": 1},
        "encoding": {
            "x": {"field": "x", "type": "quantitative"},
            "y": {"field": "y", "type": "quantitative"},
        },
    }


def small_multiples(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], *, x: Spec, y: Spec, columns: int = 3
) -> Spec:
    """Draw line charts of one scale beside each other, one per value of ``f``."""
    spec = line_chart(names, rows, x=x, y=y, points=True, size=(190, 130))
    parts = {key: spec.pop(key) for key in ("width", "height", "layer")}
    facet = {"field": "f", "type": "nominal", "title": None, "sort": None}
    return {**spec, "facet": facet, "columns": columns, "spec": parts}


def quality_chart(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], *, cost: str, unit: str, label: str
) -> Spec:
    """Draw quality against cost, on a log axis: replicates, their mean and one sd around it.

    Args:
        names: All methods.
        rows: ``m``, cost ``x``, mean ``y``, ends ``l`` and ``h`` of the bar, values ``v`` of the
            replicates and finished text ``t``.
        cost: Name of the cost.
        unit: In which it is given; prefixes of counts are chosen here.
        label: Name of the metric, with its direction.
    """
    counted = unit in ("", "MACs")
    ticks = {"format": "~s" if counted else "~g", "tickCount": 5}
    title = f"{cost} (log)" if counted else f"{cost} ({unit}, log)"
    x = axis("x", title, scale={"type": "log", "nice": False, "padding": 24}, axis=ticks)
    y = axis("y", label, scale={"zero": False, "nice": True, "padding": 8})
    colour, shape = by_method(names)["color"], by_method(names, shape=True)["shape"]
    tooltip = [{"field": "t", "title": "Result"}]
    common = {"x": x, "color": colour, "opacity": _picked()}
    return {
        **_HIDDEN,
        **{"width": WIDTH, "height": 240},
        "data": {"values": list(rows)},
        "transform": [_SHOWN],
        "layer": [
            {
                "transform": [{"flatten": ["v"]}],
                "mark": {"type": "tick", "thickness": 1.2, "width": 12, "orient": "horizontal"},
                "encoding": {**common, "y": {**y, "field": "v"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.6},
                "encoding": {**common, "y": {**y, "field": "l"}, "y2": {"field": "h"}},
            },
            {
                **_PICK,
                "mark": {"type": "point", "filled": True, "size": 90},
                "encoding": {**common, "y": y, "shape": shape, "tooltip": tooltip},
            },
        ],
    }


def reliability_chart(rows: Sequence[Mapping[str, Any]], colour: str) -> Spec:
    """Draw accuracy against confidence in bins, beside the diagonal, and the images per bin.

    Args:
        rows: One per bin: its ends ``a`` and ``b``, mean images ``n`` and, where there are any,
            confidence ``x``, accuracy ``y`` and its interval ``l`` to ``h``.
        colour: Of the method.
    """
    unit = {"domain": [0, 1]}
    x = axis("x", "", scale=unit, axis={"labels": False, "title": None})
    y = axis("y", "Accuracy", scale=unit)
    tooltip = [
        {"field": "x", "title": "Confidence", "format": ".3f"},
        {"field": "y", "title": "Accuracy", "format": ".3f"},
        {"field": "n", "title": "Images per replicate", "format": ",.4~g"},
    ]
    notes = [
        {"x": 0.02, "y": 0.98, "t": "under-confident", "align": "left"},
        {"x": 0.98, "y": 0.02, "t": "over-confident", "align": "right"},
    ]
    above: Spec = {
        **{"width": 280, "height": 220},
        "transform": [{"filter": "datum.n > 0"}],
        "layer": [
            diagonal(),
            *(
                {
                    "data": {"values": [note]},
                    "mark": {
                        "type": "text",
                        "align": note["align"],
                        "fontSize": 10.5,
                        "opacity": 0.7,
                    },
                    "encoding": {"x": x, "y": y, "text": {"field": "t"}},
                }
                for note in notes
            ),
            {
                "mark": {"type": "rule", "color": colour},
                "encoding": {"x": x, "y": {**y, "field": "l"}, "y2": {"field": "h"}},
            },
            {
                "mark": {"type": "line", "color": colour, "point": {"size": 45, "color": colour}},
                "encoding": {"x": x, "y": y, "tooltip": tooltip},
            },
        ],
    }
    below: Spec = {
        **{"width": 280, "height": 60},
        "transform": [{"filter": "datum.n > 0"}, {"calculate": "0.3", "as": "z"}],
        "mark": {"type": "bar", "color": colour, "opacity": 0.55},
        "encoding": {
            "x": axis("a", "Confidence", scale=unit, bin="binned"),
            "x2": {"field": "b"},
            "y": axis("n", "Images", scale={"type": "log"}, axis={"tickCount": 3, "format": "~s"}),
            "y2": {"field": "z"},
            "tooltip": [{"field": "n", "title": "Images per replicate", "format": ",.4~g"}],
        },
    }
    return {"data": {"values": list(rows)}, "vconcat": [above, below], "spacing": 8}


def histogram_chart(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str], label: str) -> Spec:
    """Draw how a score is distributed on several sets of images.

    Args:
        rows: One per set: its name ``m`` and lists of places ``x`` and shares ``y``.
        kinds: Names of the sets, in order.
        label: Name of the score, with its unit.
    """
    colours = {"domain": list(kinds), "range": ["#0072B2", "#E69F00", "currentColor"][: len(kinds)]}
    dashes = {"domain": list(kinds), "range": [[1, 0], [6, 3], [2, 2]][: len(kinds)]}
    field = {"field": "m", "type": "nominal"}
    return {
        **_HIDDEN,
        **{"width": WIDTH - 60, "height": 180},
        "data": {"values": list(rows)},
        "transform": [_SHOWN, {"flatten": ["x", "y"]}],
        **_PICK,
        "mark": {"type": "area", "interpolate": "step-after", "line": True, "fillOpacity": 0.16},
        "encoding": {
            "x": axis("x", label),
            "y": axis("y", "Share of images", stack=None),
            "color": {**field, "scale": colours},
            "strokeDash": {**field, "scale": dashes},
            "opacity": _picked(),
            "tooltip": [
                {"field": "m", "title": "Images"},
                {"field": "y", "format": ".3f", "title": "Share"},
            ],
        },
        "params": [*_HIDDEN["params"], *_PICK["params"]],
    }


def gain_chart(names: Sequence[str], rows: Sequence[Mapping[str, Any]], label: str) -> Spec:
    """Draw how pooling leads from the members' mean loss to the ensemble's.

    Args:
        names: All methods.
        rows: ``m``, members' loss ``x``, ensemble's loss ``y``, both per replicate in ``u`` and
            ``v``, and finished text ``t``.
        label: Name of the loss.
    """
    shown = [row["m"] for row in rows]
    colour = {**by_method(names)["color"], "legend": None}
    row = {"field": "m", "type": "nominal", "title": None, "sort": shown}
    x, end = axis("x", label, scale={"zero": False, "padding": 12}), {"field": "y"}
    tooltip = [{"field": "t", "title": "NLL"}]
    small = {"type": "tick", "thickness": 1.2, "size": 9, "opacity": 0.6}
    return {
        **_HIDDEN,
        **{"width": WIDTH, "height": {"step": 30}},
        "data": {"values": list(rows)},
        "transform": [_SHOWN],
        "layer": [
            *(
                {
                    "transform": [{"flatten": [of]}],
                    "mark": small,
                    "encoding": {"x": {**x, "field": of}, "y": row, "color": colour},
                }
                for of in ("u", "v")
            ),
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": x, "x2": end, "y": row, "color": colour, "tooltip": tooltip},
            },
            {
                "mark": {"type": "point", "filled": False, "size": 70, "strokeWidth": 1.8},
                "encoding": {"x": x, "y": row, "color": colour, "tooltip": tooltip},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "x": {**x, "field": "y"},
                    "y": row,
                    "color": colour,
                    "tooltip": tooltip,
                },
            },
        ],
    }


def explorer_spec(names: Sequence[str], families: Sequence[str]) -> Spec:
    """Draw methods by cost and quality around a budget; the page's script sets data and titles.

    Rows hold ``m``, family ``f``, cost ``x``, mean ``y``, ends ``l`` and ``h``, finished text
    ``t``, whether the method is within the budget (``a``), to deploy (``d``) or on the frontier of
    single models (``s``), and on which side its name stands (``e``). The
    parameter ``budget`` is the budget.
    """
    ticks = {"labelExpr": "format(datum.value, '.3~g') + '\N{MULTIPLICATION SIGN}'", "tickCount": 6}
    scale = {"type": "log", "base": 2, "nice": False, "padding": 36}
    x = axis("x", "", scale=scale, axis=ticks)
    y = axis("y", "", scale={"zero": False, "padding": 14})
    colour = {**by_method(names)["color"], "legend": None}
    shape = {
        **{"field": "f", "type": "nominal", "scale": _scale(families, SHAPES)},
        "legend": {"columns": 3, "symbolFillColor": GREY, "symbolStrokeWidth": 0},
    }
    fade = {"condition": {"test": "datum.a", "value": 1}, "value": 0.3}
    point = {"x": x, "y": y, "color": colour, "opacity": fade}
    return {
        "params": [{"name": "budget", "value": 1}],
        **{"width": 640, "height": 300},
        "data": {"values": []},
        "layer": [
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "strokeDash": [6, 4], "color": GREY, "strokeWidth": 1.6},
                "encoding": {"x": {"datum": {"expr": "budget"}, "type": "quantitative"}},
            },
            {
                "transform": [{"filter": "datum.s"}],
                "mark": {"type": "line", "color": GREY, "strokeWidth": 1.4},
                "encoding": {"x": x, "y": y, "order": {"field": "x", "type": "quantitative"}},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.8},
                "encoding": {**point, "y": {**y, "field": "l"}, "y2": {"field": "h"}},
            },
            {
                "transform": [{"filter": "datum.d"}],
                "mark": {"type": "point", "size": 380, "strokeWidth": 2.2},
                "encoding": {"x": x, "y": y, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 95},
                "encoding": {
                    **{**point, "shape": shape},
                    "tooltip": [{"field": "t", "title": "Method"}],
                },
            },
            *(
                {
                    "transform": [{"filter": f"datum.e === {side}"}],
                    "mark": {
                        "type": "text",
                        "align": align,
                        "dx": dx,
                        "fontSize": 11,
                        "limit": 150,
                    },
                    "encoding": {"x": x, "y": y, "opacity": fade, "text": {"field": "m"}},
                }
                for side, (align, dx) in enumerate((("left", 9), ("right", -9)))
            ),
        ],
    }
