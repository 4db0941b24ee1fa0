"""The files of a run's predictions: one of tensors per split, and an index that names them."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..store.checkpoint import save_tensors
from ..store.run import Run, write_json

DETECTOR = "detector/"
"""Begins the name of the tensor ``[M, N]`` of a detector's scores, beside the logits."""


def index_file(run: Run) -> Path:
    """The file that names the predicted splits."""
    return run.path / "predictions" / "index.json"


def save_logits(
    run: Run,
    split: str,
    logits: Tensor,
    targets: Tensor | None,
    *,
    content: Mapping[str, Any],
    scores: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write the predictions of one split.

    Args:
        run: Where to.
        split: Its name.
        logits: ``[M, N, C]``, stored as float32.
        targets: Labels; None of OOD images.
        content: The ``weights`` that predicted it (their hash) and the ``data``.
        scores: Of detectors, ``[M, N]``.
    """
    tensors = {"logits": logits.float()}
    tensors |= {f"{DETECTOR}{name}": each for name, each in scores.items()}
    if targets is not None:
        tensors["targets"] = targets
    save_tensors(run.prediction(split), tensors, {"split": split, **content})


def save_index(run: Run, splits: list[str], **content: Any) -> None:
    """Write the index of the splits with stored logits, last: what it names exists.

    ``content`` is ``shift``, ``gradients``, ``data`` and ``detectors``, as `Predictions` reads
    them.
    """
    write_json(index_file(run), {"splits": splits, **content})
