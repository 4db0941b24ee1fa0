"""Charts of single methods and of budgets as Vega-Lite specifications."""

from collections.abc import Sequence

from .chart_specs import (
    GREY,
    HIDDEN,
    PICK,
    SHAPES,
    SHOWN,
    UNIT,
    WIDTH,
    Rows,
    Spec,
    axis,
    by_method,
    diagonal,
    framed,
    mark,
    picked,
    scale_of,
    span,
)


def reliability_chart(rows: Rows, colour: str) -> Spec:
    """Draw accuracy against confidence in bins, beside the diagonal, and the images per bin.

    A row per bin holds its ends ``a`` and ``b``, mean images ``n`` and, where there are any,
    confidence ``x``, accuracy ``y`` and its interval ``l`` to ``h``.
    """
    x = axis("x", "", scale=UNIT, axis={"labels": False, "title": None})
    y = axis("y", "Accuracy", scale=UNIT)
    images = {"field": "n", "title": "Images per replicate", "format": ",.4~g"}
    tooltip = [
        {"field": "x", "title": "Confidence", "format": ".3f"},
        {"field": "y", "title": "Accuracy", "format": ".3f"},
        images,
    ]
    words = {"x": x, "y": y, "text": {"field": "t"}}
    above: Spec = {
        **{"width": 280, "height": 220, "transform": [{"filter": "datum.n > 0"}]},
        "layer": [
            diagonal(),
            *(
                {
                    "data": {"values": [{"x": at, "y": 1 - at, "t": note, "align": align}]},
                    **mark("text", words, align=align, fontSize=10.5, opacity=0.7),
                }
                for at, note, align in (
                    *((0.02, "under-confident", "left"), (0.98, "over-confident", "right")),
                )
            ),
            mark("rule", {"x": x, **span(y)}, color=colour),
            mark(
                "line",
                {"x": x, "y": y, "tooltip": tooltip},
                **{"color": colour, "point": {"size": 45, "color": colour}},
            ),
        ],
    }
    bars = {
        "x": axis("a", "Confidence", scale=UNIT, bin="binned"),
        "x2": {"field": "b"},
        "y": axis("n", "Images", scale={"type": "log"}, axis={"tickCount": 3, "format": "~s"}),
        **{"y2": {"field": "z"}, "tooltip": [images]},
    }
    below: Spec = {
        **{"width": 280, "height": 60},
        "transform": [{"filter": "datum.n > 0"}, {"calculate": "0.3", "as": "z"}],
        **mark("bar", bars, color=colour, opacity=0.55),
    }
    return {"data": {"values": list(rows)}, "vconcat": [above, below], "spacing": 8}


def histogram_chart(rows: Rows, kinds: Sequence[str], label: str) -> Spec:
    """Draw how a score is distributed: per set its name ``m``, and lists ``x`` and shares ``y``."""
    field = {"field": "m", "type": "nominal"}
    colours, dashes = ["#0072B2", "#E69F00", "currentColor"], [[1, 0], [6, 3], [2, 2]]
    encoding = {
        "x": axis("x", label),
        "y": axis("y", "Share of images", stack=None),
        "color": {**field, "scale": scale_of(kinds, colours)},
        "strokeDash": {**field, "scale": scale_of(kinds, dashes)},
        "opacity": picked(),
        "tooltip": [
            {"field": "m", "title": "Images"},
            {"field": "y", "format": ".3f", "title": "Share"},
        ],
    }
    return {
        **{"width": WIDTH - 60, "height": 180, "data": {"values": list(rows)}},
        "transform": [SHOWN, {"flatten": ["x", "y"]}],
        **mark("area", encoding, interpolate="step-after", line=True, fillOpacity=0.16),
        "params": [*HIDDEN["params"], *PICK["params"]],
    }


def gain_chart(names: Sequence[str], rows: Rows, label: str) -> Spec:
    """Draw how pooling leads from the members' mean loss ``x`` to the ensemble's, ``y``.

    Rows hold both per replicate in ``u`` and ``v``, and finished text ``t``.
    """
    shown = [row["m"] for row in rows]
    row = {"field": "m", "type": "nominal", "title": None, "sort": shown}
    x = axis("x", label, scale={"zero": False, "padding": 12})
    common = {"y": row, "color": {**by_method(names)["color"], "legend": None}}
    full = {"x": x, **common, "tooltip": [{"field": "t", "title": "NLL"}]}
    ticks = (
        {
            "transform": [{"flatten": [of]}],
            **mark(
                "tick",
                {"x": {**x, "field": of}, **common},
                **{"thickness": 1.2, "size": 9, "opacity": 0.6},
            ),
        }
        for of in ("u", "v")
    )
    layers = (
        *ticks,
        mark("rule", {**full, "x2": {"field": "y"}}, strokeWidth=2),
        mark("point", full, filled=False, size=70, strokeWidth=1.8),
        mark("point", {**full, "x": {**x, "field": "y"}}, filled=True, size=90, opacity=1),
    )
    return framed(rows, layers, width=WIDTH, height={"step": 30})


def explorer_spec(names: Sequence[str], families: Sequence[str]) -> Spec:
    """Draw methods by cost and quality around a budget; the page's script sets data and titles.

    Rows hold ``m``, family ``f``, cost ``x``, mean ``y``, ends ``l`` and ``h``, finished text
    ``t``, whether the method is within the budget (``a``), to deploy (``d``) or on the frontier of
    single models (``s``), and on which side its name stands (``e``).
    """
    ticks = {"labelExpr": "format(datum.value, '.3~g') + '\N{MULTIPLICATION SIGN}'", "tickCount": 6}
    scale = {"type": "log", "base": 2, "nice": False, "padding": 36}
    place = {
        "x": axis("x", "", scale=scale, axis=ticks),
        "y": axis("y", "", scale={"zero": False, "padding": 14}),
    }
    colour = {"color": {**by_method(names)["color"], "legend": None}}
    shape = {
        **{"field": "f", "type": "nominal", "scale": scale_of(families, SHAPES)},
        "legend": {"columns": 3, "symbolFillColor": GREY, "symbolStrokeWidth": 0},
    }
    fade = {"opacity": {"condition": {"test": "datum.a", "value": 1}, "value": 0.3}}
    point = {**place, **colour, **fade}
    at_budget = {"x": {"datum": {"expr": "budget"}, "type": "quantitative"}}
    ordered = {**place, "order": {"field": "x", "type": "quantitative"}}
    methods = {**point, "shape": shape, "tooltip": [{"field": "t", "title": "Method"}]}
    names_beside = (
        {
            "transform": [{"filter": f"datum.e === {side}"}],
            **mark(
                "text",
                {**place, **fade, "text": {"field": "m"}},
                **{"align": align, "dx": dx, "fontSize": 11, "limit": 150},
            ),
        }
        for side, (align, dx) in enumerate((("left", 9), ("right", -9)))
    )
    return {
        "params": [{"name": "budget", "value": 1}],
        **{"width": 640, "height": 300, "data": {"values": []}},
        "layer": [
            {
                "data": {"values": [{}]},
                **mark("rule", at_budget, strokeDash=[6, 4], color=GREY, strokeWidth=1.6),
            },
            {
                "transform": [{"filter": "datum.s"}],
                **mark("line", ordered, color=GREY, strokeWidth=1.4),
            },
            mark("rule", {**point, **span(place["y"])}, strokeWidth=1.8),
            {
                "transform": [{"filter": "datum.d"}],
                **mark("point", {**place, **colour}, size=380, strokeWidth=2.2),
            },
            mark("point", methods, filled=True, size=95),
            *names_beside,
        ],
    }
