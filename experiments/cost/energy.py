"""Energy that the machine used, read from its counters where they can be read.

Two kinds of counters: those of the processor packages, by Linux's powercap interface (RAPL), and
an NVIDIA GPU's own, by NVML where the package ``pynvml`` is installed. Both count all that the
package or the card does, whatever process asked for it, and go on when it idles: a figure is what
the machine used meanwhile, not what one process did. Main memory, disks, fans and the power
supply's losses are not counted.
"""

import importlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .passes import ImageShape, batches_of, device_of, evaluating, wait_for

__all__ = [
    "Counter",
    "EnergyMeter",
    "counters_for",
    "gpu_counter",
    "measure_energy",
    "package_counters",
    "total_joules",
]

POWERCAP = Path("/sys/class/powercap")
POLL_SECONDS = 30.0
"""Time between two readings. A counter of 2^32 steps of 15 uJ, the finest of common processors,
wraps after two minutes even at 500 W; more than one wrap between two readings could not be seen."""

ROUNDS = 3
"""Turns that each model takes when energies are measured."""


@dataclass(frozen=True)
class Counter:
    """A counter of energy that only grows, but for wrapping around.

    Attributes:
        name: What it counts.
        read: Gives joules since some moment in the past.
        range: Joules at which it starts again from 0; None if it never does.
    """

    name: str
    read: Callable[[], float]
    range: float | None = None


def package_counters(folder: Path = POWERCAP) -> tuple[Counter, ...]:
    """Find the energy counters of the processor packages.

    Domains within a package (its cores, its memory controller) are part of it or beside it and are
    left out, as is the counter of a whole platform (``psys``), which holds the packages.

    Args:
        folder: Of the powercap interface.

    Returns:
        One counter a package. None at all where there is no such interface, or where one of the
        packages cannot be read, which most systems leave to administrators.
    """
    found = []
    try:
        for domain in sorted(folder.glob("intel-rapl:*")):
            name = (domain / "name").read_text().strip()
            if domain.name.count(":") > 1 or not name.startswith("package"):
                continue
            most = int((domain / "max_energy_range_uj").read_text()) / 1e6
            counter = Counter(name, _reader(domain / "energy_uj"), most)
            counter.read()
            found.append(counter)
    except (OSError, ValueError):
        return ()
    return tuple(found)


def _reader(file: Path) -> Callable[[], float]:
    return lambda: int(file.read_text()) / 1e6


