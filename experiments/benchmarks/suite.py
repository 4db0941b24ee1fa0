"""All benchmarks in one table: what `deepens bench` runs, and what changed since another time."""

import contextlib
import importlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..store.run import read_json

Limit = Literal["tiny", "small", "full"]


@dataclass(frozen=True)
class Benchmark:
    """A file of this folder that measures something.

    Attributes:
        title: What is compared with what.
        tiny: Options with which it runs in seconds: ratios mean nothing then.
        small: Options with which it takes a minute at most, of one core.
        on_device: Whether it computes on a GPU, if asked to.
    """

    title: str
    tiny: str
    small: str
    on_device: bool = False


BENCHMARKS = {
    "loader": Benchmark(
        "images in batches, over torchvision's transforms image by image",
        tiny="--images 256 --passed 128 --batch-size 64 --rounds 2",
        small="--images 12800 --passed 3200 --rounds 3",
    ),
    "training_step": Benchmark(
        "a step of `deepens train`, over a bare loop",
        tiny="--images 48 --batch-size 8 --steps 2 --rounds 2 --threads 1 --backbone small-cnn "
        "--precisions 32 --members 1 2",
        small="--images 3200 --steps 5 --rounds 3 --threads 1 --processor-time",
        on_device=True,
    ),
    "predict": Benchmark(
        "prediction while files are read, over both in turns",
        tiny="--images 16 --photographs 4 --rounds 2",
        small="--images 512 --photographs 64 --rounds 3",
    ),
    "packed": Benchmark(
        "packed ensembles, torch-uncertainty's too, over one plain network",
        tiny="--backbone resnet8 --members 2 --batch-size 4 --rounds 2 --steps 1 --executions loop",
        small="--backbone resnet8 --rounds 3 --deep",
        on_device=True,
    ),
    "lora": Benchmark(
        "LoRA-ensembles, over the naive loop",
        tiny="--backbones vit-tiny/4 --members 2 --batch-size 1 --rounds 2 --threads 1",
        small="--backbones vit-tiny/4 --members 4 --rounds 3",
        on_device=True,
    ),
    "objectives": Benchmark(
        "steps with repulsion or pseudo-data, over a deep ensemble's",
        tiny="--backbone resnet8 --members 2 --batch-size 4 --rounds 2 --threads 1",
        small="--backbone resnet8 --batch-size 16 --rounds 3",
        on_device=True,
    ),
    "metrics": Benchmark(
        "metrics, over their log-softmax and over other libraries",
        tiny="--samples 5000 --resampled 500 --rounds 2",
        small="--samples 200000 --rounds 3",
    ),
    "corruptions": Benchmark(
        "corruptions in batches, over image by image",
        tiny="--images 32 --one-by-one 2 --rounds 2",
        small="--images 256 --one-by-one 8 --rounds 3",
    ),
    "cascade": Benchmark(
        "a cascade, over its first stage",
        tiny="--images 64 --batch-size 32 --rounds 2 --singles 8 --threads 1",
        small="--images 256 --rounds 5 --singles 64",
        on_device=True,
    ),
    "product": Benchmark(
        "what a small comparison takes, over its fits",
        tiny="--methods single deep-2 --replicates 1 --epochs 1 --evaluate quick --rounds 1",
        small="--replicates 2 --epochs 5 --rounds 2",
        on_device=True,
    ),
}


@dataclass(frozen=True)
class Row:
    """One candidate's time over its baseline's, round by round.

    Attributes:
        benchmark: Which measured it.
        name: The candidate.
        over: The baseline.
        ratios: One of each round.
    """

    benchmark: str
    name: str
    over: str
    ratios: tuple[float, ...]


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no benchmark, or is named twice."""
    for name in names:
        if name not in BENCHMARKS:
            raise ValueError(f"names must be among {', '.join(BENCHMARKS)}, got {name!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"names must differ, got {', '.join(names)}")


def chosen(names: Sequence[str], device: str) -> list[str]:
    """The benchmarks to run: those named, or all; on a GPU all that compute on it."""
    every = [name for name, each in BENCHMARKS.items() if device != "cuda" or each.on_device]
    return list(names or every)


def run_benchmarks(
    names: Sequence[str],
    *,
    limit: Limit = "full",
    device: str = "auto",
    said: Callable[[str, str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run benchmarks one after the other, and yield the record of all so far after each.

    Args:
        names: Keys of `BENCHMARKS`, as `chosen` takes them.
        limit: How much work: all options are the benchmarks' own when ``full``.
        device: ``cpu`` or ``cuda``; a GPU where there is one when ``auto``.
        said: Is called with a benchmark's name and what it prints.

    Raises:
        ValueError: An unknown name, or a GPU that is not there.
    """
    from ..store.environment import describe_environment  # takes its time to import
    from .harness import compute_device

    check_names(names)
    kind = compute_device(None if device == "auto" else device).type
    done: dict[str, Any] = {}
    for name in chosen(names, device):
        each = BENCHMARKS[name]
        words = {"tiny": each.tiny, "small": each.small, "full": ""}[limit].split()
        if each.on_device:
            words += ["--device", kind]
        module = importlib.import_module(f".{name}", __package__)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            outcome = module.main(words)
        done[name] = {
            "seconds": round(time.perf_counter() - started, 1),
            "options": " ".join(words),
            "verdicts": outcome.verdicts,
            "measurements": [asdict(measured) for measured in outcome.measurements],
        }
        if said is not None:
            said(name, printed.getvalue())
        yield {
            "limit": limit,
            "device": kind,
            "environment": describe_environment(),
            "benchmarks": dict(done),
        }


def rows_of(record: Mapping[str, Any]) -> list[Row]:
    """Every candidate of a record but the baselines themselves."""
    return [
        Row(
            name,
            each["name"],
            each["over"],
            tuple(a / b for a, b in zip(each["seconds"], each["baseline"], strict=True)),
        )
        for name, found in record["benchmarks"].items()
        for each in found["measurements"]
        if each["name"] != each["over"]
    ]


def read_record(path: Path, *, limit: Limit, device: str) -> dict[str, Any]:
    """Read what ``deepens bench --json`` wrote, if it can be compared with what is to be measured.

    Raises:
        ValueError: Another file, or one of another limit or device.
    """
    if not path.is_file():
        raise ValueError(f"against: there is no file {path}")
    try:
        record = read_json(path)
        rows_of(record)
        taken = {"limit": record["limit"], "device": record["device"]}
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        raise ValueError(f"{path} is damaged, or not what deepens bench --json wrote") from None
    for name, wanted in (("limit", limit), ("device", device)):
        if wanted not in (taken[name], "auto"):
            raise ValueError(
                f"{path} was measured with --{name} {taken[name]}, and cannot be compared with "
                f"--{name} {wanted}; give the same {name}"
            )
    return record


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[Row, Row, str]]:
    """Yield the rows of both records whose ranges do not overlap, and what that means."""
    before = {(row.benchmark, row.name, row.over): row for row in rows_of(old)}
    for row in rows_of(new):
        was = before.get((row.benchmark, row.name, row.over))
        if was is None:
            continue
        if max(row.ratios) < min(was.ratios):
            yield was, row, "faster"
        elif min(row.ratios) > max(was.ratios):
            yield was, row, "slower"
