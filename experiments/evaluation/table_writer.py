"""Write a table row by row to a CSV or a Parquet file."""

import csv
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..store.run import spreadsheet_row

SUFFIXES = (".csv", ".parquet")

ROW_GROUP = 2**14
"""Rows of a row group in Parquet: readers skip and decode group by group."""

Row = Mapping[str, str | float | int | None]


def check_table_file(path: Path) -> None:
    """Refuse another suffix than .csv or .parquet, and Parquet without pyarrow."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"out must end in .csv or .parquet, got {str(path)!r}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        remedy = "pip install 'deepens[parquet]', or write .csv"
        raise ValueError(f"writing Parquet needs pyarrow: {remedy}")


@contextmanager
def open_table(
    path: Path, columns: Mapping[str, type]
) -> Iterator[Callable[[Sequence[Row]], object]]:
    """Open a .csv or .parquet table for writing; use it where not all rows fit in memory.

    It yields a function that appends rows, where None leaves a cell empty. Columns are ``str``,
    ``float`` or ``int``. At most one row group is in memory.
    """
    check_table_file(path)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as text:
            lines = csv.DictWriter(text, columns, lineterminator="\n")
            lines.writeheader()
            yield lambda rows: lines.writerows(map(spreadsheet_row, rows))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    waiting: list[Row] = []
    with pq.ParquetWriter(path, schema) as writer:

        def append(rows: Sequence[Row], *, least: int | None = None) -> None:
            waiting.extend(rows)
            if waiting and len(waiting) >= (least or ROW_GROUP):
                writer.write_table(pa.Table.from_pylist(waiting, schema), len(waiting))
                waiting.clear()

        yield append
        append([], least=1)
