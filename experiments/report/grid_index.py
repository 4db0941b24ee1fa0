"""The index of a grid of comparisons: the short answers of all, and where they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from ..comparison.formatting import counted_text
from ..comparison.headlines import Headline
from .render import template_environment

NO_VERDICT = "No verdict: no single model among the methods costs the same, nor do two bracket it."
TITLE = "Are these ensembles worth their cost?"
HEADS = ("Data", "Backbone", "Ensemble and single model", "Answer", "In short", "Report")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one comparison of a grid.

    Attributes:
        name: Its directory's name.
        headlines: Its answers, one for each ensemble and its partner.
        warnings: What a reader must know: its cautions and its caveat.
        error: Why there is none.
    """

    name: str
    data: str
    backbone: str
    headlines: tuple[Headline, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The columns before the link, a row for each answer."""
        start = (self.data, self.backbone)
        if self.error:
            return [(*start, "", "Failed", self.error)]
        if not self.headlines:
            return [(*start, "", NO_VERDICT, "")]
        return [(*start, h.subject, f"{h.answer}.", h.tally) for h in self.headlines]

    @property
    def link(self) -> str:
        """Where its report is; empty where it failed."""
        return "" if self.error else f"{quote(self.name)}/report.html"


def index_page(outcomes: Sequence[Outcome]) -> str:
    """Write the index as one HTML page that needs nothing but the reports that it links to.

    Example:
        >>> from deepens.experiments.report.grid_index import Outcome, index_page
        >>> page = index_page([Outcome("digits-a", "digits", "<a>", error="no such backbone")])
        >>> "digits</th><td>&lt;a&gt;</td>" in page
        True
    """
    return _rendered(outcomes, "grid.html")


def index_markdown(outcomes: Sequence[Outcome]) -> str:
    """Write the index in Markdown."""
    return _rendered(outcomes, "grid.md")


def _rendered(outcomes: Sequence[Outcome], template: str) -> str:
    failed = sum(bool(outcome.error) for outcome in outcomes)
    count = counted_text(len(outcomes), "comparison")
    about: dict[str, list[str]] = {}  # each caution once, with the comparisons that it is about
    for outcome in outcomes:
        for warning in outcome.warnings:
            about.setdefault(warning, []).append(outcome.name)
    environment = template_environment(html=template.endswith(".html"))
    return environment.get_template(template).render(
        title=TITLE,
        heads=HEADS,
        summary=f"{count}, {failed} of them failed." if failed else f"{count}.",
        outcomes=outcomes,
        warnings=[f"{', '.join(names)}: {warning}" for warning, names in about.items()],
    )
