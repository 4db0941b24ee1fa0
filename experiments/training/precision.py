"""The floating-point precision of a training, measured where it is left to ``auto``."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets import Splits
from ...datasets.image_format import ImageFormat
from ...ensembles import DeepEnsemble, Ensemble
from ...ensembles.backbones.pointwise import to_channels_last
from ..config import CompareConfig, Recipe, TrainConfig
from ..store.progress import Display
from ..store.run import store_config
from .devices import compute_device, pipeline_for, suitable_threads, threads

Config = TypeVar("Config", TrainConfig, CompareConfig)

LEAST_GAIN = 0.1
"""Share of a step's time that bf16 must save to be taken."""

ROUNDS = 5
ENOUGH_SECONDS = 20.0
"""No round begins after so many seconds, but the first."""


def settle_precision(
    config: Config, make: Callable[[], Ensemble], splits: Splits, display: Display
) -> Config:
    """The recipe with ``precision: auto`` replaced by the faster one, kept in its directory.

    Call it where the directory is claimed, before anything is trained: a later session then finds
    the choice, and measures nothing.
    """
    if config.precision != "auto":
        return config
    config = choose_precision(config, make, splits, display)
    store_config(config.directory(), config)
    return config


def choose_precision(
    config: Config, make: Callable[[], Ensemble], splits: Splits, display: Display
) -> Config:
    """The recipe with ``precision: auto`` replaced by the one in which a training step is faster.

    A step of each is measured in turns, on a copy of what ``make`` returns and on images of its
    own, so that neither weights nor random streams of a run change. bf16-mixed is taken where the
    hardware has it and a step saves at least a tenth of its time.
    """
    if config.precision != "auto":
        return config
    images = min(config.batch_size, len(splits["train"]))
    seconds = measure_steps(config, make(), ImageFormat.of(splits), images)
    chosen = faster(seconds)
    took = " and in ".join(f"{name} {value:.3g} s" for name, value in seconds.items())
    why = f"a training step takes in {took}" if seconds else "bf16-mixed cannot be measured here"
    display.say(f"precision auto: {chosen}, since {why}")
    return dataclasses.replace(config, precision=chosen)


def faster(seconds: Mapping[str, float]) -> Literal["32", "bf16-mixed"]:
    """The precision to take, by the seconds of a step in each; 32 without any.

    Example:
        >>> from deepens.experiments.training.precision import faster
        >>> faster({"32": 1.0, "bf16-mixed": 0.5}), faster({"32": 1.0, "bf16-mixed": 0.95})
        ('bf16-mixed', '32')
    """
    if "bf16-mixed" not in seconds:
        return "32"
    return "bf16-mixed" if seconds["bf16-mixed"] <= (1 - LEAST_GAIN) * seconds["32"] else "32"


def measure_steps(
    config: Recipe, ensemble: Ensemble, image_format: ImageFormat, batch_size: int
) -> dict[str, float]:
    """Seconds of a training step in each precision; empty where bf16 cannot be trained here."""
    device = compute_device(config)
    if not has_bf16(device):
        return {}
    ensemble = copy.deepcopy(ensemble).to(device).train()
    if config.channels_last:
        to_channels_last(ensemble)
    # Independent networks are trained one after the other: one of them stands for all.
    alone = isinstance(ensemble, DeepEnsemble)
    members = list(range(1 if alone else config.members_at_once or ensemble.num_members))
    own = (len(members),) if config.batches == "own" else ()
    shape = (*own, batch_size, *image_format.shape)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    images = pipeline_for(config, image_format).normalized(pixels.to(device))
    steps = {
        name: lambda name=name: training_step(ensemble, images, name, members)
        for name in ("32", "bf16-mixed")
    }
    count = config.threads or suitable_threads(ensemble.member(0), image_format, batch_size)
    cuda = [device] if device.type == "cuda" else []
    with threads(count), torch.random.fork_rng(devices=cuda):
        try:
            return seconds_in_turns(steps)
        except (RuntimeError, NotImplementedError):  # a layer without bf16, or too little memory
            return {}


def seconds_in_turns(
    steps: Mapping[str, Callable[[], object]], *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of functions that are called in turns, after a call of each to warm up."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    began = clock()
    for number in range(ROUNDS):
        if number and clock() - began > ENOUGH_SECONDS:
            break
        for name, step in steps.items():
            started = clock()
            step()
            taken[name].append(clock() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def training_step(
    ensemble: Ensemble, images: Tensor, precision: str, members: list[int] | None = None
) -> None:
    """A forward and a backward pass of the cross-entropy, waited for; no weight changes."""
    targets = torch.zeros(images.shape[-4], dtype=torch.long, device=images.device)
    mixed = precision == "bf16-mixed"
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
        logits = ensemble(images, members)
    loss = torch.stack([F.cross_entropy(each.float(), targets) for each in logits]).sum()
    loss.backward()
    ensemble.zero_grad()
    loss.item()  # waits for a GPU


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 by itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(name in torch.backends.cpu.get_cpu_capability() for name in ("AVX512", "SVE"))
