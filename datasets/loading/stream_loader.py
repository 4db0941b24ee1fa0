"""Batches from image files that do not fit in memory, decoded by worker processes."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..augmentation.augmentations import Augmentation, draw_centres, random_stream
from ..augmentation.rand_augment import STRONGEST
from ..augmentation.transforms import cutout
from ..image_files import ImageFiles, open_image, read_image
from ..splits import Split
from .tensor_loader import Pipeline, TrainingLoader

# Beyond those of a whole epoch: a stream's key must not be another's with zeros behind it.
_PURPOSES = range(16, 21)
_PREFETCHED = 2
_TRANSPOSED = (5, 6, 7, 8)

Key = tuple[int, int, int]
"""A member's seed, an epoch and the index of an image."""


class StreamLoader(TrainingLoader):
    """Training batches from image files, decoded whenever they are asked for.

    What :class:`TrainingLoader` says holds, and the orders are those of :class:`TensorLoader`. The
    augmentation is another draw: an image's own stream follows from (seed of the member, epoch,
    index), whatever the number of workers, and torchvision's v2 transforms use it on one image
    after the other. A resized crop is cut from the image as it is on disk, before it is shrunk.

    Members with own orders meet the same image at different times: it is decoded once for each
    member and epoch. With a shared order it is decoded once an epoch.

    The worker processes start with the first batch, and live as long as the loader.

    Args:
        split: Image files, and targets.
        batch_size: Images a member and batch.
        seeds: One seed a member, each >= 0.
        shared: All members see the same batches.
        pipeline: Augmentation, normalisation, memory order and device.
        workers: Processes that decode; with 0 the calling process decodes.

    Raises:
        ValueError: If the split has no targets or fewer images than a batch, a seed is missing or
            negative, the pipeline's channels are not the split's, or the number of workers is
            negative. While batches are fetched: if an image cannot be read; its path is named.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from PIL import Image
        >>> from deepens.datasets import ImageFiles, Pipeline, Split, StreamLoader
        >>> pipeline = Pipeline((0.5,), (0.25,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in "abc":
        ...         Image.new("L", (20, 16)).save(Path(folder) / f"{name}.png")
        ...     files = tuple(Path(folder) / f"{name}.png" for name in "abc")
        ...     split = Split(ImageFiles(files, channels=1, size=(8, 8)), torch.arange(3))
        ...     own = dict(batch_size=2, seeds=[1, 2], shared=False)
        ...     loader = StreamLoader(split, **own, pipeline=pipeline, workers=0)
        ...     [list(batch.images.shape) for batch in loader]
        [[2, 2, 1, 8, 8]]
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seeds: Sequence[int],
        shared: bool,
        pipeline: Pipeline,
        workers: int = 2,
    ) -> None:
        super().__init__(
            split, batch_size=batch_size, seeds=seeds, shared=shared, pipeline=pipeline
        )
        if not isinstance(split.images, ImageFiles):
            raise ValueError("split must hold image files, got a tensor: use TensorLoader")
        self._keys = _BatchKeys()
        self._loader = _workers(
            AugmentedFiles(split.images, pipeline.augmentation),
            workers,
            pipeline,
            batch_sampler=self._keys,
            persistent_workers=workers > 0,
        )

    def _images_of(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._order(epoch).view(-1, self._width)[first:]
        seeds = [seed for seed in self._streams for _ in range(self.batch_size)]
        self._keys.ask(batches, seeds, epoch)
        chosen = batches.to(self.pipeline.device)
        yield from zip(_decoded(self._loader, self.pipeline), chosen, strict=True)


def read_in_order(
    files: ImageFiles, *, batch_size: int, pipeline: Pipeline, workers: int
) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
    """Decode every image once, in order.

    Args:
        files: The images.
        batch_size: Images a batch; the last batch may be smaller.
        pipeline: Says the device.
        workers: Processes that decode, and that end with the pass; with 0 the calling process
            decodes.

    Yields:
        Images on the device.

    Raises:
        ValueError: If the number of workers is negative, or an image cannot be read; its path is
            named.
    """
    loader = _workers(AugmentedFiles(files, None), workers, pipeline, batch_size=batch_size)
    yield from _decoded(loader, pipeline)


class AugmentedFiles(Dataset[Tensor | str]):
    """What a worker does: image files to images of one size, each changed by its own draws.

    Asked for an index, it yields the image as :meth:`ImageFiles.read` does; asked for (seed,
    epoch, index), the image changed. For a file that cannot be read it yields the error's line:
    an exception would reach the calling process wrapped in the worker's traceback.

    Args:
        files: The images.
        augmentation: How they are changed; None for not at all.
    """

    def __init__(self, files: ImageFiles, augmentation: Augmentation | None) -> None:
        self._files = files
        self._whole = augmentation is not None and augmentation.resized_crop is not None
        self._transforms = [] if augmentation is None else _transforms(augmentation, files.size)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, key: int | Key) -> UInt8[Tensor, "channels height width"] | str:
        """One image, or why there is none."""
        try:
            if isinstance(key, int):
                return self._files.read(key)
            seed, epoch, index = key
            image = self._read_whole(index) if self._whole else self._files.read(index)
        except ValueError as error:
            return str(error)
        # torchvision draws from torch's global generator, which in the calling process is not ours.
        before = torch.get_rng_state()
        try:
            for purpose, transform in self._transforms:
                stream = random_stream(seed, epoch, purpose, index)
                torch.set_rng_state(stream.get_state())
                image = transform(image)
        finally:
            torch.set_rng_state(before)
        return image

    def _read_whole(self, index: int) -> Tensor:
        """An image of the size that it has on disk."""
        path, channels = self._files.paths[index], self._files.channels
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with open_image(path) as opened:
                    width, height = opened.size
                    if opened.getexif().get(0x0112) in _TRANSPOSED:
                        width, height = height, width
        except Exception:
            return self._files.read(index)  # which says what is wrong with it
        return read_image(path, channels=channels, size=(height, width))


class _BatchKeys:
    """What is asked of the workers in the next pass; made batch by batch, as an epoch is long."""

    def __init__(self) -> None:
        self._batches, self._seeds, self._epoch = torch.empty(0, 0), [0], 0

    def ask(self, batches: Tensor, seeds: list[int], epoch: int) -> None:
        """Indices [batches, batch], the seed of each place in a batch, and the epoch."""
        self._batches, self._seeds, self._epoch = batches, seeds, epoch

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self._batches:
            pairs = zip(self._seeds, batch.tolist(), strict=True)
            yield [(seed, self._epoch, index) for seed, index in pairs]

    def __len__(self) -> int:
        return len(self._batches)


class _Cutout(nn.Module):
    """Cutout of one image, with draws from torch's global generator."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, image: Tensor) -> Tensor:
        centres = draw_centres(1, (image.shape[-2], image.shape[-1]), None)
        return cutout(image[None], centres, side=self.side)[0]


