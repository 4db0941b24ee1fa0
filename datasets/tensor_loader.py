"""Batches from an image set that sits decoded in one uint8 tensor.

Order and augmentation are a function of (seed of the member, epoch) and of nothing else: not of
the other members, the batch size or what was drawn before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .splits import Split
from .transforms import Augmentation, normalize

_ORDER, _AUGMENTATION = 0, 1


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


class TensorLoader:
    """Training batches for M members, from their own orders or from a shared one.

    ==============  ======================================  =======================
    yields          shape                                   unit
    ==============  ======================================  =======================
    own: images     [members batch channels height width]   standard deviations
    own: targets    [members batch]                         class index
    shared: images  [batch channels height width]           standard deviations
    shared: targets [batch]                                 class index
    ==============  ======================================  =======================

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

    Example:
        >>> import torch
        >>> from deepens.datasets import Pipeline, Split, TensorLoader
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
        >>> pipeline = Pipeline((0.5,), (0.25,))
        >>> own = dict(seeds=[1, 2], shared=False)
        >>> loader = TensorLoader(split, batch_size=4, pipeline=pipeline, **own)
        >>> loader.sampler.set_epoch(5)
        >>> [(list(images.shape), list(targets.shape)) for images, targets in loader]
        [([2, 4, 1, 8, 8], [2, 4]), ([2, 4, 1, 8, 8], [2, 4])]
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
        _check_channels(split, pipeline)
        self.batch_size = batch_size
        self.seeds = tuple(seeds)
        self.shared = shared
        self.pipeline = pipeline
        self.sampler = EpochOrder()
        self._targets = split.targets.to(pipeline.device)
        images = split.images.to(pipeline.device)
        # Stored in the order in which it is handed out: whole images are then copied as blocks,
        # and no batch is rearranged. Without channels-last a contiguous split is not copied.
        self._images = (images.movedim(1, -1) if pipeline.channels_last else images).contiguous()
        self._position = (0, 0)
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._targets) // self.batch_size

    def __iter__(
        self,
    ) -> Iterator[
        tuple[
            Float[Tensor, "*members batch channels height width"], Int64[Tensor, "*members batch"]
        ]
    ]:
        # A generator: nothing here runs before the first batch is asked for.
        epoch = self.sampler.epoch
        first = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        order, offsets, flips = self._draw(epoch)
        members = (self.batch_size,) if self.shared else (len(self.seeds), self.batch_size)
        for batch in range(first, len(self)):
            now = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            chosen = order[:, now].flatten()
            images = self._images.index_select(0, chosen)
            if self.pipeline.channels_last:
                images = images.movedim(-1, 1)
            images = self.pipeline.augmentation.apply(
                images, offsets[:, now].flatten(0, 1), flips[:, now].flatten()
            )
            self._position = (epoch, batch + 1)
            yield (
                _normalized(images, self.pipeline).unflatten(0, members),
                self._targets.index_select(0, chosen).unflatten(0, members),
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

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a whole epoch: [members samples] orders, their offsets and flips, on the device."""
        orders, offsets, flips = [], [], []
        for seed in self.seeds[:1] if self.shared else self.seeds:
            samples = len(self._targets)
            orders.append(torch.randperm(samples, generator=_generator(seed, epoch, _ORDER)))
            drawn = self.pipeline.augmentation.draw(samples, _generator(seed, epoch, _AUGMENTATION))
            offsets.append(drawn[0])
            flips.append(drawn[1])
        order, offset, flip = (
            torch.stack(draws).to(self.pipeline.device) for draws in (orders, offsets, flips)
        )
        return order, offset, flip


class OrderedLoader:
    """Every image of a split once, in order and unaugmented, as often as it is iterated.

    Args:
        split: Images, with targets or without.
        batch_size: Images a batch; the last batch may be smaller.
        pipeline: Normalisation, memory order and device; its augmentation is not used.

    Raises:
        ValueError: If ``batch_size`` is below 1, or the pipeline's channels are not the split's.

    Example:
        >>> import torch
        >>> from deepens.datasets import OrderedLoader, Pipeline, Split
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
        >>> loader = OrderedLoader(split, batch_size=4, pipeline=Pipeline((0.5,), (0.25,)))
        >>> len(loader), [targets.tolist() for _, targets in loader]
        (3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])
    """

    def __init__(self, split: Split, *, batch_size: int, pipeline: Pipeline) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        _check_channels(split, pipeline)
        self.split = split
        self.batch_size = batch_size
        self.pipeline = pipeline

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __iter__(
        self,
    ) -> Iterator[
        tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]
    ]:
        device, targets = self.pipeline.device, self.split.targets
        for start in range(0, len(self.split), self.batch_size):
            now = slice(start, start + self.batch_size)
            images = self.split.images[now].to(device)
            yield (
                _normalized(images, self.pipeline),
                None if targets is None else targets[now].to(device),
            )


def batches(
    split: Split, *, batch_size: int, pipeline: Pipeline
) -> Iterator[tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]]:
    """Yield every image of a split once, in order and unaugmented.

    Args:
        split: Images, with targets or without.
        batch_size: Images a batch; the last batch may be smaller.
        pipeline: Normalisation, memory order and device; its augmentation is not used.

    Yields:
        Normalised images, and their targets or None.

    Raises:
        ValueError: If ``batch_size`` is below 1, or the pipeline's channels are not the split's.

    Example:
        >>> from deepens.datasets import Pipeline, batches, load
        >>> splits = load("digits")
        >>> pipeline = Pipeline(splits.mean, splits.std)
        >>> images, targets = next(batches(splits["test"], batch_size=32, pipeline=pipeline))
        >>> list(images.shape), targets[:4].tolist()
        ([32, 1, 8, 8], [4, 7, 1, 7])
    """
    return iter(OrderedLoader(split, batch_size=batch_size, pipeline=pipeline))


def _check_channels(split: Split, pipeline: Pipeline) -> None:
    channels = split.images.shape[1]
    if len(pipeline.mean) != channels:
        raise ValueError(
            f"pipeline.mean must have one value a channel ({channels}), got {len(pipeline.mean)}"
        )


def _generator(seed: int, epoch: int, purpose: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, epoch, purpose)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _normalized(images: Tensor, pipeline: Pipeline) -> Tensor:
    return normalize(
        images, mean=pipeline.mean, std=pipeline.std, channels_last=pipeline.channels_last
    )
