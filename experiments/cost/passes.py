"""Forward passes to measure: their images, their mode, and where they run."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

ImageShape = tuple[int, int, int]
"""Channels, height and width."""


def check_image_shape(image_shape: ImageShape) -> None:
    """Refuse what is not the shape of an image."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"image_shape must be three sizes >= 1 (channels, height, width), got {image_shape}"
        )


def device_of(model: nn.Module) -> torch.device:
    """Return where the model lives, by its first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def random_images(
    batch_size: int, image_shape: ImageShape, device: torch.device
) -> Float[Tensor, "batch channels height width"]:
    """Draw images from a fixed seed."""
    # A generator of its own: measuring must not move the experiment's random numbers.
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, *image_shape, generator=generator).to(device)


def batches_of(
    images: Float[Tensor, "images channels height width"] | None,
    batch_size: int,
    image_shape: ImageShape,
    device: torch.device,
) -> Sequence[Float[Tensor, "batch channels height width"]]:
    """Return the whole batches that images make, in turn; one of random images without any.

    Raises:
        ValueError: If the images are of another shape, or make no whole batch.
    """
    if images is None:
        return [random_images(batch_size, image_shape, device)]
    if tuple(images.shape[1:]) != tuple(image_shape) or len(images) < batch_size:
        raise ValueError(
            f"images must be >= {batch_size} of shape {tuple(image_shape)}, got {len(images)} of "
            f"shape {tuple(images.shape[1:])}; take more, or leave images out for random ones"
        )
    return images[: len(images) // batch_size * batch_size].to(device).split(batch_size)


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Put the models into evaluation mode, and every part back into its own mode afterwards."""
    models = list(models)
    modes = [(part, part.training) for model in models for part in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
