"""The image set as Lightning takes it."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule

from ..splits import Splits
from .stream_loader import OrderedLoader, StreamLoader
from .training_loader import Pipeline, TensorLoader, TrainingLoader


class DataModule(LightningDataModule):
    """Training on ``train``, selection on ``val/select``; no test images.

    Arguments are those of :class:`TrainingLoader`, and ``eval_batch_size`` validation images per
    batch. A split that is missing or does not fit them is a ``ValueError``.

    Example:
        >>> from deepens.datasets import DataModule, Pipeline, load
        >>> splits = load("digits")
        >>> pipeline = Pipeline(splits.mean, splits.std)
        >>> how = dict(batch_size=64, seeds=[0, 1, 2, 3], shared=False, eval_batch_size=256)
        >>> data = DataModule(splits, pipeline=pipeline, **how)
        >>> len(data.train_dataloader()), len(data.val_dataloader())
        (10, 1)
    """

    def __init__(
        self,
        splits: Splits,
        *,
        batch_size: int,
        seeds: Sequence[int],
        shared: bool,
        pipeline: Pipeline,
        eval_batch_size: int,
        workers: int = 2,
    ) -> None:
        super().__init__()
        self.splits = splits
        train = splits["train"]
        # Made once: a second loader would be a second copy of the images, or further processes.
        kind = TensorLoader if train.resident else StreamLoader
        how: dict[str, Any] = {"pipeline": pipeline, "workers": workers}
        self._train: TrainingLoader = kind(
            train, batch_size=batch_size, seeds=seeds, shared=shared, **how
        )
        self._select = OrderedLoader(splits["val/select"], batch_size=eval_batch_size, **how)

    def setup(self, stage: str) -> None:
        """Take this process's part of each batch, where the trainer has several processes."""
        if self.trainer is not None and self.trainer.world_size > 1:
            self._train.take_part(self.trainer.global_rank, self.trainer.world_size)
            self._select.take_part(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> TrainingLoader:
        """Batches of ``train``, in an order of each epoch's own."""
        return self._train

    def val_dataloader(self) -> OrderedLoader:
        """Batches of ``val/select``, in order."""
        return self._select
