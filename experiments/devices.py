"""Where a run computes, and how its images get there."""

import torch

from ..datasets import Augmentation, Pipeline
from .configuration import Recipe
from .methods import ImageFormat


def compute_device(config: Recipe) -> torch.device:
    """The device that ``--device`` means.

    Raises:
        ValueError: A GPU was asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no GPU; use auto or cpu")
    cuda = config.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if cuda else "cpu")


def pipeline_for(config: Recipe, form: ImageFormat) -> Pipeline:
    """How images become batches."""
    return Pipeline(
        mean=form.mean,
        std=form.std,
        augmentation=Augmentation(crop_padding=config.crop_padding, flip=config.flip),
        channels_last=config.channels_last,
        device=compute_device(config),
    )
