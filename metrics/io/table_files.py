"""Tables of numbers, CSV and Parquet, unpacked piece by piece into a plain file of numbers."""

import csv
import io
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np

Watch = Callable[[float], None]
"""Called with the share of the work that is done, from 0 to 1."""

NO_CLASSES = frozenset(
    [
        *("id", "index", "idx", "label", "labels", "target", "targets", "y_true", "ground_truth"),
        *("prediction", "predictions", "pred", "preds", "predicted", "y_pred", "confidence"),
        *("correct", "filename", "filepath", "split", "fold"),
    ]
)
"""Names of columns that cannot be classes, in lower case."""

_NUMBERS = 2**18  # numbers of a table in memory at a time
_MOST_COMPRESSED, _UNASKED = 100, 2**26
"""Bytes that are unpacked for one that is stored, and how many are without asking."""

Unpacked = tuple[tuple[int, int], "np.dtype[Any]", bool, Sequence[str]]
"""Rows and columns, the numbers' type, whether column comes after column, not row after row, and
the columns' names, if they have some."""

Unpack = Callable[[Path, IO[bytes], Watch], Unpacked]


def unpack_csv(path: Path, target: IO[bytes], watch: Watch) -> Unpacked:
    """Write the numbers of a CSV file, in float64; names of the columns may come first."""
    rows, columns, names = 0, 0, list[str]()
    for block in _csv_blocks(path, watch, names):
        rows, columns = rows + block.shape[0], block.shape[1]
        target.write(block.data)
    return (rows, columns), np.dtype(np.float64), False, names


def check_ratio(name: str, needed: int, stored: int) -> None:
    """Refuse what is compressed as numbers of a network never are, before it fills the disk."""
    if needed > _UNASKED and needed > _MOST_COMPRESSED * max(1, stored):
        raise ValueError(
            f"{name} states {needed:,} bytes and holds {stored:,}, less than one in "
            f"{_MOST_COMPRESSED}, as no outputs of a network are compressed: save it as .npy"
        )


def column_names(names: Iterable[object]) -> tuple[str, ...]:
    """Names of columns as they are compared: without spaces around them, normalised to NFC."""
    return tuple(unicodedata.normalize("NFC", str(name).strip()) for name in names)


