"""What a model costs: multiply-accumulates, parameters, latency and memory, all together.

One code path for single networks and ensembles: a model is any module that takes images
``[batch, channels, height, width]``, whatever the shape of its logits. Every function leaves the
model as it found it: training modes, device, buffers and random generators.
"""

import math
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .macs import count_macs, count_parameters
from .passes import ImageShape, check_image_shape, device_of, evaluating, random_images

__all__ = [
    "Cost",
    "Latency",
    "measure_costs",
    "measure_latency",
    "peak_memory",
]

BATCH = 256
"""The batch size that stands for throughput."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image.

    Args:
        p50: The median over the repeated passes.
        p95: The 95th percentile.
    """

    p50: float
    p95: float


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Args:
        macs: Multiply-accumulates of one image.
        parameters: Number of parameters, shared ones counted once.
        latency_ms_batch1: Median milliseconds per image, one image at a time.
        latency_ms_batch256: Median milliseconds per image in batches of 256.
        peak_memory_bytes: Parameters, buffers and the largest sum of live tensors in one pass over
            256 images.
        training_seconds: Wall time of training, None if unknown.
        latency_ms_batch1_p95: The 95th percentile of the former, None if not measured.
        latency_ms_batch256_p95: The 95th percentile of the latter, None if not measured.
        device: Where latency and memory were measured.
    """

    macs: int
    parameters: int
    latency_ms_batch1: float
    latency_ms_batch256: float
    peak_memory_bytes: int
    training_seconds: float | None = None
    latency_ms_batch1_p95: float | None = None
    latency_ms_batch256_p95: float | None = None
    device: str = "unknown"


def measure_latency(
    models: Mapping[str, nn.Module],
    image_shape: ImageShape,
    *,
    batch_size: int = 1,
    repeats: int = 50,
    warmup: int = 3,
) -> dict[str, Latency]:
    """Time forward passes of several models in turn, in milliseconds per image.

    ``latency = seconds of one pass * 1000 / batch_size``

    The models take turns, each round beginning with the next one, so that a slow moment of the
    machine strikes all alike. Warm-up rounds go first; on a GPU, the clock starts and stops
    with an idle device. The images are random, the passes in evaluation and inference mode.

    Args:
        models: The models by name, all on one device.
        image_shape: Channels, height and width of an image.
        batch_size: Images in one pass.
        repeats: Timed passes of each model.
        warmup: Passes of each model before these.

    Returns:
        Each model's median and 95th percentile.

    Raises:
        ValueError: If there is no model, the models live on several devices, or a number is out
            of bounds.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost import measure_latency
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> latency = measure_latency({"linear": model}, (1, 8, 8), repeats=5)["linear"]
        >>> 0 < latency.p50 <= latency.p95
        True
    """
    check_image_shape(image_shape)
    for name, value, bound in (
        ("batch_size", batch_size, 1),
        ("repeats", repeats, 1),
        ("warmup", warmup, 0),
    ):
        if value < bound:
            raise ValueError(f"{name} must be >= {bound}, got {value}")
    if not models:
        raise ValueError("models must hold at least one model, got none")
    devices = {device_of(model) for model in models.values()}
    if len(devices) > 1:
        raise ValueError(f"models must be on one device, got {sorted(map(str, devices))}")
    device = devices.pop()
    images = random_images(batch_size, image_shape, device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    with evaluating(models.values()), torch.inference_mode():
        for turn in range(warmup + repeats):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                elapsed = _time_one_pass(models[name], images, device)
                if turn >= warmup:
                    seconds[name].append(elapsed)
    return {
        name: Latency(
            p50=_quantile(times, 0.5) * 1000 / batch_size,
            p95=_quantile(times, 0.95) * 1000 / batch_size,
        )
        for name, times in seconds.items()
    }


def peak_memory(model: nn.Module, image_shape: ImageShape, *, batch_size: int = 1) -> int:
    """Measure the memory that one forward pass needs at its peak.

    ``bytes(parameters and buffers) + max over time of bytes(live tensors)``

    Live tensors are the batch of images and what the pass computes from it; views share their
    storage, and in-place operations add nothing. On a CUDA device the allocator's own peak is
    read after a warm-up pass, kernel workspaces and rounding included. Elsewhere every operation
    is watched, and a storage counts from its creation until it is freed; what a kernel allocates
    and frees within itself (unfolded images, packed weights), the allocator's rounding and Python
    are not seen.

    Args:
        model: Any module that takes images.
        image_shape: Channels, height and width of an image.
        batch_size: Images in the pass.

    Returns:
        The number of bytes.

    Raises:
        ValueError: If ``batch_size`` < 1 or ``image_shape`` is not made of three sizes >= 1.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost import peak_memory
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
            with _LiveStorages(known=state) as watch:
                watch.follow(images)
                model(images)
            live = watch.peak
    return sum(state.values()) + live


def measure_costs(
    models: Mapping[str, nn.Module],
    image_shape: ImageShape,
    *,
    repeats: int = 50,
    batch_repeats: int = 10,
    training_seconds: Mapping[str, float] | None = None,
) -> dict[str, Cost]:
    """Measure every cost of several models, single networks and ensembles alike.

    Args:
        models: The models by name, all on one device.
        image_shape: Channels, height and width of an image.
        repeats: Timed passes of each model over one image.
        batch_repeats: Timed passes of each model over 256 images.
        training_seconds: Wall time of training by name, where known.

    Returns:
        Each model's cost.

    Raises:
        ValueError: As :func:`measure_latency` does.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost import measure_costs
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> cost = measure_costs({"linear": model}, (1, 8, 8), repeats=3, batch_repeats=3)["linear"]
        >>> cost.macs, cost.parameters, cost.device
        (640, 650, 'cpu')
    """
    single = measure_latency(models, image_shape, batch_size=1, repeats=repeats)
    batch = measure_latency(models, image_shape, batch_size=BATCH, repeats=batch_repeats)
    return {
        name: Cost(
            macs=count_macs(model, image_shape),
            parameters=count_parameters(model),
            latency_ms_batch1=single[name].p50,
            latency_ms_batch256=batch[name].p50,
            peak_memory_bytes=peak_memory(model, image_shape, batch_size=BATCH),
            training_seconds=(training_seconds or {}).get(name),
            latency_ms_batch1_p95=single[name].p95,
            latency_ms_batch256_p95=batch[name].p95,
            device=_describe(device_of(model)),
        )
        for name, model in models.items()
    }


class _LiveStorages(TorchDispatchMode):
    """Follow the storages that operations create, from their creation until they are freed.

    Args:
        known: Addresses of storages that exist already and are counted elsewhere.
    """

    def __init__(self, known: Iterable[int]) -> None:
        super().__init__()
        self.known = set(known)
        self.live: dict[int, int] = {}
        self.current = 0
        self.peak = 0

    def follow(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or address in self.known or address in self.live:
            return
        self.live[address] = size
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._release, address).atexit = False

    def _release(self, address: int) -> None:
        self.current -= self.live.pop(address)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
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


def _time_one_pass(model: nn.Module, images: Tensor, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    model(images)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _quantile(values: list[float], level: float) -> float:
    """Return the quantile, interpolated linearly between order statistics."""
    ordered = sorted(values)
    place = level * (len(ordered) - 1)
    below, share = math.floor(place), place % 1
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] * (1 - share) + ordered[above] * share


def _describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
