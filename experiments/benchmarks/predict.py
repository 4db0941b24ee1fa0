"""Throughput of streamed prediction and of reading and computing in turns.

``python -m deepens.experiments.benchmarks.predict``: both read the same files, run the same
network on the same batches and write the same table. In turns, one thread reads a batch before it
goes through the network; streamed, threads read ahead meanwhile. The files are the test images of
CIFAR-10 in DEEPENS_DATA, or generated JPEG files of their size, and generated JPEG files of a
photograph's size. The network has untrained weights, which does not affect the cost.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ...datasets.image_files import iterate_images
from ..config import TrainConfig
from ..evaluation.answers import COLUMNS, Answer, Read
from ..evaluation.predict import batch_size, read, read_batches
from ..evaluation.table_writer import open_table
from ..training.building import build_ensemble
from ..training.devices import threads
from . import harness

LEAST_SPEEDUP = 1.0
PHOTOGRAPH = (375, 500)
SIDES = {"small": 32, "photographs": 64}


@dataclass(frozen=True)
class Work(harness.Options):
    """What is measured."""

    images: int = harness.option(4096, "small files per round")
    photographs: int = harness.option(1024, "large files per round")
    rounds: int = harness.option(7)
    members: int = harness.option(1)
    width: float = harness.option(0.25, "multiplier on the network's widths")


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    work = Work.parse(__doc__, arguments)
    print(harness.setting())
    print(f"resnet8 of width {work.width:g}, {work.members} members, untrained weights\n")
    rows = [("", "in turns", "streamed", "times as fast (spread)")]
    measurements, lines = [], []
    with TemporaryDirectory() as place:
        for kind, side in SIDES.items():
            name, paths = write_images(kind, work, Path(place))
            candidates = make_candidates(name, paths, make_answer(work, side), Path(place))
            turns, streamed = harness.compare(candidates, rounds=work.rounds).values()
            measurements += [turns, streamed]
            rates = (f"{turns.rate:,.0f}/s", f"{streamed.rate:,.0f}/s")
            rows.append((name, *rates, str(streamed.speedup)))
            claim = f"images a second over those in turns, {name}"
            lines.append(harness.verdict(claim, streamed.speedup.median, least=LEAST_SPEEDUP))
    print(harness.table(rows) + "\n")
    return harness.conclude(lines, work.out, measurements)


def write_images(kind: str, work: Work, place: Path) -> tuple[str, list[Path]]:
    """Return a description of the files to read, and the files."""
    if kind == "small" and (folder := harness.cifar_folder("test")) is not None:
        paths = list(islice(iterate_images(folder), work.images))
        return f"{len(paths)} files of CIFAR-10", paths
    count = work.images if kind == "small" else work.photographs
    height, width = harness.SIZE if kind == "small" else PHOTOGRAPH
    generator = np.random.default_rng(0)
    (place / kind).mkdir()
    for index in range(count):
        # Enlarged noise: as smooth as a photograph, and no two alike.
        shape = (max(2, height // 8), max(2, width // 8), 3)
        noise = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        image.save(place / kind / f"{index:06}.jpg", quality=90)
    name = f"{count} generated files of {width} x {height}"
    return name, list(iterate_images(place / kind))


def make_answer(work: Work, side: int) -> Answer:
    """The predictions of an untrained ensemble for images of a side."""
    config = TrainConfig(backbone="resnet8", width=work.width, members=work.members, quiet=True)
    image_format = harness.image_format(side)
    return Answer.by(build_ensemble(config, image_format).eval(), image_format, config)


def make_candidates(
    name: str, paths: list[Path], answer: Answer, place: Path
) -> list[harness.Candidate]:
    """Reading and predicting in turns, and predicting while the next images are read."""

    def in_turns() -> Iterator[list[Read]]:
        size = batch_size(answer.image_format)
        for start in range(0, len(paths), size):
            part = paths[start : start + size]
            yield [(path, read(path, image_format=answer.image_format)) for path in part]

    def timed(source: Callable[[], Iterator[list[Read]]], out: Path) -> Callable[[], float]:
        def work() -> None:
            with threads(answer.threads), open_table(out, COLUMNS) as append:
                for rows in answer.rows(source()):
                    append(rows)

        return harness.timed(work, units=len(paths))

    streamed = timed(lambda: read_batches(paths, answer.image_format), place / "streamed.csv")
    return [
        harness.Candidate(f"in turns, {name}", timed(in_turns, place / "in-turns.csv")),
        harness.Candidate(f"streamed, {name}", streamed),
    ]


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
