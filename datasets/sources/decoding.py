"""Files to images: which format they have, and decoding them once into a tensor kept on disk.

The cache is keyed on content. Paths, sizes and times of change stand in for the content of files
that were read before, so that a second start reads none of them.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from PIL import Image, JpegImagePlugin
from torch import Tensor

from ..files import whole_file
from ..image_reading import Looked, Remark, look_at, open_image, read_image
from ..tensor_files import load_tensors, save_tensors

_GREY = {"1", "L", "LA", "I", "I;16", "I;16B"}
_FORMAT = "deepens-decoded-3"

Result = TypeVar("Result")


@runtime_checkable
class Watcher(Protocol):
    """Where long work is shown and lines are said."""

    def task(self, name: str, total: int) -> AbstractContextManager[Any]:
        """Show a task of so many steps, each counted by its ``advance()``."""

    def say(self, line: str) -> None:
        """Say a line."""


class Silent:
    """A watcher that shows nothing."""

    @contextmanager
    def task(self, name: str, total: int) -> Iterator["Silent"]:
        """Do the work inside."""
        yield self

    def advance(self, note: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Decoding:
    """How files become images of channels (1 or 3) and a size (height, width), cached in a folder.

    Images that cannot be read are refused, or left out.
    """

    channels: int
    size: tuple[int, int]
    cache: Path
    skip_bad_images: bool = False


def common_format(paths: Sequence[Path], image_size: int | None) -> tuple[int, tuple[int, int]]:
    """Choose the channels and the size of a set from the headers of up to 500 of its files.

    Grey if every file looked at is grey, RGB otherwise. The size is ``image_size`` pixels a side,
    or the files' own where all are square and alike, or else their median short side, at most 224.

    Returns:
        K, and (height, width).

    Raises:
        ValueError: If no file looked at is an image.
    """
    modes, sizes = set(), []
    for path in _sample(paths):
        # A bad file is named when it is decoded.
        with suppress(Exception), open_image(path) as opened:
            modes.add(opened.mode)
            sizes.append(opened.size)
    if not sizes:
        raise ValueError(f"no image can be read among {len(paths)} files such as {str(paths[0])!r}")
    channels = 1 if modes <= _GREY else 3
    if image_size is None:
        alike = len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1]
        short = sorted(min(size) for size in sizes)[len(sizes) // 2]
        image_size = sizes[0][0] if alike else min(short, 224)
    return channels, (image_size, image_size)


def decode(
    paths: Sequence[Path], decoding: Decoding, *, name: str, watcher: Watcher
) -> tuple[UInt8[Tensor, "kept channels height width"], dict[int, str]]:
    """:func:`decode_with_hashes` without the hashes."""
    images, seen = decode_with_hashes(paths, decoding, name=name, watcher=watcher)
    return images, seen.bad


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of files: of those that can be read, and why others cannot be, by position.

    ``hashes`` are the ``image_hash`` of each image, ``files`` SHA-256 of each file where it was
    asked for, and ``remarks`` how many images each remark is about.
    """

    hashes: Int64[Tensor, " kept"]
    remarks: Counter[Remark]
    bad: dict[int, str]
    files: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, known: Sequence[Sequence[int]], bad: dict[int, str], files: Sequence[str] = ()
    ) -> "Seen":
        """From a hash and remarks of each image."""
        remarks = Counter(remark for _, flags in known for remark in Remark(flags))
        return cls(torch.tensor([each for each, _ in known]), remarks, bad, tuple(files))


def decode_with_hashes(
    paths: Sequence[Path], decoding: Decoding, *, name: str, watcher: Watcher
) -> tuple[UInt8[Tensor, "kept channels height width"], Seen]:
    """Decode files into one tensor, or take it from the cache; ``name`` is for messages.

    Returns:
        The images, stored with channels last, and what is known of them.

    Raises:
        ValueError: If a file cannot be read and bad ones are not to be skipped, or none can.
    """
    content = content_hashes(paths, decoding.cache, name=name, watcher=watcher)
    image_format = [_FORMAT, decoding.channels, *decoding.size]
    file = decoding.cache / f"images-{_key([image_format, content])}.safetensors"
    cached = _read_cache(file, watcher)
    known: list[tuple[int, int]] = []
    if cached is None:
        images, known, numbers = _decode_all(paths, decoding, name, watcher)
        _write_cache(file, images, numbers, watcher)
    else:
        images, numbers = cached

    def look() -> list[tuple[int, int]]:
        if known:
            return known
        bad = set(numbers)
        kept = [path for index, path in enumerate(paths) if index not in bad]
        with watcher.task(f"hash {name}", len(kept)) as task:
            found = _each(lambda path: _try(path, decoding), kept, task)
            return [(each.hash, each.remarks) for each in found if isinstance(each, Looked)]

    # They depend on the colours, and not on the size.
    key = _key([_FORMAT, decoding.channels, content])
    known = _listed(decoding.cache / f"pixels-{key}.json", look, length=len(images))
    return images, Seen.of(known, _reasons(numbers, paths, decoding, name))


