"""Training batches, and those from an image set that sits decoded in one uint8 tensor.

Order and augmentation are a function of (seed of the member, epoch) and of nothing else: not of
the other members, the batch size or what was drawn before.
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


class Batch(NamedTuple):
    """What a training step gets: images, their targets, and which images they are.

    Args:
        images: Augmented and normalised.
        targets: Of each image.
        indices: Of each image, its position in the training split, so that an objective can
            weigh each training image or remember something about it.

    Example:
        >>> import torch
        >>> from deepens.datasets import Batch
        >>> indices = torch.tensor([7, 2])
        >>> images, targets, *_ = Batch(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), indices)
        >>> targets.tolist()
        [0, 1]
    """

    images: Float[Tensor, "*members batch channels height width"]
    targets: Int64[Tensor, "*members batch"]
    indices: Int64[Tensor, "*members batch"]


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
            raise ValueError(
                f"mean and std must have equal lengths, got {len(self.mean)} and {len(self.std)}"
            )
        if not self.std or min(self.std) <= 0:
            raise ValueError(f"std must be > 0 for each channel, got {self.std}")

    def check(self, split: Split) -> None:
        """Refuse a split of another number of channels.

        Args:
            split: Images.

        Raises:
            ValueError: If mean and std do not have one value a channel.
        """
        channels = split.images.shape[1]
        if len(self.mean) != channels:
            raise ValueError(
                f"pipeline.mean must have one value a channel ({channels}), got {len(self.mean)}"
            )

    def normalized(
        self, images: UInt8[Tensor, "*leading channels height width"]
    ) -> Float[Tensor, "*leading channels height width"]:
        """What the network sees of images.

        Args:
            images: On the device.

        Returns:
            Normalised images, in the memory order asked for.
        """
        return normalize(images, mean=self.mean, std=self.std, channels_last=self.channels_last)


class EpochOrder:
    """The epoch that the next pass over the data belongs to.

    Lightning calls ``loader.sampler.set_epoch`` before each epoch of a fit, a resumed one too.

    Example:
        >>> from deepens.datasets import EpochOrder
        >>> order = EpochOrder()
        >>> order.set_epoch(3)
        >>> order.epoch
        3
    """

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass.

        Args:
            epoch: Counted from 0.

        Raises:
            ValueError: If the epoch is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        self.epoch = epoch


class TrainingLoader(ABC):
    """Training batches for M members, from their own orders or from a shared one.

    ===============  ======================================  =============================
    yields           shape                                   unit
    ===============  ======================================  =============================
    own: images      [members batch channels height width]   standard deviations
    own: targets     [members batch]                         class index
    own: indices     [members batch]                         position in the split, from 0
    shared: images   [batch channels height width]           standard deviations
    shared: targets  [batch]                                 class index
    shared: indices  [batch]                                 position in the split, from 0
    ===============  ======================================  =============================

    Member i's order and augmentation follow from (``seeds[i]``, epoch): a loader with
    ``seeds=[seeds[i]]`` yields row i of the joint one, bit for bit. A shared order follows from
    ``seeds[0]``. The last, partial batch is dropped. The epoch is ``loader.sampler.epoch`` at the
    moment when the first batch is fetched, and not when ``iter`` is called: Lightning calls
    ``iter`` before it sets the epoch of a resumed fit.

    A fit stopped inside an epoch goes on at the next batch: the loader has Lightning's
    ``state_dict`` and ``load_state_dict``.

    Args:
        split: Images and targets to train on.
        batch_size: Images a member and batch.
        seeds: One seed a member, each >= 0.
        shared: All members see the same batches.
        pipeline: Augmentation, normalisation, memory order and device.

    Raises:
        ValueError: If the split has no targets or fewer images than a batch, a seed is missing or
            negative, or the pipeline's channels are not the split's.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seeds: Sequence[int],
        shared: bool,
        pipeline: Pipeline,
    ) -> None:
        if split.targets is None:
            raise ValueError("split must have targets to train on, got targets=None")
        if not 1 <= batch_size <= len(split):
            raise ValueError(
                f"batch_size must be in [1, {len(split)}], the number of training images, "
                f"got {batch_size}: choose a smaller batch"
            )
        if not seeds or min(seeds) < 0:
            raise ValueError(f"seeds must hold >= 1 seed, each >= 0, got {list(seeds)}")
        pipeline.check(split)
        self.batch_size = batch_size
        self.seeds = tuple(seeds)
        self.shared = shared
        self.pipeline = pipeline
        self.sampler = EpochOrder()
        self._targets = split.targets.to(pipeline.device)
        self._position = (0, 0)
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._targets) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing here runs before the first batch is asked for.
        epoch = self.sampler.epoch
        first = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        own = (self.batch_size,) if self.shared else (len(self.seeds), self.batch_size)
        for batch, (images, chosen) in enumerate(self._images_of(epoch, first), start=first + 1):
            self._position = (epoch, batch)
            targets = self._targets.index_select(0, chosen)
            yield Batch(
                self.pipeline.normalized(images).unflatten(0, own),
                targets.unflatten(0, own),
                chosen.unflatten(0, own),
            )

    def state_dict(self) -> dict[str, int]:
        """Tell how far the pass has come.

        Returns:
            ``epoch``, and ``batch``, the number of batches handed out in it.
        """
        epoch, batch = self._position
        return {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass begin where another stopped, if it is of the same epoch.

        Args:
            state: From :meth:`state_dict`.
        """
        self._resume = (state["epoch"], state["batch"])

    @property
    def _streams(self) -> tuple[int, ...]:
        """The seeds that have an order."""
        return self.seeds[:1] if self.shared else self.seeds

    @property
    def _width(self) -> int:
        """Images of a batch, those of all members together."""
        return len(self._streams) * self.batch_size

    @abstractmethod
    def _images_of(
        self, epoch: int, first: int
    ) -> Iterator[tuple[UInt8[Tensor, "batch channels height width"], Int64[Tensor, " batch"]]]:
        """Augmented images of each batch from ``first`` on, member after member, and indices."""

    def _order(self, epoch: int) -> Int64[Tensor, " samples"]:
        """Indices of the images in an epoch, batch after batch and in it member after member."""
        samples = len(self._targets)
        orders = [draw_order(samples, seed=seed, epoch=epoch) for seed in self._streams]
        return torch.cat(orders)[self._arrangement()]

    def _arrangement(self) -> Int64[Tensor, " samples"]:
        """Positions in the members' orders, laid end to end, in the order in which they come."""
        samples, batches = len(self._targets), len(self)
        positions = torch.arange(len(self._streams) * samples).view(-1, samples)
        used = positions[:, : batches * self.batch_size].unflatten(1, (batches, self.batch_size))
        return used.transpose(0, 1).flatten()


class TensorLoader(TrainingLoader):
    """Training batches from images that sit decoded on the device; see :class:`TrainingLoader`.

    The images are kept in the memory order in which the split has them or, if that is the plain
    one, in the order in which batches are handed out. A split that is stored channels-last, or on
    a CPU as it is to be handed out, is not copied.

    Args:
        split: Images in memory, and targets.
        batch_size: Images a member and batch.
        seeds: One seed a member, each >= 0.
        shared: All members see the same batches.
        pipeline: Augmentation, normalisation, memory order and device.

    Raises:
        ValueError: If the split has no targets or fewer images than a batch, a seed is missing or
            negative, or the pipeline's channels are not the split's.

    Example:
        >>> import torch
        >>> from deepens.datasets import Pipeline, Split, TensorLoader
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10) % 3)
        >>> pipeline = Pipeline((0.5,), (0.25,))
        >>> own = dict(seeds=[1, 2], shared=False)
        >>> loader = TensorLoader(split, batch_size=4, pipeline=pipeline, **own)
        >>> loader.sampler.set_epoch(5)
        >>> [list(batch.images.shape) for batch in loader]
        [[2, 4, 1, 8, 8], [2, 4, 1, 8, 8]]
        >>> images, targets, indices = next(iter(loader))
        >>> bool((targets == indices % 3).all())
        True
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seeds: Sequence[int],
        shared: bool,
        pipeline: Pipeline,
    ) -> None:
        super().__init__(
            split, batch_size=batch_size, seeds=seeds, shared=shared, pipeline=pipeline
        )
        if not isinstance(split.images, Tensor):
            raise ValueError("split must hold its images in memory, got files: use StreamLoader")
        images = split.images.to(pipeline.device)
        # Whole images are taken as blocks of memory, and no batch is rearranged.
        self._last = pipeline.channels_last or images.movedim(1, -1).is_contiguous()
        self._images = (images.movedim(1, -1) if self._last else images).contiguous()

    def _images_of(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch).to(self.pipeline.device)
        draws = self._draws(epoch).to(self.pipeline.device)
        for start in range(first * self._width, len(order), self._width):
            now = slice(start, start + self._width)
            images = self._images.index_select(0, order[now])
            if self._last:
                images = images.movedim(-1, 1)
            yield self.pipeline.augmentation.apply(images, draws[now]), order[now]

    def _draws(self, epoch: int) -> AugmentationDraws:
        height, width = self._images.shape[1:3] if self._last else self._images.shape[2:]
        augmentation, samples = self.pipeline.augmentation, len(self._targets)
        drawn = [
            augmentation.draw(samples, (height, width), seed=seed, epoch=epoch)
            for seed in self._streams
        ]
        return AugmentationDraws.joined(drawn)[self._arrangement()]
