"""Logits from arrays or files of any framework, as input of the suite.

What an array holds is stated by the caller, never guessed: its layout, and whether it holds logits
or probabilities. Two axes are one model's samples and classes.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from ..core.mixture import validate_choice
from ..core.shapes import Logits, Targets
from .array_files import open_array
from .columns import class_order, in_class_order, in_order_of
from .labels import class_indices, is_text, label_values
from .logit_source import Kind, Layout, LogitSource
from .rows import in_rows_of
from .table_files import Watch, column_names

OF_LOGITS = ("max_logit", "energy")
"""Scores of OOD detection that need raw outputs: what they read is lost in probabilities."""


def open_logits(
    source: Any,
    *,
    layout: Layout = "MNC",
    kind: Kind = "logits",
    key: str | None = None,
    name: str = "logits",
    watch: Watch | None = None,
) -> LogitSource:
    """Open member logits, whatever holds them, to be read some samples at a time.

    ===========  ==============================================================================
    array        NumPy, torch, or anything with ``__array__`` or ``__dlpack__`` (JAX, TensorFlow)
    .npy         read in place, never unpickled
    .safetensors read in place, float16 and bfloat16 too; ``key`` names the array, if several
    .npz         unpacked into a temporary file; ``key`` likewise
    .csv         one row per sample, one column per class; names of the columns may come first
    .parquet     likewise, with pyarrow (``pip install 'deepens[parquet]'``)
    list         of these, one ``[samples, classes]`` per member
    ===========  ==============================================================================

    Args:
        source: An array, a path, or a list of them.
        layout: Order of the axes: members M, samples N, classes C. A list needs none, and two axes
            are ``"NC"``, one model, without being said to be.
        kind: ``"logits"`` are raw outputs, ``"probs"`` what a softmax made of them, ``"log_probs"``
            the logarithms of that. Probabilities of 0 are raised to the smallest normal number of
            their type, in float16 to the smallest at all.
        key: Name of the array in a file that holds several.
        name: What to call it in a message.
        watch: Called with the share of files that is unpacked, from 0 to 1.

    Returns:
        The logits, of which the first samples have been looked at.

    Raises:
        ValueError: If it holds anything else than what was said, or a file is damaged.
        OSError: If a file cannot be read.

    Example:
        >>> import numpy as np
        >>> from deepens.metrics.io.arrays import open_logits
        >>> softmax = np.array([[0.9, 0.1], [0.5, 0.5]])
        >>> with open_logits(softmax, layout="NC", kind="probs") as source:
        ...     source.shape, source.read(0, 1).exp()
        ((1, 2, 2), tensor([[[0.9000, 0.1000]]], dtype=torch.float64))
    """
    validate_choice(layout, "layout", get_args(Layout))
    validate_choice(kind, "kind", get_args(Kind))
    several = isinstance(source, list | tuple)
    each = list(source) if several else [source]
    if not each:
        raise ValueError(f"{name} must hold >= 1 member, got an empty list")
    if several and layout == "NMC":
        raise ValueError(f"layout must be NC for {name}, a list of one [N, C] per member, got NMC")
    with ExitStack() as opened:
        parts = []
        for place, one in enumerate(each):
            called = f"{name}[{place}]" if len(each) > 1 else name
            share = None if watch is None else _share(watch, place, len(each))
            one = in_rows_of(one, each[0], name=called, other=f"{name}[0]")
            parts.append(open_array(one, name=called, key=key, watch=share))
            opened.callback(parts[-1].close)
        first = in_class_order(parts[0])
        parts = [first, *(in_order_of(part, first) for part in parts[1:])]
        called = parts[0].name if len(parts) == 1 else name
        one_model = layout == "MNC" and len(parts[0].shape) == 2
        order: Layout = "NC" if several or one_model else layout
        found = LogitSource(parts, layout=order, kind=kind, name=called)
        opened.pop_all()
    return found


def read_labels(
    source: Any,
    *,
    num_samples: int,
    num_classes: int,
    key: str | None = None,
    name: str = "targets",
    classes: Sequence[str] = (),
    like: Any = None,
) -> Int64[Tensor, "samples"]:
    """Read class indices from an array or a file, as `open_logits` reads logits.

    Args:
        source: An array or a path: whole numbers, one per sample, in ``[0, num_classes)``. A CSV
            file has no types: there ``3.0`` is a whole number too.
        num_samples: Samples of the logits.
        num_classes: Classes of the logits.
        key: Name of the array in a file that holds several.
        name: What to call them in a message; a path is called by itself.
        classes: Names of the logits' columns, by which labels may be given.
        like: The logits as they were given; labels with an index are put in the order of theirs.

    Raises:
        ValueError: If they are neither whole numbers nor names of columns, or one-hot, out of
            range, or not one per sample.
        OSError: If a file cannot be read.

    Example:
        >>> import numpy as np
        >>> from deepens.metrics.io.arrays import read_labels
        >>> read_labels(np.array([0, 2], dtype=np.uint8), num_samples=2, num_classes=3)
        tensor([0, 2])
    """
    source = in_rows_of(source, like, name=name, other="the logits")
    column = label_values(source, name, classes)
    called = str(source) if _is_path(source) else name
    words = source if column is None else column
    if is_text(words):
        column = class_indices(np.asarray(words).reshape(-1).tolist(), classes, called)
    if column is None:
        values = torch.tensor(source) if isinstance(source, list | tuple) else source
        reader = open_array(values, name=name, key=key)
    else:
        reader = open_array(column, name=called)
        reader.table = Path(source).suffix.lower() if _is_path(source) else ""
    try:
        called, shape = reader.name, list(reader.shape)
        if len(shape) == 2 and shape[1] == num_classes:
            raise ValueError(
                f"{called} must be class indices, one per sample, got shape {shape}, which looks "
                "one-hot; save their argmax over classes"
            )
        if len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
            raise ValueError(f"{called} must be one class index per sample, got shape {shape}")
        values = reader.read(0, shape[0]).reshape(-1)
    finally:
        reader.close()
    if reader.table == ".csv":
        fractions = values != values.round()  # NaN is unequal to itself
        if fractions.any():
            first = int(fractions.nonzero()[0])
            raise ValueError(
                f"{called} must be integers, got {values[first].item()} at position {first}"
            )
        values = values.long()
    if values.dtype != torch.int64:
        raise ValueError(f"{called} must be integers, got {values.dtype}")
    if len(values) != num_samples:
        raise ValueError(
            f"{called} must have shape [{num_samples}], one label per sample of the logits, got "
            f"[{len(values)}]"
        )
    outside = (values < 0) | (values >= num_classes)
    if outside.any():
        first = int(outside.nonzero()[0])
        from_one = values.min() == 1 and values.max() == num_classes
        raise ValueError(
            f"{called} must lie in [0, {num_classes}), got {int(values[first])} at position {first}"
            f"{'; they seem to be counted from 1' if from_one else ''}"
        )
    return values


def read_logits(
    source: Any, *, layout: Layout = "MNC", kind: Kind = "logits", name: str = "logits"
) -> Logits:
    """Read all logits into one tensor ``[members, samples, classes]``; as `open_logits`.

    A tensor of this layout is handed through as it is, unchecked.
    """
    if isinstance(source, Tensor) and (source.ndim, layout, kind) == (3, "MNC", "logits"):
        return source
    with open_logits(source, layout=layout, kind=kind, name=name) as opened:
        return opened.read(0, opened.shape[1])


def read_targets(
    source: Any, logits: Shaped[Tensor, "members samples classes"], *, like: Any = None
) -> Targets:
    """Read the class indices of logits, as `read_labels`; whole tensors are handed through.

    ``like`` are the logits as they were given.
    """
    if isinstance(source, Tensor) and source.ndim == 1 and not source.is_floating_point():
        return source
    given = like[0] if isinstance(like, list | tuple) and like else like
    names = column_names(getattr(given, "columns", ()))
    classes = [names[place] for place in class_order(names, "logits")]
    return read_labels(
        source,
        num_samples=logits.shape[1],
        num_classes=logits.shape[2],
        classes=classes,
        like=given,
    )


def read_flags(source: Any) -> Tensor:
    """Read one truth value per sample from a tensor, an array or a list."""
    return source if isinstance(source, Tensor) else torch.from_numpy(np.array(source))


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def check_ood(source: LogitSource, ood: LogitSource) -> None:
    """Refuse OOD logits of other members or classes than the in-distribution logits.

    Columns of tables are put in the order of theirs, by name.
    """
    ood.align(source)
    for axis, what in ((2, "classes"), (0, "members")):
        if source.shape[axis] != ood.shape[axis]:
            raise ValueError(
                f"{ood.name} must have the {source.shape[axis]} {what} of {source.name}, got "
                f"{ood.shape[axis]}"
            )


def _share(watch: Watch, place: int, total: int) -> Watch:
    return lambda share: watch((place + share) / total)
