"""Batches from image files that do not fit in memory, decoded by worker processes."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..image_files import ImageFiles
from ..splits import Split
from .pipeline import Pipeline
from .training_loader import TrainingLoader

_PREFETCHED = 2


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


def read_in_order(
    files: ImageFiles, *, batch_size: int, pipeline: Pipeline, workers: int
) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
    """Decode every image once, in order, to the pipeline's device; the last batch may be smaller.

    The workers end with the pass. A ``ValueError`` names the path of an image that cannot be read.
    """
    yield from _decoded(_workers(files, workers, pipeline, batch_size=batch_size), pipeline)


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
        prefetch_factor=_PREFETCHED if workers else None,
        **options,
    )


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
