"""One figure of the report: a drawing, and a sentence for those who cannot see it."""

import base64
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from weakref import WeakKeyDictionary

from ..comparison import Comparison


@dataclass(frozen=True)
class Panel:
    """One figure of the report.

    Args:
        title: What stands above it.
        svg: The drawing.
        alternative: A sentence for those who cannot see it.
        group: What it belongs to among the figures of its kind, such as ``Latency``.
    """

    title: str
    svg: str
    alternative: str
    group: str = ""

    def html(self) -> str:
        """Write the figure with its drawing inside the page."""
        drawing = base64.b64encode(self.svg.encode()).decode()
        return (
            f"<figure><figcaption>{escape(self.title)}</figcaption>"
            f'<img src="data:image/svg+xml;base64,{drawing}" alt="{escape(self.alternative)}">'
            "</figure>"
        )


_Draw = Callable[[Comparison], Iterator[Panel]]
_drawn: WeakKeyDictionary[Comparison, dict[str, tuple[Panel, ...]]] = WeakKeyDictionary()


def drawn_once(draw: _Draw) -> _Draw:
    """Keep the panels of a comparison for as long as it lives: two files show the same ones.

    Args:
        draw: What draws them.

    Returns:
        A function that draws them the first time, and yields the same panels ever after.
    """

    @functools.wraps(draw)
    def panels(comparison: Comparison) -> Iterator[Panel]:
        known = _drawn.setdefault(comparison, {})
        if draw.__qualname__ not in known:
            known[draw.__qualname__] = tuple(draw(comparison))
        yield from known[draw.__qualname__]

    return panels
