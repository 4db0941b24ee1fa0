"""Tensors of any device in safetensors files: whole or not at all, checked when read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...datasets import tensor_files
from ...datasets.tensor_files import load_content, load_tensors, stored_checksum

__all__ = [
    "load_content",
    "load_tensors",
    "save_tensors",
    "stored_checksum",
]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], content: Any) -> str:
    """Write tensors of any device, which may share memory, as `tensor_files.save_tensors` does."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    return tensor_files.save_tensors(path, plain, content)
