"""Where a run computes, and how its images get there."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ...datasets import Augmentation, Pipeline
from ...datasets.image_format import ImageFormat
from ..config import Recipe, TrainConfig
from ..cost.macs import count_macs
from ..store.progress import Display
from .places import place_of

EVALUATION_BATCH = 256
"""Images of a batch where nothing is trained."""

SMALL_BATCH = 250_000_000
"""Multiply-accumulates of a batch below which one thread is enough."""


def compute_device(config: Recipe) -> torch.device:
    """The device that ``--device`` means; a GPU that is not there is refused."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no GPU; use auto or cpu")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place = place_of(config)
    return torch.device("cuda") if place.count == 1 else torch.device("cuda", place.local_rank)


def pipeline_for(config: Recipe, image_format: ImageFormat) -> Pipeline:
    """How images become batches; a ValueError where a crop may miss or a square hide the image."""
    side = min(image_format.size)
    if config.crop_padding >= side:
        bound = f"{side}, the images' side"
        raise ValueError(f"crop_padding must be < {bound}, got {config.crop_padding}")
    if config.cutout >= 2 * side:
        bound = f"{2 * side}, twice the images' side"
        raise ValueError(f"cutout must be < {bound}, got {config.cutout}")
    names = (field.name for field in dataclasses.fields(Augmentation))
    return Pipeline(
        mean=image_format.mean,
        std=image_format.std,
        augmentation=Augmentation(**{name: getattr(config, name) for name in names}),
        channels_last=config.channels_last,
        device=compute_device(config),
    )


def suitable_threads(network: nn.Module, image_format: ImageFormat, batch_size: int) -> int | None:
    """The number of threads for a network's batches: one for small work, else None, torch's own.

    Below 250 million MACs a batch, a second thread gains nothing, and on a shared machine threads
    wait for each other. Only network and batch decide, so that members trained one by one get the
    arithmetic of those trained together. Above it, torch's own number differs between machines and
    with OMP_NUM_THREADS, and with it the order of sums: weights are then equal bit for bit only
    where that number is the same, which ``environment.json`` records as ``fit_threads`` and
    ``--threads`` sets.
    """
    return 1 if count_macs(network, image_format.shape) * batch_size < SMALL_BATCH else None


def threads_of_each(config: TrainConfig) -> int | None:
    """The threads of each of the processes that train together on a machine; None of a single."""
    alone = place_of(config).count == 1
    return None if alone else max(1, torch.get_num_threads() // config.devices)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch compute on exactly so many threads inside; None leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_threads(config: TrainConfig, count: int | None, display: Display) -> None:
    """Go on computing on as many threads as a training began with, since they decide last bits.

    None is of a training by an earlier version, which stored no number.
    """
    if count is not None:
        torch.set_num_threads(count)
    say_if_other_threads(config, count, display)


def say_if_other_threads(config: TrainConfig, count: int | None, display: Display) -> None:
    """Say where a training has another number of threads than the one that is asked for."""
    if config.threads not in (None, count) and count is not None:
        display.say(
            f"{config.directory()} was begun with threads: {count}, which stays, since it decides "
            f"the last bits of weights; to have {config.threads}, choose another --out"
        )
