"""The run directory, the unit of work, whose files appear whole or not at all."""

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from ...datasets.files import whole_file
from ...datasets.plain_data import parse_json, read_text, read_yaml
from ..config import Device, Recipe, TrainConfig
from .errors import damaged

Config = TypeVar("Config", bound=Recipe)

LOCK_SECONDS = 10.0
"""How long to wait for another process."""

CHECKSUM = "sha256"
"""Key of a JSON file's checksum: SHA-256 over all else that the file holds."""

CALIBRATION = "calibration.json"
"""How a cascade decides, in its directory of a comparison; no trained run has this file."""


def write_whole_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; bytes of paths that are no UTF-8 become escapes."""
    content = text.encode(errors="backslashreplace")
    with whole_file(path, size=len(content)) as aside:
        aside.write_bytes(content)


def json_text(content: Any) -> str:
    """JSON for people to read; NaN becomes null, since JSON has no NaN."""
    return json.dumps(_without_nan(content), indent=2) + "\n"


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """Write a JSON object whole or not at all, with its checksum, which is returned."""
    # As it will be read: keys become texts, and tuples lists.
    plain = json.loads(json_text(content))
    plain[CHECKSUM] = _checksum(plain)
    write_whole_text(path, json_text(plain))
    return plain[CHECKSUM]


def _checksum(content: Mapping[str, Any]) -> str:
    return _hash(json.dumps(content))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    r"""Rows as CSV with a header of all their columns, floats exactly; a lacking cell is empty.

    Example:
        >>> from deepens.experiments.store.run import csv_text
        >>> csv_text([{"epoch": 1, "loss": 0.1}, {"epoch": 2}])
        'epoch,loss\n1,0.1\n2,\n'
    """
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(spreadsheet_row, rows))
    return text.getvalue()


def spreadsheet_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in which no text is a formula: one that begins as such gets an apostrophe before it.

    Example:
        >>> from deepens.experiments.store.run import spreadsheet_row
        >>> spreadsheet_row({"class": "=1+1", "logit": -1.0})
        {'class': "'=1+1", 'logit': -1.0}
    """
    return {name: f"'{cell}" if _is_formula(cell) else cell for name, cell in row.items()}


def _is_formula(cell: object) -> bool:
    return isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r")


