"""The view model of a report: blocks of finished text, which HTML and Markdown templates render.

Use these when a new section is added: a section is a list of blocks, and every number in it is
formatted before it gets here, so that both forms of the report show the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..comparison.formatting import SIGNS


class Block:
    """A part of a section; the macro that renders it is chosen by ``block``."""

    @property
    def block(self) -> str:
        """Its kind."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        note: Smaller text beside it, such as ``± 0.0021``.
        mark: An outcome, which sets sign and colour, or ``missing``.
        value: The number to sort by; NaN where a number is undefined, None for words.
        title: What a pointer that rests on the cell shows.
        best: Whether it is the best of its column; no test stands behind that.
        more: Smaller text on a line of its own, such as an interval.
    """

    text: str
    note: str = ""
    mark: str = ""
    value: int | float | None = None
    title: str = ""
    best: bool = False
    more: str = ""

    @property
    def sign(self) -> str:
        """The sign of its mark, so that colour is never needed."""
        return SIGNS.get(self.mark, "")

    @property
    def plain(self) -> str:
        """The whole cell as one line of text."""
        return " ".join(filter(None, ("★" * self.best, self.sign, self.text, self.note, self.more)))


@dataclass(frozen=True)
class Row:
    """One row of a table.

    ``head`` is the first column, with smaller text (``note``) below it, and ``title`` where a
    pointer rests on it; ``group`` is what neighbours share, such as an OOD score.
    """

    head: str
    cells: tuple[Cell, ...]
    title: str = ""
    group: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table(Block):
    """A table below a heading, if it has a title.

    Attributes:
        basis: On how many images and replicates it rests.
        group_head: Head of the column of groups; empty where rows have none.
        label: Its name for a screen reader, where the title is empty.
        kind: ``words`` where the cells are words rather than numbers.
    """

    title: str
    basis: str
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    group_head: str = ""
    label: str = ""
    kind: str = ""

    @property
    def groups(self) -> list[list[Row]]:
        """The rows, those of a group together."""
        return [list(rows) for _, rows in groupby(self.rows, key=lambda row: row.group)]

    @property
    def lines(self) -> list[list[str]]:
        """The rows as plain text, with the group first where there are groups."""
        return [
            [
                *([row.group] if self.group_head else []),
                " ".join(filter(None, (row.head, row.note))),
                *(cell.plain for cell in row.cells),
            ]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Long(Block):
    """A table that the page's script sorts and filters; Markdown shows ``tables`` instead.

    The columns are method, split, metric, mean, sd, replicates, n, difference and outcome;
    ``choices`` are the values by which a column can be filtered.
    """

    heads: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]
    choices: Mapping[str, Sequence[str]]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; ``kind`` is empty, ``caution`` or ``key``."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Heading(Block):
    """A heading inside a section, with smaller text beside it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Notes(Block):
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Definitions(Block):
    """Terms and what they mean."""

    entries: Mapping[str, str]


@dataclass(frozen=True)
class Code(Block):
    """Text that is shown as it is."""

    text: str
    language: str


@dataclass(frozen=True)
class Folded(Block):
    """Blocks below a line that opens and closes them."""

    summary: str
    note: str
    blocks: tuple[Any, ...]
    unfolded: bool = False


@dataclass(frozen=True)
class Chart:
    """One chart in Vega-Lite, and sentences with its main numbers for those who cannot see it."""

    name: str
    title: str
    spec: Mapping[str, Any]
    description: str


@dataclass(frozen=True)
class Charts(Block):
    """Charts beside each other, below one introduction."""

    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Interval:
    """One line of a forest plot: a verdict in finished text, with its mark.

    ``places`` are low end, estimate and high end on a line from -1 to 1, right of 0 in favour of
    the ensemble, where ``difference`` is positive; empty where there is no interval. ``p_value`` is
    after Holm's correction.
    """

    metric: str
    difference: str
    interval: str
    outcome: str
    p_value: str
    sentence: str
    places: tuple[float, ...]


@dataclass(frozen=True)
class Forest(Block):
    """The verdicts of one pair of methods on one split; the remark says why others are left out."""

    title: str
    note: str
    intervals: tuple[Interval, ...]
    remark: str = ""
    unfolded: bool = False


@dataclass(frozen=True)
class Picture:
    """One example image, its PNG file in base64; numbers begin with 1, as on the contact sheet."""

    number: int
    data: str
    width: int
    height: int
    truth: str
    place: str
    said: Mapping[str, str]


@dataclass(frozen=True)
class Pictures(Block):
    """Example images below one heading."""

    title: str
    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Sheet(Block):
    """All example images as one PNG file, which only a Markdown report draws."""

    draw: Callable[[], bytes]
    description: str


@dataclass(frozen=True)
class Explorer(Block):
    """What the page's script needs to show any budget by any metric: finished text and places."""

    data: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A section of the report: its id, its name in the index, its heading and what stands in it."""

    anchor: str
    short: str
    title: str
    blocks: tuple[Any, ...]


@dataclass(frozen=True)
class Report:
    """Everything that stands in a report.

    Attributes:
        answers: The answer in a few words and the sentence behind it, per pair of methods.
        overview: The first table, one row per method; None where there is no method.
        deploy: What to deploy, one sentence each.
        cautions: What a reader must know before believing it.
    """

    data: str
    answers: tuple[tuple[str, str], ...]
    overview: Table | None
    overview_key: str
    deploy: tuple[str, ...]
    cautions: tuple[str, ...]
    sections: tuple[Section, ...]
