"""What a model costs: multiply-accumulates, parameters, latency and memory, all together.

A model is any module that takes images ``[batch, channels, height, width]``. Every function leaves
it as it was: training modes, device, buffers and random generators.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..store.progress import Display
from .energy import measure_energy
from .macs import count_macs, count_parameters
from .memory import peak_memory
from .passes import ImageShape, batches_of, check_image_shape, device_of, evaluating, wait_for

__all__ = ["Cost", "Latency", "measure_costs", "measure_latency", "peak_memory"]

BATCH = 256
"""The batch size that stands for throughput."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image: median, 95th percentile and mean over the repeated passes."""

    p50: float
    p95: float
    mean: float


@dataclass(frozen=True)
class Cost:
    """What one model costs.

    Args:
        macs: Multiply-accumulates of one image.
        parameters: Number of parameters, shared ones counted once.
        latency_ms_batch1: Median milliseconds per image, one image at a time; of a cascade the
            mean, since its median ignores the images that reach later stages.
        latency_ms_batch256: Median milliseconds per image in batches of 256.
        peak_memory_bytes: Parameters, buffers and the largest sum of live tensors in one pass over
            256 images.
        training_seconds: Wall time of training, None if unknown.
        latency_ms_batch1_p95: The 95th percentile of the former, None if not measured.
        latency_ms_batch256_p95: The 95th percentile of the latter, None if not measured.
        device: Where latency and memory were measured.
        training_joules: Energy that the machine used in training, None if unknown.
        joules_per_image: Energy per image in batches of 256, None if unknown.
        training_macs: Multiply-accumulates of training, None if not counted.
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
    training_joules: float | None = None
    joules_per_image: float | None = None
    training_macs: int | None = None


def measure_latency(
    models: Mapping[str, nn.Module],
    image_shape: ImageShape,
    *,
    batch_size: int = 1,
    repeats: int = 50,
    warmup: int = 3,
    images: Float[Tensor, "images channels height width"] | None = None,
    after_turn: Callable[[], object] = lambda: None,
) -> dict[str, Latency]:
    """Time forward passes of several models in turn, in milliseconds per image.

    ``latency = seconds of one pass * 1000 / batch_size``

    The models take turns, each round beginning with the next one, so that a slow moment of the
    machine affects all alike. On a GPU, the clock starts and stops with an idle device. The passes
    are in evaluation and inference mode.

    Args:
        models: The models by name, all on one device.
        image_shape: Channels, height and width of an image.
        batch_size: Images in one pass.
        repeats: Timed passes of each model.
        warmup: Passes of each model before these.
        images: At least a batch, as the models take them, for models that do more for some, such as
            cascades; each round takes the next batch. Random ones when absent.
        after_turn: Is called when each model has made a pass, while no clock runs.

    Raises:
        ValueError: If there is no model, the models live on several devices, a number is out of
            bounds, or the images are too few or of another shape.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.measurement import measure_latency
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> latency = measure_latency({"linear": model}, (1, 8, 8), repeats=5)["linear"]
        >>> 0 < latency.p50 <= latency.p95
        True
    """
    check_image_shape(image_shape)
    bounds = {"batch_size": (batch_size, 1), "repeats": (repeats, 1), "warmup": (warmup, 0)}
    for name, (value, bound) in bounds.items():
        if value < bound:
            raise ValueError(f"{name} must be >= {bound}, got {value}")
    if not models:
        raise ValueError("models must hold at least one model, got none")
    devices = {device_of(model) for model in models.values()}
    if len(devices) > 1:
        raise ValueError(f"models must be on one device, got {sorted(map(str, devices))}")
    device = devices.pop()
    batches = batches_of(images, batch_size, image_shape, device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    with evaluating(models.values()), torch.inference_mode():
        for turn in range(warmup + repeats):
            first = turn % len(names)
            batch = batches[(turn - warmup) % len(batches)]
            for name in names[first:] + names[:first]:
                wait_for(device)
                start = time.perf_counter()
                models[name](batch)
                wait_for(device)
                if turn >= warmup:
                    seconds[name].append(time.perf_counter() - start)
            after_turn()
    latencies = {}
    for name, times in seconds.items():
        per_image = np.array(times) * 1000 / batch_size
        p50, p95 = np.quantile(per_image, (0.5, 0.95)).tolist()
        latencies[name] = Latency(p50, p95, float(per_image.mean()))
    return latencies


def measure_costs(
    models: Mapping[str, nn.Module],
    image_shape: ImageShape,
    *,
    repeats: int = 50,
    batch_repeats: int = 10,
    training_seconds: Mapping[str, float] | None = None,
    training_joules: Mapping[str, float | None] | None = None,
    images: Float[Tensor, "images channels height width"] | None = None,
    varying: Collection[str] = (),
    display: Display | None = None,
) -> dict[str, Cost]:
    """Measure every cost of several models but that of training.

    Args:
        models: The models by name, all on one device.
        image_shape: Channels, height and width of an image.
        repeats: Timed passes of each model over one image.
        batch_repeats: Timed passes of each model over 256 images.
        training_seconds: Wall time of training by name, where known.
        training_joules: Energy of training by name, where known.
        images: What latency and energy are measured on, as the models take them, at least one;
            fewer than 256 are repeated to a batch. Random ones when absent.
        varying: Models that do more for some images: their latency is the mean over images.
        display: Where progress is shown; nowhere by default.

    Raises:
        ValueError: As :func:`measure_latency` does.

    Example:
        >>> from torch import nn
        >>> from deepens.experiments.cost.measurement import measure_costs
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> cost = measure_costs({"linear": model}, (1, 8, 8), repeats=3, batch_repeats=3)["linear"]
        >>> cost.macs, cost.parameters, cost.device
        (640, 650, 'cpu')
    """
    display, device = display or Display(quiet=True), device_of(next(iter(models.values())))
    few = images
    if images is not None and len(images) < BATCH:
        images = images[torch.arange(BATCH) % len(images)]
    warmup = 3
    total = 1 + (warmup + batch_repeats) + 1 + len(models)
    with display.task("measure costs", total, still=True) as task:
        single = measure_latency(models, image_shape, batch_size=1, repeats=repeats, images=few)
        task.advance("latency")
        batch = measure_latency(
            models,
            image_shape,
            batch_size=BATCH,
            repeats=batch_repeats,
            warmup=warmup,
            images=images,
            after_turn=lambda: task.advance("latency"),
        )
        joules = measure_energy(models, image_shape, batch_size=BATCH, images=images)
        task.advance("energy")
        found: dict[str, Cost] = {}
        for name, model in models.items():
            found[name] = Cost(
                macs=count_macs(model, image_shape),
                parameters=count_parameters(model),
                latency_ms_batch1=single[name].mean if name in varying else single[name].p50,
                latency_ms_batch256=batch[name].mean if name in varying else batch[name].p50,
                peak_memory_bytes=peak_memory(model, image_shape, batch_size=BATCH),
                training_seconds=(training_seconds or {}).get(name),
                latency_ms_batch1_p95=single[name].p95,
                latency_ms_batch256_p95=batch[name].p95,
                device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
                training_joules=(training_joules or {}).get(name),
                joules_per_image=joules[name],
            )
            task.advance(name)
    return found
