"""Arrays in memory or in files of any framework, read some rows at a time.

Nothing that is loaded here can run code: pickled objects are refused. Files that cannot be read in
place (.npz, .csv, .parquet) are first unpacked, piece by piece, into a temporary file, which is
gone when the reader is closed, or with the process. TMPDIR says where.
"""

import errno
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .table_files import TABLES, Watch, check_names, check_ratio, column_names

FORMATS = (".npy", ".npz", ".safetensors", ".parquet", ".csv")
"""Files that are read, by their suffix."""

UNPACKED = (".npz", ".parquet", ".csv")
"""Those of them that are first unpacked into a temporary file."""

_PIECE = 2**22  # bytes unpacked at a time
_MOST_AXES = 3
_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_TYPES = {
    "bool": torch.bool,
    **dict.fromkeys(_WHOLE, torch.int64),
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_SAFETENSORS = {"BOOL": "bool", "I": "int", "U": "uint", "F": "float", "BF": "bfloat"}
"""How safetensors calls types, before the number of bits -> how NumPy does."""


_WORDS = {"str": "text", "bytes": "text", "object": "Python objects such as text or None"}
"""What NumPy calls otherwise, without the number of bits."""


class ArrayReader(ABC):
    """An array of numbers of which slices are read.

    Attributes:
        name: What to call it in a message.
        shape: Its shape.
        dtype: Of what is read; all whole numbers are int64.
        table: The suffix of the table whose columns it holds; empty for arrays.
        columns: Names of the columns of a table that has some, normalised (NFC).
    """

    def __init__(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.name, self.shape, self.dtype = name, tuple(shape), dtype
        self.table = ""
        self.columns: tuple[str, ...] = ()

    @abstractmethod
    def read(self, start: int, stop: int, axis: int = 0) -> Tensor:
        """Return the entries from ``start`` up to ``stop`` of an axis, 0 or 1, in memory."""

    def close(self) -> None:  # noqa: B027 (most have nothing to give back)
        """Release files; nothing can be read afterwards."""


class _TensorReader(ArrayReader):
    def __init__(self, name: str, tensor: Tensor) -> None:
        kind = str(tensor.dtype).removeprefix("torch.")
        super().__init__(name, tensor.shape, _torch_type(kind, name))
        self._tensor = tensor.detach()

    def read(self, start: int, stop: int, axis: int = 0) -> Tensor:
        return self._tensor.narrow(axis, start, stop - start).to(self.dtype)


class _NumPyReader(ArrayReader):
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        super().__init__(name, array.shape, _torch_type(array.dtype.name, name))
        self._array = array

    def read(self, start: int, stop: int, axis: int = 0) -> Tensor:
        return _copy(self._array, start, stop, axis)


class _MappedReader(ArrayReader):
    """Numbers as they lie in a file; mapped anew for every slice, so that none stays in memory."""

    def __init__(
        self,
        name: str,
        file: "Path | IO[bytes]",
        *,
        shape: Sequence[int],
        dtype: "np.dtype[Any]",
        offset: int = 0,
        fortran: bool = False,
    ) -> None:
        super().__init__(name, shape, _torch_type(dtype.name, name))
        self._file, self._dtype, self._offset = file, dtype, offset
        self._order: Any = "F" if fortran else "C"

    def read(self, start: int, stop: int, axis: int = 0) -> Tensor:
        if stop <= start or not math.prod(self.shape):  # nothing cannot be mapped
            return torch.empty(self.shape, dtype=self.dtype).narrow(axis, start, stop - start)
        mapped = np.memmap(self._file, self._dtype, "r", self._offset, self.shape, self._order)
        return _copy(mapped, start, stop, axis)

    def close(self) -> None:
        if not isinstance(self._file, Path):
            self._file.close()


class _SafetensorsReader(ArrayReader):
    def __init__(self, name: str, path: Path, key: str | None) -> None:
        self._path = path
        with self._open() as file:
            self._key = _choose(list(file.keys()), key, name)
            held = file.get_slice(self._key)
            shape, kind = held.get_shape(), str(held.get_dtype())
        letters = kind.rstrip("0123456789")
        if letters in _SAFETENSORS:
            kind = _SAFETENSORS[letters] + kind.removeprefix(letters)
        super().__init__(name, shape, _torch_type(kind, name))

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        with ExitStack() as stack:
            try:
                str(self._path).encode()
                name = str(self._path)
            except UnicodeEncodeError:  # safetensors takes no name that is not UTF-8
                name = f"/dev/fd/{stack.enter_context(self._path.open('rb')).fileno()}"
            try:
                yield stack.enter_context(safe_open(name, framework="pt"))
            except SafetensorError as error:
                raise ValueError(
                    f"{self._path} is not a .safetensors file, or damaged: {error}"
                ) from None

    def read(self, start: int, stop: int, axis: int = 0) -> Tensor:
        with self._open() as file:
            held = file.get_slice(self._key)
            part = held[start:stop] if axis == 0 else held[:, start:stop]
            return part.to(self.dtype, copy=True)  # what is mapped is given back


def open_array(
    source: Any, *, name: str = "array", key: str | None = None, watch: Watch | None = None
) -> ArrayReader:
    """Open one array of numbers, whatever holds it: what reads slices of it, and is to be closed.

    Arguments and errors as `open_logits`.

    Example:
        >>> import numpy as np
        >>> from deepens.metrics.io.array_files import open_array
        >>> open_array(np.arange(6.0).reshape(3, 2)).read(1, 2)
        tensor([[2., 3.]], dtype=torch.float64)
    """
    if isinstance(source, str | os.PathLike):
        return _open_file(Path(source), key, watch or (lambda share: None))
    if isinstance(source, Tensor):
        if source.layout != torch.strided or source.is_meta:
            kind = "a meta tensor" if source.is_meta else "a sparse or nested one"
            remedy = "compute it" if source.is_meta else "call .to_dense(), or pad and stack"
            raise ValueError(f"{name} must be a dense tensor with values, got {kind}; {remedy}")
        return _TensorReader(name, source)
    if isinstance(source, np.ma.MaskedArray):
        raise ValueError(f"{name} must have a value everywhere, got a masked array")
    if hasattr(source, "__array__"):
        try:
            reader = _NumPyReader(name, np.asarray(source))
            if hasattr(source, "columns") and len(reader.shape) == 2:  # a data frame
                reader.columns = column_names(source.columns)
                check_names(name, reader.columns)
            return reader
        except TypeError:  # of a device to which NumPy has no access
            if not hasattr(source, "__dlpack__"):
                raise
    if hasattr(source, "__dlpack__"):
        return _TensorReader(name, torch.from_dlpack(source))
    raise ValueError(
        f"{name} must be a path or an array (NumPy, torch, or with __array__ or __dlpack__), got "
        f"{type(source).__name__}"
    )


def _open_file(path: Path, key: str | None, watch: Watch) -> ArrayReader:
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not a file")
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path} must end in one of {', '.join(FORMATS)}, got {suffix!r}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} must be a regular file, got a pipe, socket or device")
    with path.open("rb"):
        pass  # a missing file is reported before anything else
    if suffix == ".npy":
        with path.open("rb") as file:
            return _mapped(str(path), file, path)
    if suffix == ".safetensors":
        return _SafetensorsReader(str(path), path, key)
    if suffix == ".npz":
        with _unpacked(path) as file:
            _unzip(path, key, file, watch)
            file.seek(0)
            return _mapped(str(path), file, file)
    with _unpacked(path) as file:
        shape, dtype, fortran, columns = TABLES[suffix](path, file, watch)
        file.flush()
        reader = _MappedReader(str(path), file, shape=shape, dtype=dtype, fortran=fortran)
        reader.table, reader.columns = suffix, column_names(columns)
        return reader


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file without a name; it is closed if something goes wrong."""
    file = tempfile.TemporaryFile(prefix="deepens-")  # noqa: SIM115 (the reader closes it)
    try:
        yield file
    except BaseException as error:
        file.close()
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise ValueError(
                f"{path} could not be unpacked: {tempfile.gettempdir()} is full; TMPDIR names "
                "another folder"
            ) from None
        raise


def _unzip(path: Path, key: str | None, target: IO[bytes], watch: Watch) -> None:
    """Write one array of a .npz file, as it is in a .npy file."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = {
                each.filename.removesuffix(".npy"): each
                for each in archive.infolist()
                if each.filename.endswith(".npy")
            }
            chosen = held[_choose(list(held), key, str(path))]
            with archive.open(chosen) as member:
                shape, dtype, _ = _header(str(path), member)
                needed = member.tell() + dtype.itemsize * math.prod(shape)
            free = shutil.disk_usage(tempfile.gettempdir()).free
            if len(shape) > _MOST_AXES or needed > free:
                raise ValueError(
                    f"{path} holds an array of shape {list(shape)}, which must have at most "
                    f"{_MOST_AXES} axes and fit into {tempfile.gettempdir()}: {needed:,} bytes, "
                    f"of {free:,} free; TMPDIR names another folder"
                )
            check_ratio(str(path), needed, chosen.compress_size)
            with archive.open(chosen) as member:
                while piece := member.read(min(_PIECE, needed - target.tell())):
                    target.write(piece)
                    watch(target.tell() / max(1, needed))
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is not a .npz file, or damaged: {error}") from None


