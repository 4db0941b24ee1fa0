"""Every image of a split once, in order, from memory or from disk."""

from collections.abc import Iterable, Iterator
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from ..splits import Split
from .pipeline import Pipeline
from .stream_loader import read_in_order

Batch = tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]


class OrderedLoader:
    """Every image of a split once, in order and unaugmented, as often as it is iterated.

    Args:
        split: Images, with targets or without.
        batch_size: Images per batch; the last batch may be smaller.
        pipeline: Normalisation, memory order and device; its augmentation is not used.
        workers: Processes that decode images which are files, in every pass anew; with 0 the
            calling process decodes.

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

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        images, targets, device = self.split.images, self.split.targets, self.pipeline.device
        how: dict[str, Any] = {"batch_size": self.batch_size, "pipeline": self.pipeline}
        parts: Iterable[Tensor]
        if isinstance(images, Tensor):
            parts = (batch.to(device) for batch in images.split(self.batch_size))
        else:
            parts = read_in_order(images, workers=self.workers, **how)
        for start, part in zip(range(0, len(images), self.batch_size), parts, strict=True):
            now = slice(start, start + len(part))
            labels = None if targets is None else targets[now].to(device)
            yield self.pipeline.normalized(part), labels


def batches(
    split: Split, *, batch_size: int, pipeline: Pipeline, workers: int = 2
) -> Iterator[Batch]:
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
