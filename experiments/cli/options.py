"""The options of data, report, bench and compare --grid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...datasets.options import DataOptions, data_name
from ..benchmarks.suite import Limit, check_names


@dataclass(frozen=True)
class DataConfig(DataOptions):
    """Describe a data set and draw a contact sheet of its images.

    Args:
        out: Contact sheet, a .png file; NAME-sheet.png by default.
        quiet: Do not display progress.
    """

    out: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.file().suffix.lower() == ".png":
            raise ValueError(f"out must end in .png, got {self.out!r}")

    def file(self) -> Path:
        """The file of the contact sheet."""
        return Path(self.out or f"{data_name(self.data)}-sheet.png")


@dataclass(frozen=True)
class GridConfig:
    """Make many comparisons, one for each combination of data and backbone.

    Args:
        grid: YAML file with options of compare, of which data, backbone and members may be lists.
        out: Output directory; runs/NAME for the file NAME.yaml by default.
        quiet: Do not display progress.
        plugins: Python modules that register additional families, objectives, methods, ...
    """

    grid: str
    out: str | None = None
    quiet: bool = False
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportConfig:
    """Rebuild the report of a comparison without training.

    Args:
        run: Directory of a comparison.
        pairs: Pairs of methods to compare directly, each FIRST:SECOND, whatever their costs.
        verbose: Print every verdict as a sentence, and all notes.
        quiet: Do not display progress.
    """

    run: str
    pairs: tuple[str, ...] = ()
    verbose: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class BenchConfig:
    """Measure how fast this installation is, as ratios to baselines that take turns with it.

    Args:
        names: Benchmarks to run; all by default.
        device: Where networks compute; auto uses a GPU if one is available. With cuda, only
            benchmarks that compute on it are run by default.
        limit: How much to do: full takes long on two cores, small some minutes, and tiny a minute,
            for ratios that mean nothing.
        json: File for the times of every round, with machine and versions.
        against: File that an earlier --json wrote: say which ratios changed beyond their ranges.
        verbose: Print what each benchmark says, too.
        quiet: Do not display progress.
    """

    names: tuple[str, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    limit: Limit = "full"
    json: str | None = None
    against: str | None = None
    verbose: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        check_names(self.names)