def _mapped(name: str, file: IO[bytes], where: "Path | IO[bytes]") -> _MappedReader:
    """The reader of a .npy file whose header comes next in ``file``."""
    shape, dtype, fortran = _header(name, file)
    offset = file.tell()
    size, needed = file.seek(0, os.SEEK_END), offset + dtype.itemsize * math.prod(shape)
    if size < needed:
        raise ValueError(f"{name} is damaged: it must hold {needed} bytes, got {size}")
    return _MappedReader(
        name, where, shape=shape, dtype=dtype, offset=offset, fortran=bool(fortran)
    )


def _header(name: str, file: Any) -> "tuple[tuple[int, ...], np.dtype[Any], bool]":
    """Shape, type and order that the header of a .npy file states, which comes next in ``file``."""
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:  # for names of fields, which no array of numbers has
            raise ValueError(f"version {version} holds no plain array")
        if not all(size >= 0 for size in shape):
            raise ValueError(f"its shape is {shape}")
    except (zipfile.BadZipFile, EOFError, zlib.error):
        raise
    except Exception as error:  # NumPy evaluates the header: whatever that raises
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{name} is not a .npy file, or damaged: {line}") from None
    if dtype.hasobject:
        raise ValueError(
            f"{name} holds pickled Python objects, which are never loaded, since that could run "
            "code; save an array of numbers"
        )
    return shape, dtype, bool(fortran)


