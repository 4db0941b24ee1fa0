"""Fonts that have the letters of a text: matplotlib's own, or one that the system has."""

import functools
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from PIL import ImageFont


def font_of(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font for a line of text: matplotlib's own, unless another has more of its letters."""
    return _font(_file_for(frozenset(text)), size)


def undrawn(texts: Iterable[str]) -> str:
    """The letters of some texts that no font has, and that are drawn as boxes; sorted."""
    lines = [frozenset(text) for text in texts]
    return "".join(sorted({each for line in lines for each in _lacking(_file_for(line), line)}))


@functools.cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@functools.cache
def _file_for(letters: frozenset[str]) -> str:
    # Matplotlib's own copy: the same letters on every machine, and more of them than Pillow's.
    own = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    if not _lacking(own, letters):
        return own
    from matplotlib.font_manager import fontManager

    # Last Resort has a box for every letter.
    files = sorted({e.fname for e in fontManager.ttflist if "last resort" not in e.name.lower()})
    return min([own, *files], key=lambda file: len(_lacking(file, letters)))


def _lacking(file: str, letters: frozenset[str]) -> set[str]:
    return {each for each in letters if ord(each) not in _letters(file)}


@functools.cache
def _letters(file: str) -> frozenset[int]:
    """The letters of a font; none of one that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(file, 10)
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
