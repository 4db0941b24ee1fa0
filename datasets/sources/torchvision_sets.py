"""Image sets that torchvision knows: their files, their classes, and what is OOD to them."""

import contextlib
import difflib
import os
import shutil
import socket
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .image_set import LabelledImages, OODDefaults

_PARTS = ("train", "val", "test")
_DIGITS = tuple("0123456789")
SECONDS_OF_SILENCE = 30.0
_V1 = "OpenOOD v1 (Yang et al., 2022, arXiv:2210.07242); v1.5 has no benchmark of this set"
_V1_5 = "OpenOOD v1.5 (Zhang et al., 2023, arXiv:2306.09301)"
_OURS = "our choice: OpenOOD has no benchmark of this set"

_Classes = tuple[str, ...]
_Files = Mapping[str, str | None]
_Archives = Mapping[str, tuple[str, str]]


class _Set(ABC):
    """How a set of torchvision's class ``kind`` lies in ``home``; paths are relative to a root."""

    parts: tuple[str, ...] = ("train", "test")
    downloads = True

    def __init__(self, kind: str, home: str, classes: _Classes = ()) -> None:
        self.kind, self.home, self.classes = kind, home, classes

    @property
    def source(self) -> Any:
        """The class of torchvision."""
        from torchvision import datasets  # takes seconds that other image sets need not spend

        return getattr(datasets, self.kind)

    @abstractmethod
    def files(self, root: Path, parts: Sequence[str]) -> _Files:
        """What must be there to read the parts, and its MD5 where one is known."""

    @abstractmethod
    def archives(self, root: Path, parts: Sequence[str]) -> _Archives:
        """What the files come from: address and MD5 of each."""

    def fetch(self, root: Path, parts: Sequence[str]) -> None:
        """Unpack the archives in ``root``, after a download of those that are not there."""
        self.source(root, download=True)

    @abstractmethod
    def read(self, root: Path, part: str) -> tuple[_Classes, LabelledImages]:
        """Names of the classes, and one part."""


class _Cifar(_Set):
    def files(self, root: Path, parts: Sequence[str]) -> _Files:
        kind = self.source
        listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        return {f"{self.home}/{file}": md5 for file, md5 in listed}

    def archives(self, root: Path, parts: Sequence[str]) -> _Archives:
        return {self.source.filename: (self.source.url, self.source.tgz_md5)}

    def read(self, root: Path, part: str) -> tuple[_Classes, LabelledImages]:
        # The files are pickles. Both _complete() and torchvision compare their MD5 before.
        read = self.source(root, train=part == "train")
        return tuple(read.classes), _labelled(read.data, read.targets)


class _Svhn(_Set):
    def files(self, root: Path, parts: Sequence[str]) -> _Files:
        return {file: md5 for file, (_, md5) in self.archives(root, parts).items()}

    def archives(self, root: Path, parts: Sequence[str]) -> _Archives:
        listed = (self.source.split_list[part] for part in parts)
        return {file: (url, md5) for url, file, md5 in listed}

    def fetch(self, root: Path, parts: Sequence[str]) -> None:
        for part in parts:
            self.source(root, split=part, download=True)

    def read(self, root: Path, part: str) -> tuple[_Classes, LabelledImages]:
        read = self.source(root, split=part)
        return self.classes, _labelled(read.data.transpose(0, 2, 3, 1), read.labels.tolist())


class _Mnist(_Set):
    def files(self, root: Path, parts: Sequence[str]) -> _Files:
        # torchvision knows the MD5 of the compressed files only.
        beginnings = [{"train": "train", "test": "t10k"}[part] for part in parts]
        endings = ("images-idx3-ubyte", "labels-idx1-ubyte")
        return {f"{self.home}/{first}-{last}": None for first in beginnings for last in endings}

    def archives(self, root: Path, parts: Sequence[str]) -> _Archives:
        mirror, files = self.source.mirrors[0], self.source.resources
        return {f"{self.home}/{file}": (mirror + file, md5) for file, md5 in files}

    def read(self, root: Path, part: str) -> tuple[_Classes, LabelledImages]:
        from torchvision.datasets.mnist import read_image_file, read_label_file

        images, labels = (str(root / file) for file in self.files(root, [part]))
        classes = self.classes or tuple(self.source.classes)
        values = read_image_file(images).unsqueeze(-1).numpy()
        return classes, _labelled(values, read_label_file(labels).tolist())


