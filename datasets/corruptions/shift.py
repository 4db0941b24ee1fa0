"""Shifted copies of a test split, made or read when they are asked for."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from ..options import folder_path
from ..splits import Split
from .cifar_c import published_shifts
from .corruption import CORRUPTIONS, corrupt

STANDARD = 15
"""The first corruptions are the standard ones, the others extra."""

GROUPS = {"all": tuple(CORRUPTIONS), "standard": tuple(CORRUPTIONS)[:STANDARD]}
"""What stands for several corruptions."""


def shifted_splits(test: Split, corruptions: Sequence[str]) -> dict[str, Callable[[], Split]]:
    """Offer a test split under each corruption at severities 1 to 5.

    Args:
        test: Images in memory, with targets.
        corruptions: Keys of :data:`CORRUPTIONS`; all or standard for many; or folder:PATH, alone,
            for the published files of CIFAR-10-C or CIFAR-100-C.

    Returns:
        Callables that make ``shift/<corruption>/<severity>``, by that name.

    Raises:
        ValueError: If a corruption is unknown, or a folder does not contain what it should.
    """
    folders = [folder for name in corruptions if (folder := folder_path(name)) is not None]
    if folders:
        if len(corruptions) > 1:
            raise ValueError("corruptions from a folder must stand alone, or names would meet")
        return published_shifts(Path(folders[0]), test)
    names = [each for name in corruptions for each in GROUPS.get(name, (name,))]
    for name in names:
        if name not in CORRUPTIONS:
            raise ValueError(
                f"corruptions must be among {', '.join(sorted(CORRUPTIONS))}, or all, standard, "
                f"none or folder:PATH, got {name!r}"
            )
    return {
        f"shift/{name}/{severity}": functools.partial(_shift, test, name, severity)
        for name in dict.fromkeys(names)
        for severity in range(1, 6)
    }


def _shift(test: Split, corruption: str, severity: int) -> Split:
    return Split(corrupt(test.tensor, corruption, severity=severity, seed=0), test.targets)
