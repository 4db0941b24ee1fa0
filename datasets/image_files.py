"""Images as files: finding them, and a tensor's stand-in that reads them when asked."""

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from .image_reading import SUFFIXES, read_image

_PICTURES = frozenset(
    {
        *(".ai", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dds", ".dng", ".eps", ".exr", ".fits"),
        *(".hdr", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jp2", ".jxl", ".nef", ".nii", ".npy"),
        *(".npz", ".orf", ".pcx", ".pdf", ".psd", ".raf", ".raw", ".rw2", ".svg", ".tga"),
    }
)
"""Suffixes of pictures, some of which are not read."""
NAMES_AT_ONCE = 2**15


def list_images(path: Path | str, *, passed: Counter[str] | None = None) -> list[Path]:
    """List what :func:`iterate_images` yields."""
    return list(iterate_images(path, passed=passed))


def count_images(path: Path | str, *, passed: Counter[str] | None = None) -> int:
    """Count what :func:`iterate_images` yields, without keeping the names."""
    return sum(1 for _ in iterate_images(path, passed=passed))


def passed_over(passed: Counter[str]) -> tuple[str, bool] | None:
    """Say which other files :func:`iterate_images` counted, and whether some look like pictures.

    Example:
        >>> from collections import Counter
        >>> from deepens.datasets.image_files import passed_over
        >>> passed_over(Counter({".heic": 2, "": 1}))
        ('3 files that are not read as images are passed over: 2 .heic, 1 without suffix', True)
    """
    if not passed:
        return None
    kinds = [f"{n:,} {suffix or 'without suffix'}" for suffix, n in passed.most_common(10)]
    kinds += [f"{len(passed) - 10} other suffixes"] if len(passed) > 10 else []
    what = (
        "1 file that is not read as an image is"
        if passed.total() == 1
        else (f"{passed.total():,} files that are not read as images are")
    )
    return f"{what} passed over: {', '.join(kinds)}", not _PICTURES.isdisjoint(passed)


def iterate_images(path: Path | str, *, passed: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the images in a folder and the folders in it, in bounded memory.

    Paths begin with ``path`` and are sorted by their parts, the same on every system. Files count
    by their suffix, in either case: apng, bmp, dib, gif, jfif, jpe, jpeg, jpg, pbm, pgm, png, pnm,
    ppm, tif, tiff, webp, and avif, j2k and jp2 where Pillow reads them; other files are counted in
    ``passed``, by suffix. Hidden files and folders are left out. Every linked folder is entered
    once, under the first of its names, unless the walk reaches it without a link. A link to a file
    that does not exist counts, so that reading it says what is wrong. A folder of more than some
    ten thousand names is scanned several times.

    Raises:
        ValueError: If ``path`` is missing, is not a folder, or contains no image.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deepens.datasets import iterate_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (Path(folder) / "a").mkdir()
        ...     for name in ("a.png", "a/z.PNG", ".hidden.png", "notes.txt"):
        ...         (Path(folder) / name).touch()
        ...     [image.relative_to(folder).as_posix() for image in iterate_images(folder)]
        ['a/z.PNG', 'a.png']
    """
    folder = Path(path)
    if not folder.is_dir():
        reason = "not a folder" if folder.exists() else "not found"
        raise ValueError(f"path must be a folder of images, got {str(folder)!r}: {reason}")
    image = None
    passed = Counter() if passed is None else passed
    for image in _walk(folder, passed):
        yield Path(image)
    if image is None:
        suffixes = " ".join(sorted(SUFFIXES))
        found = passed_over(passed)
        other = f"; {found[0]}" if found else ""
        raise ValueError(f"path must hold >= 1 image ({suffixes}), got 0 in {str(folder)!r}{other}")


def _walk(top: Path, passed: Counter[str]) -> Iterator[str]:
    """Images below a folder, in the order of the parts of their paths."""
    root = os.path.realpath(top)
    linked: set[str] = set()
    # For each folder on the way down: its name, its real name if only links lead to it, and the
    # entries to come.
    stack: list[tuple[str, str | None, Iterator[tuple[str, bool]]]]
    stack = [(str(top), None, _entries(str(top), passed))]
    while stack:
        folder, real, entries = stack[-1]
        name, is_folder = next(entries, ("", False))
        entry = os.path.join(folder, name)
        if not name:
            stack.pop()
        elif not is_folder:
            yield entry
        elif real is None and not os.path.islink(entry):
            stack.append((entry, None, _entries(entry, passed)))
        elif (found := os.path.realpath(entry)) not in linked and not _reached(found, root):
            linked.add(found)
            stack.append((entry, found, _entries(entry, passed)))


def _reached(real: str, root: str) -> bool:
    """Whether a real folder is above the root, or reached from it without a link."""
    below = Path(real)
    if not below.is_relative_to(root):
        return Path(root).is_relative_to(real)
    return not any(part.startswith(".") for part in below.relative_to(root).parts)


def _entries(folder: str, passed: Counter[str]) -> Iterator[tuple[str, bool]]:
    """Names of a folder's images and folders, and whether each is a folder, sorted by name."""
    last, counted = "", passed
    while True:
        with os.scandir(folder) as scan:
            later = ((entry.name, _kind(entry, counted)) for entry in scan if entry.name > last)
            some = heapq.nsmallest(NAMES_AT_ONCE, ((n, k) for n, k in later if k is not None))
        yield from some
        if len(some) < NAMES_AT_ONCE:
            return
        last, counted = some[-1][0], Counter()  # all were counted by the first scan


def _kind(entry: os.DirEntry[str], passed: Counter[str]) -> bool | None:
    """True of a folder, False of an image, None of what does not count."""
    if entry.name.startswith("."):
        return None
    suffix = os.path.splitext(entry.name)[1].lower()
    # os.path answers False where a link leads nowhere or to itself.
    if entry.is_dir() if not entry.is_symlink() else os.path.isdir(entry):
        return True
    if suffix not in SUFFIXES:
        passed[suffix] += 1
        return None
    if entry.is_symlink():
        return False if os.path.isfile(entry) or not os.path.exists(entry) else None
    return False if entry.is_file() else None


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, decoded each time they are asked for: a stand-in for a uint8 tensor.

    Args:
        paths: The files.
        channels: 1 for grey, 3 for RGB.
        size: Height and width to which each image is brought, as :func:`read_image` does.
        hashes: SHA-256 of each file, in hexadecimal, where they are known already.

    Raises:
        ValueError: If there is no file, or not one hash per file.

    Example:
        >>> from pathlib import Path
        >>> from deepens.datasets import ImageFiles
        >>> images = ImageFiles((Path("a.png"), Path("b.png")), channels=3, size=(32, 32))
        >>> images.shape, [path.name for path in images[1:].paths]
        (torch.Size([2, 3, 32, 32]), ['b.png'])
    """

    paths: tuple[Path, ...]
    channels: int
    size: tuple[int, int]
    hashes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths must hold >= 1 file, got 0")
        if self.hashes is not None and len(self.hashes) != len(self.paths):
            raise ValueError(f"hashes must be {len(self)}, one per file, got {len(self.hashes)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, chosen: slice | Int64[Tensor, " _"]) -> "ImageFiles":
        """Some of the images, still on disk."""
        positions = range(len(self))[chosen] if isinstance(chosen, slice) else chosen.tolist()
        paths = tuple(self.paths[index] for index in positions)
        hashes = self.hashes and tuple(self.hashes[index] for index in positions)
        return replace(self, paths=paths, hashes=hashes)

    def contents(self) -> tuple[str, ...]:
        """SHA-256 of each file in hexadecimal, read from disk where it is not known."""
        read = (hashlib.sha256(path.read_bytes()).hexdigest() for path in self.paths)
        return self.hashes or tuple(read)

    @property
    def shape(self) -> torch.Size:
        """Of the tensor that :meth:`load` would return."""
        return torch.Size((len(self), self.channels, *self.size))

    def read(self, index: int) -> UInt8[Tensor, "channels height width"]:
        """Decode one image; a ``ValueError`` names the path of one that cannot be read."""
        return read_image(self.paths[index], channels=self.channels, size=self.size)

    def load(self) -> UInt8[Tensor, "samples channels height width"]:
        """Decode all images into memory; a ``ValueError`` names one that cannot be read."""
        return torch.stack([self.read(index) for index in range(len(self))])
