"""Throughput of the resident data pipeline and of torchvision's per-image PIL transforms.

``python -m deepens.experiments.benchmarks.loader``: both yield augmented, normalised float batches
of the same CIFAR-shaped images. Torchvision's side is what common training scripts do: decoded
arrays in a ``Dataset``, PIL transforms image by image, a ``DataLoader`` with two persistent workers
of one thread each. Our side has one thread in one process.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...datasets import Augmentation, DataOptions, Pipeline, Split, TensorLoader, load
from ..training.devices import threads
from . import harness
from .harness import MEAN, SIZE, STD, cifar_split

MOST_MEGABYTES = 200
LEAST_SPEEDUP = 8
WORKERS = 2
_MAGNITUDE = 9
_NAMES = {"basic": "crop, flip", "cutout": "crop, flip, cutout", "rand_augment": "RandAugment 2"}


@dataclass(frozen=True)
class Work(harness.Options):
    """What is measured."""

    images: int = harness.option(50_000, "CIFAR-shaped images in the set")
    passed: int = harness.option(25_600, "images per round of torchvision's side")
    batch_size: int = harness.option(128)


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    work = Work.parse(__doc__, arguments)
    grown = resident_megabytes(work.images, work.batch_size)
    split, source = cifar_split(work.images)
    print(harness.setting())
    print(f"{len(split)} images 32 x 32 x 3, {source}; batches of {work.batch_size}")
    print(f"torchvision: {WORKERS} worker processes of one thread; resident: one thread\n")
    rows = [("", "torchvision", "resident", "times as fast (spread)")]
    measurements, lines = [], []
    for kind, name in _NAMES.items():
        theirs, ours = harness.compare(_candidates(kind, split, work), rounds=work.rounds).values()
        measurements += [theirs, ours]
        rows.append((name, f"{theirs.rate:,.0f}/s", f"{ours.rate:,.0f}/s", str(ours.speedup)))
        if kind == "basic":
            claim = "images a second over torchvision's, crop and flip"
            lines.append(harness.verdict(claim, ours.speedup.median, least=LEAST_SPEEDUP))
    print(harness.table(rows) + "\n")
    if grown is not None:
        # Of a small set, most memory is not that of the images.
        bound = max(MOST_MEGABYTES * work.images / Work.images, 50.0)
        claim = f"MB of memory for {work.images:,} training images (and the test images), loaded"
        lines.append(harness.verdict(claim, grown, most=bound))
    return harness.conclude(lines, work.out, measurements, megabytes=grown, source=source)


def resident_megabytes(images: int, batch_size: int) -> float | None:
    """Resident memory, in 10^6 bytes, from before the images are loaded to after the first batch.

    It is measured in a fresh process; None where the system does not report it (not Linux).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_grown_megabytes, images, batch_size).result()


def _grown_megabytes(images: int, batch_size: int) -> float | None:
    torch.set_num_threads(1)
    # Memory of the first use of each function does not count.
    _drained(our_loader("basic", cifar_split(batch_size)[0], batch_size))
    load("digits")
    before = _resident_bytes()
    root = os.environ.get("DEEPENS_DATA")
    if root is not None and images >= Work.images:
        # As a user loads it: decoded and cached, a validation part split off, with test images.
        splits = load(DataOptions(f"folder:{root}/cifar10", corruptions=("none",)))
        split = splits["train"]
    else:
        split = cifar_split(images)[0]
    loader = our_loader("basic", split, batch_size)
    next(iter(loader))
    after = _resident_bytes()
    return None if before is None or after is None else (after - before) / 1e6


def _resident_bytes() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def _candidates(kind: str, split: Split, work: Work) -> list[harness.Candidate]:
    theirs = torchvision_loader(kind, split, work)
    ours = our_loader(kind, split, work.batch_size)
    pass_over_ours = _timed_pass(ours, work.batch_size)

    def measure_ours() -> float:
        with threads(1):
            ours.sampler.set_epoch(ours.sampler.epoch + 1)
            return pass_over_ours()

    return [
        harness.Candidate(f"torchvision, {kind}", _timed_pass(theirs, work.batch_size)),
        harness.Candidate(f"resident, {kind}", measure_ours),
    ]


def our_loader(kind: str, split: Split, batch_size: int) -> TensorLoader:
    """Our loader of images in memory, with the augmentations of a kind."""
    more: dict[str, Any] = {
        "basic": {},
        "cutout": {"cutout": 16},
        "rand_augment": {"rand_augment": 2, "magnitude": _MAGNITUDE},
    }[kind]
    augmentation = Augmentation(crop_padding=4, flip=True, **more)
    pipeline = Pipeline(MEAN, STD, augmentation, channels_last=True)
    return TensorLoader(split, batch_size=batch_size, seeds=[0], shared=False, pipeline=pipeline)


def torchvision_loader(kind: str, split: Split, work: Work) -> DataLoader[Any]:
    """Torch's loader with the same augmentations from torchvision's transforms."""
    from torchvision import transforms

    before = [transforms.RandomCrop(SIZE, padding=4), transforms.RandomHorizontalFlip()]
    after = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if kind == "rand_augment":
        before.append(transforms.RandAugment(2, _MAGNITUDE, num_magnitude_bins=11))
    if kind == "cutout":
        after.append(transforms.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)))
    return DataLoader(
        _Arrays(split, work.passed, transforms.Compose([*before, *after])),
        batch_size=work.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )


class _Arrays(Dataset[tuple[Any, int]]):
    """Decoded images as torchvision's CIFAR10 stores them, converted to PIL one by one."""

    def __init__(self, split: Split, images: int, transform: Callable[[Image.Image], Any]) -> None:
        self.data = cast(torch.Tensor, split.images)[:images].movedim(1, -1).numpy()
        self.targets = [] if split.targets is None else split.targets[:images].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def _timed_pass(loader: Any, batch_size: int) -> Callable[[], float]:
    return harness.timed(lambda: _drained(loader), units=len(loader) * batch_size)


def _drained(loader: Iterable[Any]) -> int:
    return sum(1 for _ in loader)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