def _csv_blocks(path: Path, watch: Watch, names: list[str]) -> Iterator[Any]:
    size = max(1, path.stat().st_size)
    with path.open("rb") as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig")
        try:
            lines: Iterator[tuple[int, str]] = (
                (at, line) for at, line in enumerate(text, 1) if line.strip()
            )
            first = next(lines, None)
            if first is None:
                raise ValueError(f"{path} must hold >= 1 row, got an empty file")
            fields = _fields(first[1])
            columns = len(fields)
            second = next(lines, None)
            more = [each for each in (second,) if each is not None]
            if _names_columns(path, fields, _fields(second[1]) if second else []):
                names += fields
            else:
                more = [first, *more]
            lines = itertools.chain(more, lines)
            # A file without rows still has its columns.
            yield np.empty((0, columns))
            while part := list(itertools.islice(lines, max(1, _NUMBERS // columns))):
                yield _parsed(path, part, columns)
                watch(min(1.0, raw.tell() / size))
        except (UnicodeDecodeError, csv.Error):
            raise ValueError(f"{path} is not a CSV file: it is not text in UTF-8") from None


def _parsed(path: Path, part: Sequence[tuple[int, str]], columns: int) -> Any:
    try:
        lines = [line for _, line in part]
        block = np.loadtxt(lines, delimiter=",", comments=None, quotechar='"', ndmin=2)
    except ValueError:
        block = None
    if block is not None and block.shape == (len(part), columns):
        return block
    for at, line in part:  # what is wrong, and where
        fields = _fields(line)
        if len(fields) != columns:
            raise ValueError(f"{path} must have {columns} columns, got {len(fields)} in line {at}")
        for place, each in enumerate(fields, 1):
            if not is_number(each):
                raise ValueError(
                    f"{path} must hold numbers, got {each!r} in line {at}, column {place}"
                )
    raise ValueError(f"{path} is damaged between lines {part[0][0]} and {part[-1][0]}")


def _names_columns(path: Path, fields: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the first row holds the columns' names; what may be either is refused."""
    numeric = [is_number(each) for each in fields]
    if len(fields) > 1 and not fields[0].strip():
        raise ValueError(
            f"{path} has a first column without a name, as of row numbers; write it without them "
            "(pandas: index=False)"
        )
    if all(numeric):
        # pandas names the columns of an array 0, 1, 2, ...: read as numbers, they would shift all
        # rows by one.
        counted = [[str(place + first) for place in range(len(fields))] for first in (0, 1)]
        if len(fields) < 2 or sorted(fields) not in map(sorted, counted):
            return False
        if list(fields) != counted[0] and not all("." in each for each in second or [""]):
            return False
        if len(fields) == 2:
            raise ValueError(
                f"{path} begins with {','.join(fields)}, which may be names of columns or numbers; "
                "write names such as a,b, or numbers such as 0.0,1.0"
            )
        return True
    if any(numeric):
        place = numeric.index(False)
        raise ValueError(
            f"{path} must begin with a row of names or of numbers, got {fields[place]!r} among "
            f"numbers in line 1, column {place + 1}"
        )
    check_names(path, fields)
    return True


def check_names(path: Path | str, names: Sequence[str]) -> None:
    """Refuse a table of several columns of which one, by its name, is not a class."""
    for place, name in enumerate(names, start=1):
        if len(names) > 1 and name.strip().lower() in NO_CLASSES:
            raise ValueError(
                f"{path} has a column {name.strip()!r}, number {place}, which is not a class; "
                "write the table without it"
            )


def _fields(line: str) -> list[str]:
    return next(csv.reader([line.rstrip("\r\n")], skipinitialspace=True), [""])


def is_number(text: str) -> bool:
    """Whether a text is a number, as Python reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def unpack_parquet(path: Path, target: IO[bytes], watch: Watch) -> Unpacked:
    """Write the numbers of a Parquet file, column after column, in the type that all fit into.

    A few columns of a row group are in memory at a time: to go row by row, a page of every column
    would be needed at once.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: reading Parquet needs pyarrow: pip install 'deepens[parquet]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            names, types = file.schema_arrow.names, _column_types(path, file.schema_arrow, pa.types)
            check_names(path, names)
            total, dtype, before = file.metadata.num_rows, np.result_type(*types), 0
            needed = total * len(names) * dtype.itemsize
            check_ratio(str(path), needed, path.stat().st_size)
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                step = max(1, _NUMBERS // max(1, rows))
                for first in range(0, len(names), step):
                    table = file.read_row_group(
                        group, columns=names[first : first + step], use_threads=False
                    )
                    for place, column in enumerate(table.columns, first):
                        check_full(path, column, names[place], before)
                        target.seek((place * total + before) * dtype.itemsize)
                        # Its to_numpy would import pandas, of 25 MB.
                        values = np.from_dlpack(column.combine_chunks())
                        target.write(values.astype(dtype).data)
                    done = before + rows * (first + table.num_columns) / len(names)
                    watch(done / max(1, total))
                    del table, column, values  # or they would be in memory beside the next ones
                before += rows
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file that is written
        line = " ".join(str(error).split())
        raise ValueError(f"{path} is not a Parquet file, or damaged: {line}") from None
    return (total, len(names)), dtype, True, names


def check_full(path: Path, column: Any, name: str, before: int) -> None:
    """Refuse a column of a Parquet file that has no value somewhere."""
    if column.null_count:
        row = before + column.is_null().to_pylist().index(True)
        raise ValueError(
            f"{path} must have a value everywhere, got none in row {row}, column {name!r}"
        )


def _column_types(path: Path, schema: Any, types: Any) -> "list[np.dtype[Any]]":
    if not schema.names:
        raise ValueError(f"{path} must hold >= 1 column, got 0")
    for field in schema:
        if schema.names.count(field.name) > 1:
            raise ValueError(f"{path} has two columns called {field.name!r}")
        if field.name.startswith("__index_level_"):
            raise ValueError(
                f"{path} has a column of row numbers, {field.name!r}; write it without them "
                "(pandas: index=False)"
            )
        if not (types.is_floating(field.type) or types.is_integer(field.type)):
            raise ValueError(
                f"{path} must hold one number per row and column, got {field.type} in column "
                f"{field.name!r}"
            )
    return [np.dtype(field.type.to_pandas_dtype()) for field in schema]


TABLES: Mapping[str, Unpack] = MappingProxyType({".csv": unpack_csv, ".parquet": unpack_parquet})
"""Suffix of a table -> what unpacks it."""
