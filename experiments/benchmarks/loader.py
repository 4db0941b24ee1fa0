"""Images a second of the resident pipeline and of torchvision's per-image PIL transforms.

``python -m deepens.experiments.benchmarks.loader``: both hand out augmented, normalised float
batches of the same CIFAR-shaped images, and nothing is done with them. Torchvision's side is what
common training scripts do: decoded arrays in a ``Dataset``, PIL transforms on one image after the
other, a ``DataLoader`` with two workers that live from pass to pass, one thread each. Our side has
one thread in one process.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...datasets import (
    Augmentation,
    DataOptions,
    Pipeline,
    Split,
    TensorLoader,
    list_images,
    load,
    read_image,
)
from ..training.devices import threads
from .harness import Candidate, compare, setting, table, verdict, write

SIZE = (32, 32)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MOST_MEGABYTES = 200
LEAST_SPEEDUP = 8
WORKERS = 2
_MAGNITUDE = 9
_NAMES = {"basic": "crop, flip", "cutout": "crop, flip, cutout", "rand_augment": "RandAugment 2"}


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Args:
        images: CIFAR-shaped images of the set.
        passed: Images of torchvision's side in a round.
        batch_size: Images a batch.
        rounds: Rounds that count.
    """

    images: int = 50_000
    passed: int = 25_600
    batch_size: int = 128
    rounds: int = 5


def main(arguments: Sequence[str] | None = None) -> bool:
    """Measure, print and judge.

    Args:
        arguments: Of the command line.

    Returns:
        Whether every bound is kept.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=Work.rounds)
    parser.add_argument("--images", type=int, default=Work.images)
    parser.add_argument("--passed", type=int, default=Work.passed)
    parser.add_argument("--batch-size", type=int, default=Work.batch_size)
    parser.add_argument("--out", help="a JSON file for every round")
    given = parser.parse_args(arguments)
    work = Work(given.images, min(given.passed, given.images), given.batch_size, given.rounds)
    grown = resident_megabytes(work.images, work.batch_size)
    split, source = cifar_split(work.images)
    print(setting())
    print(f"{len(split)} images 32 x 32 x 3, {source}; batches of {work.batch_size}")
    print(f"torchvision: {WORKERS} worker processes of one thread; resident: one thread\n")
    rows: list[tuple[str, ...]]
    rows = [("", "torchvision", "resident", "times as fast (spread)")]
    measurements, lines = [], []
    for kind, name in _NAMES.items():
        found = compare(_candidates(kind, split, work), rounds=work.rounds)
        ours, theirs = found[f"resident, {kind}"], found[f"torchvision, {kind}"]
        measurements += [theirs, ours]
        rates = (1 / np.median(each.seconds) for each in (theirs, ours))
        rows.append((name, *(f"{rate:,.0f}/s" for rate in rates), str(ours.speedup)))
        if kind == "basic":
            claim = "images a second over torchvision's, crop and flip"
            lines.append(verdict(claim, ours.speedup.median, least=LEAST_SPEEDUP))
    print(table(rows))
    if grown is not None:
        bound = MOST_MEGABYTES * work.images / Work.images
        claim = f"MB of memory for {work.images:,} training images (and the test images), loaded"
        # Of a small set, the arrays are not what takes the memory.
        lines.append(verdict(claim, grown, most=max(bound, 50.0)))
    print("\n" + "\n".join(lines))
    write(given.out, measurements, megabytes=grown, source=source)
    return not any(line.endswith("BROKEN") for line in lines)


def cifar_split(images: int) -> tuple[Split, str]:
    """CIFAR-10's training images, or as many of their shape, stored channels-last.

    Args:
        images: How many.

    Returns:
        The split, and where it is from.
    """
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(10, (images,), generator=generator)
    pixels = torch.empty(images, *SIZE, 3, dtype=torch.uint8)
    root = os.environ.get("DEEPENS_DATA")
    if root is not None and (Path(root) / "cifar10" / "train").is_dir():
        files = list_images(Path(root) / "cifar10" / "train")
        for index in range(images):
            image = read_image(files[index % len(files)], channels=3, size=SIZE)
            pixels[index] = image.movedim(0, -1)
        return Split(pixels.movedim(-1, 1), targets), "those of CIFAR-10 in DEEPENS_DATA"
    for part in pixels.split(4096):
        part.random_(0, 256, generator=generator)
    return Split(pixels.movedim(-1, 1), targets), "generated, uniform noise"


def resident_megabytes(images: int, batch_size: int) -> float | None:
    """Memory that a fresh process takes from before the images to after the first batch.

    Args:
        images: How many.
        batch_size: Images a batch.

    Returns:
        Resident memory in 10^6 bytes; None where the system does not tell (not Linux).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_grown_megabytes, images, batch_size).result()


def _grown_megabytes(images: int, batch_size: int) -> float | None:
    torch.set_num_threads(1)
    # What the first use of anything takes is not the images'.
    _drained(our_loader("basic", cifar_split(batch_size)[0], batch_size))
    load("digits")
    before = _resident_bytes()
    root = os.environ.get("DEEPENS_DATA")
    if root is not None and images >= Work.images:
        # As a user loads it: decoded and cached, validation cut out, with the test images.
        options = DataOptions(f"folder:{root}/cifar10", corruptions=("none",))
        splits = load(options)
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


def _candidates(kind: str, split: Split, work: Work) -> list[Candidate]:
    theirs = torchvision_loader(kind, split, work)
    ours = our_loader(kind, split, work.batch_size)

    def measure_ours() -> float:
        with threads(1):
            ours.sampler.set_epoch(ours.sampler.epoch + 1)
            return _seconds_an_image(ours, work.batch_size)

    return [
        Candidate(f"torchvision, {kind}", lambda: _seconds_an_image(theirs, work.batch_size)),
        Candidate(f"resident, {kind}", measure_ours),
    ]


def our_loader(kind: str, split: Split, batch_size: int) -> TensorLoader:
    """Our loader of images in memory, with the augmentations of a kind."""
    kinds = {
        "basic": Augmentation(crop_padding=4, flip=True),
        "cutout": Augmentation(crop_padding=4, flip=True, cutout=16),
        "rand_augment": Augmentation(
            crop_padding=4, flip=True, rand_augment=2, magnitude=_MAGNITUDE
        ),
    }
    pipeline = Pipeline(MEAN, STD, kinds[kind], channels_last=True)
    return TensorLoader(split, batch_size=batch_size, seeds=[0], shared=False, pipeline=pipeline)


def torchvision_loader(kind: str, split: Split, work: Work) -> DataLoader[Any]:
    """Torch's loader with torchvision's transforms, with the same augmentations."""
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
    """Decoded images as torchvision's CIFAR10 holds them: one array, made PIL one by one."""

    def __init__(self, split: Split, images: int, transform: Callable[[Image.Image], Any]) -> None:
        self.data = cast(torch.Tensor, split.images)[:images].movedim(1, -1).numpy()
        self.targets = [] if split.targets is None else split.targets[:images].tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def _seconds_an_image(loader: Iterable[Any], batch_size: int) -> float:
    started = time.perf_counter()
    batches = _drained(loader)
    return (time.perf_counter() - started) / (batches * batch_size)


def _drained(loader: Iterable[Any]) -> int:
    return sum(1 for _ in loader)


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
