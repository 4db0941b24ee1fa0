"""The memory that a forward pass needs, or any other piece of work."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .passes import ImageShape, check_image_shape, device_of, evaluating, random_images

__all__ = ["LiveStorages", "peak_memory"]


def peak_memory(model: nn.Module, image_shape: ImageShape, *, batch_size: int = 1) -> int:
    """Measure the memory that one forward pass needs at its peak.

    ``bytes(parameters and buffers) + max over time of bytes(live tensors)``

    Live tensors are the batch of images and what the pass computes from it; views share their
    storage. On a CUDA device the allocator's own peak is read after a warm-up pass, kernel
    workspaces and rounding included. Elsewhere a storage counts from its creation until it is
    freed; what a kernel allocates and frees within itself, rounding and Python are not seen.

    Args:
        model: Any module that takes images.
        image_shape: Channels, height and width of an image, each >= 1 or a ``ValueError``.
        batch_size: Images in the pass, >= 1 likewise.

    Returns:
        Bytes.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.memory import peak_memory
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
        >>> peak_memory(model, (1, 8, 8)) == 4 * (640 + 64 + 10)
        True
    """
    check_image_shape(image_shape)
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    device = device_of(model)
    state = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    with evaluating([model]), torch.no_grad():
        if device.type == "cuda":
            live = _allocator_peak(model, image_shape, batch_size, device)
        else:
            images = random_images(batch_size, image_shape, device)
            model(images[:1])  # what a model does at its first pass alone is no part of its cost
            with LiveStorages(known=state) as watch:
                watch.follow(images)
                model(images)
            live = watch.peak
    return sum(state.values()) + live


class LiveStorages(TorchDispatchMode):
    """Follow the storages that operations create, from their creation until they are freed.

    Args:
        known: Addresses of storages that exist already and are counted elsewhere.
    """

    def __init__(self, known: Iterable[int]) -> None:
        super().__init__()
        self.known, self.live = set(known), dict[int, int]()
        self.current = self.peak = 0

    def follow(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self.known and address not in self.live:
            self.live[address] = size
            self.current += size
            self.peak = max(self.peak, self.current)
            weakref.finalize(storage, self._release, address).atexit = False

    def _release(self, address: int) -> None:
        self.current -= self.live.pop(address)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return result


def _allocator_peak(
    model: nn.Module, image_shape: ImageShape, batch_size: int, device: torch.device
) -> int:
    """Return the most bytes that one pass adds to what was allocated before it."""
    # Libraries keep the workspace of their first call: it is no part of a pass.
    model(random_images(batch_size, image_shape, device))
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    images = random_images(batch_size, image_shape, device)
    torch.cuda.reset_peak_memory_stats(device)
    model(images)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
