"""Tables that name their columns, read in one order of them."""

import re
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .array_files import ArrayReader


class _Reordered(ArrayReader):
    """A table with its columns in another order, given by their places."""

    def __init__(self, reader: ArrayReader, places: Sequence[int]) -> None:
        super().__init__(reader.name, reader.shape, reader.dtype)
        self.table, self._reader, self._places = reader.table, reader, torch.tensor(places)
        self.columns = tuple(reader.columns[place] for place in places)

    def read(self, start: int, stop: int, axis: int = 0) -> Tensor:
        if axis != 0:
            raise ValueError(f"axis must be 0 of a table, got {axis}")
        return self._reader.read(start, stop).index_select(1, self._places)

    def close(self) -> None:
        self._reader.close()


def class_order(names: Sequence[str], called: str) -> list[int]:
    """Return the places of columns in the order of the classes.

    Columns that are called by numbers, such as c10, c9, have theirs if these are 0 to C - 1 or 1 to
    C; other numbers that do not ascend are a ``ValueError``. Other names say nothing of the order:
    there the first column is class 0.

    Example:
        >>> from deepens.metrics.io.columns import class_order
        >>> class_order(["c2", "c0", "c1"], "logits"), class_order(["dog", "cat"], "logits")
        ([1, 2, 0], [0, 1])
    """
    found = [re.fullmatch(r"(\D*)(\d{1,9})(\D*)", name) for name in names]
    parts = [part for part in found if part is not None]
    numbers = [int(part[2]) for part in parts]
    one_pattern = len({(part[1], part[3]) for part in parts}) == 1
    if len(parts) < len(names) or not one_pattern or numbers == sorted(set(numbers)):
        return list(range(len(names)))
    counted = sorted(numbers)
    if counted not in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        raise ValueError(
            f"{called} must have its columns in the order of the classes, got "
            f"{', '.join(names[:5])}{', …' * (len(names) > 5)}, whose numbers do not ascend: sort "
            "them, or use other names if this is their order"
        )
    return [numbers.index(number) for number in counted]


def in_class_order(reader: ArrayReader) -> ArrayReader:
    """Return a table with its columns by `class_order`; a warning says so if this is another."""
    places = class_order(reader.columns, reader.name)
    if places == sorted(places):
        return reader
    names = [reader.columns[place] for place in places]
    warnings.warn(
        f"{reader.name}: columns are taken in the order of their numbers, {names[0]} as class 0, "
        f"{names[-1]} as class {len(names) - 1}",
        RuntimeWarning,
        stacklevel=3,
    )
    return _Reordered(reader, places)


def in_order_of(reader: ArrayReader, like: ArrayReader) -> ArrayReader:
    """Return a table with its columns in the order of another's, by their names.

    Other names are a ``ValueError``; without names columns stay as they are.
    """
    theirs, wanted = reader.columns, like.columns
    if not theirs or not wanted or theirs == wanted:
        return reader
    if sorted(theirs) != sorted(wanted) or len(set(theirs)) < len(theirs):
        lacking = [name for name in wanted if name not in theirs][:3]
        raise ValueError(
            f"{reader.name} must have the columns of {like.name}, "
            f"{', '.join(wanted[:5])}{', …' if len(wanted) > 5 else ''}; it lacks "
            f"{', '.join(map(repr, lacking)) or 'none, and has some twice'}"
        )
    return _Reordered(reader, [theirs.index(name) for name in wanted])
