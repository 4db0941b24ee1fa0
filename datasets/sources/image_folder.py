"""Any image folder as a labelled set: ``train/``, ``val/``, ``test/``, one folder per class."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..image_files import list_images

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class FolderPart:
    """The images below one folder, sorted, the names of its class folders, and that of each file.

    There are no classes where images lie in no class folder.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    labels: tuple[str, ...]


def folder_parts(folder: Path | str) -> dict[str, FolderPart]:
    """Read the layout of a labelled image folder, of one folder per class or of such parts.

    Returns:
        ``train``, ``test`` and perhaps ``val``; or ``all``, for a folder without these.

    Raises:
        ValueError: If the folder is missing or empty, a part is missing, a class has no images,
            there are fewer than two classes, images lie outside the class folders, or the parts
            have different classes.
    """
    root = _existing(Path(folder))
    there = [name for name in PARTS if (root / name).is_dir()]
    if not there:
        return {"all": _labelled(root)}
    if not {"train", "test"} <= set(there):
        raise ValueError(
            f"{str(root)!r} must hold train/ and test/ (val/ is optional), got only "
            f"{', '.join(f'{name}/' for name in there)}"
        )
    parts = {name: _labelled(root / name) for name in there}
    for name in there[1:]:
        _compare_classes(root, parts, "train", name)
    return parts


def folder_images(folder: Path | str, *, exclude: Collection[str] = ()) -> FolderPart:
    """List the images of a folder that serves as one split, but for those of excluded classes.

    Of a folder with ``train/`` and ``test/``, its ``test/`` counts. A folder that is missing, or
    without any image left, is a ``ValueError``.
    """
    root = _existing(Path(folder))
    if (root / "test").is_dir() and (root / "train").is_dir():
        root = root / "test"
    found = ((path, path.relative_to(root).parts[0]) for path in list_images(root))
    kept = [(path, label) for path, label in found if label not in exclude]
    if not kept:
        raise ValueError(f"{str(root)!r} has no image left without the excluded classes")
    classes = {label for path, label in kept if path.parent != root}
    paths, labels = zip(*kept, strict=True)
    return FolderPart(paths, tuple(sorted(classes)), labels)


def _existing(root: Path) -> Path:
    if not root.is_dir():
        reason = "not a folder" if root.exists() else "not found"
        raise ValueError(f"folder: must name a folder of images, got {str(root)!r}: {reason}")
    return root


def _labelled(root: Path) -> FolderPart:
    # os.path answers False, and raises no error, for a link to itself.
    folders = (entry.name for entry in root.iterdir() if os.path.isdir(entry))
    classes = sorted(name for name in folders if not name.startswith("."))
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise ValueError(f"{str(root)!r} must hold >= 2 classes, a folder each, got {found}")
    paths = list_images(root)
    labels = [path.relative_to(root).parts[0] for path in paths]
    outside = [path for path in paths if path.parent == root]
    if outside:
        raise ValueError(
            f"images must lie in class folders, got {len(outside)} outside of them, such as "
            f"{str(outside[0])!r}: move or delete them"
        )
    empty = sorted(set(classes) - set(labels))
    if empty:
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
        both = f"{first}/ and {second}/"
        raise ValueError(f"{str(root)!r}: {both} differ in classes: {'; '.join(only)}")


def _names(names: list[str], most: int = 10) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
