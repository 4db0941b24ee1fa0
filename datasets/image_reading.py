"""Reading one image: opened safely, upright, in grey or RGB, at a size, within a memory limit."""

import enum
import functools
import hashlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, features
from torch import Tensor

OPTIONAL = {
    "avif": ("AVIF", (".avif",)),
    "jpg_2000": ("JPEG2000", (".j2k", ".jp2")),
}
"""What Pillow reads where it was built with it: the format's name and suffixes."""

_BUILT = [kind for feature, kind in OPTIONAL.items() if features.check(feature)]
SUFFIXES = frozenset(
    {
        *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif"),
        *(".tiff", ".webp", ".pbm", ".pgm", ".pnm", ".ppm"),
        *(suffix for _, suffixes in _BUILT for suffix in suffixes),
    }
)
# A JPEG of several pictures, MPO, is opened as JPEG.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *(n for n, _ in _BUILT))

MEGAPIXELS = "DEEPENS_MAX_MEGAPIXELS"
"""The environment variable, which processes that read images inherit, of the largest image."""

_BYTES_PER_PIXEL = 10
"""Of an image that is being decoded, converted and resized."""
_LEAST_ROOM = 2**28
_DARK = 64
"""A set whose values all stay below it uses 14 bits of 16 or fewer, or holds labels."""


class Remark(enum.IntFlag):
    """What a reader of results may have to know of how an image was read."""

    TRANSPARENT = enum.auto()
    DARK = enum.auto()
    EXIF = enum.auto()
    FRAMES = enum.auto()


@dataclass(frozen=True, eq=False)
class Looked:
    """An image, with the :func:`image_hash` of it before it is resized, and remarks."""

    pixels: UInt8[Tensor, "channels height width"]
    hash: int
    remarks: Remark


class Room:
    """Memory for images that are decoded at the same time, in bytes; one at least has room."""

    def __init__(self, limit: int) -> None:
        self.limit, self._used, self._changed = limit, 0, threading.Condition()

    @contextmanager
    def of(self, needed: int) -> Iterator[None]:
        """Wait for so many bytes, and have them inside."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._used or self._used + needed <= max(self.limit, _LEAST_ROOM)
            )
            self._used += needed
        try:
            yield
        finally:
            with self._changed:
                self._used -= needed
                self._changed.notify_all()


READING = Room(4 * 2**30)
"""Shared by all threads that read images; its limit is that of the data last loaded."""


@contextmanager
def open_image(path: Path | str | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image without decoding it: for its size, its mode or its encoder.

    Only formats that Pillow decodes itself count; it hands others, such as EPS, to programs that it
    finds on the machine. Other files and decompression bombs raise whatever a decoder raises.
    """
    _apply_limit()
    with _BOMBS_REFUSED, Image.open(path, formats=_FORMATS) as opened:
        yield opened


def read_image(
    path: Path | str | io.BytesIO, *, channels: int, size: tuple[int, int]
) -> UInt8[Tensor, "channels height width"]:
    """Read one image as a network expects it.

    Its EXIF orientation is applied, unless the EXIF data are damaged; any mode becomes grey or RGB;
    16-bit grey values are divided by 257; what is transparent is laid on white, or on black where
    nothing would be seen on white. An image of another size is shrunk or enlarged with antialiasing
    until it covers the size, and its middle is cut out. Of several frames the first counts.

    Args:
        path: The file, or its bytes.
        channels: 1 for grey, 3 for RGB.
        size: Height and width of the result.

    Raises:
        ValueError: If channels or size are out of range, or the file cannot be read, has values
            without a range (floating point), or may be a decompression bomb: it has more pixels
            than Pillow's limit, or than DEEPENS_MAX_MEGAPIXELS.

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
    _check(channels, size)
    with _decoded(path, channels) as (image, _):
        return _fitted(image, channels, size)


def look_at(path: Path | str | io.BytesIO, *, channels: int, size: tuple[int, int]) -> Looked:
    """:func:`read_image`, with what tells copies apart and what is to be remarked."""
    _check(channels, size)
    with _decoded(path, channels, frames=True) as (image, remarks):
        pixels = np.asarray(image).reshape(image.height, image.width, channels)
        if pixels.max() < _DARK:
            remarks |= Remark.DARK
        return Looked(_fitted(image, channels, size), image_hash(pixels), remarks)


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


@functools.cache
def _apply_limit() -> None:
    """Take the limit of pixels from the environment, where there is one."""
    if text := os.environ.get(MEGAPIXELS):
        try:
            Image.MAX_IMAGE_PIXELS = max(1, round(float(text) * 1e6))
        except (ValueError, OverflowError):
            raise ValueError(f"{MEGAPIXELS} must be a number, got {text!r}") from None


def _check(channels: int, size: tuple[int, int]) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if min(size) < 1:
        raise ValueError(f"size must be >= 1 pixel a side, got {size}")


@contextmanager
def _decoded(
    path: Path | str | io.BytesIO, channels: int, *, frames: bool = False
) -> Iterator[tuple[Image.Image, Remark]]:
    """An image, upright and in its colours, while there is room for it; perhaps count frames."""
    with (
        _readable(path),
        open_image(path) as opened,
        READING.of(opened.width * opened.height * _BYTES_PER_PIXEL),
    ):
        remarks = Remark.FRAMES if frames and _has_frames(opened) else Remark(0)
        opened.load()
        upright: Image.Image = opened
        try:
            upright = ImageOps.exif_transpose(opened)
        except Exception:  # a parser given damaged data raises whatever it stumbles over
            remarks |= Remark.EXIF
        image, transparent = _to_mode(upright, "L" if channels == 1 else "RGB")
        yield image, remarks | (Remark.TRANSPARENT if transparent else Remark(0))


def _has_frames(opened: Image.Image) -> bool:
    """Whether there are several frames, other than a JPEG's previews."""
    try:
        return opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1
    except Exception:  # of a damaged frame: the first may be sound
        opened.seek(0)
        return True


@contextmanager
def _readable(path: Path | str | io.BytesIO) -> Iterator[None]:
    """Say of a file that cannot be read which it is, and why."""
    try:
        yield
    except Exception as error:  # a decoder given hostile bytes raises whatever it stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            reason += f"; if it is sound, raise the limit: {MEGAPIXELS}=200 in the environment"
        empty = isinstance(path, Path | str) and os.path.isfile(path) and not os.path.getsize(path)
        reason = "the file is empty" if empty else reason
        raise ValueError(f"cannot read image {str(path)!r}: {reason}") from error


def _fitted(image: Image.Image, channels: int, size: tuple[int, int]) -> Tensor:
    height, width = size
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    values = np.array(image).reshape(height, width, channels)
    # Not by torch, which would start threads of its own in every reading thread.
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def _to_mode(image: Image.Image, mode: str) -> tuple[Image.Image, bool]:
    """The image in grey or RGB, and whether a part of it is transparent."""
    if image.mode == "F":
        raise ValueError("floating-point values have no known range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert() would cut everything above 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values must be in [0, 65535], got {values.min()} to {values.max()}")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert(mode), False
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert(mode), False
    on_white, on_black = (
        Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert(mode)
        for colour in ("white", "black")
    )
    vanishes = np.asarray(on_white).min() == 255
    return (on_black if vanishes else on_white), True


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
