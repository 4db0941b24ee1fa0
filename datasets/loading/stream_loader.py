"""Batches of files that worker processes decode, and every image of a split once, in order."""

import itertools
import signal
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..image_files import ImageFiles
from ..splits import Split
from .training_loader import Pipeline, TrainingLoader

OrderedBatch = tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]


class StreamLoader(TrainingLoader):
    """Training batches from image files, decoded whenever they are needed.

    Use it where the images do not fit in memory; it takes the arguments of :class:`TrainingLoader`.
    Its batches are those of :class:`TensorLoader`, bit for bit, whatever the number of workers,
    which only decode. An image is decoded once per epoch, and per member where each has its own
    order. The workers start with the first batch and live as long as the loader. An image that
    cannot be read raises a ``ValueError`` that names its path.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from PIL import Image
        >>> from deepens.datasets import ImageFiles, Pipeline, Split, StreamLoader
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "a.png"
        ...     Image.new("L", (20, 16)).save(file)
        ...     split = Split(ImageFiles((file,) * 3, channels=1, size=(8, 8)), torch.arange(3))
        ...     how = dict(batch_size=2, seeds=[1, 2], shared=False, workers=0)
        ...     loader = StreamLoader(split, **how, pipeline=Pipeline((0.5,), (0.25,)))
        ...     [list(batch.images.shape) for batch in loader]
        [[2, 2, 1, 8, 8]]
    """

    def _open(self, split: Split, workers: int) -> None:
        if not isinstance(split.images, ImageFiles):
            raise ValueError("split must hold image files, got a tensor: use TensorLoader")
        self._batches = _Batches()
        how = {"batch_sampler": self._batches, "persistent_workers": workers > 0}
        self._loader = _workers(split.images, workers, self.pipeline, **how)

    def _images_of(self, order: Int64[Tensor, "batches batch"]) -> Iterator[Tensor]:
        self._batches.order = order
        return _decoded(self._loader, self.pipeline)


class OrderedLoader:
    """Every image of a split once, in order and unaugmented, as often as it is iterated.

    The last batch may be smaller; targets are None where the split has none. Worker processes
    decode images which are files, in every pass anew; with 0 the calling process does.

    Raises:
        ValueError: If a number is out of range, the pipeline's channels are not the split's, or,
            while batches are fetched, an image cannot be read.

    Example:
        >>> import torch
        >>> from deepens.datasets import OrderedLoader, Pipeline, Split
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
        >>> loader = OrderedLoader(split, batch_size=4, pipeline=Pipeline((0.5,), (0.25,)))
        >>> len(loader), [targets.tolist() for _, targets in loader]
        (3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])
    """

    def __init__(
        self, split: Split, *, batch_size: int, pipeline: Pipeline, workers: int = 2
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if workers < 0:
            raise ValueError(f"workers must be >= 0, got {workers}")
        pipeline.check(split)
        self.split, self.batch_size = split, batch_size
        self.pipeline, self.workers = pipeline, workers
        self._sizes = [len(part) for part in torch.arange(len(split)).split(batch_size)]

    def take_part(self, rank: int, processes: int) -> None:
        """From now on, yield every so many images alone, in as many batches in every process.

        Fewer images than processes, or a last batch that some process would lack, are a
        ``ValueError``.
        """
        if not 0 <= rank < processes:
            raise ValueError(f"rank must be in [0, {processes}), got {rank}")
        least, most = len(self.split) // processes, -(-len(self.split) // processes)
        batches = -(-most // self.batch_size)
        if least < batches:
            raise ValueError(
                f"{len(self.split)} validation images in batches of {self.batch_size} are too few "
                f"for {processes} processes: take fewer"
            )
        self.split = self.split.select(torch.arange(rank, len(self.split), processes))
        parts = torch.arange(len(self.split)).tensor_split(batches)
        self._sizes = [len(part) for part in parts]

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[OrderedBatch]:
        images, targets, device = self.split.images, self.split.targets, self.pipeline.device
        parts: Iterable[Tensor]
        if isinstance(images, Tensor):
            parts = (batch.to(device) for batch in images.split(self._sizes))
        else:
            order = [part.tolist() for part in torch.arange(len(images)).split(self._sizes)]
            workers = _workers(images, self.workers, self.pipeline, batch_sampler=order)
            parts = _decoded(workers, self.pipeline)
        starts = itertools.accumulate(self._sizes[:-1], initial=0)
        for start, part in zip(starts, parts, strict=True):
            now = slice(start, start + len(part))
            labels = None if targets is None else targets[now].to(device)
            yield self.pipeline.normalized(part), labels


def batches(
    split: Split, *, batch_size: int, pipeline: Pipeline, workers: int = 2
) -> Iterator[OrderedBatch]:
    """Yield every image of a split once, in order and unaugmented; see :class:`OrderedLoader`.

    Example:
        >>> from deepens.datasets import Pipeline, batches, load
        >>> splits = load("digits")
        >>> pipeline = Pipeline(splits.mean, splits.std)
        >>> images, targets = next(batches(splits["test"], batch_size=32, pipeline=pipeline))
        >>> list(images.shape), targets[:4].tolist()
        ([32, 1, 8, 8], [4, 7, 1, 7])
    """
    return iter(OrderedLoader(split, batch_size=batch_size, pipeline=pipeline, workers=workers))


class _Files(Dataset[Tensor | str]):
    """What a worker does: decode a file, or say in a line why it cannot be read.

    An exception would reach the calling process wrapped in the worker's traceback.
    """

    def __init__(self, files: ImageFiles) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> UInt8[Tensor, "channels height width"] | str:
        try:
            return self._files.read(index)
        except ValueError as error:
            return str(error)


class _Batches:
    """The indices that are asked of the workers in the next pass."""

    def __init__(self) -> None:
        self.order = torch.empty(0, 0, dtype=torch.int64)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.order:
            yield batch.tolist()

    def __len__(self) -> int:
        return len(self.order)


def _workers(
    files: ImageFiles, workers: int, pipeline: Pipeline, **options: Any
) -> DataLoader[Any]:
    return DataLoader(
        _Files(files),
        num_workers=workers,
        collate_fn=_stacked,
        pin_memory=torch.device(pipeline.device).type == "cuda",
        # Otherwise each pass takes a number from torch's global generator.
        generator=torch.Generator(),
        prefetch_factor=2 if workers else None,
        worker_init_fn=_leave_signals,
        **options,
    )


def _leave_signals(worker: int) -> None:
    """Leave signals to all processes to the parent, which ends its workers when it is done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _stacked(images: list[Tensor | str]) -> Tensor | str:
    """A batch, or the first error in it."""
    errors = [image for image in images if isinstance(image, str)]
    return errors[0] if errors else torch.stack([i for i in images if isinstance(i, Tensor)])


def _decoded(loader: DataLoader[Any], pipeline: Pipeline) -> Iterator[Tensor]:
    """Batches on the device; a ``ValueError`` where an image cannot be read."""
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork of a process with threads. The workers only decode.
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        batches = iter(loader)
    while True:
        try:
            images = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ValueError(
                "a process that decodes images was killed, perhaps for want of memory: lower "
                "--workers, and start the same command again"
            ) from error
        if isinstance(images, str):
            raise ValueError(images)
        yield images.to(pipeline.device, non_blocking=True)
