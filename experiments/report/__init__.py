"""The report of a comparison: one self-contained HTML page, and the same in Markdown.

``document`` builds the view model of `model` from a comparison; ``render`` fills the templates with
it. The other files each build the blocks of a section. Neither form needs a network.
"""

from pathlib import Path

from ..comparison.verdicts import Comparison
from ..store.run import write_whole_text
from .document import build_report
from .model import Report
from .render import render_page, write_markdown

__all__ = ["build_report", "render_page", "write_markdown", "write_report"]


def write_report(comparison: Comparison, path: Path, *, report: Report | None = None) -> None:
    """Write a comparison as one HTML file, replaced if it exists, whole or not at all.

    ``report`` is its view model, where it is built already.
    """
    write_whole_text(path, render_page(comparison, report=report))
