"""Images as files: finding them, reading one, and a tensor's stand-in that reads when asked."""

import hashlib
import heapq
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)
# A JPEG of several pictures, MPO, is opened as JPEG.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
NAMES_AT_ONCE = 2**15


def list_images(path: Path | str) -> list[Path]:
    """List what :func:`iterate_images` yields."""
    return list(iterate_images(path))


def count_images(path: Path | str) -> int:
    """Count what :func:`iterate_images` yields, without keeping the names."""
    return sum(1 for _ in iterate_images(path))


def iterate_images(path: Path | str) -> Iterator[Path]:
    """Yield the images in a folder and the folders in it, in bounded memory.

    Paths begin with ``path`` and are sorted by their parts, the same on every system. Files count
    by their suffix, in either case: bmp, gif, jfif, jpeg, jpg, pbm, pgm, png, pnm, ppm, tif, tiff,
    webp. Hidden files and folders are left out. Every linked folder is entered once, under the
    first of its names, unless the walk reaches it without a link. A link to a file that does not
    exist counts, so that reading it says what is wrong. A folder of more than some ten thousand
    names is scanned several times.

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
    for image in _walk(folder):
        yield Path(image)
    if image is None:
        suffixes = " ".join(sorted(_SUFFIXES))
        raise ValueError(f"path must hold >= 1 image ({suffixes}), got 0 in {str(folder)!r}")


def _walk(top: Path) -> Iterator[str]:
    """Images below a folder, in the order of the parts of their paths."""
    root = os.path.realpath(top)
    linked: set[str] = set()
    # For each folder on the way down: its name, its real name if only links lead to it, and the
    # entries to come.
    stack: list[tuple[str, str | None, Iterator[tuple[str, bool]]]]
    stack = [(str(top), None, _entries(str(top)))]
    while stack:
        folder, real, entries = stack[-1]
        name, is_folder = next(entries, ("", False))
        entry = os.path.join(folder, name)
        if not name:
            stack.pop()
        elif not is_folder:
            yield entry
        elif real is None and not os.path.islink(entry):
            stack.append((entry, None, _entries(entry)))
        elif (found := os.path.realpath(entry)) not in linked and not _reached(found, root):
            linked.add(found)
            stack.append((entry, found, _entries(entry)))


def _reached(real: str, root: str) -> bool:
    """Whether a real folder is above the root, or reached from it without a link."""
    below = Path(real)
    if not below.is_relative_to(root):
        return Path(root).is_relative_to(real)
    return not any(part.startswith(".") for part in below.relative_to(root).parts)


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Names of a folder's images and folders, and whether each is a folder, sorted by name."""
    last = ""
    while True:
        with os.scandir(folder) as scan:
            later = ((entry.name, _kind(entry)) for entry in scan if entry.name > last)
            some = heapq.nsmallest(NAMES_AT_ONCE, ((n, k) for n, k in later if k is not None))
        yield from some
        if len(some) < NAMES_AT_ONCE:
            return
        last = some[-1][0]


def _kind(entry: os.DirEntry[str]) -> bool | None:
    """True of a folder, False of an image, None of what does not count."""
    if entry.name.startswith("."):
        return None
    image = os.path.splitext(entry.name)[1].lower() in _SUFFIXES
    if not entry.is_symlink():
        return True if entry.is_dir() else False if image and entry.is_file() else None
    # os.path answers False where a link leads nowhere or to itself.
    if os.path.isdir(entry):
        return True
    return False if image and (os.path.isfile(entry) or not os.path.exists(entry)) else None


@contextmanager
def open_image(path: Path | str | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image without decoding it: for its size, its mode or its encoder.

    Only formats that Pillow decodes itself count; it hands others, such as EPS, to programs that it
    finds on the machine. Other files and decompression bombs raise whatever a decoder raises.
    """
    with _BOMBS_REFUSED, Image.open(path, formats=_FORMATS) as opened:
        yield opened


def read_image(
    path: Path | str | io.BytesIO, *, channels: int, size: tuple[int, int]
) -> UInt8[Tensor, "channels height width"]:
    """Read one image as a network expects it.

    Its EXIF orientation is applied; any mode becomes grey or RGB; 16-bit grey values are divided by
    257; transparency is dropped. An image of another size is shrunk or enlarged with antialiasing
    until it covers the size, and its middle is cut out. Of several frames the first counts.

    Args:
        path: The file, or its bytes.
        channels: 1 for grey, 3 for RGB.
        size: Height and width of the result.

    Raises:
        ValueError: If channels or size are out of range, or the file cannot be read, has values
            without a range (floating point), or may be a decompression bomb.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from deepens.datasets import read_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "red.png"
        ...     Image.new("RGB", (20, 10), (255, 0, 0)).save(file)
        ...     image = read_image(file, channels=3, size=(8, 8))
        >>> list(image.shape), image[:, 4, 4].tolist()
        ([3, 8, 8], [255, 0, 0])
    """
    return read_with_hash(path, channels=channels, size=size)[0]


def read_with_hash(
    path: Path | str | io.BytesIO, *, channels: int, size: tuple[int, int]
) -> tuple[UInt8[Tensor, "channels height width"], int]:
    """:func:`read_image`, and the :func:`image_hash` of the image before it is resized."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    height, width = size
    if min(size) < 1:
        raise ValueError(f"size must be >= 1 pixel a side, got {size}")
    try:
        with open_image(path) as opened:
            image = _to_mode(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
    except Exception as error:  # a decoder given hostile bytes raises whatever it stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        empty = isinstance(path, Path | str) and os.path.isfile(path) and not os.path.getsize(path)
        reason = "the file is empty" if empty else reason
        raise ValueError(f"cannot read image {str(path)!r}: {reason}") from error
    known = image_hash(np.asarray(image).reshape(image.height, image.width, channels))
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    values = np.array(image).reshape(height, width, channels)
    # Not by torch, which would start threads of its own in every reading thread.
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))), known


def image_hash(pixels: np.ndarray) -> int:
    """Tell images apart by size and pixels ``[height, width, channels]``: copies have one number.

    The first 64 bits of a SHA-256: among a million images, two share one by chance with a
    probability of 3e-8.
    """
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def image_hashes(images: UInt8[Tensor, "samples _ _ _"]) -> Int64[Tensor, " samples"]:
    """:func:`image_hash` of each image of a tensor."""
    return torch.tensor([image_hash(image) for image in images.movedim(1, -1).numpy()])


class _BombsRefused:
    """Makes Pillow's warning of a decompression bomb an error inside.

    Warning filters belong to the whole process: the first thread in changes them, and the last one
    out restores them.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                # Pillow's remarks on a file's metadata say nothing of its pixels.
                warnings.filterwarnings("ignore", module="PIL")
                warnings.simplefilter("error", Image.DecompressionBombWarning)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


_BOMBS_REFUSED = _BombsRefused()


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point values have no known range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert() would cut everything above 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values must be in [0, 65535], got {values.min()} to {values.max()}")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)


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
