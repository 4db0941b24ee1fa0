"""Groups of files, such as patients or cameras, by a pattern of their names or by a table."""

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from .image_set import ImageSet, LabelledImages

_FILE = ("file", "filename", "path", "image")


def grouped(source: ImageSet, group_by: str | None, root: Path) -> ImageSet:
    """Give each image of a set the number of its group.

    Args:
        source: The set, whose images are files.
        group_by: A regular expression, found in the path below ``root`` with slashes, whose groups
            in parentheses, or else all of it, name an image's group; or a CSV file with a column of
            such paths or of file names, and one of groups.
        root: The folder of the set.

    Raises:
        ValueError: The images are no files, the expression or the file is not as it must be, or an
            image has no group.
    """
    if group_by is None:
        return source
    find = _table(Path(group_by)) if group_by.lower().endswith(".csv") else _pattern(group_by)
    numbers: dict[str, int] = {}
    parts: dict[str, LabelledImages] = {}
    for name, part in source.parts.items():
        if not isinstance(part.images, tuple):
            raise ValueError(f"group_by must be left out with {source.name}, which has no files")
        paths = [path.as_posix().removeprefix(f"{root.as_posix()}/") for path in part.images]
        found = [find(path) for path in paths]
        without = [path for path, group in zip(paths, found, strict=True) if group is None]
        if without:
            raise ValueError(
                f"group_by must give every image a group, got none for {len(without)} of "
                f"{len(paths)} images of {name}, such as {without[0]!r}"
            )
        groups = torch.tensor([numbers.setdefault(str(group), len(numbers)) for group in found])
        parts[name] = replace(part, groups=groups)
    return replace(source, parts=parts)


def _pattern(text: str) -> Callable[[str], str | None]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"group_by must be a regular expression, got {text!r}: {error}") from None

    def find(path: str) -> str | None:
        found = pattern.search(path)
        # A slash is in no part of a name.
        return "/".join(each or "" for each in found.groups() or (found[0],)) if found else None

    return find


def _table(file: Path) -> Callable[[str], str | None]:
    if not file.is_file():
        reason = "not a regular file" if file.exists() else "no such file"
        raise ValueError(f"group_by must name a CSV file, got {str(file)!r}: {reason}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header, *rows = [row for row in csv.reader(opened) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"group_by {str(file)!r} cannot be read: {error}") from None
    names = [column.strip().lower() for column in header]
    by = next((names.index(name) for name in _FILE if name in names), None)
    if by is None or "group" not in names:
        raise ValueError(
            f"group_by {str(file)!r} must have columns file and group, got {', '.join(header)}"
        )
    column = names.index("group")
    groups: Mapping[str, str] = {
        row[by].strip().replace("\\", "/").removeprefix("./"): row[column].strip()
        for row in rows
        if len(row) > max(by, column) and row[column].strip()
    }
    return lambda path: groups.get(path, groups.get(path.rpartition("/")[2]))
