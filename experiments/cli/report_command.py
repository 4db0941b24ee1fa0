"""The command report: read a finished comparison or grid, and write its report again."""

from pathlib import Path

from ..comparison.methods import find_method
from ..comparison.pairs import describe_pairs
from ..config import CompareConfig
from ..store.progress import Display
from ..store.run import Run, read_config
from .compare_command import rebuild, show_comparison
from .grid import run_grid_report
from .options import ReportConfig


def run_report(config: ReportConfig) -> int:
    """Rebuild the report from the runs, and print the summary."""
    path = Path(config.run)
    if (path / "grid.yaml").exists():
        return run_grid_report(path, quiet=config.quiet)
    comparison = rebuild(path, display=Display(quiet=config.quiet))
    show_comparison(comparison, path, verbose=config.verbose)
    seed = read_config(path, CompareConfig).seed
    runs = {each.name: find_method(each.name).over or each.name for each in comparison.methods}
    backbones = {name: Run.open(path / f"{run}-0").config.backbone for name, run in runs.items()}
    for line in describe_pairs(comparison, config.pairs, backbones=backbones, seed=seed):
        print(line)
    return 0