def examine(paths: Sequence[Path], decoding: Decoding, *, name: str, watcher: Watcher) -> Seen:
    """Read each of the files that do not fit in memory once, before they are needed.

    Arguments and errors are those of :func:`decode`; the answer is cached likewise.
    """

    def look(path: Path) -> tuple[str, int | None, int]:
        try:
            content = path.read_bytes()
        except OSError:
            return content_hash(path), None, 0
        found, file = _try(io.BytesIO(content), decoding), hashlib.sha256(content).hexdigest()
        return (file, None, 0) if isinstance(found, str) else (file, found.hash, found.remarks)

    def check() -> list[tuple[str, int | None, int]]:
        with watcher.task(f"check {name}", len(paths)) as task:
            return list(_each(look, paths, task))

    key = _key([_FORMAT, decoding.channels, *decoding.size, _states(paths)])
    seen = _listed(decoding.cache / f"examined-{key}.json", check, length=len(paths))
    numbers = [index for index, (_, known, _) in enumerate(seen) if known is None]
    bad = _reasons(numbers, paths, decoding, name)
    kept = [each for index, each in enumerate(seen) if index not in bad]
    return Seen.of([each[1:] for each in kept], bad, [each[0] for each in kept])


def content_hashes(paths: Sequence[Path], cache: Path, *, name: str, watcher: Watcher) -> list[str]:
    """:func:`content_hash` of each file, from the cache where its state is known."""

    def look() -> list[str]:
        with watcher.task(f"look at {name}", len(paths)) as task:
            return list(_each(content_hash, paths, task))

    return _listed(cache / f"contents-{_states(paths)}.json", look, length=len(paths))


@dataclass(frozen=True)
class Encoder:
    """A JPEG encoder's quantisation tables and subsampling, and the files' height and width.

    Subsampling is 0 for none, 1 in one direction, 2 in both; -1 for grey.
    """

    tables: tuple[tuple[int, ...], ...]
    subsampling: int
    size: tuple[int, int]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Encoder":
        """The encoder that made most of the files, of up to 500 looked at.

        Raises:
            ValueError: If most are not JPEG, or they are of different sizes.
        """
        found: Counter[Encoder | None] = Counter()
        for path in _sample(paths):
            with suppress(Exception), open_image(path) as opened:  # bad files: see common_format
                if isinstance(opened, JpegImagePlugin.JpegImageFile):
                    tables = tuple(tuple(table) for table in opened.quantization.values())
                    sampling = JpegImagePlugin.get_sampling(opened)
                    found[cls(tables, sampling, (opened.height, opened.width))] += 1
                else:
                    found[None] += 1
        encoder = found.most_common(1)[0][0] if found else None
        if encoder is None:
            raise ValueError(
                "encode_ood must be given with JPEG training images, got files without lossy "
                "compression: leave it out"
            )
        sizes = {each.size for each in found if each is not None}
        if len(sizes) > 1:
            raise ValueError(
                "encode_ood must be given with training images of one size, got files of "
                f"{len(sizes)} sizes: what the encoder left depends on it; leave it out"
            )
        return encoder

    def through(
        self, images: UInt8[Tensor, "samples channels _ _"], size: tuple[int, int] | None = None
    ) -> UInt8[Tensor, "samples channels height width"]:
        """Encode images of the files' size, and read them as the files are read, at ``size``."""
        height, width = size or self.size
        encoded = torch.empty(len(images), height, width, images.shape[1], dtype=torch.uint8)
        settings: dict[str, Any] = {"qtables": [list(table) for table in self.tables]}
        if self.subsampling >= 0:
            settings["subsampling"] = self.subsampling
        for index, image in enumerate(images):
            buffer = io.BytesIO()
            pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(buffer, "JPEG", **settings)
            buffer.seek(0)
            read = read_image(buffer, channels=len(image), size=(height, width))
            encoded[index] = read.movedim(0, -1)
        return encoded.movedim(-1, 1)


