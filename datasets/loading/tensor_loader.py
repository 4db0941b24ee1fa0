"""Training batches from an image set that sits decoded in one uint8 tensor."""

from collections.abc import Iterator, Sequence

from jaxtyping import Int64
from torch import Tensor

from ..splits import Split
from .pipeline import Pipeline
from .training_loader import TrainingLoader


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

    def _images_of(self, order: Int64[Tensor, "batches batch"]) -> Iterator[Tensor]:
        for indices in order.to(self.pipeline.device):
            images = self._images.index_select(0, indices)
            yield images.movedim(-1, 1) if self._last else images
