"""The index of a grid of comparisons: the short answers of all, and where they come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from urllib.parse import quote

from ..comparison.headlines import Headline
from .markdown import _text

NO_VERDICT = "No verdict: no single model among the methods costs the same."

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem;
 font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: 0.4rem 0.7rem; border-bottom: 1px solid; text-align: left; vertical-align: top; }
.failed { border-left: 0.4rem solid #b98900; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$summary</p>
<div class="scroll" tabindex="0" role="region" aria-label="Comparisons">
<table>
<thead><tr>$heads</tr></thead>
<tbody>
$rows
</tbody>
</table>
</div>
$warnings
<p>All results together: <a href="results.csv">results.csv</a></p>
</main>
</body>
</html>
""")

_TITLE = "Are these ensembles worth their cost?"
_HEADS = ("Data", "Backbone", "Ensemble and single model", "Answer", "In short", "Report")


@dataclass(frozen=True)
class Outcome:
    """What came of one comparison of a grid.

    Attributes:
        name: Its directory's name.
        data: Name of its data.
        backbone: Name of its backbone.
        headlines: Its answers, one for each ensemble and the single model of equal cost.
        warnings: What a reader must know: its cautions and its caveat.
        error: Why there is none.
    """

    name: str
    data: str
    backbone: str
    headlines: tuple[Headline, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""


def index_page(outcomes: Sequence[Outcome]) -> str:
    """Write the index as one HTML page that needs nothing but the reports that it links to.

    Args:
        outcomes: What came of each comparison, in the grid's order.

    Returns:
        The page.

    Example:
        >>> from deepens.experiments.report.grid_index import Outcome, index_page
        >>> page = index_page([Outcome("digits-a", "digits", "<a>", error="no such backbone")])
        >>> "digits</th><td>&lt;a&gt;</td>" in page
        True
    """
    body = []
    for outcome in outcomes:
        kind = ' class="failed"' if outcome.error else ""
        for data, *cells in _rows(outcome):
            written = f'<th scope="row">{escape(data)}</th>'
            written += "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            body.append(f"<tr{kind}>{written}<td>{_html_link(outcome)}</td></tr>")
    warnings = "".join(f"<li>{escape(line)}</li>" for line in _warnings(outcomes))
    return _PAGE.substitute(
        title=_TITLE,
        summary=_summary(outcomes),
        heads="".join(f'<th scope="col">{head}</th>' for head in _HEADS),
        rows="\n".join(body),
        warnings=f"<h2>Cautions</h2>\n<ul>{warnings}</ul>" if warnings else "",
    )


def index_markdown(outcomes: Sequence[Outcome]) -> str:
    """Write the index in Markdown.

    Args:
        outcomes: What came of each comparison, in the grid's order.

    Returns:
        The text.
    """
    rows = [
        [*map(_text, row), "" if outcome.error else f"[{_text(outcome.name)}]({_link(outcome)})"]
        for outcome in outcomes
        for row in _rows(outcome)
    ]
    table = [list(_HEADS), ["---"] * len(_HEADS), *rows]
    lines = [f"# {_TITLE}", "", _summary(outcomes), ""]
    lines += [f"| {' | '.join(row)} |" for row in table]
    if warnings := list(_warnings(outcomes)):
        lines += ["", "## Cautions", "", *(f"- {_text(line)}" for line in warnings)]
    return "\n".join([*lines, "", "All results together: [results.csv](results.csv)", ""])


def _rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    """Yield the columns before the link, a row for each answer of a comparison."""
    if outcome.error:
        yield outcome.data, outcome.backbone, "", "Failed", outcome.error
    elif not outcome.headlines:
        yield outcome.data, outcome.backbone, "", NO_VERDICT, ""
    for headline in () if outcome.error else outcome.headlines:
        yield (
            *(outcome.data, outcome.backbone),
            *(headline.subject, f"{headline.answer}.", headline.tally),
        )


def _summary(outcomes: Sequence[Outcome]) -> str:
    failed = sum(bool(outcome.error) for outcome in outcomes)
    count = f"{len(outcomes)} comparison{'' if len(outcomes) == 1 else 's'}"
    return f"{count}, {failed} of them failed." if failed else f"{count}."


def _warnings(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield each caution once, behind the comparisons that it is about."""
    about: dict[str, list[str]] = {}
    for outcome in outcomes:
        for warning in outcome.warnings:
            about.setdefault(warning, []).append(outcome.name)
    for warning, names in about.items():
        yield f"{', '.join(names)}: {warning}"


def _link(outcome: Outcome) -> str:
    return f"{quote(outcome.name)}/report.html"


def _html_link(outcome: Outcome) -> str:
    if outcome.error:
        return ""
    return f'<a href="{escape(_link(outcome))}">{escape(outcome.name)}</a>'
