"""The published CIFAR-10-C and CIFAR-100-C files, read where the user has them.

Each corruption is one file ``NAME.npy`` of 50,000 images ``[N, 32, 32, 3]``: the 10,000 test images
at severity 1, then at 2, and so on to 5. ``labels.npy`` contains the labels of all, which
must be those of the test images: the published test set, whole and in its order.

Reference: Hendrycks & Dietterich (2019), arXiv:1903.12261
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..splits import Split

SEVERITIES = 5


def published_shifts(folder: Path, test: Split) -> dict[str, Callable[[], Split]]:
    """Offer the corrupted images of a folder as ``shift/<name>/<severity>``.

    Args:
        folder: Contains ``labels.npy`` and one file per corruption; nothing in them is executed.
        test: The clean test images, whose labels those of the files must be.

    Returns:
        Callables that read a split, by its name; each maps only its own rows into memory.

    Raises:
        ValueError: If there is no such folder or no corruption in it, or the labels are others.
    """
    if not folder.is_dir():
        raise ValueError(
            f"corruptions must be in a folder, got {str(folder)!r}, which is not a folder"
        )
    files = sorted(file for file in folder.glob("*.npy") if file.stem != "labels")
    if not files:
        raise ValueError(f"{folder} holds no .npy files of corruptions")
    number = len(test)
    labels = _open(folder / "labels.npy")
    targets = cast(Tensor, test.targets).numpy()
    if labels.shape != (SEVERITIES * number,) or not (labels.reshape(-1, number) == targets).all():
        raise ValueError(
            f"{folder / 'labels.npy'} must hold the {number} test labels five times over, and "
            "does not; published files go with the whole published test set in its order"
        )
    shape = (SEVERITIES * number, *_layout(test))
    for file in files:
        if (found := _open(file)).shape != shape or found.dtype != np.uint8:
            raise ValueError(
                f"{file} must hold uint8 images of shape {list(shape)}, got {found.dtype} of "
                f"{list(found.shape)}"
            )
    return {
        f"shift/{file.stem}/{severity}": functools.partial(_read, file, test, severity)
        for file in files
        for severity in range(1, SEVERITIES + 1)
    }


def _read(file: Path, test: Split, severity: int) -> Split:
    number = len(test)
    rows = _open(file)[(severity - 1) * number : severity * number]
    return Split(torch.from_numpy(np.array(rows.transpose(0, 3, 1, 2), order="C")), test.targets)


def _layout(test: Split) -> tuple[int, int, int]:
    channels, height, width = test.tensor.shape[1:]
    return height, width, channels


def _open(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist") from None
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is not an array of numbers, or is damaged: {error}") from None
