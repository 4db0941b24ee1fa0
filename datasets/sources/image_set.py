"""A labelled image set as its source gives it, before it is decoded and cut into splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """One part of an image set.

    ========  ================================  ==========================================
    field     shape                             unit
    ========  ================================  ==========================================
    images    [samples channels height width]   uint8, channels-last; or a path per sample
    targets   [samples]                         class index
    groups    [samples], or None                number of its patient, camera, and the like
    ========  ================================  ==========================================
    """

    images: UInt8[Tensor, "samples channels height width"] | tuple[Path, ...]
    targets: Int64[Tensor, " samples"]
    groups: Int64[Tensor, " samples"] | None = None

    @classmethod
    def from_files(
        cls, paths: Sequence[Path], labels: Sequence[str], classes: Sequence[str]
    ) -> "LabelledImages":
        """Files with the names of their classes, as indices into ``classes``; -1 for no class."""
        number = {name: index for index, name in enumerate(classes)}
        targets = torch.tensor([number.get(label, -1) for label in labels], dtype=torch.int64)
        return cls(tuple(paths), targets)

    def select(self, chosen: Sequence[int]) -> "LabelledImages":
        """The images at some positions, in that order."""
        index = torch.tensor(chosen, dtype=torch.int64)
        there = self.images
        images = there[index] if isinstance(there, Tensor) else tuple(there[i] for i in chosen)
        groups = None if self.groups is None else self.groups[index]
        return LabelledImages(images, self.targets[index], groups)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """All parts of an image set, ``train``, ``test`` and perhaps ``val``, or ``all``.

    ``classes`` are their names in the order of the targets.
    """

    name: str
    classes: tuple[str, ...]
    parts: Mapping[str, LabelledImages]

    @property
    def training_images(self) -> UInt8[Tensor, "samples channels height width"] | tuple[Path, ...]:
        """The images of ``train``, or of the only part."""
        return self.parts["train" if "train" in self.parts else "all"].images


@dataclass(frozen=True)
class OODDefaults:
    """The registered sets that are near and far OOD to an image set when no others are asked for.

    ``by_folder`` says in words what the benchmark contains besides, ``source`` whose choice it is.
    """

    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    by_folder: tuple[str, ...] = ()
    source: str = ""