def _choose(keys: Sequence[str], key: str | None, name: str) -> str:
    known = ", ".join(keys) or "none"
    if key is not None and key not in keys:
        raise ValueError(f"{name} holds no array called {key!r}; it holds: {known}")
    if key is None and len(keys) != 1:
        raise ValueError(
            f"{name} holds {len(keys)} arrays ({known}); name one with --key, for labels "
            "--label-key"
        )
    return keys[0] if key is None else key


def _torch_type(kind: str, name: str) -> torch.dtype:
    """What numbers of a type, called as NumPy calls it, are read as."""
    if kind in _TYPES:
        return _TYPES[kind]
    hint = " (NumPy saves bfloat16 so: save float32, or safetensors)" if kind == "void16" else ""
    kind = _WORDS.get(kind.rstrip("0123456789"), kind)
    raise ValueError(f"{name} must hold real numbers of up to 64 bits, got {kind}{hint}")


def _copy(array: NDArray[Any], start: int, stop: int, axis: int) -> Tensor:
    """A slice as a tensor of its own, whatever the array's strides and order of bytes."""
    part = array[start:stop] if axis == 0 else array[:, start:stop]
    if part.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(part.view(np.int16), order="C")).view(torch.bfloat16)
    dtype = np.dtype(np.int64) if part.dtype.kind in "iu" else part.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(part, dtype=dtype, order="C", subok=False))
