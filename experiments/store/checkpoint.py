"""Training checkpoints and weights as safetensors: whole or not at all, and never code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...datasets.files import whole_file

FORMAT = "deepens/1"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], content: Any) -> None:
    """Write tensors, which may share memory, and plain data as JSON to one file, whole or not."""
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with whole_file(path) as aside:
        # One key: several would be written in a random order, and equal files would differ.
        save_file(plain, aside, {FORMAT: json.dumps(content)})


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], Any]:
    """Read what ``save_tensors`` wrote; a ``ValueError`` says what is wrong with another file."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            header = file.metadata() or {}
            if FORMAT not in header:
                raise ValueError(f"{path} was not written by deepens (no {FORMAT!r} in its header)")
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, json.loads(header[FORMAT])
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as error:
        remedy = f"({error}); delete it and run again"
        raise ValueError(f"{path} is truncated or damaged {remedy}") from None


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning checkpoints as one safetensors file: tensors, and the rest as JSON in its header.

    A checkpoint is a tree of dicts, lists, tuples, numbers, strings and tensors. Anything else is
    refused at saving, so that nothing loaded can ever execute code.

    Example:
        >>> import tempfile, torch
        >>> from deepens.experiments.store.checkpoint import SafetensorsCheckpointIO
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
        except (KeyError, TypeError, ValueError):
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
