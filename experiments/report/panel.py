"""One figure of the report: a drawing, and a sentence for those who cannot see it."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from urllib.parse import quote
from weakref import WeakKeyDictionary

from ..comparison.verdicts import Comparison

_PLAIN = " '/=:;,{}*!+"  # characters that end neither the attribute nor a tag nor the address


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
        return (
            f"<figure><figcaption>{escape(self.title)}</figcaption>"
            f'<img src="{_address(self.svg)}" alt="{escape(self.alternative)}">'
            "</figure>"
        )


def _address(svg: str) -> str:
    """Write a drawing as an address that may stand in an attribute; base64 is a third longer."""
    text = re.sub(r"\s+", " ", svg.strip()).replace("> <", "><")
    if "'" not in text:
        text = text.replace('"', "'")
    data = quote(text, safe=_PLAIN).replace("http:", "http%3A")  # the name of SVG is no link
    return f"data:image/svg+xml;charset=utf-8,{data}"


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