def _transforms(augmentation: Augmentation, size: tuple[int, int]) -> list[tuple[int, nn.Module]]:
    """The transforms that are switched on, each with the purpose of its stream."""
    from torchvision.transforms import v2  # takes a second

    least = augmentation.resized_crop
    rounds, magnitude = augmentation.rand_augment, augmentation.magnitude
    candidates: list[nn.Module | None] = [
        v2.RandomResizedCrop(size, scale=(least, 1.0)) if least is not None else None,
        v2.RandomCrop(size, padding=augmentation.crop_padding)
        if augmentation.crop_padding
        else None,
        v2.RandomHorizontalFlip() if augmentation.flip else None,
        v2.RandAugment(rounds, magnitude, num_magnitude_bins=STRONGEST + 1) if rounds else None,
        _Cutout(augmentation.cutout) if augmentation.cutout else None,
    ]
    return [
        (purpose, transform)
        for purpose, transform in zip(_PURPOSES, candidates, strict=True)
        if transform is not None
    ]


def _workers(
    dataset: AugmentedFiles, workers: int, pipeline: Pipeline, **options: Any
) -> DataLoader[Any]:
    if workers < 0:
        raise ValueError(f"workers must be >= 0, got {workers}")
    return DataLoader(
        dataset,
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
    """Batches on the device.

    Raises:
        ValueError: If an image cannot be read.
    """
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
