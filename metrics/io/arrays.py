"""Logits from arrays or files of any framework, as input of the suite.

What an array holds is stated by the caller, never guessed: its layout, and whether it holds logits
or probabilities. Logits are read some samples at a time and become `SampleValues`, a few numbers
per sample.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, get_args

import torch
from jaxtyping import Int64
from torch import Tensor

from ..core.mixture import validate_choice
from ..core.shapes import Targets
from ..samples import SampleValues, combined, sample_values
from .array_files import open_array
from .logit_source import Kind, Layout, LogitSource
from .table_files import Watch

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
        layout: Order of the axes: members M, samples N, classes C. A list needs none.
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
            parts.append(open_array(one, name=called, key=key, watch=share))
            opened.callback(parts[-1].close)
        called = parts[0].name if len(parts) == 1 else name
        found = LogitSource(parts, layout="NC" if several else layout, kind=kind, name=called)
        opened.pop_all()
    return found


def read_labels(
    source: Any,
    *,
    num_samples: int,
    num_classes: int,
    key: str | None = None,
    name: str = "targets",
) -> Int64[Tensor, "samples"]:
    """Read class indices from an array or a file, as `open_logits` reads logits.

    Args:
        source: An array or a path: whole numbers, one per sample, in ``[0, num_classes)``. A CSV
            file has no types: there ``3.0`` is a whole number too.
        num_samples: Samples of the logits.
        num_classes: Classes of the logits.
        key: Name of the array in a file that holds several.
        name: What to call them in a message; a path is called by itself.

    Raises:
        ValueError: If they are not whole numbers, or one-hot, out of range, or not one per sample.
        OSError: If a file cannot be read.

    Example:
        >>> import numpy as np
        >>> from deepens.metrics.io.arrays import read_labels
        >>> read_labels(np.array([0, 2], dtype=np.uint8), num_samples=2, num_classes=3)
        tensor([0, 2])
    """
    if isinstance(source, list | tuple):
        source = torch.tensor(source)
    reader = open_array(source, name=name, key=key)
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


def score_split(
    source: LogitSource,
    targets: Targets | None = None,
    *,
    rows: int | None = None,
    advance: Callable[[], None] | None = None,
) -> SampleValues:
    """Return the per-sample values of logits that are read some samples at a time.

    A few copies of a chunk are kept, and a few numbers per sample. Of probabilities the scores
    `OF_LOGITS` are left out.

    Args:
        source: What `open_logits` gives.
        targets: Class indices, as `read_labels` gives them; None for OOD samples.
        rows: Samples read at a time; about a million logits by default.
        advance: Is called after every chunk, of which there are ``len(source.bounds(rows))``.

    Raises:
        ValueError: If logits are not finite, or not probabilities where these were announced, or
            ``targets`` do not fit them.

    Example:
        >>> import numpy as np
        >>> from deepens.metrics.io.arrays import open_logits, score_split
        >>> with open_logits(np.eye(3) * 4, layout="NC") as source:
        ...     values = score_split(source, rows=2)
        >>> len(values), round(values.confidence[2].item(), 3)
        (3, 0.965)
    """
    if targets is not None and len(targets) != source.shape[1]:
        raise ValueError(f"targets must have shape [{source.shape[1]}], got [{len(targets)}]")
    held: Any = None
    start, stop, samples = 0, 0, source.shape[1]

    def placed(values: list[Tensor]) -> Tensor:
        # Many small tensors, kept between large ones, would break the heap into pieces and let
        # memory grow with the number of chunks.
        whole = values[0] if held else values[0].new_empty(samples)
        whole[start:stop] = values[-1]
        return whole

    raised = source.raised
    for start, stop in source.bounds(rows):
        labels = None if targets is None else targets[start:stop]
        part = sample_values(source.read(start, stop), labels, precision=source.precision)
        held = SimpleNamespace(**combined([held, part] if held else [part], placed))
        if advance is not None:
            advance()
    if raised := source.raised - raised:
        warnings.warn(
            f"{source.name}: {raised} probabilities are 0 and were raised to {source.smallest:.3g}:"
            f" NLL counts a label among them as {-math.log(source.smallest):.1f} nats, not as "
            "infinite",
            RuntimeWarning,
            stacklevel=2,
        )
    if source.kind != "logits":
        for name in OF_LOGITS:
            del held.detectors[name]
    return SampleValues(**vars(held))


def score_arrays(
    logits: Any,
    targets: Any = None,
    *,
    layout: Layout = "MNC",
    kind: Kind = "logits",
    name: str = "logits",
) -> SampleValues:
    """Open logits and labels, and return their per-sample values, as `score_split`."""
    with open_logits(logits, layout=layout, kind=kind, name=name) as source:
        _, samples, classes = source.shape
        if targets is not None:
            targets = read_labels(targets, num_samples=samples, num_classes=classes)
        return score_split(source, targets)


def check_ood(source: LogitSource, ood: LogitSource) -> None:
    """Refuse OOD logits of other members or classes than the in-distribution logits."""
    for axis, what in ((2, "classes"), (0, "members")):
        if source.shape[axis] != ood.shape[axis]:
            raise ValueError(
                f"{ood.name} must have the {source.shape[axis]} {what} of {source.name}, got "
                f"{ood.shape[axis]}"
            )


def _share(watch: Watch, place: int, total: int) -> Watch:
    return lambda share: watch((place + share) / total)
