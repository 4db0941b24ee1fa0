"""The self-contained HTML report of a comparison.

``page`` lays the report out, ``verdicts`` answers the question in words, ``tables`` and ``figures``
show what the answer rests on. The page needs no network, no script and no font of its own.
"""

from pathlib import Path

from ..comparison import Comparison
from ..run import write_whole_text
from .page import render_page

__all__ = ["render_page", "write_report"]


def write_report(comparison: Comparison, path: Path) -> None:
    """Write a comparison as one HTML file, whole or not at all.

    Args:
        comparison: What was measured and concluded.
        path: The file to write, replaced if it exists.
    """
    write_whole_text(path, render_page(comparison))
