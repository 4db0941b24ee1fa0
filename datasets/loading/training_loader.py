"""Training batches: the order and the augmentation of each member's images, and their decoding.

Order and augmentation are a function of (seed of the member, epoch) alone: not of other members,
the batch size, the number of workers, or whether the images are in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..augmentation.augmentations import Augmentation, AugmentationDraws, draw_order
from ..augmentation.transforms import normalize
from ..splits import Split


@dataclass(frozen=True)
class Pipeline:
    """What happens to images between the uint8 tensor and the network.

    Args:
        mean: Mean of each channel, on the scale 0 to 1.
        std: Standard deviation of each channel, on the same scale.
        augmentation: Random changes of training images.
        channels_last: Hand out memory in channels-last order.
        device: Where the images sit and the batches are made.

    Raises:
        ValueError: If mean and std differ in length, or a standard deviation is not positive.

    Example:
        >>> from deepens.datasets import Augmentation, Pipeline
        >>> pipeline = Pipeline((0.5,), (0.25,), Augmentation(crop_padding=1))
        >>> pipeline.device, pipeline.channels_last
        ('cpu', False)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    channels_last: bool = False
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            found = f"{len(self.mean)} and {len(self.std)}"
            raise ValueError(f"mean and std must have equal lengths, got {found}")
        if not self.std or min(self.std) <= 0:
            raise ValueError(f"std must be > 0 for each channel, got {self.std}")

    def check(self, split: Split) -> None:
        """Refuse a split of another number of channels, by a ``ValueError``."""
        channels = split.images.shape[1]
        if len(self.mean) != channels:
            raise ValueError(
                f"pipeline.mean must have one value per channel ({channels}), got {len(self.mean)}"
            )

    def normalized(
        self, images: UInt8[Tensor, "*leading channels height width"]
    ) -> Float[Tensor, "*leading channels height width"]:
        """What the network sees of images on the device, in the memory order asked for."""
        return normalize(images, mean=self.mean, std=self.std, channels_last=self.channels_last)


class Batch(NamedTuple):
    """What a training step gets: images, their targets, and which images they are.

    Images are augmented and normalised; indices are positions in the training split.

    Example:
        >>> import torch
        >>> from deepens.datasets import Batch
        >>> batch = Batch(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), torch.tensor([7, 2]))
        >>> batch.indices.tolist()
        [7, 2]
    """

    images: Float[Tensor, "*members batch channels height width"]
    targets: Int64[Tensor, "*members batch"]
    indices: Int64[Tensor, "*members batch"]


class EpochOrder:
    """The epoch of the next pass over the data, which Lightning sets by ``loader.sampler``."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, counted from 0; a negative one is a ``ValueError``."""
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        self.epoch = epoch


