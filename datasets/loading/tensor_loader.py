"""Training batches from an image set that sits decoded in one uint8 tensor."""

from collections.abc import Iterator

from jaxtyping import Int64
from torch import Tensor

from ..splits import Split
from .training_loader import TrainingLoader


class TensorLoader(TrainingLoader):
    """Training batches from images that are decoded on the device.

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
