"""Labels in tables, beside other columns, and labels that are names of classes."""

import csv
import importlib.util
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .table_files import check_full, is_number

LABELS = frozenset({"label", "labels", "target", "targets"})
"""Names of columns that hold labels, in lower case."""


def label_column(name: str, columns: Sequence[str]) -> int | None:
    """Return the place of the column of labels in a table of several columns; None of one column.

    None or several of such a name are a ``ValueError``.
    """
    if len(columns) < 2:
        return None
    found = [place for place, each in enumerate(columns) if each.strip().lower() in LABELS]
    if len(found) != 1:
        raise ValueError(
            f"{name} must have one column, or one that is called label, got the columns "
            f"{', '.join(columns[:5])}"
        )
    return found[0]


def label_values(source: Any, name: str, classes: Sequence[str] = ()) -> Any:
    """Return labels where they are a column of several, or words; None of anything else.

    The first row of a CSV file of one column is a label where it is among ``classes``.
    """
    if isinstance(source, list | tuple):
        return np.array(source) if any(isinstance(each, str) for each in source) else None
    if not isinstance(source, str | os.PathLike):
        if getattr(source, "ndim", 0) != 2 or not hasattr(source, "columns"):
            return None
        place = label_column(name, [str(each) for each in source.columns])
        return source[source.columns[place or 0]]
    path = Path(source)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _csv_labels(path, classes)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return _parquet_labels(path)
    return None


def class_indices(words: Sequence[object], classes: Sequence[str], name: str) -> Any:
    """Return the place of each label among the names of the classes, the logits' columns."""
    known = {each: place for place, each in enumerate(classes)}
    found = []
    for place, word in enumerate(words):
        index = known.get(unicodedata.normalize("NFC", str(word).strip()))
        if index is None:
            what = (
                f"be names of the logits' columns, {', '.join(classes[:5])}"
                f"{', …' * (len(classes) > 5)}, or class indices"
                if classes
                else "be class indices, since the logits' columns have no names (give these as the "
                "first row of a .csv file, or in a .parquet file or data frame)"
            )
            raise ValueError(f"{name} must {what}, got {str(word)!r} at position {place}")
        found.append(index)
    return np.array(found)


def is_text(values: Any) -> bool:
    """Whether labels are words, as an array of text or of Python's objects holds them."""
    if isinstance(values, Tensor) or not hasattr(values, "__array__"):
        return False
    found = np.asarray(values)
    return found.dtype.kind == "U" or (
        found.dtype.kind == "O" and any(isinstance(each, str) for each in found.flat)
    )


def _csv_labels(path: Path, classes: Sequence[str]) -> Any:
    with path.open(encoding="utf-8-sig", newline="") as text:
        try:
            rows = [row for row in csv.reader(text, skipinitialspace=True) if row]
        except (UnicodeDecodeError, csv.Error):
            raise ValueError(f"{path} is not a CSV file: it is not text in UTF-8") from None
    if not rows or all(map(is_number, rows[0])):
        return None
    names = rows[0]
    place = label_column(str(path), names) or 0
    first = 0 if len(names) == 1 and names[0] in classes else 1
    for at, row in enumerate(rows[first:], first + 1):
        if len(row) != len(names):
            raise ValueError(f"{path} must have {len(names)} columns, got {len(row)} in row {at}")
    found = [row[place] for row in rows[first:]]
    return np.array(found, dtype=np.float64 if all(map(is_number, found)) else np.str_)


def _parquet_labels(path: Path) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        return None  # what reads the whole table says so, and what else is wrong
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if not names:
                return None
            place = label_column(str(path), names) or 0
            column = file.read(columns=[names[place]]).column(0)
    except (pa.ArrowException, OSError):
        return None
    check_full(path, column, names[place], 0)
    return column.to_numpy()