def gpu_counter(device: torch.device) -> Counter | None:
    """Find the energy counter of an NVIDIA GPU.

    Args:
        device: The GPU, as torch knows it.

    Returns:
        Its counter; None where ``pynvml`` is not installed, or the GPU has no such counter (cards
        before Volta, and parts of a card).
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        # By its identity: NVML's numbers and torch's need not agree.
        identity = str(torch.cuda.get_device_properties(device).uuid)
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity.removeprefix('GPU-')}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # of many kinds: no package, no library, no rights, no such counter
        return None
    name = torch.cuda.get_device_name(device)
    return Counter(name, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)


def counters_for(device: torch.device) -> tuple[Counter, ...]:
    """Find the counters of what computes on a device.

    Args:
        device: Where tensors are.

    Returns:
        On a CPU those of the processor packages. On a GPU its own, with the packages' where they
        can be read; none without its own, since what is left would say little. None elsewhere.
    """
    if device.type == "cpu":
        return package_counters()
    own = gpu_counter(device) if device.type == "cuda" else None
    return () if own is None else (own, *package_counters())


class EnergyMeter:
    """Measures the energy that the machine uses while the context lasts.

    ``joules = sum over counters and readings of (now - before, + range where it wrapped around)``

    A thread reads the counters now and then, so that no wrap is missed; without counters there is
    no thread. See the module for what is counted.

    Args:
        counters: What is read; :func:`counters_for` finds them.
        interval: Seconds between two readings.

    Example:
        >>> from deepens.experiments.cost.energy import Counter, EnergyMeter
        >>> readings = iter([10.0, 90.0, 20.0])
        >>> with EnergyMeter([Counter("package-0", lambda: next(readings), 100.0)]) as meter:
        ...     first = meter.joules()  # 90 - 10
        >>> first, meter.joules()  # and 100 - 90 + 20
        (80.0, 110.0)
    """

    def __init__(self, counters: Sequence[Counter], *, interval: float = POLL_SECONDS) -> None:
        self.counters, self.interval = tuple(counters), interval
        self._total: float | None = 0.0 if self.counters else None
        self._before: list[float] = []
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "EnergyMeter":
        self._total, self._before = (0.0 if self.counters else None), []
        self._over.clear()
        self._read()
        if self._total is not None:
            self._thread = threading.Thread(target=self._poll, name="energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._read()
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def joules(self) -> float | None:
        """The energy so far, or of the whole context once it is over; None if it is unknown.

        It is unknown where nothing can be read, or could not once in between.
        """
        if not self._over.is_set():
            self._read()
        return self._total

    def _poll(self) -> None:
        while not self._over.wait(self.interval):
            self._read()

    def _read(self) -> None:
        with self._lock:
            if self._total is None or self._over.is_set():
                return
            try:
                now = [counter.read() for counter in self.counters]
            except Exception:  # a counter that goes away takes no training down
                self._total = None
                return
            for counter, before, after in zip(self.counters, self._before, now, strict=False):
                if after < before:
                    if counter.range is None:  # it was reset: what it had counted is lost
                        self._total = None
                        return
                    after += counter.range
                self._total += after - before
            self._before = now


def total_joules(parts: Iterable[float | None]) -> float | None:
    """Add up energies, of which an unknown one makes the sum unknown.

    Args:
        parts: Joules, None where unknown.

    Returns:
        Their sum, or None.

    Example:
        >>> from deepens.experiments.cost.energy import total_joules
        >>> total_joules([1.5, 2.0]), total_joules([1.5, None])
        (3.5, None)
    """
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


def measure_energy(
    models: Mapping[str, nn.Module],
    image_shape: ImageShape,
    *,
    batch_size: int,
    seconds: float = 1.0,
    images: Float[Tensor, "images channels height width"] | None = None,
    counters: Sequence[Counter] | None = None,
) -> dict[str, float | None]:
    """Measure the energy that the machine uses for an image, by each of several models.

    ``joules of all passes / (number of passes * batch_size)``

    Counters move on in steps of a millisecond or of a tenth of a second, longer than many a pass.
    So passes are made for some time on end, while the models take turns, after a pass to warm up.

    Args:
        models: The models by name, all on one device.
        image_shape: Channels, height and width of an image.
        batch_size: Images in one pass, >= 1.
        seconds: Time for each model, about.
        images: At least a batch, as the models take them; random ones when absent.
        counters: What is read; those of the models' device when absent.

    Returns:
        Joules an image by name; None for all where nothing can be read, and then no pass is made.

    Raises:
        ValueError: If the images are too few or of another shape.
    """
    device = device_of(next(iter(models.values())))
    counters = counters_for(device) if counters is None else counters
    if not counters:
        return dict.fromkeys(models)
    batches = batches_of(images, batch_size, image_shape, device)
    used: dict[str, list[float | None]] = {name: [] for name in models}
    seen = dict.fromkeys(models, 0)
    with evaluating(models.values()), torch.inference_mode():
        for _ in range(ROUNDS):
            for name, model in models.items():
                model(batches[0])
                wait_for(device)
                with EnergyMeter(counters) as meter:
                    end = time.perf_counter() + seconds / ROUNDS
                    while seen[name] == 0 or time.perf_counter() < end:
                        model(batches[seen[name] % len(batches)])
                        wait_for(device)
                        seen[name] += 1
                used[name].append(meter.joules())
    totals = {name: total_joules(parts) for name, parts in used.items()}
    return {
        name: None if total is None else total / (seen[name] * batch_size)
        for name, total in totals.items()
    }
