"""What data a run uses: plain data, whose fields are the command line's options."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .plain_data import LARGEST, shown

GIB = 2**30
LARGEST_SIDE = 8192
NONE = ("none",)
SEVERITIES = (1, 2, 3, 4, 5)
FIVE_CORRUPTIONS = ("gaussian_noise", "impulse_noise", "gaussian_blur", "brightness", "contrast")


@dataclass(frozen=True)
class DataOptions:
    """An image set, its out-of-distribution (OOD) sets, and how images are brought to its format.

    A set is a registered name, such as ``cifar10``, or ``folder:PATH``: a folder with ``train/``,
    ``test/`` and optionally ``val/``, each with one folder per class; or a folder with one folder
    per class, from which a test part is cut.

    Args:
        data: The image set: a name, or folder:PATH.
        near_ood: Near OOD sets, names or folder:PATH, instead of the set's own; none for no set.
        far_ood: Far OOD sets, likewise.
        ood_exclude: A file that lists class folders to leave out of OOD sets, one per line, # for
            comments.
        encode_ood: Also make a copy of each OOD set with the lossy encoder of the training images,
            so that no detector can react to the file format instead of the content.
        ood_limit: Images of each OOD set that are used at most, drawn by their content; auto for
            10,000 or four times the test images, whichever is less; 0 or none for all.
        holdout_classes: Classes of the set itself to leave out and use as near OOD.
        train_size: Train on a stratified subset of this many images; on all when absent.
        validation_size: Images in each of the three validation parts; depends on the size of the
            training set when absent.
        group_by: What says which images belong together, such as those of one patient or camera, so
            that no group is on both sides of a cut: a regular expression, found in the path of an
            image below the set's folder, whose groups in parentheses name the group; or a .csv
            file with the columns file and group. Copies of one image always stay together.
        image_size: Height and width of all images in pixels; those of the training images when
            absent.
        corruptions: Corruptions of the test images, by name; gaussian_noise, impulse_noise,
            gaussian_blur, brightness and contrast when absent; all for the 19, standard for 15 of
            them, none for none; or folder:PATH for the published files of CIFAR-C.
        severities: Severities of each corruption, from 1 to 5; all five when absent.
        memory_limit: GiB that all decoded images together may take, inf for any; a set for which
            too little is left is read from disk again in every epoch, with the same results.
        skip_bad_images: Leave out images that cannot be read, and list them.
        download: Fetch missing files of named sets, where torchvision can.
        data_root: Folder of the named sets' files; in the user's cache when absent.
        cache: Folder of decoded images; in the user's cache when absent.

    Raises:
        ValueError: If a number is below its bound.

    Example:
        >>> from deepens.datasets import DataOptions
        >>> DataOptions("cifar10", far_ood=("svhn", "folder:photos")).train_size is None
        True
    """

    data: str = "digits"
    near_ood: tuple[str, ...] = ()
    far_ood: tuple[str, ...] = ()
    ood_exclude: str | None = None
    encode_ood: bool = False
    ood_limit: int | Literal["auto", "none"] = "auto"
    holdout_classes: tuple[str, ...] = ()
    train_size: int | None = None
    validation_size: int | None = None
    group_by: str | None = None
    image_size: int | None = None
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = ()
    memory_limit: float = 4.0
    skip_bad_images: bool = False
    download: bool = False
    data_root: str | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        for name in ("train_size", "validation_size", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.ood_limit == "none":
            object.__setattr__(self, "ood_limit", 0)
        if isinstance(self.ood_limit, int) and not 0 <= self.ood_limit <= LARGEST:
            raise ValueError(f"ood_limit must be >= 0, got {shown(self.ood_limit)}")
        if self.image_size is not None and self.image_size > LARGEST_SIDE:
            raise ValueError(f"image_size must be <= {LARGEST_SIDE}, got {shown(self.image_size)}")
        asked = set(self.severities)
        if not asked <= set(SEVERITIES) or len(asked) < len(self.severities):
            given = ", ".join(map(str, self.severities))
            raise ValueError(f"severities must be different numbers from 1 to 5, got {given}")
        if not self.memory_limit >= 0:
            raise ValueError(f"memory_limit must be >= 0 GiB, got {self.memory_limit}")
        if self.group_by is not None and not self.group_by.strip():
            raise ValueError("group_by must be a regular expression or a .csv file, got ''")
        if self.ood_exclude is not None and not self.ood_exclude.strip():
            raise ValueError("ood_exclude must name a file, got ''")

    @property
    def corrupted_by(self) -> tuple[str, ...]:
        """The corruptions, those that are taken by default if none are named."""
        return self.corruptions or FIVE_CORRUPTIONS

    @property
    def memory_bytes(self) -> int:
        """The memory limit in bytes."""
        return round(min(self.memory_limit * GIB, LARGEST))

    @property
    def data_folder(self) -> Path:
        """Where the files of named sets are."""
        return at_home(self.data_root) if self.data_root else _user_cache() / "data"

    @property
    def cache_folder(self) -> Path:
        """Where decoded images are kept."""
        return at_home(self.cache) if self.cache else _user_cache() / "decoded"


def data_name(data: str) -> str:
    """Name an image set in files and tables: a folder by its last part, a part by its last two.

    Other characters than letters, digits, dots and dashes are replaced.

    Example:
        >>> from deepens.datasets.options import data_name
        >>> data_name("cifar10"), data_name("folder:/data/tiny imagenet/val")
        ('cifar10', 'tiny-imagenet-val')
    """
    kind, _, path = data.partition(":")
    if kind != "folder" or not path:
        return re.sub(r"[^\w.-]+", "-", data)
    parts = Path(os.path.abspath(path)).parts
    last = parts[-2:] if parts[-1] in ("train", "val", "test") else parts[-1:]
    return re.sub(r"[^\w.-]+", "-", "-".join(last)).strip("-") or "folder"


def folder_path(data: str) -> Path | None:
    """The path of ``folder:PATH``, with ``~`` and environment variables filled in; None for a name.

    Raises:
        ValueError: If the path is empty, or an environment variable in it is not set.

    Example:
        >>> from deepens.datasets.options import folder_path
        >>> folder_path("folder:images").name, folder_path("cifar10")
        ('images', None)
    """
    kind, colon, path = data.partition(":")
    if kind != "folder" or not colon:
        return None
    if not path:
        raise ValueError("a folder must be given as folder:PATH, got no path")
    expanded = os.path.expandvars(path)
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise ValueError(f"{data!r} needs the environment variable {unset[1]}, which is not set")
    return at_home(expanded)


def at_home(path: str) -> Path:
    """A path with ``~`` filled in; a ``ValueError`` where there is no home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        remedy = "set HOME, or give --data-root and --cache and paths without ~"
        raise ValueError(f"{path} is below a home directory, and there is none; {remedy}") from None


def _user_cache() -> Path:
    return at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deepens"
