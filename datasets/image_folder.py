"""Images of a user's folder."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

_SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)


def list_images(path: Path | str) -> list[Path]:
    """List the images in a folder and the folders in it.

    Files count by their suffix, in either case: bmp, gif, jpeg, jpg, pbm, pgm, png, pnm, ppm, tif,
    tiff, webp. Hidden files and folders are left out. Links to folders are followed, but no folder
    is visited twice, so that a loop of links ends.

    Args:
        path: The folder.

    Returns:
        Paths that begin with ``path``, sorted by their parts; the same on every system.

    Raises:
        ValueError: If ``path`` is missing, is not a folder, or holds no image.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from deepens.datasets import list_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        ...         (Path(folder) / name).touch()
        ...     [image.name for image in list_images(folder)]
        ['a.jpg', 'b.PNG']
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(f"path must be a folder of images, got {str(folder)!r}: not found")
    if not folder.is_dir():
        raise ValueError(f"path must be a folder of images, got {str(folder)!r}: not a folder")
    visited: set[str] = set()
    waiting, images = [folder], []
    while waiting:
        # Shallow folders before deep ones, and real ones before links: where two names lead to
        # one folder, the plain one counts.
        current = waiting.pop(0)
        real = os.path.realpath(current)
        if real in visited:
            continue
        visited.add(real)
        for entry in sorted(current.iterdir(), key=lambda entry: (entry.is_symlink(), entry.name)):
            if entry.name.startswith("."):
                continue
            # os.path answers False where a link leads nowhere or to itself. Such a link is listed,
            # so that reading it says what is wrong.
            if os.path.isdir(entry):
                waiting.append(entry)
            elif entry.suffix.lower() in _SUFFIXES and (entry.is_symlink() or entry.is_file()):
                images.append(entry)
    if not images:
        raise ValueError(
            f"path must hold >= 1 image ({' '.join(sorted(_SUFFIXES))}), got 0 in {str(folder)!r}"
        )
    return sorted(images, key=lambda image: image.parts)


def read_image(
    path: Path | str, *, channels: int, size: tuple[int, int]
) -> UInt8[Tensor, "channels height width"]:
    """Read one image as a network expects it.

    The orientation in its EXIF data is applied; any mode becomes grey or RGB; 16-bit grey values
    are divided by 257, so that their whole range is kept; transparency is dropped. An image of
    another size is shrunk or enlarged with antialiasing until it covers the size, and its middle
    is cut out. Of several frames the first counts.

    ========  =======================  ==================
    argument  shape                    unit
    ========  =======================  ==================
    size      (height, width)          pixels
    returned  [channels height width]  uint8
    ========  =======================  ==================

    Args:
        path: The file.
        channels: 1 for grey, 3 for RGB.
        size: Height and width of the result.

    Returns:
        The image.

    Raises:
        ValueError: If channels or size are out of range; if the file is missing, empty, truncated,
            corrupt, of a mode without a range (floating point), or so large that it may be a
            decompression bomb.

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
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    height, width = size
    if min(size) < 1:
        raise ValueError(f"size must be >= 1 pixel a side, got {size}")
    try:
        with warnings.catch_warnings():
            # Pillow only warns of a bomb between one and two times its limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                image = _to_mode(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
    # A decoder given hostile bytes raises whatever it stumbles over: OSError, SyntaxError,
    # struct.error, EOFError, OverflowError and others.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read image {str(path)!r}: {reason}") from error
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(image))
    return (values.unsqueeze(-1) if channels == 1 else values).permute(2, 0, 1).contiguous()


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
