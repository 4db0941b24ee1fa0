"""Tensors and plain data in one safetensors file, with a checksum, and never code."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import check_regular, whole_file

FORMAT = "deepens/2"
"""Key in the header: a SHA-256 over all that the file holds, and plain data as JSON after it."""

UNCHECKED = "deepens/1"
"""The key of earlier versions, which wrote no checksum."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], content: Any) -> str:
    """Write tensors and plain data to one file, whole or not, and return their checksum.

    Args:
        path: The file.
        tensors: By name: on the CPU, contiguous, and of memory of their own.
        content: Anything that JSON holds.

    Raises:
        OSError: The file cannot be written: the error names it, and the bytes that a full disk
            lacks.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from deepens.datasets.tensor_files import load_tensors, save_tensors
        >>> file = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> checksum = save_tensors(file, {"a": torch.ones(2)}, {"epoch": 3})
        >>> load_tensors(file)
        ({'a': tensor([1., 1.])}, {'epoch': 3})
    """
    text = json.dumps(content)
    checksum = _checksum(tensors, text)
    size = len(text) + sum(tensor.nbytes for tensor in tensors.values())
    with whole_file(path, size=size) as aside:
        try:
            # One key: several would be written in a random order, and equal files would differ.
            save_file(dict(tensors), aside, {FORMAT: f"{checksum} {text}"})
        except SafetensorError as error:
            raise _system_error(error) or error from error
    return checksum


def load_tensors(
    path: Path, *, remedy: str = "delete it and run again"
) -> tuple[dict[str, Tensor], Any]:
    """Read what :func:`save_tensors` wrote, and verify its checksum.

    Args:
        path: The file. Those of earlier versions have no checksum and are read without.
        remedy: What to do where the file is proved to be damaged.

    Raises:
        ValueError: There is no such file, it is damaged, or another program's.
        OSError: It cannot be opened; nothing is known of what it holds.
    """
    tensors, found, text = _read(path, remedy, tensors=True)
    if found is not None and found != _checksum(tensors, text):
        raise _damaged(path, "its checksum differs from what it holds", remedy)
    return tensors, json.loads(text)


def load_content(path: Path, *, remedy: str = "delete it and run again") -> Any:
    """The plain data alone, without reading the tensors and so without the checksum's proof."""
    return json.loads(_read(path, remedy, tensors=False)[2])


def stored_checksum(path: Path) -> str | None:
    """The checksum in a file's header, which reading the tensors verifies; None of old files."""
    return _read(path, "delete it and run again", tensors=False)[1]


def tensor_digest(tensors: Mapping[str, Tensor]) -> "hashlib._Hash":
    """SHA-256 over the names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(content.data)
    return digest


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = tensor_digest(tensors)
    digest.update(text.encode())
    return digest.hexdigest()


def _read(path: Path, remedy: str, *, tensors: bool) -> tuple[dict[str, Tensor], str | None, str]:
    """The tensors if wanted, the checksum if there is one, and the JSON, which is valid."""
    try:
        check_regular(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    try:
        with open_safetensors(path) as file:
            header = file.metadata() or {}
            if FORMAT not in header and UNCHECKED not in header:
                raise ValueError(f"{path} was not written by deepens (no {FORMAT!r} in its header)")
            found, text = None, header.get(UNCHECKED, "")
            if FORMAT in header:
                found, _, text = header[FORMAT].partition(" ")
            json.loads(text)
            names = list(file.keys()) if tensors else []
            return {name: file.get_tensor(name) for name in names}, found, text
    except (SafetensorError, json.JSONDecodeError, RecursionError, KeyError) as error:
        raise _damaged(path, str(error), remedy) from None


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file, of whatever program, to read tensors or parts of them.

    Raises:
        OSError: It cannot be opened or read; the error names it.
        SafetensorError: It holds something else. Only then is it damaged, or of another kind.
    """
    with path.open("rb") as opened:
        name = path
        try:
            str(path).encode()
        except UnicodeEncodeError:  # safetensors takes no name that is not UTF-8
            name = Path(f"/dev/fd/{opened.fileno()}")
        try:
            with safe_open(name, "pt") as file:
                yield file
        except SafetensorError as error:
            if system := _system_error(error):
                system.filename = str(path)
                raise system from None
            raise


def _system_error(error: SafetensorError) -> OSError | None:
    """What the operating system refused, if that is why safetensors failed."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def _damaged(path: Path, why: str, remedy: str) -> ValueError:
    return ValueError(f"{path} is truncated or damaged ({why}); {remedy}")
