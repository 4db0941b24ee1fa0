"""What the benchmarks share: options, images, measurement in turns, tables and bounds."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets import Split, list_images, normalize, read_image
from ...datasets.image_format import ImageFormat
from ...ensembles.backbones import Network, build
from ..store.environment import describe_environment

SIZE = (32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = 10


def option(default: Any, help: str = "", **argument: Any) -> Any:
    """Declare a field of `Options`: its default and what ``add_argument`` takes besides."""
    return field(default=default, metadata={"help": help, **argument})


@dataclass(frozen=True)
class Options:
    """Command-line options that every benchmark has; subclasses add their own fields."""

    rounds: int = option(5, "measured rounds")
    out: str | None = option(None, "JSON file for the times of every round", type=str)

    @classmethod
    def parse(cls, description: str | None, arguments: Sequence[str] | None) -> Self:
        """Read the options: flags for booleans, several values for tuples, else one value."""
        parser = argparse.ArgumentParser(description=description)
        for each in fields(cls):
            default: Any = each.default
            action = dict(each.metadata)
            if isinstance(default, bool):
                action["action"] = "store_true"
            elif isinstance(default, tuple):
                action |= {"nargs": "+", "type": type(default[0])}
            elif default is not None:
                action["type"] = type(default)
            parser.add_argument(f"--{each.name.replace('_', '-')}", default=default, **action)
        given = vars(parser.parse_args(arguments))
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        return cls(**given)


@dataclass(frozen=True)
class ThreadedOptions(Options):
    """Options of a benchmark whose number of threads can be set."""

    threads: int | None = option(None, "threads of torch; its default when absent", type=int)


@dataclass(frozen=True)
class DeviceOptions(ThreadedOptions):
    """Options of a benchmark that computes on a GPU where there is one."""

    device: str | None = option(
        None, "a GPU where there is one when absent", type=str, choices=["cpu", "cuda"]
    )


@dataclass(frozen=True)
class Candidate:
    """What is measured: a name and a function that runs one round and returns seconds per unit."""

    name: str
    measure: Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of several numbers."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise one or more numbers."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


@dataclass(frozen=True)
class Measurement:
    """One candidate's seconds per unit and the baseline's, called ``over``, in the same rounds."""

    name: str
    seconds: tuple[float, ...]
    baseline: tuple[float, ...]
    over: str = ""

    @property
    def milliseconds(self) -> Spread:
        """Milliseconds per unit."""
        return Spread.of([1000 * seconds for seconds in self.seconds])

    @property
    def rate(self) -> float:
        """Median number of units per second."""
        return 1 / statistics.median(self.seconds)

    @property
    def slowdown(self) -> Spread:
        """The candidate's time over the baseline's of the same round."""
        return ratio(self.seconds, self.baseline)

    @property
    def speedup(self) -> Spread:
        """The baseline's time over the candidate's of the same round."""
        return ratio(self.baseline, self.seconds)


@dataclass(frozen=True)
class Outcome:
    """What a benchmark has found: times, and one line for each bound; true if all are kept."""

    measurements: list[Measurement]
    verdicts: list[str]

    def __bool__(self) -> bool:
        return not any(line.endswith("BROKEN") for line in self.verdicts)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Summarise the ratios of two candidates' times, round by round."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def timed(
    work: Callable[[], object],
    *,
    units: int = 1,
    repeats: int = 1,
    device: torch.device | None = None,
) -> Callable[[], float]:
    """Return a function that runs work several times and returns the seconds per unit."""

    def wait() -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)

    def measure() -> float:
        wait()
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
        return (time.perf_counter() - started) / (units * repeats)

    return measure


def compare(
    candidates: Sequence[Candidate], *, rounds: int, warmup: int = 1
) -> dict[str, Measurement]:
    """Measure candidates in turns, so that other load on the machine affects all of them alike.

    The first is the baseline; every other round runs backwards; warm-up rounds are discarded.

    Example:
        >>> from deepens.experiments.benchmarks.harness import Candidate, compare
        >>> slow, fast = Candidate("slow", lambda: 2.0), Candidate("fast", lambda: 0.5)
        >>> str(compare([slow, fast], rounds=3)["fast"].speedup)
        '4 (4 to 4)'
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"candidates must have one or more different names, got {names}")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be >= 1 and warmup >= 0, got {rounds} and {warmup}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warmup + rounds):
        for candidate in candidates if number % 2 == 0 else reversed(candidates):
            measured = candidate.measure()
            if number >= warmup:
                seconds[candidate.name].append(measured)
    baseline = tuple(seconds[names[0]])
    return {
        name: Measurement(name, tuple(seconds[name]), baseline, over=names[0]) for name in names
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows, the first being the heading: first column left-aligned, others right-aligned.

    Example:
        >>> from deepens.experiments.benchmarks.harness import table
        >>> print(table([("what", "ms"), ("a", "10")]))
        what  ms
        a     10
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def setting() -> str:
    """The hardware, the versions and the load of the machine, in one line."""
    environment = describe_environment()
    versions = ", ".join(
        f"{name} {environment['versions'][name]}"
        for name in ("python", "torch", "torchvision", "lightning")
        if name in environment["versions"]
    )
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{environment['processor']}, {os.cpu_count()} cores, "
        f"GPU {environment['gpu'] or 'none'}, load {load} before; {versions}"
    )