class TrainingLoader(ABC):
    """Training batches for M members, from their own orders or from a shared one.

    ===============  ======================================  =============================
    yields           shape                                   unit
    ===============  ======================================  =============================
    images           [members batch channels height width]   standard deviations
    targets          [members batch]                         class index
    indices          [members batch]                         position in the split, from 0
    ===============  ======================================  =============================

    With shared batches there is no axis of members. Member i's order and augmentation follow from
    (``seeds[i]``, epoch): a loader with ``seeds=[seeds[i]]`` yields row i of the joint one, bit for
    bit. A shared order follows from ``seeds[0]``. The last, partial batch is dropped. The epoch is
    ``loader.sampler.epoch`` when the first batch is fetched: Lightning calls ``iter`` before it
    sets the epoch of a resumed fit. A fit stopped inside an epoch continues at the next batch, by
    Lightning's ``state_dict`` and ``load_state_dict``.

    Args:
        split: Images and targets to train on.
        batch_size: Images per member and batch.
        seeds: One seed per member, each >= 0.
        shared: All members see the same batches.
        pipeline: Augmentation, normalisation, memory order and device.
        workers: Processes that decode images which are files; with 0 the calling process decodes.

    Raises:
        ValueError: If the split has no targets or fewer images than a batch, there is no seed, a
            number is negative, or the pipeline's channels are not the split's.
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
        if split.targets is None:
            raise ValueError("split must have targets to train on, got targets=None")
        if not 1 <= batch_size <= len(split):
            bound = f"[1, {len(split)}], the number of training images"
            raise ValueError(
                f"batch_size must be in {bound}, got {batch_size}: choose a smaller batch"
            )
        if not seeds or min(seeds) < 0:
            raise ValueError(f"seeds must hold >= 1 seed, each >= 0, got {list(seeds)}")
        if workers < 0:
            raise ValueError(f"workers must be >= 0, got {workers}")
        pipeline.check(split)
        self.batch_size, self.seeds, self.shared = batch_size, tuple(seeds), shared
        self.pipeline, self.sampler = pipeline, EpochOrder()
        self._image_size = (split.images.shape[2], split.images.shape[3])
        self._targets = split.targets.to(pipeline.device)
        self._position = (0, 0)
        self._resume: tuple[int, int] | None = None
        self._rank, self._processes = 0, 1
        self._open(split, workers)

    def __len__(self) -> int:
        return len(self._targets) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing here runs before the first batch is asked for.
        epoch = self.sampler.epoch
        first = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        size = self.batch_size // self._processes
        own = (size,) if self.shared else (len(self.seeds), size)
        order, draws = self._order(epoch)[first:], self._draws(epoch)
        augmentation, device = self.pipeline.augmentation, self.pipeline.device
        loaded = zip(self._images_of(order), order.to(device), strict=True)
        for number, (images, indices) in enumerate(loaded, start=first):
            start = number * self.batch_size + self._rank * size
            now = slice(start, start + size)
            drawn = AugmentationDraws.joined([each[now] for each in draws])
            normalized = self.pipeline.normalized(augmentation.apply(images, drawn))
            targets = self._targets.index_select(0, indices)
            self._position = (epoch, number + 1)
            yield Batch(*(each.unflatten(0, own) for each in (normalized, targets, indices)))

    def take_part(self, rank: int, processes: int) -> None:
        """From now on, yield one of several equal parts of each batch, in order.

        An image is augmented as it is in the whole batch. A batch size that is no multiple of the
        number of processes is a ``ValueError``.
        """
        if not 0 <= rank < processes:
            raise ValueError(f"rank must be in [0, {processes}), got {rank}")
        if self.batch_size % processes:
            raise ValueError(
                f"batch_size must be a multiple of {processes}, the number of processes that share "
                f"a batch, got {self.batch_size}"
            )
        self._rank, self._processes = rank, processes

    def whole(self) -> Iterator[Batch]:
        """Whole batches, once, whatever part this process takes of them."""
        part, self._rank, self._processes = (self._rank, self._processes), 0, 1
        try:
            yield from self
        finally:
            self._rank, self._processes = part

    def state_dict(self) -> dict[str, int]:
        """How far the pass has come: ``epoch``, and ``batch``, the batches handed out in it."""
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass begin where another stopped, if it is of the same epoch."""
        self._resume = (state["epoch"], state["batch"])

    @abstractmethod
    def _open(self, split: Split, workers: int) -> None:
        """Prepare to hand out the images; called once, by the constructor."""

    @abstractmethod
    def _images_of(
        self, order: Int64[Tensor, "batches batch"]
    ) -> Iterator[UInt8[Tensor, "batch channels height width"]]:
        """The images of each batch on the device, not augmented, by their indices."""

    @property
    def _streams(self) -> tuple[int, ...]:
        """The seeds that have an order."""
        return self.seeds[:1] if self.shared else self.seeds

    def _order(self, epoch: int) -> Int64[Tensor, "batches batch"]:
        """Indices of the images in each batch of an epoch, member after member."""
        samples, batches = len(self._targets), len(self)
        orders = [draw_order(samples, seed=seed, epoch=epoch) for seed in self._streams]
        used = [order[: batches * self.batch_size].view(batches, -1) for order in orders]
        size = self.batch_size // self._processes
        own = slice(self._rank * size, (self._rank + 1) * size)
        return torch.cat([each[:, own] for each in used], dim=1)

    def _draws(self, epoch: int) -> list[AugmentationDraws]:
        """Each stream's draws, by the image's place in its order, on the device."""
        draw, samples = self.pipeline.augmentation.draw, len(self._targets)
        drawn = (draw(samples, self._image_size, seed=s, epoch=epoch) for s in self._streams)
        return [each.to(self.pipeline.device) for each in drawn]


class TensorLoader(TrainingLoader):
    """Training batches from images that are decoded in one tensor, on the device.

    Use it where the images fit in memory; it takes the arguments of :class:`TrainingLoader`. A
    split that is stored channels-last, or on a CPU in the order in which batches are handed out, is
    not copied.

    Example:
        >>> import torch
        >>> from deepens.datasets import Pipeline, Split, TensorLoader
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10) % 3)
        >>> how = dict(batch_size=4, seeds=[1, 2], shared=False)
        >>> loader = TensorLoader(split, **how, pipeline=Pipeline((0.5,), (0.25,)))
        >>> loader.sampler.set_epoch(5)
        >>> [list(batch.images.shape) for batch in loader]
        [[2, 4, 1, 8, 8], [2, 4, 1, 8, 8]]
    """

    def _open(self, split: Split, workers: int) -> None:
        if not isinstance(split.images, Tensor):
            raise ValueError("split must hold its images in memory, got files: use StreamLoader")
        images = split.images.to(self.pipeline.device)
        # Whole images are taken as blocks of memory, and no batch is rearranged.
        self._last = self.pipeline.channels_last or images.movedim(1, -1).is_contiguous()
        self._images = (images.movedim(1, -1) if self._last else images).contiguous()

    def _images_of(self, order: Int64[Tensor, "batches batch"]) -> Iterator[Tensor]:
        for indices in order.to(self.pipeline.device):
            images = self._images.index_select(0, indices)
            yield images.movedim(-1, 1) if self._last else images
