"""Charts of single methods and of budgets as Vega-Lite specifications."""

from collections.abc import Mapping, Sequence
from typing import Any

from .chart_specs import (
    GREY,
    HIDDEN,
    PICK,
    SHAPES,
    SHOWN,
    WIDTH,
    Spec,
    axis,
    by_method,
    diagonal,
    picked,
    scale_of,
)


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
        **HIDDEN,
        **{"width": WIDTH - 60, "height": 180},
        "data": {"values": list(rows)},
        "transform": [SHOWN, {"flatten": ["x", "y"]}],
        **PICK,
        "mark": {"type": "area", "interpolate": "step-after", "line": True, "fillOpacity": 0.16},
        "encoding": {
            "x": axis("x", label),
            "y": axis("y", "Share of images", stack=None),
            "color": {**field, "scale": colours},
            "strokeDash": {**field, "scale": dashes},
            "opacity": picked(),
            "tooltip": [
                {"field": "m", "title": "Images"},
                {"field": "y", "format": ".3f", "title": "Share"},
            ],
        },
        "params": [*HIDDEN["params"], *PICK["params"]],
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
        **HIDDEN,
        **{"width": WIDTH, "height": {"step": 30}},
        "data": {"values": list(rows)},
        "transform": [SHOWN],
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
        **{"field": "f", "type": "nominal", "scale": scale_of(families, SHAPES)},
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
