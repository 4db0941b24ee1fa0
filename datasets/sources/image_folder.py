"""Any image folder as a labelled set: ``train/``, ``val/``, ``test/``, one folder per class."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..image_files import list_images, passed_over

PARTS = ("train", "val", "test")
_OTHER_NAMES = {
    **{"training": "train", "testing": "test"},
    **dict.fromkeys(("valid", "validation", "dev", "development"), "val"),
}

_ANNOTATIONS = frozenset({".txt", ".xml", ".json"})

Say = Callable[[str, bool], None]
"""Takes what a reader of results must know, and whether it puts them in doubt."""


def _silent(line: str, doubtful: bool) -> None:
    pass


@dataclass(frozen=True)
class FolderPart:
    """The images below one folder, sorted, the names of its class folders, and that of each file.

    There are no classes where images lie in no class folder.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: tuple[str, ...]


def folder_parts(folder: Path | str, *, say: Say = _silent) -> dict[str, FolderPart]:
    """Read the layout of a labelled image folder, of one folder per class or of such parts.

    Parts may be called training, testing, valid, validation, dev or development, in either case;
    ``say`` hears which were, and what is passed over.

    Returns:
        ``train``, ``test`` and perhaps ``val``; or ``all``, for a folder without these.

    Raises:
        ValueError: If the folder is missing or empty, a part is missing, a class has no images,
            there are fewer than two classes, images lie outside the class folders, the parts have
            different classes, or the classes look like parts.
    """
    root = _existing(Path(folder))
    there = _part_folders(root, say)
    if not there:
        _refuse_parts_as_classes(root)
        return {"all": _labelled(root, say)}
    if not {"train", "test"} <= set(there):
        raise ValueError(
            f"{str(root)!r} must hold train/ and test/ (val/ is optional), got only "
            f"{', '.join(f'{name}/' for name in _folders(root))}"
        )
    parts = {name: _labelled(part, say) for name, part in there.items()}
    for name in list(there)[1:]:
        _compare_classes(root, parts, "train", name)
    if beside := sorted(set(_folders(root)) - {part.name for part in there.values()}):
        say(f"{root}: {_names(beside)} beside the parts are passed over.", False)
    return parts


def folder_images(
    folder: Path | str, *, exclude: Collection[str] = (), say: Say = _silent
) -> FolderPart:
    """List the images of a folder that serves as one split, but for those of excluded classes.

    Of a folder with ``train/`` and ``test/``, or other names of these, its ``test/`` counts. A
    folder that is missing, or without any image left, is a ``ValueError``.
    """
    root = _existing(Path(folder))
    there = _part_folders(root, say)
    if {"train", "test"} <= set(there):
        say(f"{root}: of its parts, {there['test'].name}/ alone is used.", False)
        root = there["test"]
    found = ((path, path.relative_to(root).parts[0]) for path in _listed(root, say))
    kept = [(path, label) for path, label in found if label not in exclude]
    if not kept:
        raise ValueError(f"{str(root)!r} has no image left without the excluded classes")
    classes = {label for path, label in kept if path.parent != root}
    paths, labels = zip(*kept, strict=True)
    return FolderPart(paths, tuple(sorted(classes)), labels)


def _part_folders(root: Path, say: Say) -> dict[str, Path]:
    """The folders of a set's parts, by the names that these have here; none of a single part."""
    found: dict[str, list[str]] = {}
    for name in _folders(root):
        part = _OTHER_NAMES.get(name.lower(), name.lower())
        if part in PARTS:
            found.setdefault(part, []).append(name)
    # One alone may be a class, such as trains; a part that is called as parts are is none.
    if not {"train", "test"} <= set(found) and not any(
        part in names for part, names in found.items()
    ):
        return {}
    for part, names in found.items():
        if len(names) > 1:
            both = " and ".join(f"{name}/" for name in names)
            raise ValueError(f"{str(root)!r} must hold one {part}/, got {both}: rename or move one")
        if names != [part]:
            say(f"{root}: {names[0]}/ is taken as {part}/.", False)
    return {part: root / found[part][0] for part in PARTS if part in found}


def _refuse_parts_as_classes(root: Path) -> None:
    """Refuse classes that hold the same folders each: these are the classes, and those parts."""
    classes = _folders(root)
    _refuse_detection(root, classes)
    inside = [set(_folders(root / name)) for name in classes]
    if len(classes) > 1 and len(inside[0]) > 1 and all(each == inside[0] for each in inside):
        raise ValueError(
            f"{str(root)!r}: {_names(classes)} hold the same folders each, "
            f"{_names(sorted(inside[0]))}: if they are parts, call them train/, test/ and val/; "
            "if they are classes, put their images into one folder each"
        )


def _refuse_detection(root: Path, empty: list[str]) -> None:
    """Refuse a data set of object detection, whose folders are images and their labels."""
    for name in empty:
        files = (each for each in (root / name).rglob("*") if each.suffix in _ANNOTATIONS)
        if name.lower() in ("labels", "annotations") and (found := next(files, None)):
            raise ValueError(
                f"{str(root)!r} holds labels of object detection (YOLO and the like), such as "
                f"{str(found)!r}, and one class is needed for each whole image: put the images "
                "into one folder per class"
            )


def _folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    # os.path answers False, and raises no error, for a link to itself.
    names = (entry.name for entry in root.iterdir() if os.path.isdir(entry))
    return sorted(name for name in names if not name.startswith("."))


def _listed(root: Path, say: Say) -> list[Path]:
    """The images below a folder; what else is there is counted."""
    passed: Counter[str] = Counter()
    paths = list_images(root, passed=passed)
    if found := passed_over(passed):
        say(f"{root}: {found[0]}.", found[1])
    return paths


def _existing(root: Path) -> Path:
    if not root.is_dir():
        reason = "not a folder" if root.exists() else "not found"
        raise ValueError(f"folder: must name a folder of images, got {str(root)!r}: {reason}")
    return root


def _labelled(root: Path, say: Say) -> FolderPart:
    classes = _folders(root)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(f"{str(root)!r} must hold >= 2 classes, a folder each, got {found}")
    paths = _listed(root, say)
    labels = [path.relative_to(root).parts[0] for path in paths]
    outside = [path for path in paths if path.parent == root]
    if outside:
        raise ValueError(
            f"images must lie in class folders, got {len(outside)} outside of them, such as "
            f"{str(outside[0])!r}: move or delete them"
        )
    empty = sorted(set(classes) - set(labels))
    if empty:
        _refuse_detection(root, empty)
        raise ValueError(
            f"{str(root)!r}: {len(empty)} of {len(classes)} classes hold no image: "
            f"{_names(empty)}; add images or delete the folders"
        )
    return FolderPart(tuple(paths), tuple(classes), tuple(labels))


def _compare_classes(root: Path, parts: dict[str, FolderPart], first: str, second: str) -> None:
    only = [
        f"only {name}/ has {_names(sorted(lacking))}"
        for name, other in ((first, second), (second, first))
        if (lacking := set(parts[name].classes) - set(parts[other].classes))
    ]
    if only:
        if len({frozenset(map(_nfc, parts[name].classes)) for name in (first, second)}) == 1:
            only.append("the names differ by Unicode form alone")
        both = f"{first}/ and {second}/"
        raise ValueError(f"{str(root)!r}: {both} differ in classes: {'; '.join(only)}")


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _names(names: list[str], most: int = 10) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
