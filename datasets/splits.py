"""Splits by name: what an image set offers to training and evaluation."""

import difflib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from .image_files import ImageFiles
from .image_reading import image_hashes
from .lookalikes import Outlines
from .split_names import SplitKind, SplitName


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one named part of an image set.

    ========  ================================  ==========================================
    field     shape                             unit
    ========  ================================  ==========================================
    images    [samples channels height width]   uint8, 0 (black) to 255 (white); or files
    targets   [samples], or None                class index; None is out of distribution
    files     one path per image, or None       where images in memory came from
    groups    [samples], or None                number of its patient, camera, and the like
    hashes    [samples], or None                ``image_hash``, where it is known already
    ========  ================================  ==========================================

    An empty split, or lengths that differ, are a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.datasets import Split
        >>> split = Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> len(split), split.fingerprint()[:8]
        (5, '4feba646')
    """

    images: UInt8[Tensor, "samples channels height width"] | ImageFiles
    targets: Int64[Tensor, " samples"] | None
    files: tuple[Path, ...] | None = None
    groups: Int64[Tensor, " samples"] | None = None
    hashes: Int64[Tensor, " samples"] | None = None

    def __post_init__(self) -> None:
        images, shape = self.images, list(self.images.shape)
        if isinstance(images, Tensor) and (images.dtype != torch.uint8 or images.ndim != 4):
            raise ValueError(
                f"images must be uint8 [samples, channels, height, width], got {images.dtype} "
                f"{shape}"
            )
        if min(shape) < 1:
            raise ValueError(f"images must hold >= 1 sample, got {shape}")
        if self.targets is not None and list(self.targets.shape) != shape[:1]:
            found = list(self.targets.shape)
            raise ValueError(f"targets must have shape [{shape[0]}], got {found}")
        for name in ("files", "groups", "hashes"):
            values = getattr(self, name)
            if values is not None and len(values) != shape[0]:
                raise ValueError(f"{name} must be {shape[0]}, one per image, got {len(values)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resident(self) -> bool:
        """Whether the images are in memory."""
        return isinstance(self.images, Tensor)

    @property
    def tensor(self) -> UInt8[Tensor, "samples channels height width"]:
        """The images in memory; a ``ValueError`` if they are read from disk."""
        if isinstance(self.images, ImageFiles):
            raise ValueError(
                f"images must be in memory, got {len(self)} files: raise the memory limit"
            )
        return self.images

    @property
    def labels(self) -> Int64[Tensor, " samples"]:
        """The class indices; a ``ValueError`` if there are none."""
        if self.targets is None:
            raise ValueError("split must have targets, got targets=None")
        return self.targets

    def select(self, chosen: Int64[Tensor, " _"]) -> "Split":
        """The samples at some positions, in that order; a tensor keeps its memory order."""
        images: Tensor | ImageFiles
        channels_last = self.images.movedim(1, -1) if isinstance(self.images, Tensor) else None
        if channels_last is not None and channels_last.is_contiguous():
            # As blocks of memory: an image's pixels lie together in either order.
            images = channels_last[chosen].movedim(-1, 1)
        else:
            images = self.images[chosen]
        targets, groups, hashes = (
            None if values is None else values[chosen]
            for values in (self.targets, self.groups, self.hashes)
        )
        files = None if self.files is None else tuple(self.files[i] for i in chosen.tolist())
        return Split(images, targets, files, groups, hashes)

    @property
    def paths(self) -> tuple[Path, ...] | None:
        """The file of each image; None where images came from elsewhere."""
        return self.images.paths if isinstance(self.images, ImageFiles) else self.files

    def contents(self) -> Int64[Tensor, " samples"]:
        """``image_hash`` of each image, by which copies are known; computed once."""
        return self._contents

    @functools.cached_property
    def _contents(self) -> Int64[Tensor, " samples"]:
        if self.hashes is not None:
            return self.hashes
        return torch.cat([image_hashes(part) for part in self.image_batches()])

    @functools.cached_property
    def _outlines(self) -> Outlines:
        return Outlines.of(self.tensor)

    def copied_from(self, other: "Split") -> Bool[Tensor, " samples"]:
        """Which images are copies of another split's, by their pixels."""
        return torch.isin(self.contents(), other.contents())

    def repeated(self) -> Bool[Tensor, " samples"]:
        """Which images look the same as another of them, as `alike`, and are no copies."""
        if not self.resident:
            return torch.zeros(len(self), dtype=torch.bool)
        return self._outlines.repeated(self.contents())

    def alike(self, other: "Split") -> Bool[Tensor, " samples"]:
        """Which images look the same as another split's and are no copies; none without memory.

        They are known where both splits are in memory, in images of one number of channels.
        """
        if not (self.resident and other.resident) or self.images.shape[1] != other.images.shape[1]:
            return torch.zeros(len(self), dtype=torch.bool)
        return self._outlines.found_in(other._outlines) & ~self.copied_from(other)

    def image_batches(
        self, batch_size: int = 1024
    ) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
        """Yield all images in order and in memory, a batch at a time, wherever they are."""
        for start in range(0, len(self), batch_size):
            part = self.images[start : start + batch_size]
            yield part.load() if isinstance(part, ImageFiles) else part

    def fingerprint(self) -> str:
        """SHA-256 of the content, by which two runs can tell whether they saw the same data.

        It covers the shapes and the values of images and targets; of files that do not fit in
        memory, their bytes. It is computed once: images must not be changed in place.
        """
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for values in (self.images, self.targets):
            shape = None if values is None else list(values.shape)
            digest.update(json.dumps(shape).encode())
            if isinstance(values, ImageFiles):
                digest.update(json.dumps(values.contents()).encode())
            elif values is not None:
                for part in values.detach().cpu().split(4096):  # no second copy of them all
                    array = part.contiguous().numpy()
                    # The same bytes on machines of either byte order.
                    digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """All splits of one image set, addressed by name (see :class:`SplitName`).

    A split given as a callable is made each time it is asked for and never kept: 95 shifted copies
    of a test set do not fit in memory together.

    Args:
        name: Name of the image set.
        classes: Names of the classes, in the order of the targets.
        splits: Splits, or callables that make one, by name. At least one is given outright.
        mean: Mean of each channel of the training images, scaled to 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        caveat: What a reader of results on this data must know; empty if nothing.
        notes: How the data came about: what was left out, cut or made.
        cautions: What puts results on the data in doubt, such as test images that were trained on.
        conclusive: Whether the data can separate strong methods, unlike toy data.

    Raises:
        ValueError: If a name is no split's, in-distribution splits lack targets or others have
            them, targets lie outside [0, C), shapes differ between splits, or mean or std do not
            have one value per channel.

    Example:
        >>> import torch
        >>> from deepens.datasets import Split, Splits
        >>> test = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]))
        >>> noise = lambda: Split(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8), None)
        >>> made = {"test": test, "far_ood/noise": noise}
        >>> splits = Splits("toy", ("no", "yes"), made, (0.5,), (0.25,))
        >>> splits.names("far_ood"), len(splits["far_ood/noise"]), splits.image_size
        (('far_ood/noise',), 2, (8, 8))
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split | Callable[[], Split]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    caveat: str = ""
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    conclusive: bool = True

    def __post_init__(self) -> None:
        if not self._eager():
            raise ValueError("splits must hold >= 1 Split that is not a callable, got 0")
        if len(self.classes) < 2:
            raise ValueError(f"classes must name >= 2 classes, got {len(self.classes)}")
        for argument, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                bound = f"one value per channel ({self.channels})"
                raise ValueError(f"{argument} must have {bound}, got {len(values)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be > 0, got {self.std}")
        for name in self.splits:
            if SplitName.parse(name).is_mean:
                raise ValueError(
                    f"a shifted split must be shift/<corruption>/<1 to 5>, got {name!r}"
                )
        for name, split in self._eager().items():
            self._check(name, split)
        object.__setattr__(self, "splits", dict(self.splits))  # the caller may change the original

    def __getitem__(self, name: str) -> Split:
        if name not in self.splits:
            nearest = difflib.get_close_matches(name, self.splits, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"split must be one of the {len(self.splits)} splits of {self.name!r}, "
                f"got {name!r}; the nearest is {nearest!r}"
            )
        split = self.splits[name]
        if not isinstance(split, Split):
            split = split()
            self._check(name, split)
        return split

    def __contains__(self, name: object) -> bool:
        return name in self.splits

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)

    def names(self, *kinds: SplitKind) -> tuple[str, ...]:
        """The names of all splits, or of those of some kinds, as they were given."""
        return tuple(n for n in self.splits if not kinds or SplitName.parse(n).kind in kinds)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """Number of channels K of every image."""
        return self._shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        return self._shape[1:]

    def copies(self, name: str, *, of: str = "train") -> int:
        """How many images of a split are copies of another's, by their pixels or by their looks.

        What is fitted on validation images that are copies of training images, such as a
        temperature or a conformal set, holds for training images only.
        """
        ours, theirs = self[name], self[of]
        return int((ours.copied_from(theirs) | ours.alike(theirs)).sum())

    def fingerprint(self) -> str:
        """SHA-256 of classes, mean, std and splits; those made on demand count by name only."""
        made = [name for name in self.splits if name not in self._eager()]
        return self._sum_up(self._eager(), made=made)

    def training_fingerprint(self) -> str:
        """SHA-256 of what networks are trained on: classes, mean, std, train, val/select."""
        return self._sum_up(("train", "val/select"))

    def _sum_up(self, names: Iterable[str], **content: object) -> str:
        content |= {"classes": self.classes, "mean": self.mean, "std": self.std}
        content["splits"] = {name: self[name].fingerprint() for name in names if name in self}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _eager(self) -> dict[str, Split]:
        return {name: split for name, split in self.splits.items() if isinstance(split, Split)}

    @property
    def _shape(self) -> tuple[int, int, int]:
        split = next(split for split in self.splits.values() if isinstance(split, Split))
        _, channels, height, width = split.images.shape
        return channels, height, width

    def _check(self, name: str, split: Split) -> None:
        shape, expected = list(split.images.shape[1:]), list(self._shape)
        if shape != expected:
            raise ValueError(f"images of {name!r} must be [K, H, W] = {expected}, got {shape}")
        if SplitName.parse(name).is_ood:
            if split.targets is not None:
                raise ValueError(f"targets of {name!r} must be None, got {len(split)} labels")
            return
        if split.targets is None:
            raise ValueError(f"targets of {name!r} must be class indices, got None")
        low, high = int(split.targets.min()), int(split.targets.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(
                f"targets of {name!r} must be in [0, {self.num_classes}), got {low} to {high}"
            )
