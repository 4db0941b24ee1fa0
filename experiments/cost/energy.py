"""Energy that the machine used, as the optional package ``zeus`` measures it (``deepens[energy]``).

Zeus reads the counters of the processor packages (RAPL) and of NVIDIA GPUs (NVML). They count all
that the package or the card does meanwhile, for whatever process, idling included; main memory,
disks, fans and the power supply's losses are not counted. Zeus follows the processor's counters in
a process of its own, so that a script must guard its entry point by ``if __name__ == "__main__":``.

Reference: You, Chung, Chowdhury (2023), Zeus, arXiv:2208.06102
"""

import importlib
import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .passes import ImageShape, batches_of, device_of, evaluating, wait_for

__all__ = ["EnergyMeter", "Monitor", "measure_energy", "monitor_for", "total_joules"]

ROUNDS = 3
"""Turns that each model takes when energies are measured."""

_windows = itertools.count()


@runtime_checkable
class Monitor(Protocol):
    """What is used of ``zeus.monitor.ZeusMonitor``."""

    def begin_window(self, key: str) -> None:
        """Start to measure under a name."""

    def end_window(self, key: str) -> Any:
        """Return joules by device: ``gpu_energy``, and ``cpu_energy`` or None."""


def monitor_for(device: torch.device, count: int = 1) -> Monitor | None:
    """Find what measures the energy of computing on a device, or on so many from it on.

    On a CPU that is a monitor of the processor packages, on a GPU of the card and, where they can
    be read, of the packages; None without zeus, or where the counters cannot be read.
    """
    if device.type not in ("cpu", "cuda"):
        return None
    first = device.index or 0
    gpus = list(range(first, first + count)) if device.type == "cuda" else []
    try:
        monitor: Any = importlib.import_module("zeus.monitor").ZeusMonitor(gpu_indices=gpus)
        readable = monitor.gpu_indices if gpus else monitor.cpu_indices
    except Exception:  # of many kinds: no package, no library, no permission, no such counter
        return None
    return monitor if readable else None


class EnergyMeter:
    """Measures the energy that the machine uses while the context lasts.

    Args:
        monitor: What measures; `monitor_for` finds it. None makes all energies unknown.

    Example:
        >>> from deepens.experiments.cost.energy import EnergyMeter
        >>> with EnergyMeter(None) as meter:
        ...     pass
        >>> meter.joules() is None
        True
    """

    def __init__(self, monitor: Monitor | None) -> None:
        self.monitor = monitor
        self._key = ""
        self._total: float | None = None

    def __enter__(self) -> "EnergyMeter":
        self._total = None if self.monitor is None else 0.0
        self._begin()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def joules(self) -> float | None:
        """The joules so far, or of the whole context once it is over; None where unknown."""
        if self._key:
            self._end()
            self._begin()
        return self._total

    def _begin(self) -> None:
        if self.monitor is not None and self._total is not None:
            self._key = f"deepens-{next(_windows)}"
            try:
                self.monitor.begin_window(self._key)
            except Exception:  # a counter that goes away must not stop a training
                self._key, self._total = "", None

    def _end(self) -> None:
        if self.monitor is None or not self._key:
            return
        key, self._key = self._key, ""
        try:
            measured = self.monitor.end_window(key)
            parts = (measured.gpu_energy, measured.cpu_energy)
            joules = sum(sum((part or {}).values()) for part in parts)
        except Exception:
            self._total = None
        else:
            self._total = None if self._total is None else self._total + joules


def total_joules(parts: Iterable[float | None]) -> float | None:
    """Add up joules, of which an unknown one makes the sum unknown.

    Example:
        >>> from deepens.experiments.cost.energy import total_joules
        >>> total_joules([1.5, 2.0]), total_joules([1.5, None])
        (3.5, None)
    """
    total: float | None = 0.0
    for part in parts:
        total = None if part is None or total is None else total + part
    return total


def measure_energy(
    models: Mapping[str, nn.Module],
    image_shape: ImageShape,
    *,
    batch_size: int,
    seconds: float = 1.0,
    images: Float[Tensor, "images channels height width"] | None = None,
    monitor: Monitor | None = None,
) -> dict[str, float | None]:
    """Measure the energy per image of several models.

    ``joules of all passes / (number of passes * batch_size)``

    Counters advance in steps of up to a tenth of a second, longer than many a pass. So passes are
    repeated for some time, while the models take turns, after a pass to warm up.

    Args:
        models: The models by name, all on one device.
        image_shape: Channels, height and width of an image.
        batch_size: Images in one pass, >= 1.
        seconds: Time for each model, about.
        images: At least a batch, as the models take them, or a ValueError; random when absent.
        monitor: What measures; that of the models' device when absent.

    Returns:
        Joules per image by name; None for all where nothing measures, and then no pass is made.
    """
    device = device_of(next(iter(models.values())))
    monitor = monitor or monitor_for(device)
    if monitor is None:
        return dict.fromkeys(models)
    batches = batches_of(images, batch_size, image_shape, device)
    used: dict[str, list[float | None]] = {name: [] for name in models}
    passes = dict.fromkeys(models, 0)
    with evaluating(models.values()), torch.inference_mode():
        for _ in range(ROUNDS):
            for name, model in models.items():
                model(batches[0])
                wait_for(device)
                with EnergyMeter(monitor) as meter:
                    end = time.perf_counter() + seconds / ROUNDS
                    while passes[name] == 0 or time.perf_counter() < end:
                        model(batches[passes[name] % len(batches)])
                        wait_for(device)
                        passes[name] += 1
                used[name].append(meter.joules())
    totals = ((name, total_joules(parts)) for name, parts in used.items())
    return {n: t if t is None else t / (passes[n] * batch_size) for n, t in totals}
