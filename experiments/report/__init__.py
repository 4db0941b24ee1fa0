"""The report of a comparison: one self-contained HTML page, and the same in Markdown.

``page`` lays the page out, ``verdicts`` answers the question in words, ``tables`` and ``figures``
show what the answer rests on, ``examples`` shows the images themselves. ``markdown`` writes
``report.md`` with its figures as files. Neither needs a network or a font of its own.
"""

from pathlib import Path

from ..comparison.verdicts import Comparison
from ..store.run import write_whole_text
from .markdown import write_markdown
from .page import render_page

__all__ = ["render_page", "write_markdown", "write_report"]


def write_report(comparison: Comparison, path: Path) -> None:
    """Write a comparison as one HTML file, whole or not at all.

    Args:
        comparison: What was measured and concluded.
        path: The file to write, replaced if it exists.
    """
    write_whole_text(path, render_page(comparison))
