"""A grid of comparisons: data by backbone, from one file, resumable where it stopped."""

import csv
import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ...datasets import DataOptions, Splits, load
from ...datasets.image_format import ImageFormat
from ..comparison.compare import GROWING, check_methods, compare
from ..comparison.headlines import headlines
from ..comparison.verdicts import Comparison
from ..config import plugin_words
from ..evaluation.detectors import choose_detectors
from ..report.grid_index import NO_VERDICT, Outcome, index_markdown, index_page
from ..store.errors import CORRECTABLE, FAILED, one_line
from ..store.progress import Display, Task
from ..store.run import check_claim, exclusive, settled, write_whole_text
from ..training.building import build_network, build_objective
from .compare_command import rebuild, write_reports
from .grid_cells import Cell, expand, naming, read_grid
from .options import GridConfig
from .plugins import load_plugins, plugins_in

GRID = "grid.yaml"
"""The grid in its directory: the options of all its comparisons."""


def run_grid(config: GridConfig) -> int:
    """Make a grid's comparisons, and print the short answer of each."""
    options = read_grid(Path(config.grid))
    given, quiet = options.pop("out", None), options.pop("quiet", False)
    if not isinstance(given, str | None):
        raise ValueError(f"out must be a directory, got {given!r} in {config.grid}")
    if not isinstance(quiet, bool):
        raise ValueError(f"quiet must be true or false, got {quiet!r} in {config.grid}")
    named = plugins_in(options, Path(config.grid), config.plugins)
    if plugins := list(dict.fromkeys([*named, *config.plugins])):
        load_plugins(plugins)
        options["plugins"] = plugins
    path = Path(config.out or given or Path("runs") / Path(config.grid).stem)
    outcomes = make_grid(options, path, display=Display(quiet=config.quiet or quiet))
    return _show(outcomes, path)


def run_grid_report(path: Path, *, quiet: bool = False) -> int:
    """Rebuild all reports of a grid and its index without training, and print the answers."""
    display = Display(quiet=quiet)
    outcomes = []
    for cell in expand(read_grid(path / GRID), path):
        try:
            if not (cell.path / "comparison.json").exists():
                raise ValueError(
                    f"not run yet; `deepens compare --grid {path / GRID} --out {path}"
                    f"{plugin_words(cell.config.plugins)}` runs it"
                )
            outcomes.append(_outcome(cell, rebuild(cell.path, display=display)))
        except (ValueError, OSError) as error:
            outcomes.append(Outcome(cell.name, cell.data, cell.backbone, error=one_line(error)))
    _write_index(outcomes, path)
    return _show(outcomes, path)


def make_grid(options: Mapping[str, Any], path: Path, *, display: Display) -> list[Outcome]:
    """Make what is missing of a grid's comparisons, and the index of them all.

    Everything that can be refused, by a ValueError, is refused before the first run is trained. A
    comparison that fails then does not stop the others. Options are those of :func:`expand`.
    """
    cells = expand(options, path)
    data = _Data(display)
    _check(cells, path, data)
    path.mkdir(parents=True, exist_ok=True)
    with exclusive(path):
        held = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True)
        write_whole_text(path / GRID, held)
        with display.task(f"grid in {path}", sum(len(cell.runs) for cell in cells)) as task:
            task.start_at(sum(len(cell.finished_runs()) for cell in cells))
            outcomes = [_make(cell, data, task, display) for cell in cells]
        _write_index(outcomes, path)
    return outcomes


class _Data:
    """The one data set that is in memory, for all comparisons on it."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._held: tuple[DataOptions, Splits] | None = None

    def splits(self, cell: Cell) -> Splits:
        config = settled(cell.path, cell.config)
        wanted = DataOptions(**{f.name: getattr(config, f.name) for f in fields(DataOptions)})
        if self._held is None or self._held[0] != wanted:
            self._held = None  # before the next is read: there may be no room for both
            self._held = (wanted, load(wanted, watcher=self._display))
        return self._held[1]


def _check(cells: Sequence[Cell], path: Path, data: _Data) -> None:
    """Refuse what no comparison could be made of, and write nothing."""
    there = path.is_dir() and any(entry.name[0] != "." for entry in path.iterdir())
    if (there and not (path / GRID).exists()) or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} exists and is not a grid directory; choose another --out")
    for cell in cells:
        with naming(cell.name):
            check_methods(cell.config)
            build_objective(cell.config)
            choose_detectors(cell.config.detectors)
            check_claim(cell.path, cell.config, growing=GROWING)
    for cell in reversed(cells):  # the data of the first are then in memory
        if not cell.finished():
            with naming(cell.name):
                build_network(cell.config, ImageFormat.of(data.splits(cell)))


def _make(cell: Cell, data: _Data, task: Task, display: Display) -> Outcome:
    before, seen = cell.finished_runs(), set[str]()

    def finished(run: str) -> None:
        seen.add(run)
        if run not in before:
            task.advance(f"{cell.name}/{run}")

    try:
        if cell.finished():
            display.say(f"{cell.name} is finished")
            comparison = rebuild(cell.path, display=display)
        else:
            display.say(f"{cell.name}:")
            splits = data.splits(cell)
            comparison = compare(cell.config, splits=splits, display=display, finished=finished)
            write_reports(comparison, cell.path)
    except Exception as error:  # whatever it is, the other comparisons shall be made
        if os.environ.get("DEEPENS_TRACEBACK"):
            traceback.print_exc()
        message = one_line(error)
        if not isinstance(error, (*CORRECTABLE, ImportError)):
            message = f"{type(error).__name__}: {message}; DEEPENS_TRACEBACK=1 shows where"
        display.say(f"{cell.name} failed: {message}")
        task.leave_out(len(set(cell.runs) - before - seen))
        return Outcome(cell.name, cell.data, cell.backbone, error=message)
    return _outcome(cell, comparison)


def _outcome(cell: Cell, comparison: Comparison) -> Outcome:
    """What the index tells of a comparison, without its images and values."""
    cautions = (*comparison.cautions, *comparison.verdict_notes, comparison.caveat)
    answers, said = headlines(comparison), tuple(filter(None, cautions))
    return Outcome(cell.name, cell.data, cell.backbone, answers, said)


def _write_index(outcomes: Sequence[Outcome], path: Path) -> None:
    write_whole_text(path / "results.csv", _results(outcomes, path))
    write_whole_text(path / "index.md", index_markdown(outcomes))
    write_whole_text(path / "index.html", index_page(outcomes))


def _results(outcomes: Sequence[Outcome], path: Path) -> str:
    """The results of all comparisons, as one table with two more columns in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "backbone", "method", "replicate", "split", "metric", "value"])
    for outcome in outcomes:
        if not outcome.error:
            with (path / outcome.name / "results.csv").open(encoding="utf-8", newline="") as lines:
                rows = csv.reader(lines)
                next(rows)
                writer.writerows([outcome.data, outcome.backbone, *row] for row in rows)
    return text.getvalue()


def _show(outcomes: Sequence[Outcome], path: Path) -> int:
    for outcome in outcomes:
        if not outcome.error:
            answers = [f"{each.answer}. {each.subject}" for each in outcome.headlines]
            print(f"{outcome.name}: {' '.join(answers) or NO_VERDICT}")
    print(path / "results.csv")
    print(path / "index.html")
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        print(f"deepens: {outcome.name} failed: {outcome.error}", file=sys.stderr)
    return FAILED if failed else 0