@contextmanager
def exclusive(
    path: Path, name: str = ".lock", *, otherwise: str = "or choose another --out"
) -> Iterator[None]:
    """Work in a directory alone, or raise a ``ValueError`` where another process works in it.

    The lock, a file of some ``name``, is released when the process ends, however it ends, and all
    that it started. What one may do in place of waiting, ``otherwise``, ends the message.
    """
    lock = FileLock(path / name, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is working in {path}; wait for it, {otherwise}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def read_json(
    path: Path, *, remedy: str = "delete it and run the same command again"
) -> dict[str, Any]:
    """Read a JSON object that deepens wrote, and verify its checksum; old files have none.

    Raises:
        ValueError: There is no such file, no object in it, or it was changed since.
        OSError: It cannot be opened.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise damaged(path, remedy)
    found = content.pop(CHECKSUM, None)
    if found is not None and found != _checksum(content):
        raise ValueError(
            f"{path} was damaged or edited since it was written ({CHECKSUM} differs); {remedy} "
            f"(to use an edit of your own, delete the entry {CHECKSUM!r})"
        )
    return content


def recorded(run: "Run", name: str, kind: Any) -> Any:
    """A value of a kind in a run's ``environment.json``; a ``ValueError`` where it is none."""
    value = read_json(run.environment).get(name)
    if not isinstance(value, kind):
        raise damaged(run.environment, f"delete {run.path} and train again")
    return value


def training_seconds(run: "Run") -> float:
    """Wall time of a run's training; a ``ValueError`` where its record is missing or damaged."""
    return float(recorded(run, "training_seconds", int | float))


def training_joules(run: "Run") -> float | None:
    """Energy of a run's training; None where it could not be read, as in old runs."""
    joules = recorded(run, "training_joules", int | float | None)
    return None if joules is None else float(joules)


class _File:
    """A file in a run directory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "Run", kind: type) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class Run:
    """One run directory.

    =====================  ==================================================================
    config.yaml            the resolved configuration
    environment.json       versions, hardware, git revision, training time and energy
    objective.safetensors  what the objective computed from the training images, if anything
    fits/                  members that are trained one after the other; gone afterwards
    resume.safetensors     training state to resume from; gone when training is over
    weights.safetensors    the trained ensemble; training is over when it is there
    log.csv                losses and validation metrics by epoch
    predictions/           one file of member logits per split, with the detectors' scores
    temperature.json       temperatures, fitted on val/calibrate
    metrics.json           metrics by split
    images.csv.gz          file and hash of each image by split, in a comparison's own directory
    data.json              caveat, cautions and notes of the data, likewise
    cascade.json           a cascade of the members, with its measures and curve beside it
    =====================  ==================================================================
    """

    path: Path
    config: TrainConfig

    environment = _File("environment.json")
    resume = _File("resume.safetensors")
    weights = _File("weights.safetensors")
    temperature = _File("temperature.json")
    metrics = _File("metrics.json")

    def prediction(self, split: str) -> Path:
        """The file of member logits of a split."""
        return self.path / "predictions" / f"{split}.safetensors"

    @classmethod
    @contextmanager
    def start(cls, config: TrainConfig) -> Iterator["Run"]:
        """The run of a configuration, alone in its directory, which :func:`claimed` makes."""
        with claimed(config.directory(), config) as kept:
            yield cls(config.directory(), kept)

    @classmethod
    def open(cls, path: Path | str, *, device: Device = "auto") -> "Run":
        """Open an existing run, on this machine's device; a ``ValueError`` where there is none."""
        config = read_config(Path(path), TrainConfig)
        return cls(Path(path), dataclasses.replace(config, device=device))


@contextmanager
def claimed(path: Path, config: Config, *, growing: Sequence[str] = ()) -> Iterator[Config]:
    """Claim a directory and work in it alone, by what :func:`claim` returns.

    The lock comes before the claim, so that of two configurations that start at once on one
    directory one gets it, whole, and the other is refused; nothing is made in another's.
    """
    check_claim(path, config, growing=growing)
    path.mkdir(parents=True, exist_ok=True)
    with exclusive(path):
        yield claim(path, config, growing=growing)


def check_file_names(path: Path, splits: Iterable[str]) -> None:
    """Refuse splits, by a ValueError, whose predictions a run's file system cannot name."""
    there = next(
        folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()
    )
    limit = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for split in splits:
        for name in f"{split}.safetensors".split("/"):
            if (size := len(os.fsencode(name))) > limit:
                raise ValueError(
                    f"the file name of the split {split!r} must have <= {limit} bytes, got {size}; "
                    "rename the folder or set"
                )


def claim(path: Path, config: Config, *, growing: Sequence[str] = ()) -> Config:
    """Make a directory for a configuration, or accept the one with the same configuration.

    It is returned with the choices of earlier sessions: see :meth:`Recipe.settled_as`.

    Args:
        path: The directory.
        config: What is to be done in it.
        growing: Options that may change: the directory then takes the new configuration.

    Raises:
        ValueError: The directory holds another configuration, or files but no configuration.
    """
    check_claim(path, config, growing=growing)
    config = settled(path, config)
    store_config(path, config)
    return config


def settled(path: Path, config: Config) -> Config:
    """A configuration with the choices of earlier sessions in its directory, if there were any."""
    if not (path / "config.yaml").exists():
        return config
    return config.settled_as(read_config(path, type(config)))


def store_config(path: Path, config: Recipe) -> None:
    """Write a directory's ``config.yaml``."""
    text = config.to_yaml()
    write_whole_text(path / "config.yaml", f"# {CHECKSUM} {_hash(text)}\n{text}")


def check_claim(path: Path, config: Recipe, *, growing: Sequence[str] = ()) -> None:
    """Refuse a directory as :func:`claim` does, and write nothing."""
    if (path / "config.yaml").exists():
        stored = read_config(path, type(config))
        lines = sorted(config.differences(stored))
        if differing := [line for line in lines if line.partition(":")[0] not in growing]:
            raise ValueError(
                f"{path} holds a run of another configuration ({'; '.join(differing[:4])}); "
                "choose another --out, or delete it"
            )
    elif path.exists() and (not path.is_dir() or any(p.name[0] != "." for p in path.iterdir())):
        raise ValueError(f"{path} exists and is not a run directory; choose another --out")


def read_config(path: Path, kind: type[Config]) -> Config:
    """The stored configuration; a ``ValueError`` if missing, damaged, or of another kind."""
    file = path / "config.yaml"
    try:
        options = read_yaml(file)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is not a run directory: {_why_none(path)}") from None
    except ValueError:
        raise ValueError(f"{file} is damaged: it is not YAML") from None
    if not isinstance(options, dict):
        raise ValueError(f"{file} is damaged: it holds no options")
    first, _, text = read_text(file).partition("\n")  # earlier versions wrote no checksum
    if first.startswith(f"# {CHECKSUM} ") and first.split()[-1] != _hash(text):
        raise ValueError(
            f"{file} was damaged or edited since it was written ({CHECKSUM} differs); put back a "
            "copy (to use an edit of your own, delete its first line)"
        )
    if "methods" in options and kind is TrainConfig:
        runs = sorted(each.parent.name for each in path.glob("*/weights.safetensors"))
        which = "it has no finished run yet"
        if runs:
            which = f"its runs are {', '.join(runs)}; name one, such as {path / runs[0]}"
        raise ValueError(f"{path} is the directory of a comparison, not of a run: {which}")
    if "methods" not in options and kind is not TrainConfig:
        raise ValueError(
            f"{path} is the directory of a run, not of a comparison: `deepens evaluate {path}` "
            "shows its metrics"
        )
    try:
        return kind.from_dict(options, stored=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is not a configuration of this kind of run: {error}") from None


def _why_none(path: Path) -> str:
    """Why a directory without a configuration is none of ours, or what it is."""
    if (path / "grid.yaml").exists():
        cells = sorted(each.parent.name for each in path.glob("*/config.yaml"))
        return f"it is a grid, of the comparisons {', '.join(cells)}; name a run in one of them"
    if not path.exists():
        return f"{path} does not exist"
    if not path.is_dir():
        return "it is a file"
    return f"{path / 'config.yaml'} does not exist, and deepens made nothing else in it"


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and content != content else content
