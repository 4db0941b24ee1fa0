"""The command bench: run the benchmarks, and print one table of ratios."""

import importlib.util
import math
from pathlib import Path
from statistics import median
from typing import Any

from ..benchmarks.suite import Row, changes, chosen, read_record, rows_of, run_benchmarks
from ..store.progress import Display
from ..store.run import write_json
from .options import BenchConfig
from .text_tables import columns, output, show

PEER = "torch-uncertainty is not installed and takes no part; pip install 'deepens[bench]'"


def run_bench(config: BenchConfig) -> int:
    """Measure, print the ratios, and say what changed since another time."""
    old = None
    if config.against is not None:
        old = read_record(Path(config.against), limit=config.limit, device=config.device)
    if config.json is not None:
        _check_place(Path(config.json))
    display, record = Display(quiet=config.quiet), dict[str, Any]()
    texts: list[str] = []
    with display.task("bench", len(chosen(config.names, config.device))) as task:

        def said(name: str, text: str) -> None:
            task.advance(name)
            texts.append(text)

        for record in run_benchmarks(
            config.names,
            limit=config.limit,
            device=config.device,
            said=said,
        ):
            if config.json is not None:
                write_json(Path(config.json), record)
    if config.verbose:
        print("\n\n".join(texts))
    show_ratios(record)
    if old is not None:
        show_changes(old, record)
    if config.json is not None:
        print(config.json)
    return 0


def show_ratios(record: dict[str, Any]) -> None:
    """Print every ratio, the bounds that are missed, and who took no part."""
    table = columns(["benchmark", "candidate", "over"], ["time over its time", "range"])
    for row in rows_of(record):
        table.add_row(row.benchmark, row.name, row.over, _ratio(median(row.ratios)), _range(row))
    show(table)
    verdicts = [line for each in record["benchmarks"].values() for line in each["verdicts"]]
    missed = [line.removesuffix(": BROKEN") for line in verdicts if line.endswith("BROKEN")]
    console = output()
    if verdicts and record["limit"] == "full":  # for which the bounds are meant
        console.print(f"{len(verdicts) - len(missed)} of {len(verdicts)} bounds are kept")
        for line in missed:
            console.print(f"missed: {line}", soft_wrap=True)
    if importlib.util.find_spec("torch_uncertainty") is None:
        console.print(PEER)


def show_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Print the ratios whose ranges in both records do not overlap."""
    places = [each["environment"].get("processor") for each in (old, new)]
    if places[0] != places[1]:
        output().print(f"the other record is of another processor, {places[0]}", soft_wrap=True)
    found = list(changes(old, new))
    if not found:
        print("no ratio changed beyond the ranges of its rounds")
        return
    table = columns(["benchmark", "candidate", "over"], ["before", "now", "change"])
    for was, now, how in found:
        before, after = median(was.ratios), median(now.ratios)
        factor = _ratio(max(before / after, after / before))
        names = (now.benchmark, now.name, now.over)
        table.add_row(*names, _ratio(before), _ratio(after), f"{factor} times {how}")
    show(table)


def _ratio(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def _range(row: Row) -> str:
    return f"{_ratio(min(row.ratios))} to {_ratio(max(row.ratios))}"


def _check_place(file: Path) -> None:
    if file.is_dir():
        raise ValueError(f"json must be a file, got the directory {file}")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"json: there is no directory {file.absolute().parent}; make it first")
