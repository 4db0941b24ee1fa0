"""Per-image values of the shifted splits: what comparing methods needs, without their logits.

One file per run, with one tensor per split and value. Probabilities of the predicted class, which
decide the bins of calibration errors, are stored in float64; NLL, Brier score, entropy, mutual
information and disagreement in float32, so that each differs by a relative 6e-8 at most; classes in
the smallest integers that hold them. That is 30 bytes per image of a split with up to 256 classes,
where M members' logits of C classes take ``4 M C``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...metrics.samples import SampleValues
from ..store.checkpoint import load_tensors, save_tensors, stored_checksum
from ..store.run import Run

_EXACT = ("confidence",)
_ROUNDED = ("nll", "brier", "entropy", "mutual_information", "disagreement")
_CLASSES = ("predicted", "targets")
_INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


class ShiftValues(Mapping[str, SampleValues]):
    """Values by shifted split, held as they are stored and widened when they are asked for.

    Args:
        tensors: ``SPLIT/VALUE`` -> tensor ``[N]``, as `compact` makes them.

    Example:
        >>> import torch
        >>> from deepens.experiments.evaluation.shift_values import ShiftValues, compact
        >>> from deepens.metrics import sample_values
        >>> values = sample_values(torch.zeros(2, 3, 4), torch.tensor([0, 1, 0]), more=False)
        >>> held = ShiftValues(compact("shift/fog/1", values))
        >>> list(held), held["shift/fog/1"].correct.tolist()
        (['shift/fog/1'], [True, False, True])
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._splits = list(dict.fromkeys(name.rpartition("/")[0] for name in tensors))

    def __getitem__(self, split: str) -> SampleValues:
        if split not in self._splits:
            raise KeyError(split)
        numbers: dict[str, Any] = {
            n: self._tensors[f"{split}/{n}"].double() for n in (*_EXACT, *_ROUNDED)
        }
        predicted, targets = (self._tensors[f"{split}/{name}"].long() for name in _CLASSES)
        return SampleValues(
            **numbers, predicted=predicted, targets=targets, correct=predicted == targets
        )

    def stored(self, split: str) -> dict[str, Tensor]:
        """The tensors of a split as `compact` made them; none where its values are not held."""
        return {n: each for n, each in self._tensors.items() if n.startswith(f"{split}/")}

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)


def compact(split: str, values: SampleValues) -> dict[str, Tensor]:
    """The tensors that are stored of a labelled split, by ``SPLIT/VALUE``."""
    found = {name: getattr(values, name) for name in (*_EXACT, *_ROUNDED, *_CLASSES)}
    largest = torch.finfo(torch.float32).max  # the loss of a network that diverged may be larger
    for name in _ROUNDED:
        found[name] = found[name].clamp(max=largest).float()
    for name in _CLASSES:
        highest = int(found[name].max())
        fitting = next(kind for kind in _INTEGERS if highest <= torch.iinfo(kind).max)
        found[name] = found[name].to(fitting)
    return {f"{split}/{name}": tensor for name, tensor in found.items()}


def save_shift_values(
    run: Run, tensors: Mapping[str, Tensor], *, content: Mapping[str, Any]
) -> str | None:
    """Write the values of all shifted splits and return the checksum of the file.

    Without any, a file of earlier predictions is deleted. ``content`` is the hash of the
    ``weights`` that predicted them.
    """
    if tensors:
        return save_tensors(values_file(run), tensors, content)
    values_file(run).unlink(missing_ok=True)
    return None


def load_shift_values(run: Run, *, checksum: str, weights: str | None, remedy: str) -> ShiftValues:
    """Read what `save_shift_values` wrote.

    Raises:
        ValueError: The file is missing or damaged, or of other predictions than those with this
            checksum, or of other weights.
    """
    file = values_file(run)
    tensors, content = load_tensors(file, remedy=remedy)
    own = isinstance(content, dict) and content.get("weights") == weights
    splits = {name.rpartition("/")[0] for name in tensors}
    wanted = {f"{s}/{name}" for s in splits for name in (*_EXACT, *_ROUNDED, *_CLASSES)}
    if not own or stored_checksum(file) != checksum or wanted != tensors.keys():
        raise ValueError(f"{file} holds values of other predictions than the run's; {remedy}")
    return ShiftValues(tensors)


def values_file(run: Run) -> Path:
    """The file of a run's values under shift."""
    return run.path / "predictions" / "shift_values.safetensors"
