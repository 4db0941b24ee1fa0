"""Tables that name their columns, read in one order of them."""

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
