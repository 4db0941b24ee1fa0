"""Data frames that name their rows, read in one order of them."""

from typing import Any


def in_rows_of(source: Any, like: Any, *, name: str, other: str) -> Any:
    """Return a data frame or series with its rows in the order of another's, by their index.

    Where either has no index, or the row numbers that pandas counts by itself, rows correspond by
    their place. A list stands for its first.

    Raises:
        ValueError: If both are indexed, and not by the same values, once each; or one counts rows
            and the other has these numbers in another order, which may mean either.
    """
    like = like[0] if isinstance(like, list | tuple) and like else like
    ours, theirs = _index(source), _index(like)
    if ours is None or theirs is None or ours.equals(theirs):
        return source
    counted = [type(each).__name__ == "RangeIndex" for each in (ours, theirs)]
    places = {row: place for place, row in enumerate(ours)}
    same = set(places) == set(theirs) and len(places) == len(ours) == len(theirs)
    if all(counted) or (any(counted) and not same):
        return source
    if same and not any(counted):
        return source.iloc[[places[row] for row in theirs]]
    remedy = "where rows correspond by their place, reset both with .reset_index(drop=True)"
    if same:
        raise ValueError(
            f"the index of {name} has the rows of {other} in another order, and one of the two "
            f"counts its rows: {remedy}; otherwise sort both with .sort_index()"
        )
    lacking = next((row for row in theirs if row not in places), None)
    what = f"it lacks {lacking!r}" if lacking is not None else "it has others, or some twice"
    raise ValueError(f"the index of {name} must have the rows of {other}, and {what}; {remedy}")


def _index(source: Any) -> Any:
    """The index of what pandas made; that of a list or a text is a method."""
    return source.index if hasattr(source, "iloc") else None
