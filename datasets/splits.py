"""Splits by name: what an image set offers to training and evaluation."""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from .image_files import ImageFiles
from .split_names import SplitKind, SplitName


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one named part of an image set.

    ========  ================================  ==========================================
    field     shape                             unit
    ========  ================================  ==========================================
    images    [samples channels height width]   uint8, 0 (black) to 255 (white)
    targets   [samples], or None                class index; None is out of distribution
    ========  ================================  ==========================================

    Args:
        images: The images, decoded in one tensor; or their files, where memory is too small.
        targets: Their class indices, or None where no class of the task applies.

    Raises:
        ValueError: If there is no image, or the two lengths differ.

    Example:
        >>> import torch
        >>> from deepens.datasets import Split
        >>> split = Split(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
        >>> len(split), split.fingerprint()[:8]
        (5, '4feba646')
    """

    images: UInt8[Tensor, "samples channels height width"] | ImageFiles
    targets: Int64[Tensor, " samples"] | None

    def __post_init__(self) -> None:
        if isinstance(self.images, Tensor) and (
            self.images.dtype != torch.uint8 or self.images.ndim != 4
        ):
            raise ValueError(
                "images must be uint8 [samples, channels, height, width], "
                f"got {self.images.dtype} {list(self.images.shape)}"
            )
        if min(self.images.shape) < 1:
            raise ValueError(f"images must hold >= 1 sample, got {list(self.images.shape)}")
        if self.targets is not None and self.targets.shape != self.images.shape[:1]:
            raise ValueError(
                f"targets must have shape [{len(self.images)}], got {list(self.targets.shape)}"
            )

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
        targets = None if self.targets is None else self.targets[chosen]
        if isinstance(self.images, ImageFiles):
            return Split(self.images[chosen], targets)
        # As blocks of memory: an image's pixels lie together in either order.
        channels_last = self.images.movedim(1, -1)
        if channels_last.is_contiguous():
            return Split(channels_last[chosen].movedim(-1, 1), targets)
        return Split(self.images[chosen], targets)

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
        if not hasattr(self, "_fingerprint"):
            object.__setattr__(self, "_fingerprint", self._digest())
        found: str = self._fingerprint  # type: ignore[attr-defined]
        return found

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
    """All splits of one image set, addressed by name.

    Names are ``train``, ``val/select``, ``val/calibrate``, ``val/conform``, ``test``,
    ``shift/<corruption>/<severity 1 to 5>``, ``near_ood/<name>`` and ``far_ood/<name>``. A split
    given as a callable is made each time it is asked for and never kept: 95 shifted copies of a
    test set do not fit in memory together.

    Args:
        name: Name of the image set.
        classes: Names of the classes, in the order of the targets.
        splits: Splits, or callables that make one, by name. At least one is given outright.
        mean: Mean of each channel of the training images, scaled to 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        caveat: What a reader of results on this data must know; empty if nothing.
        notes: How the data came about: what was left out, cut or made.
        cautions: What puts results on the data in doubt, such as test images that were trained on.
        conclusive: Whether the data can separate strong methods; False for toy data, on which a
            comparison draws no conclusion.

    Raises:
        ValueError: If a name is outside the scheme above, in-distribution splits lack targets or
            others have them, targets lie outside [0, C), shapes differ between splits, or mean or
            std do not have one value per channel.

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
                raise ValueError(
                    f"{argument} must have one value per channel ({self.channels}), "
                    f"got {len(values)}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be > 0, got {self.std}")
        for name in self.splits:
            if SplitName.parse(name).is_mean:
                raise ValueError(
                    f"a shifted split must be shift/<corruption>/<1 to 5>, got {name!r}"
                )
        for name, split in self._eager().items():
            self._check(name, split)
        # A copy, so that the caller's mapping can change without changing this one.
        object.__setattr__(self, "splits", dict(self.splits))

    def __getitem__(self, name: str) -> Split:
        if name not in self.splits:
            nearest = difflib.get_close_matches(name, self.splits, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"split must be one of the {len(self.splits)} splits of {self.name!r}, "
                f"got {name!r}; the nearest is {nearest!r}"
            )
        split = self.splits[name]
        if isinstance(split, Split):
            return split
        made = split()
        self._check(name, made)
        return made

    def __contains__(self, name: object) -> bool:
        return name in self.splits

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __len__(self) -> int:
        return len(self.splits)

    def names(self, *kinds: SplitKind) -> tuple[str, ...]:
        """The names of all splits, or of those of some kinds, as they were given."""
        return tuple(
            name for name in self.splits if not kinds or SplitName.parse(name).kind in kinds
        )

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """Number of channels K of every image."""
        return self._first().images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of every image, in pixels."""
        _, _, height, width = self._first().images.shape
        return height, width

    def fingerprint(self) -> str:
        """SHA-256 of everything that defines the data.

        It covers classes, mean, std and the splits given outright; those that are made when they
        are needed follow from the others, and count by name only.
        """
        made = [name for name in self.splits if name not in self._eager()]
        return self._sum_up(tuple(self._eager()), {"made": made})

    def training_fingerprint(self) -> str:
        """SHA-256 of what networks are trained on: no test images.

        It covers classes, mean, std, ``train`` and ``val/select``.
        """
        return self._sum_up(("train", "val/select"), {})

    def _sum_up(self, names: Sequence[str], more: Mapping[str, object]) -> str:
        content: dict[str, object] = {
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
            "splits": {name: self[name].fingerprint() for name in names if name in self},
        }
        return hashlib.sha256(json.dumps({**content, **more}, sort_keys=True).encode()).hexdigest()

    def _eager(self) -> dict[str, Split]:
        return {name: split for name, split in self.splits.items() if isinstance(split, Split)}

    def _first(self) -> Split:
        return next(split for split in self.splits.values() if isinstance(split, Split))

    def _check(self, name: str, split: Split) -> None:
        shape, expected = list(split.images.shape[1:]), [self.channels, *self.image_size]
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