def verdict(
    claim: str, value: float, *, least: float | None = None, most: float | None = None
) -> str:
    """Return one line that states whether a value keeps its bounds.

    Example:
        >>> from deepens.experiments.benchmarks.harness import verdict
        >>> verdict("memory in MB", 150.0, most=200)
        'memory in MB: 150, at most 200: kept'
    """
    bounds, kept = [], True
    if least is not None:
        bounds.append(f"at least {least:g}")
        kept &= value >= least
    if most is not None:
        bounds.append(f"at most {most:g}")
        kept &= value <= most
    return f"{claim}: {value:.4g}, {', '.join(bounds)}: {'kept' if kept else 'BROKEN'}"


def conclude(
    verdicts: Sequence[str], out: str | None, measurements: Sequence[Measurement], **others: object
) -> Outcome:
    """Print the verdicts, write every round as JSON if asked, and return what was found."""
    print("\n".join(verdicts))
    if out is not None:
        content = {
            "environment": describe_environment(),
            "measurements": [asdict(each) for each in measurements],
            **others,
        }
        Path(out).write_text(json.dumps(content, indent=2) + "\n")
    return Outcome(list(measurements), list(verdicts))


def compute_device(name: str | None = None) -> torch.device:
    """The device of a name; a GPU where there is one without it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but torch sees no GPU; use cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def network(name: str, side: int = SIZE[0]) -> Network:
    """Build a network for ten classes of colour images."""
    return build(name, num_classes=CLASSES, channels=3, image_size=side)


def image_format(side: int = SIZE[0]) -> ImageFormat:
    """Ten classes of colour images, normalised as CIFAR-10 is."""
    return ImageFormat(tuple(map(str, range(CLASSES))), 3, (side, side), MEAN, STD)


def cifar_folder(part: str) -> Path | None:
    """The folder of CIFAR-10's train or test images in DEEPENS_DATA; None where there is none."""
    root = os.environ.get("DEEPENS_DATA")
    folder = Path(root or "") / "cifar10" / part
    return folder if root is not None and folder.is_dir() else None


def cifar_split(images: int) -> tuple[Split, str]:
    """Return training images of CIFAR-10, or noise of their shape, channels last, and the source.

    The labels are drawn at random.
    """
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(CLASSES, (images,), generator=generator)
    pixels = torch.empty(images, *SIZE, 3, dtype=torch.uint8)
    if (folder := cifar_folder("train")) is not None:
        files = list_images(folder)
        for index in range(images):
            image = read_image(files[index % len(files)], channels=3, size=SIZE)
            pixels[index] = image.movedim(0, -1)
        return Split(pixels.movedim(-1, 1), targets), "those of CIFAR-10 in DEEPENS_DATA"
    for part in pixels.split(4096):
        part.random_(0, 256, generator=generator)
    return Split(pixels.movedim(-1, 1), targets), "generated, uniform noise"


def cifar_batch(
    count: int, device: torch.device, side: int = SIZE[0]
) -> tuple[Tensor, Tensor, str]:
    """Return normalised images of `cifar_split`, resized to a side, their labels and the source."""
    split, source = cifar_split(count)
    images = normalize(cast(Tensor, split.images), mean=MEAN, std=STD)
    if side != images.shape[-1]:
        images = F.interpolate(images, size=(side, side), mode="bilinear")
    return images.to(device), cast(Tensor, split.targets).to(device), source