class _Dtd(_Set):
    parts = _PARTS

    def files(self, root: Path, parts: Sequence[str]) -> _Files:
        # The first of ten partitions, torchvision's default.
        lists = [f"{self.home}/labels/{part}1.txt" for part in parts]
        there = [root / file for file in lists if (root / file).is_file()]
        lines = [line for file in there for line in file.read_text(errors="replace").split()]
        return dict.fromkeys([*lists, *(f"{self.home}/images/{line}" for line in lines)])

    def archives(self, root: Path, parts: Sequence[str]) -> _Archives:
        url = self.source._URL
        return {f"dtd/{url.rsplit('/', 1)[-1]}": (url, self.source._MD5)}

    def read(self, root: Path, part: str) -> tuple[_Classes, LabelledImages]:
        _, *images = self.files(root, [part])
        named = [Path(file).parent.name for file in images]
        classes = sorted(set(named))
        paths = tuple(root / file for file in images)
        return tuple(classes), LabelledImages(paths, _indices(map(classes.index, named)))


class _ImageNet(_Set):
    downloads = False

    def files(self, root: Path, parts: Sequence[str]) -> _Files:
        return dict.fromkeys(f"{self.home}/{name}" for name in ("meta.bin", *_folders(parts)))

    def archives(self, root: Path, parts: Sequence[str]) -> _Archives:
        from torchvision.datasets.imagenet import ARCHIVE_META

        missing = [name for name in _folders(parts) if not (root / self.home / name).exists()]
        listed = [ARCHIVE_META[name] for name in ("devkit", *missing)]
        return {f"{self.home}/{file}": ("https://image-net.org/", md5) for file, md5 in listed}

    def fetch(self, root: Path, parts: Sequence[str]) -> None:
        from torchvision.datasets import imagenet

        home = root / self.home
        imagenet.parse_devkit_archive(home)
        unpackers = {"train": imagenet.parse_train_archive, "val": imagenet.parse_val_archive}
        for folder in _folders(parts):
            if (home / imagenet.ARCHIVE_META[folder][0]).exists():
                unpackers[folder](home)

    def read(self, root: Path, part: str) -> tuple[_Classes, LabelledImages]:
        read = self.source(root / self.home, split=_folders([part])[0])
        first = [synonyms[0] for synonyms in read.classes]
        times = Counter(first)
        pairs = zip(first, read.wnids, strict=True)
        classes = tuple(f"{name} ({wnid})" if times[name] > 1 else name for name, wnid in pairs)
        paths = tuple(Path(file) for file, _ in read.samples)
        return classes, LabelledImages(paths, _indices(read.targets))


def _folders(parts: Sequence[str]) -> list[str]:
    return ["val" if part == "test" else part for part in parts]