def _sample(paths: Sequence[Path]) -> list[Path]:
    """Up to 500 of the files, evenly spaced."""
    return list(paths[:: max(1, -(-len(paths) // 500))])


def _states(paths: Sequence[Path]) -> str:
    """A hash of where files are, how large they are, and when they changed."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            state = path.stat()
            found = (state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
        except OSError:
            found = (-1, 0, 0, 0)
        digest.update(os.fsencode(repr((str(path.absolute()), *found))))
    return digest.hexdigest()


def _key(content: Any) -> str:
    return hashlib.sha256(os.fsencode(json.dumps(content))).hexdigest()


def _listed(file: Path, make: Callable[[], list[Any]], length: int | None = None) -> list[Any]:
    """A list from a JSON file that ends in its checksum, or made and kept there."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        *content, checksum = json.loads(file.read_text())
        if checksum == _key(content) and length in (None, len(content)):
            return content
    content = make()
    # What there is to say of a full disk is said when the images are kept.
    with suppress(OSError), whole_file(file) as aside:
        aside.write_text(json.dumps([*content, _key(content)]))
    return content


def _reasons(
    numbers: Sequence[int], paths: Sequence[Path], decoding: Decoding, name: str
) -> dict[int, str]:
    """Why images cannot be read, by position; refuse them where they may not be left out."""
    # Read again: the reason names the path, which may not be the one that a cached file had.
    bad = {index: str(_try(paths[index], decoding)) for index in numbers}
    first, total = next(iter(bad.values()), ""), len(paths)
    if bad and len(bad) == total:
        raise ValueError(f"{name}: none of its {total} images can be read: {first}")
    if bad and not decoding.skip_bad_images:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise ValueError(
            f"{name}: {len(bad)} of {total} images cannot be read: {first}{more}; mend or delete "
            "what is bad, or leave it out with --skip-bad-images"
        )
    return bad


def content_hash(path: Path) -> str:
    """SHA-256 of a file; of one that cannot be read, of its path and the reason."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        return hashlib.sha256(repr((str(path), error.strerror)).encode()).hexdigest()


def _try(path: Path | io.BytesIO, decoding: Decoding) -> Looked | str:
    """The image and what is known of it, or why it cannot be read."""
    try:
        return look_at(path, channels=decoding.channels, size=decoding.size)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())


def _decode_all(
    paths: Sequence[Path], decoding: Decoding, name: str, watcher: Watcher
) -> tuple[Tensor, list[tuple[int, int]], list[int]]:
    """The images that can be read, hash and remarks of each, and the positions of the others."""
    images = torch.empty(len(paths), *decoding.size, decoding.channels, dtype=torch.uint8)
    known, bad = list[tuple[int, int]](), list[int]()
    with watcher.task(f"decode {name}", len(paths)) as task:
        tried = _each(lambda path: _try(path, decoding), paths, task)
        for index, found in enumerate(tried):
            if isinstance(found, str):
                bad.append(index)
            else:
                images[index - len(bad)] = found.pixels.movedim(0, -1)
                known.append((found.hash, found.remarks))
    return images[: len(paths) - len(bad)].movedim(-1, 1), known, bad


def _each(function: Callable[[Path], Result], paths: Sequence[Path], task: Any) -> Iterator[Result]:
    """Apply a function to files on several threads, in order, with few results waiting."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), 1024):
            for result in pool.map(function, paths[start : start + 1024]):
                task.advance()
                yield result


def _read_cache(file: Path, watcher: Watcher) -> tuple[Tensor, list[int]] | None:
    """Cached images and the positions of bad files; None where there are none, or damaged ones."""
    if not file.exists():
        return None
    try:
        tensors, content = load_tensors(file, remedy="it is replaced")
        if content["file"] != file.name:
            raise ValueError(f"{file} holds other images")
        # A copy: the file's own pages would be gone if someone cut the file short.
        return tensors["images"].clone().movedim(-1, 1), [int(i) for i in content["bad"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        watcher.say(f"images are decoded again: {' '.join(str(error).split())}")
        return None


def _write_cache(file: Path, images: Tensor, bad: list[int], watcher: Watcher) -> None:
    try:
        content = {"file": file.name, "bad": bad}
        save_tensors(file, {"images": images.movedim(1, -1)}, content)
    except OSError as error:
        watcher.say(
            f"decoded images are not kept in {file.parent} ({error.strerror or error}); they are "
            "decoded again next time, unless --cache names another folder"
        )
