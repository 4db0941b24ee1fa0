"""A figure of what the members of each method lose, and how much of it pooling takes off.

As in ``plots``, the function draws on the ``Axes`` that it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .drawing import GREY, colour, darkened, frame

if TYPE_CHECKING:
    import matplotlib.axes

_LONGEST = 22  # letters of a name, beyond which nothing would be left to draw on
_BELOW = (0.2, 0.36)  # where replicates stand, below the row of their mean; rows are 1 apart


@dataclass(frozen=True)
class Decomposition:
    """A method's mean member loss, split into what pooling leaves and what it takes off.

    Args:
        name: The label that is drawn beside the row.
        place: Of the method in the comparison, which gives its colour.
        pooled: Loss of the ensemble, one a replicate.
        gain: Mean loss of its members minus that, one a replicate; zeros for a single model.
    """

    name: str
    place: int
    pooled: tuple[float, ...]
    gain: tuple[float, ...]


def decomposition_arrows(
    axes: "matplotlib.axes.Axes",
    methods: Sequence[Decomposition],
    *,
    label: str,
    ends: tuple[str, str],
) -> None:
    """Draw an arrow a method, from its members' mean loss to the loss of the ensemble.

    Arrows are means over replicates, with their numbers at the right; the thin lines below are the
    replicates. A single model is a point.

    Args:
        axes: Where to draw.
        methods: At least one, each of at least one replicate; the first is drawn on top.
        label: Name of the loss, with its unit.
        ends: What is at the beginning and at the head of an arrow.
    """
    from matplotlib.lines import Line2D

    for row, method in enumerate(methods):
        tint = colour(method.place)
        starts = np.add(method.pooled, method.gain)
        for pooled, start, y in zip(
            method.pooled, starts, row + np.linspace(*_BELOW, len(starts)), strict=True
        ):
            axes.plot([start, pooled], [y, y], color=tint, lw=1, alpha=0.6)
            axes.plot(pooled, y, color=tint, marker="o", markersize=2.5, alpha=0.6)
        pooled, start = float(np.mean(method.pooled)), float(starts.mean())
        told = f"{pooled:.3f}"
        if any(method.gain):
            told = f"{start:.3f} \N{RIGHTWARDS ARROW} {pooled:.3f}"
            axes.annotate(
                "",
                (pooled, row),
                (start, row),
                arrowprops={"arrowstyle": "-|>", "color": tint, "lw": 2, "shrinkB": 3},
            )
            axes.plot(
                start,
                row,
                "o",
                markersize=7,
                color="white",
                markeredgecolor=tint,
                mew=1.6,
                zorder=4,
            )
        axes.plot(pooled, row, "o", markersize=7, color=tint, zorder=5)
        axes.annotate(
            told,
            (1.03, row),
            xycoords=axes.get_yaxis_transform(),
            color=darkened(tint),
            fontsize=9,
            va="center",
        )
    frame(axes, label, "")
    axes.set_yticks(range(len(methods)), [_short(method.name) for method in methods], fontsize=9.5)
    for text, method in zip(axes.get_yticklabels(), methods, strict=True):
        text.set(color=darkened(colour(method.place)), fontweight="bold")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    axes.set_ylim(len(methods) - 0.4, -0.4)
    axes.legend(
        handles=[
            Line2D([], [], ls="", marker="o", color=GREY, markerfacecolor=face, mew=1.6, label=name)
            for name, face in zip(ends, ("white", GREY), strict=True)
        ],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        fontsize=8.5,
        borderaxespad=0.2,
        handletextpad=0.2,
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
