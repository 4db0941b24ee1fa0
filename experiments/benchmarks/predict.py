"""Images a second of the streamed prediction and of reading and computing in turns.

``python -m deepens.experiments.benchmarks.predict``: both read the same files, run the same
network on the same batches and write the same table. In turns, a batch is read by one thread and
then goes through the network; streamed, threads read ahead meanwhile. The files are the test
images of CIFAR-10 in DEEPENS_DATA, or generated JPEG files of their size, and generated JPEG files
of a photograph's size. The network has untrained weights, which costs the same as trained ones.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ...datasets.image_files import iterate_images
from ...datasets.image_format import ImageFormat
from ..config import TrainConfig
from ..evaluation.answers import COLUMNS, Answer, Read
from ..evaluation.predict import batch_size, read, read_batches
from ..evaluation.table_writer import open_table
from ..training.building import build_ensemble
from ..training.devices import threads
from .harness import Candidate, compare, setting, table, verdict, write

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
LEAST_SPEEDUP = 1.0
PHOTOGRAPH = (375, 500)
SIDES = {"small": 32, "photographs": 64}


@dataclass(frozen=True)
class Work:
    """How much is measured.

    Args:
        images: Small files of a round.
        photographs: Large files of a round.
        rounds: Rounds that count.
        members: Members of the ensemble.
        width: Multiplier on the network's widths.
    """

    images: int = 4096
    photographs: int = 1024
    rounds: int = 7
    members: int = 1
    width: float = 0.25


def main(arguments: Sequence[str] | None = None) -> bool:
    """Measure, print and judge.

    Args:
        arguments: Of the command line.

    Returns:
        Whether streaming is nowhere slower.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=Work.images)
    parser.add_argument("--photographs", type=int, default=Work.photographs)
    parser.add_argument("--rounds", type=int, default=Work.rounds)
    parser.add_argument("--members", type=int, default=Work.members)
    parser.add_argument("--width", type=float, default=Work.width)
    parser.add_argument("--out", help="a JSON file for every round")
    given = parser.parse_args(arguments)
    work = Work(given.images, given.photographs, given.rounds, given.members, given.width)
    print(setting())
    print(f"resnet8 of width {work.width:g}, {work.members} members, untrained weights\n")
    rows: list[tuple[str, ...]] = [("", "in turns", "streamed", "times as fast (spread)")]
    measurements, lines = [], []
    with TemporaryDirectory() as place:
        for kind, side in SIDES.items():
            name, paths = write_images(kind, work, Path(place))
            found = compare(
                make_candidates(name, paths, make_answer(work, side), Path(place)),
                rounds=work.rounds,
            )
            turns, streamed = found[f"in turns, {name}"], found[f"streamed, {name}"]
            measurements += [turns, streamed]
            rates = (1 / statistics.median(each.seconds) for each in (turns, streamed))
            rows.append((name, *(f"{rate:,.0f}/s" for rate in rates), str(streamed.speedup)))
            claim = f"images a second over those in turns, {name}"
            lines.append(verdict(claim, streamed.speedup.median, least=LEAST_SPEEDUP))
    print(table(rows) + "\n\n" + "\n".join(lines))
    write(given.out, measurements)
    return not any(line.endswith("BROKEN") for line in lines)


def write_images(kind: str, work: Work, place: Path) -> tuple[str, list[Path]]:
    """What is read, in words, and the files."""
    root = os.environ.get("DEEPENS_DATA")
    real = Path(root or "nowhere") / "cifar10" / "test"
    if kind == "small" and real.is_dir():
        paths = [path for path, _ in zip(iterate_images(real), range(work.images), strict=False)]
        return f"{len(paths)} files of CIFAR-10", paths
    count = work.images if kind == "small" else work.photographs
    height, width = (32, 32) if kind == "small" else PHOTOGRAPH
    generator = np.random.default_rng(0)
    (place / kind).mkdir()
    for index in range(count):
        # Noise of few pixels, enlarged: as smooth as a photograph, and no two alike.
        shape = (max(2, height // 8), max(2, width // 8), 3)
        noise = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        image.save(place / kind / f"{index:06}.jpg", quality=90)
    name = f"{count} generated files of {width} x {height}"
    return name, list(iterate_images(place / kind))


def make_answer(work: Work, side: int) -> Answer:
    """What an untrained ensemble answers about images of a size."""
    config = TrainConfig(backbone="resnet8", width=work.width, members=work.members, quiet=True)
    image_format = ImageFormat(tuple(map(str, range(10))), 3, (side, side), MEAN, STD)
    return Answer.by(build_ensemble(config, image_format).eval(), image_format, config)


def make_candidates(name: str, paths: list[Path], answer: Answer, place: Path) -> list[Candidate]:
    """Reading and answering in turns, and answering while the next images are read."""

    def in_turns() -> Iterator[list[Read]]:
        size = batch_size(answer.image_format)
        for start in range(0, len(paths), size):
            yield [
                (path, read(path, image_format=answer.image_format))
                for path in paths[start : start + size]
            ]

    def timed(source: Callable[[], Iterator[list[Read]]], out: Path) -> Callable[[], float]:
        def measure() -> float:
            started = time.perf_counter()
            with threads(answer.threads), open_table(out, COLUMNS) as append:
                for rows in answer.rows(source()):
                    append(rows)
            return (time.perf_counter() - started) / len(paths)

        return measure

    return [
        Candidate(f"in turns, {name}", timed(in_turns, place / "in-turns.csv")),
        Candidate(
            f"streamed, {name}",
            timed(lambda: read_batches(paths, answer.image_format), place / "streamed.csv"),
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