_SETS: dict[str, _Set] = {
    "cifar10": _Cifar("CIFAR10", "cifar-10-batches-py"),
    "cifar100": _Cifar("CIFAR100", "cifar-100-python"),
    "svhn": _Svhn("SVHN", "", _DIGITS),
    "mnist": _Mnist("MNIST", "MNIST/raw", _DIGITS),
    "fashion-mnist": _Mnist("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": _Mnist("KMNIST", "KMNIST/raw"),
    "dtd": _Dtd("DTD", "dtd/dtd"),
    "imagenet": _ImageNet("ImageNet", "imagenet"),
}
NAMES = tuple(_SETS)

_BESIDE_CIFAR = ("Tiny ImageNet (near)", "Places365 (far)")
_BESIDE_IMAGENET = ("SSB-hard (near)", "NINCO (near)", "iNaturalist (far)", "OpenImage-O (far)")
_BESIDE_MNIST = ("notMNIST (near)", "Tiny ImageNet (far)", "Places365 (far)")
# Whole sets, while OpenOOD reserves some images for validation and leaves out others that show a
# class of the set. Digits are no near OOD set to svhn: they are its classes.
OOD_PARTS = {"dtd": _PARTS}
"""The parts that serve as OOD images, where they are not the test images alone."""
OOD_DEFAULTS = {
    "cifar10": OODDefaults(("cifar100",), ("mnist", "svhn", "dtd"), _BESIDE_CIFAR, _V1_5),
    "cifar100": OODDefaults(("cifar10",), ("mnist", "svhn", "dtd"), _BESIDE_CIFAR, _V1_5),
    "svhn": OODDefaults((), ("cifar10", "cifar100", "dtd"), (), _OURS),
    "mnist": OODDefaults(("fashion-mnist",), ("cifar10", "dtd"), _BESIDE_MNIST, _V1),
    "fashion-mnist": OODDefaults(("mnist", "kmnist"), ("cifar10", "dtd"), (), _OURS),
    "kmnist": OODDefaults(("mnist", "fashion-mnist"), ("cifar10", "dtd"), (), _OURS),
    "dtd": OODDefaults((), ("cifar10", "svhn", "mnist"), (), _OURS),
    "imagenet": OODDefaults((), ("dtd",), _BESIDE_IMAGENET, _V1_5),
}


def load_parts(
    name: str, root: Path, *, download: bool, parts: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, LabelledImages]]:
    """Read parts of an image set.

    Files lie below the root as torchvision has them, those of ``imagenet`` in ``imagenet/``, its
    root there. Archives that lie there are unpacked. What is downloaded or unpacked is made aside,
    checked and then moved into place. dtd (the first of its ten partitions, the only set with a val
    part) and imagenet are one path per sample, the other sets are decoded.

    The test part of ``imagenet`` is what torchvision calls val: the labels of its own test images
    were never published. Of a class's synonyms the first is its name; where two classes share it,
    the WordNet id follows. No file can execute code: the pickles of CIFAR and the archives have the
    MD5 that torchvision knows, or are refused unread, and ``meta.bin`` is read as weights only.

    Args:
        name: One of :data:`NAMES`.
        root: Folder of all sets' files.
        download: Fetch what is missing or damaged, where torchvision can.
        parts: Some of train, val and test. One that the set does not have is left out.

    Raises:
        ValueError: If the name or a part is unknown, the set has none of the parts, files are
            missing or damaged, or the download fails. The message says what to do.
    """
    if name not in _SETS:
        nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        known = ", ".join(NAMES)
        raise ValueError(f"name must be one of {known}, got {name!r}; the nearest is {nearest!r}")
    source = _SETS[name]
    if not set(parts) <= set(_PARTS):
        raise ValueError(f"parts must be among {', '.join(_PARTS)}, got {list(parts)}")
    wanted = [part for part in source.parts if part in parts]
    if not wanted:
        raise ValueError(f"{name} has {', '.join(source.parts)}, got parts {list(parts)}")
    root = root.expanduser()
    _complete(name, root, wanted, download=download)
    classes: tuple[str, ...] = ()
    read = {}
    for part in wanted:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy deprecates what is in CIFAR's pickles
                named, read[part] = source.read(root, part)
            classes = classes or named
            _check(read[part], named, classes)
        except MemoryError:
            raise
        except Exception as error:  # a reader of damaged files raises whatever it stumbles over
            again = "add --download" if source.downloads else "unpack it again"
            raise ValueError(
                f"{name} at {str(root / source.home)!r} is damaged: {part} cannot be read "
                f"({_reason(error)}); delete its files and {again}"
            ) from error
    return classes, read


