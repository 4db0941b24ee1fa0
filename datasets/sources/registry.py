"""The image sets that are known by name, open to other packages."""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .image_set import ImageSet, LabelledImages, OODDefaults
from .torchvision_sets import OOD_DEFAULTS, OOD_PARTS, load_parts

DIGITS = "digits"
"""The set with a fixed cut of its own, which is not read from files."""


Loader = Callable[..., tuple[tuple[str, ...], Mapping[str, LabelledImages]]]
"""``loader(root=, download=, parts=)``: names of the classes, and the parts that there are."""


@dataclass(frozen=True)
class RegisteredSet:
    """An image set by name; its ``ood_parts`` serve when the set is itself an OOD set."""

    name: str
    loader: Loader
    ood: OODDefaults
    ood_parts: tuple[str, ...] = ("test",)

    def read(self, root: Path, *, download: bool, parts: tuple[str, ...]) -> ImageSet:
        """Read those of the parts that there are; a ``ValueError`` if there is none."""
        classes, loaded = self.loader(root=root, download=download, parts=parts)
        if not loaded:
            raise ValueError(f"{self.name} must have one of the parts {', '.join(parts)}, got none")
        return ImageSet(self.name, classes, loaded)


SETS: dict[str, RegisteredSet] = {
    name: RegisteredSet(name, partial(load_parts, name), ood, OOD_PARTS.get(name, ("test",)))
    for name, ood in OOD_DEFAULTS.items()
}


def register_data_set(name: str, loader: Loader, *, ood: OODDefaults | None = None) -> None:
    """Make an image set available by name, to ``--data``, ``--near-ood`` and ``--far-ood``.

    Call it in a module of your own that is named by ``--plugin`` or by an entry point of the group
    ``deepens.plugins``. Decoding, validation parts and corruptions are made as for other sets.

    Args:
        name: As users write it; letters, digits, dots, dashes and underscores.
        loader: Called with ``root`` (the folder of all sets' files), ``download`` and ``parts``
            (some of train, val and test). It returns the names of the classes and the parts that
            there are, ``train`` and ``test`` at least.
        ood: What is out of distribution to the set when nothing else is asked for.

    Raises:
        ValueError: If the name is taken, or is not one that a split can bear.

    Example:
        >>> import torch
        >>> from deepens.datasets import LabelledImages, known, register_data_set
        >>> def stripes(*, root, download, parts):
        ...     images = torch.zeros(20, 8, 8, 1, dtype=torch.uint8).movedim(-1, 1)
        ...     images[::2, :, ::2] = 255
        ...     part = LabelledImages(images, torch.arange(20) % 2)
        ...     return ("stripes", "black"), {name: part for name in parts if name != "val"}
        >>> register_data_set("stripes-example", stripes)
        >>> "stripes-example" in known()
        True
    """
    if not name or not all(each.isalnum() or each in "._-" for each in name):
        raise ValueError(f"name must be letters, digits, dots, dashes, underscores, got {name!r}")
    if name in known():
        raise ValueError(f"the data set {name!r} is registered already; choose another name")
    SETS[name] = RegisteredSet(name, loader, ood or OODDefaults())


def known() -> tuple[str, ...]:
    """Name the image sets that ``load`` knows, besides any ``folder:PATH``, alphabetically.

    Example:
        >>> from deepens.datasets import known
        >>> "digits" in known()
        True
    """
    return tuple(sorted((DIGITS, *SETS)))


def check_known(option: str, name: str) -> None:
    """Refuse a name that is not registered, by a ``ValueError`` with the nearest known one."""
    if name not in known():
        if os.sep in name or os.path.exists(name):
            raise ValueError(f"{option} must be folder:PATH for a folder: folder:{name}")
        nearest = difflib.get_close_matches(name, known(), n=1, cutoff=0.0)[0]
        what = f"folder:PATH or one of {', '.join(known())}"
        raise ValueError(f"{option} must be {what}, got {name!r}; the nearest is {nearest!r}")


def registered(name: str) -> RegisteredSet:
    """An image set that is registered, and not the digits."""
    return SETS[name]
