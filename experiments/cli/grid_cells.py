"""The comparisons that a grid's file stands for."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ...datasets.options import data_name
from ...datasets.plain_data import read_yaml
from ..comparison.methods import find_method, numbered, settle_names
from ..config import CompareConfig
from ..store.errors import one_line
from ..store.run import read_config, read_json
from .entry import COMMANDS
from .parsing import parse_options

_AXES = ("data", "backbone")
_WHOLE = ("out", "quiet", "name")


@dataclass(frozen=True)
class Cell:
    """One comparison of a grid, in its own directory, and the names of its data and backbone."""

    data: str
    backbone: str
    config: CompareConfig

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def path(self) -> Path:
        """Where the comparison lives."""
        return self.config.directory()

    @property
    def runs(self) -> tuple[str, ...]:
        """The directories of its runs."""
        config = self.config
        return tuple(f"{m}-{r}" for m in config.methods for r in range(config.replicates))

    def finished_runs(self) -> set[str]:
        """The runs that are trained and evaluated already."""

        def done(run: str) -> bool:
            over = find_method(run.rpartition("-")[0]).over  # a cascade has no weights of its own
            needed = ["metrics.json"] if over else ["weights.safetensors", "metrics.json"]
            return all((self.path / run / file).exists() for file in needed)

        return set(filter(done, self.runs))

    def finished(self) -> bool:
        """Whether everything but the report is complete, for this very configuration."""
        held, made = self.path / "config.yaml", self.path / "comparison.json"
        if not (held.exists() and made.exists() and self.finished_runs() == set(self.runs)):
            return False
        known = read_json(made)
        stored = read_config(self.path, CompareConfig)
        return (
            stored == self.config.settled_as(stored)
            and (known.get("methods"), known.get("replicates"))
            == (list(self.config.methods), self.config.replicates)
            and held.stat().st_mtime_ns <= made.stat().st_mtime_ns  # else it was begun again
        )


def read_grid(file: Path) -> dict[str, Any]:
    """The options of a grid's file; a file that is missing or no YAML of options is refused."""
    try:
        options = read_yaml(file)
    except FileNotFoundError:
        raise ValueError(f"grid must be a YAML file, got {str(file)!r}: not found") from None
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"{file} must hold options by name, as a --config file of compare does")
    return options


def expand(options: Mapping[str, Any], path: Path) -> tuple[Cell, ...]:
    """Write a grid out as the comparisons that it stands for, data set by data set.

    ``data`` and ``backbone`` may be lists. An entry is a name, or a mapping of the name and of
    options that hold for it alone, in place of the grid's; a group of options, such as
    ``optimizer``, is replaced as a whole, and a backbone's entry wins over a data set's. ``name``
    in an entry is what directory and tables call it. ``members`` may be a list: each method then
    stands once for each number in it, as ``deep-2`` and ``deep-4``. Each comparison has its own
    directory below ``path``.

    Raises:
        ValueError: An option is unknown or of a wrong type or size, or two comparisons would have
            one directory; one line that names the comparison.

    Example:
        >>> from pathlib import Path
        >>> from deepens.experiments.cli.grid_cells import expand
        >>> grid = {"backbone": ["resnet8", {"backbone": "vit-micro/4", "epochs": 9}], "epochs": 3}
        >>> [(cell.name, cell.config.epochs) for cell in expand(grid, Path("runs"))]
        [('digits-resnet8', 3), ('digits-vit-micro-4', 9)]
    """
    axes = [_entries(axis, options.get(axis, getattr(CompareConfig, axis))) for axis in _AXES]
    shared = {name: value for name, value in options.items() if name not in _AXES}
    cells: dict[str, Cell] = {}
    for (data, of_data), (backbone, of_backbone) in product(*axes):
        name = f"{_safe(data)}-{_safe(backbone)}"
        if clash := next((each for each in cells if each.casefold() == name.casefold()), None):
            raise ValueError(
                f"grid: {cells[clash].data} with {cells[clash].backbone} and {data} with "
                f"{backbone} would both be {name}; give an entry a name of its own, such as "
                "{data: folder:photos, name: photos-2}"
            )
        with naming(name):
            merged = _with_numbers(shared | of_data | of_backbone)
            merged |= {"out": str(path / name)}
            config = parse_options("compare", COMMANDS["compare"], merged)
        cells[name] = Cell(data, backbone, settle_names(config))
    return tuple(cells.values())


def _entries(axis: str, given: Any) -> list[tuple[str, dict[str, Any]]]:
    """The names on one axis, each with the options that hold for it alone."""
    found = []
    for entry in given if isinstance(given, list) else [given]:
        own = dict(entry) if isinstance(entry, Mapping) else {axis: entry}
        value = own.get(axis)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"{axis} must be a name, or a mapping with {axis}: NAME and options for it alone, "
                f"got {entry!r}"
            )
        name = own.pop("name", data_name(value) if axis == "data" else value)
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"the name of {axis} {value} must be text, got {name!r}")
        for option in (*_WHOLE, *_AXES):
            if option in own and option != axis:
                raise ValueError(f"{option} belongs to the whole grid, got it for {axis} {name}")
        found.append((name, own))
    if not found:
        raise ValueError(f"{axis} must be one or more names, got none")
    return found


def _with_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """Methods once for each number of members, where several numbers are given."""
    numbers, methods = options.get("members"), options.get("methods", list(CompareConfig.methods))
    if not isinstance(numbers, list):
        return options
    wrong = [n for n in numbers if not isinstance(n, int) or isinstance(n, bool) or n < 1]
    if wrong or not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"members must be one or more different numbers >= 1, got {numbers}")
    if not isinstance(methods, list) or not all(isinstance(name, str) for name in methods):
        raise ValueError(f"methods must be a list of names, got {methods!r}")
    several = dict.fromkeys(numbered(name, n) for n in numbers for name in methods)
    return {k: v for k, v in options.items() if k != "members"} | {"methods": list(several)}


def _safe(name: str) -> str:
    """A part of a directory's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Name the comparison in an error that a user can put right, which becomes a ValueError."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise ValueError(f"grid, {name}: {one_line(error)}") from error
