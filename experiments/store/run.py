"""The run directory, the unit of work, whose files appear whole or not at all."""

import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ...datasets.files import whole_file
from ..config import Device, Recipe, TrainConfig

Config = TypeVar("Config", bound=Recipe)

LOCK_WAITS = (0.5, 1.5, 3.0, 5.0)
PACKAGES = ("deepens", "torch", "torchvision", "torchmetrics", "lightning", "scikit-learn", "numpy")


def write_whole_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; NaN becomes null, which JSON can say."""
    write_whole_text(path, json.dumps(_without_nan(content), indent=2) + "\n")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Work in a directory alone; the lock goes with the process, however it ends.

    Processes that a killed one has started, such as readers of images, hold it some seconds longer.

    Raises:
        ValueError: Another process works in it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such locks
        yield
        return
    with (path / ".lock").open("w") as lock:
        for wait in (*LOCK_WAITS, None):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is None:
                    raise ValueError(
                        f"another process is working in {path}; wait for it, or choose another "
                        "--out"
                    ) from None
                time.sleep(wait)
        yield


def damaged(path: Path, remedy: str) -> ValueError:
    """The refusal of a file of ours that does not hold what it should."""
    return ValueError(f"{path} is missing or damaged; {remedy}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of ours, which holds an object.

    Raises:
        ValueError: The file is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        content = None
    if not isinstance(content, dict):
        raise damaged(path, "delete it and run the same command again")
    return content


def training_seconds(run: "Run") -> float:
    """Wall time of a run's training.

    Raises:
        ValueError: The run's record of it is missing or damaged.
    """
    seconds = read_json(run.environment).get("training_seconds")
    if not isinstance(seconds, int | float):
        raise damaged(run.environment, f"delete {run.path} and train again")
    return float(seconds)


def training_joules(run: "Run") -> float | None:
    """What the machine used meanwhile; None where it could not be read, as in runs of old.

    Raises:
        ValueError: The run's record of it is missing or damaged.
    """
    joules = read_json(run.environment).get("training_joules")
    if joules is not None and not isinstance(joules, int | float):
        raise damaged(run.environment, f"delete {run.path} and train again")
    return None if joules is None else float(joules)


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
    predictions/           one file of member logits a split, with the detectors' scores
    temperature.json       temperatures, fitted on val/calibrate
    metrics.json           metrics by split
    cascade.json           a cascade of the members, with its measures and curve beside it
    =====================  ==================================================================
    """

    path: Path
    config: TrainConfig

    @property
    def weights(self) -> Path:
        """The trained ensemble's file."""
        return self.path / "weights.safetensors"

    @property
    def resume(self) -> Path:
        """The file to resume training from."""
        return self.path / "resume.safetensors"

    @property
    def metrics(self) -> Path:
        """The file of metrics by split."""
        return self.path / "metrics.json"

    @property
    def temperature(self) -> Path:
        """The file of temperatures."""
        return self.path / "temperature.json"

    @property
    def environment(self) -> Path:
        """The file that says where and when the run was made."""
        return self.path / "environment.json"

    def prediction(self, split: str) -> Path:
        """The file of member logits of a split."""
        return self.path / "predictions" / f"{split}.safetensors"

    @classmethod
    def start(cls, config: TrainConfig) -> "Run":
        """The run of a configuration: a new directory, or the one that holds the same.

        Raises:
            ValueError: The directory holds another configuration, or something else.
        """
        path = config.directory()
        claim(path, config)
        return cls(path, config)

    @classmethod
    def open(cls, path: Path | str, *, device: Device = "auto") -> "Run":
        """An existing run, to be used on this machine's device whatever it was trained on.

        Raises:
            ValueError: There is none at the path, or its configuration is damaged.
        """
        config = read_config(Path(path), TrainConfig)
        return cls(Path(path), dataclasses.replace(config, device=device))


def claim(path: Path, config: Recipe, *, growing: Sequence[str] = ()) -> None:
    """Make a directory for a configuration, or accept the one that holds the same.

    Args:
        path: The directory.
        config: What is to be done in it.
        growing: Options that may change: the directory then takes the new configuration.

    Raises:
        ValueError: The directory holds another configuration, or files but no configuration.
    """
    check_claim(path, config, growing=growing)
    write_whole_text(path / "config.yaml", config.to_yaml())


def check_claim(path: Path, config: Recipe, *, growing: Sequence[str] = ()) -> None:
    """Refuse a directory as :func:`claim` does, and write nothing."""
    if (path / "config.yaml").exists():
        held = read_config(path, type(config))
        differing = [
            line for line in config.differences(held) if line.partition(":")[0] not in growing
        ]
        if differing:
            raise ValueError(
                f"{path} holds a run of another configuration "
                f"({'; '.join(sorted(differing)[:4])}); choose another --out, or delete it"
            )
    elif path.exists() and (not path.is_dir() or any(p.name[0] != "." for p in path.iterdir())):
        raise ValueError(f"{path} exists and is no run of deepens; choose another --out")


def read_config(path: Path, kind: type[Config]) -> Config:
    """The configuration that a directory holds.

    Raises:
        ValueError: None is there, it is damaged, or it is of another kind.
    """
    file = path / "config.yaml"
    try:
        options = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is no run directory: {file} does not exist") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise ValueError(f"{file} is damaged: it is no YAML") from None
    if not isinstance(options, dict):
        raise ValueError(f"{file} is damaged: it holds no options")
    try:
        return kind.from_dict(options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is no configuration of this kind of run: {error}") from None


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and git revision."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cuda = torch.cuda.is_available()
    return {
        "versions": versions,
        "system": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "git_revision": _git_revision(),
        "command": " ".join(["deepens", *sys.argv[1:]]),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()
    return None


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and content != content else content
