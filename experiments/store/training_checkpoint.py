"""Training checkpoints as safetensors: whole or not at all, checked when read, and never code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from .checkpoint import load_tensors, save_tensors


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning checkpoints as one safetensors file: tensors, and the rest as JSON in its header.

    A checkpoint is a tree of dicts, lists, tuples, numbers, strings and tensors. Anything else is
    refused at saving, so that nothing loaded can ever execute code.

    Example:
        >>> import tempfile, torch
        >>> from deepens.experiments.store.training_checkpoint import SafetensorsCheckpointIO
        >>> file = tempfile.mkdtemp() + "/state.safetensors"
        >>> io = SafetensorsCheckpointIO()
        >>> io.save_checkpoint({"epoch": 3, 0: torch.ones(2), "betas": (0.9, 0.999)}, file)
        >>> io.load_checkpoint(file)
        {'epoch': 3, 0: tensor([1., 1.]), 'betas': (0.9, 0.999)}

    Args:
        identity: What the checkpoints belong to; those of another identity are refused.
    """

    def __init__(self, identity: str = "") -> None:
        self.identity = identity

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint whole or not at all; a ``TypeError`` names what cannot go into it."""
        tensors: dict[str, Tensor] = {}
        content = {"identity": self.identity, "tree": _encode(checkpoint, tensors, "checkpoint")}
        save_tensors(Path(path), tensors, content)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU, from where Lightning places its tensors.

        A ``ValueError`` refuses a file that is missing, truncated, no checkpoint or another run's.
        """
        tensors, content = load_tensors(Path(path))
        try:
            identity, tree = content["identity"], _decode(content["tree"], tensors)
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError(f"{path} is not a training checkpoint") from None
        if identity != self.identity:
            raise ValueError(f"{path} belongs to another run; delete it and run again")
        return tree

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, if it is there."""
        Path(path).unlink(missing_ok=True)


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise TypeError(f"{where}: the key {key!r} is neither text nor an integer")
        return {"dict": [[k, _encode(v, tensors, f"{where}.{k}")] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]}
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    raise TypeError(f"{where}: a {type(value).__name__} cannot go into a checkpoint")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    items = [_decode(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
