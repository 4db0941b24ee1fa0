"""A comparison in a terminal: the answer, a row per method, what to deploy, cautions."""

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..comparison.formatting import PLAIN_SIGNS, SIGNS, listed, mean_and_sd
from ..comparison.headlines import merged
from ..comparison.summary import Cell, Headline, MethodRow, Summary
from ..cost.axes import AXES, multiple_text


def show_summary(summary: Summary, console: Console) -> None:
    """Print the summary of a comparison.

    Columns that do not fit beside each other stand in further tables below. Without styles, as in a
    pipe, a star marks the best mean in place of bold type.
    """
    marks = _marks(console)
    for line in _answers(summary.headlines):
        console.print(line, soft_wrap=True)
    for table in _tables(summary, console, marks):
        console.print()
        console.print(table)
    best = "bold" if console.is_terminal else "*"
    against = _against(summary.headlines, "single model")
    console.print(
        f"mean ± standard deviation over replicates; {best}: best mean; against {against}, after "
        f"Holm's correction: {marks['better']} better, {marks['worse']} worse, with the 95 % "
        f"interval of the advantage (positive is better), {marks['not shown']} no difference shown",
        soft_wrap=True,
    )
    for title, lines in (("deploy", summary.deploy), ("caution", summary.cautions)):
        for line in lines:
            console.print(f"{title}: {line}", soft_wrap=True)


def _answers(headlines: Sequence[Headline]) -> Iterator[str]:
    """The answers, and below them the reason for a single one or how to see those of several."""
    question, headlines = "Is this ensemble worth its cost?", merged(headlines)
    if not headlines:
        yield f"{question} There is nothing to compare."
        yield "No ensemble has a single model of equal cost, nor two to interpolate between."
    elif len({each.reason or each for each in headlines}) == 1:  # one, or why there is none
        yield f"{question} {headlines[0].answer}."
        yield from (each.sentence for each in headlines)
    else:
        yield f"Is each ensemble worth its cost? {'; '.join(map(_outcome, headlines))}."
        yield f"Against {_against(headlines, 'single models')}, after Holm's correction."


def _against(headlines: Sequence[Headline], singles: str) -> str:
    """What ensembles are judged against, by whether there are single models of equal cost."""
    interpolated = [bool(each.between) for each in headlines]
    matched = "" if interpolated and all(interpolated) else f"the compute-matched {singles}"
    between = "single models interpolated at equal cost" if any(interpolated) else ""
    return ", or ".join(filter(None, (matched, between)))


def _outcome(each: Headline) -> str:
    words = [each.counts, f"not judged: {listed(each.unjudged)}" if each.unjudged else ""]
    more = ", ".join(filter(None, words))
    return f"{each.challenger} against {each.baseline}: {each.answer}{f' ({more})' if more else ''}"


def _tables(summary: Summary, console: Console, marks: dict[str, str]) -> Iterator[Table]:
    names = [row.name for row in summary.rows]
    columns = [("cost", [_cost(row) for row in summary.rows])]
    for column in summary.columns:
        cells = [_cell(row.cells[column.key], console, marks) for row in summary.rows]
        columns.append((column.label, cells))
    first = max(map(len, ["method", *names]))
    width, block = first, list[tuple[str, list[Text]]]()
    for label, cells in columns:
        own = 2 + max(map(len, [label, *(cell.plain for cell in cells)]))
        if block and width + own > console.width:
            yield _table(names, block)
            width, block = first, []
        width += own
        block.append((label, cells))
    yield _table(names, block)


def _table(names: Sequence[str], columns: Sequence[tuple[str, Sequence[Text]]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("method", no_wrap=True)
    for label, _ in columns:
        table.add_column(label, no_wrap=True)
    for index, name in enumerate(names):
        table.add_row(name, *(cells[index] for _, cells in columns))
    return table


def _cost(row: MethodRow) -> Text:
    multiple = f" ({multiple_text(row.multiple)})" if math.isfinite(row.multiple) else ""
    return Text(AXES[0].text(float(row.cost)) + multiple)


def _cell(cell: Cell, console: Console, marks: dict[str, str]) -> Text:
    star = "*" if cell.best and not console.is_terminal else ""
    text = f"{mean_and_sd(cell.mean, cell.sd)}{star} {marks.get(cell.mark, '')} {cell.interval}"
    return Text(text.rstrip(), style="bold" if cell.best else "")


def _marks(console: Console) -> dict[str, str]:
    marks = {mark: SIGNS[mark] for mark in PLAIN_SIGNS}
    try:
        "".join(marks.values()).encode(console.encoding)
    except UnicodeEncodeError:
        return PLAIN_SIGNS
    return marks
