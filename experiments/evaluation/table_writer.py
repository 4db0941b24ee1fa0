"""Write a table row by row to a CSV or a Parquet file."""

import csv
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

SUFFIXES = (".csv", ".parquet")

ROW_GROUP = 2**14
"""Rows of a row group in Parquet: readers skip and decode group by group."""

Row = Mapping[str, str | float | int | None]


class Table(Protocol):
    """Takes rows, in order."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows at the end; None leaves a cell empty."""


def check_table_file(path: Path) -> None:
    """Refuse a file that cannot be a table.

    Raises:
        ValueError: Another suffix than .csv or .parquet; Parquet without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"out must end in .csv or .parquet, got {str(path)!r}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            "writing Parquet needs pyarrow: pip install 'deepens[parquet]', or write .csv"
        )


@contextmanager
def open_table(path: Path, columns: Mapping[str, type]) -> Iterator[Table]:
    """Open a table for writing.

    Args:
        path: A .csv or .parquet file.
        columns: ``str``, ``float`` or ``int``, by the column's name.

    Yields:
        What takes the rows; at most one row group of them is in memory.
    """
    check_table_file(path)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as text:
            yield _Csv(csv.DictWriter(text, columns, lineterminator="\n"))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(path, schema) as writer:
        table = _Parquet(writer)
        yield table
        table.flush()


class _Csv:
    def __init__(self, writer: "csv.DictWriter[str]") -> None:
        self._writer = writer
        writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.writerows(rows)


class _Parquet:
    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._waiting: list[Any] = []
        self._rows = 0

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa

        self._waiting.append(pa.Table.from_pylist(list(rows), schema=self._writer.schema))
        self._rows += len(rows)
        if self._rows >= ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=self._rows)
        self._waiting, self._rows = [], 0
