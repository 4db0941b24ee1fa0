"""Shifted copies of a test split, made when they are asked for or read from published files.

The files of CIFAR-10-C and CIFAR-100-C are one ``NAME.npy`` per corruption, 50,000 images
``[N, 32, 32, 3]``: the 10,000 test images at severity 1, then at 2, and so on to 5. ``labels.npy``
contains the labels of all.

Reference: Hendrycks & Dietterich (2019), arXiv:1903.12261
"""

import functools
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..options import SEVERITIES, folder_path
from ..splits import Split
from .corruption import CORRUPTIONS, corrupt

GROUPS = {"all": tuple(CORRUPTIONS), "standard": tuple(CORRUPTIONS)[:15]}
"""What stands for several corruptions."""
FROST_NOTE = (
    "Frost is made here, of ridges of noise, since the published photographs of frost are not "
    "shipped: accuracy under it is some 5 % off the published files', and is not to be compared "
    "with numbers on them."
)
"""What a reader of results on our own frost must know."""


def shifted_splits(
    test: Split, corruptions: Sequence[str], severities: Sequence[int] = ()
) -> dict[str, Callable[[], Split]]:
    """Offer a test split under each corruption at severities 1 to 5, or some of these.

    Args:
        test: Images in memory, with targets; for published files the whole published test set in
            its order.
        corruptions: Keys of :data:`CORRUPTIONS`; all or standard for many; or folder:PATH, alone,
            for the published files, of which nothing is executed.
        severities: Of each corruption; all five when empty.

    Returns:
        Callables that make or read ``shift/<corruption>/<severity>``, by that name.

    Raises:
        ValueError: If a corruption is unknown, or a folder does not contain what it should.
    """
    make: Callable[[Split, str, int], Split] = _corrupted
    folders = [folder for name in corruptions if (folder := folder_path(name)) is not None]
    if folders:
        if len(corruptions) > 1:
            raise ValueError("corruptions from a folder must stand alone, or names would meet")
        names = _published(folders[0], test)
        make = functools.partial(_read, folders[0])
    else:
        names = [each for name in corruptions for each in GROUPS.get(name, (name,))]
        for name in names:
            if name not in CORRUPTIONS:
                raise ValueError(
                    f"corruptions must be among {', '.join(sorted(CORRUPTIONS))}, or all, "
                    f"standard, none or folder:PATH, got {name!r}"
                )
    return {
        f"shift/{name}/{severity}": functools.partial(make, test, name, severity)
        for name in dict.fromkeys(names)
        for severity in sorted(severities or SEVERITIES)
    }


def _corrupted(test: Split, corruption: str, severity: int) -> Split:
    return Split(corrupt(test.tensor, corruption, severity=severity, seed=0), test.targets)


def _read(folder: Path, test: Split, corruption: str, severity: int) -> Split:
    """A published split, of whose file only its own rows are mapped into memory."""
    rows = _open(folder / f"{corruption}.npy").reshape(len(SEVERITIES), len(test), *_layout(test))
    values = np.array(rows[severity - 1].transpose(0, 3, 1, 2), order="C")
    return Split(torch.from_numpy(values), test.targets)


def _published(folder: Path, test: Split) -> list[str]:
    """The corruptions in a folder, whose files must be those of the test images."""
    if not folder.is_dir():
        raise ValueError(
            f"corruptions must be in a folder, got {str(folder)!r}, which is not a folder"
        )
    names = sorted(file.stem for file in folder.glob("*.npy") if file.stem != "labels")
    if not names:
        raise ValueError(f"{folder} holds no .npy files of corruptions")
    labels = _open(folder / "labels.npy")
    if not np.array_equal(labels, np.tile(test.labels.numpy(), len(SEVERITIES))):
        raise ValueError(
            f"{folder / 'labels.npy'} must hold the {len(test)} test labels five times over, and "
            "does not; published files go with the whole published test set in its order"
        )
    shape = (len(SEVERITIES) * len(test), *_layout(test))
    for name in names:
        if (found := _open(folder / f"{name}.npy")).shape != shape or found.dtype != np.uint8:
            raise ValueError(
                f"{folder / name}.npy must hold uint8 images of shape {list(shape)}, got "
                f"{found.dtype} of {list(found.shape)}"
            )
    return names


def _layout(test: Split) -> tuple[int, int, int]:
    channels, height, width = test.tensor.shape[1:]
    return height, width, channels


def _open(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist") from None
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise ValueError(f"{file} is not an array of numbers, or is damaged: {error}") from None