def _complete(name: str, root: Path, parts: Sequence[str], *, download: bool) -> None:
    """See that all files are there and have their MD5, and get them if that may be."""
    source = _SETS[name]
    problem, damaged = _problem(source, root, parts)
    if not problem:
        return
    archives = source.archives(root, parts)
    local = not damaged and all((root / path).is_file() for path in archives)
    addresses = sorted({url.rsplit("/", 1)[0] for url, _ in archives.values()})
    remedy = (
        f"put {', '.join(Path(path).name for path in archives)} from {', '.join(addresses)} "
        f"into {str((root / next(iter(archives))).parent)!r}"
    )
    if not (local or (download and source.downloads)):
        can = "add --download, or " if source.downloads else "torchvision cannot download it; "
        raise ValueError(f"{name} is {problem}: {can}{remedy}")
    try:
        _fetch(source, root, parts, download=download)
        problem, _ = _problem(source, root, parts)
        if problem:
            raise ValueError(f"what was fetched is {problem}")
    except Exception as error:  # networks, archives and file systems fail in a dozen ways
        failed = "unpacked" if local else f"downloaded from {', '.join(addresses)}"
        elsewhere = "" if local else "fetch it elsewhere: "
        reason = _reason(error)
        raise ValueError(f"{name} cannot be {failed} ({reason}); {elsewhere}{remedy}") from error


def _problem(source: _Set, root: Path, parts: Sequence[str]) -> tuple[str, bool]:
    """What is wrong with the files, in words, and whether one is damaged."""
    from torchvision.datasets.utils import check_integrity

    home = str(root / source.home)
    files = source.files(root, parts)
    missing = [file for file in files if not (root / file).exists()]
    for file, md5 in files.items():
        if md5 and file not in missing and not check_integrity(root / file, md5):
            return f"damaged at {str(root / file)!r}, which has another MD5 than published", True
    if len(missing) == len(files):
        return f"not at {home!r}", False
    if missing:
        return f"incomplete at {home!r} ({len(missing)} files lack, first {missing[0]!r})", False
    return "", False


def _fetch(source: _Set, root: Path, parts: Sequence[str], *, download: bool) -> None:
    """Download and unpack aside, then move into place: an interrupted attempt leaves nothing."""
    from torchvision.datasets.utils import check_integrity

    root.mkdir(parents=True, exist_ok=True)
    with _manners(), tempfile.TemporaryDirectory(dir=root, prefix=".part-") as folder:
        aside = Path(folder)
        archives = source.archives(root, parts)
        for path, (_, md5) in archives.items():
            if not (root / path).is_file():
                continue
            # torchvision itself compares ImageNet's, which takes minutes.
            if source.downloads and not check_integrity(root / path, md5):
                if not download:
                    raise ValueError(f"{str(root / path)!r} has another MD5 than published")
                continue
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                (aside / path).symlink_to((root / path).resolve())
            except OSError:
                shutil.copyfile(root / path, aside / path)
        try:
            source.fetch(aside, parts)
        except RuntimeError as error:
            raise ValueError(_reason(error).replace(str(aside), str(root))) from error
        for path in archives.keys() - source.files(root, parts).keys():
            (aside / path).unlink(missing_ok=True)
        _move(aside, root)


def _move(source: Path, target: Path) -> None:
    """Move what is in a folder into another one; a folder that is new there moves at once."""
    for entry in list(source.iterdir()):
        there = target / entry.name
        if entry.is_dir() and there.is_dir():
            _move(entry, there)
        elif not entry.is_symlink():
            os.replace(entry, there)


@contextlib.contextmanager
def _manners() -> Iterator[None]:
    """Progress goes to stderr, and a host that falls silent is given up."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_OF_SILENCE)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text and not isinstance(error, KeyError) else f"{type(error).__name__} {text}"


def _indices(labels: Iterable[int]) -> Int64[Tensor, " _"]:
    return torch.tensor(list(labels), dtype=torch.int64)


def _labelled(values: np.ndarray, labels: Iterable[int]) -> LabelledImages:
    images = torch.from_numpy(np.ascontiguousarray(values)).permute(0, 3, 1, 2)
    return LabelledImages(images, _indices(labels))


def _check(read: LabelledImages, named: tuple[str, ...], classes: tuple[str, ...]) -> None:
    if named != classes:
        raise ValueError(f"its {len(named)} classes are not the {len(classes)} of other parts")
    count = len(read.targets)
    if not count or len(read.images) != count:
        raise ValueError(f"it has {len(read.images)} images and {count} labels")
    if int(read.targets.min()) < 0 or int(read.targets.max()) >= len(named):
        raise ValueError(f"labels must be in [0, {len(named)}), got {int(read.targets.max())}")
