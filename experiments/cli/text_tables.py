"""Tables in a terminal: metrics of a run, measures of a cascade, scored logits."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ...datasets import SplitName
from ...metrics.core.catalogue import DETECTION_MEASURES, METRICS, detection_key
from ..comparison.formatting import number
from ..evaluation.predictions import Predictions
from ..evaluation.score import BETTER, TEST, Metrics, Scored, is_of_detection

METRICS_SHOWN = ("n", "accuracy", "nll", "brier", "ece", "aurc", "auroc_msp", "auroc_entropy")
CASCADE_SHOWN = (
    *("n", "accuracy", "coverage", "risk", "coverage_at_5_risk"),
    *("auroc", "ood_accepted", "scod_risk", "macs_over_first"),
)
WIDE = 1000
"""Columns where the output is not a terminal, so that nothing is folded or cut."""
NAME_WIDTH = 32


def plain(text: str) -> str:
    """Text for a terminal: what cannot be printed is escaped, and long names are cut."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    safe = "".join(escaped)
    return safe if len(safe) <= NAME_WIDTH else safe[: NAME_WIDTH - 1] + "…"


def show(table: Table) -> None:
    """Print a table; in a pipe or a file, each row is one line."""
    output().print(table)


def output() -> Console:
    """Standard output; where it is not a terminal, wide enough for every line."""
    width = None if Console(file=sys.stdout).is_terminal else WIDE
    return Console(file=sys.stdout, highlight=False, markup=False, width=width)


def metrics_table(metrics: Mapping[str, Metrics]) -> Table:
    """The main metrics of a run, a row per split."""
    table = columns(["split"], METRICS_SHOWN)
    for split, values in metrics.items():
        table.add_row(split, *(_cell(values.get(name)) for name in METRICS_SHOWN))
    return table


def predicted_text(predictions: Predictions) -> str:
    """The splits that are predicted, those of a kind counted, and whether gradients are."""
    counts = Counter[str](SplitName.parse(name).kind for name in predictions.metrics)
    words = {
        "val": ("validation part", "validation parts"),
        "test": ("test", "test"),
        "shift": ("corrupted copy", "corrupted copies"),
        "near_ood": ("near OOD set", "near OOD sets"),
        "far_ood": ("far OOD set", "far OOD sets"),
    }
    parts = [
        one if kind == "test" else f"{counts[kind]} {one if counts[kind] == 1 else several}"
        for kind, (one, several) in words.items()
        if counts[kind]
    ]
    return ", ".join([*parts, *(["input gradients"] if predictions.gradients else [])])


def cascade_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Measures of a cascade and its baselines on test and OOD images."""
    table = columns(["policy", "split"], CASCADE_SHOWN)
    for row in rows:
        split = SplitName.parse(row["split"])
        if not split.is_validation and not split.is_shift:
            cells = (_cell(row.get(name)) for name in CASCADE_SHOWN)
            table.add_row(row["policy"], row["split"], *cells)
    return table


def score_tables(scored: Scored) -> Iterator[tuple[str, list[Table]]]:
    """For each set a title and its tables; of one member, without what compares members."""
    members, samples, classes = scored.shape
    word = "member" if members == 1 else "members"
    title = f"{TEST}: {samples} samples, {classes} classes, {members} {word}"
    for name, values in scored.metrics.items():
        if name == TEST:
            yield title, [_values_table(values, members, samples)]
        else:
            count = int(values["n_ood"])
            tables = [_detection_table(values, members), _values_table(values, members, count)]
            yield f"{name}: {count} samples, beside {samples} of {TEST}", tables


def _values_table(values: Metrics, members: int, count: int) -> Table:
    """A row per metric."""
    table = columns(["metric"], ["value", "better", "n"])
    for key, value in values.items():
        info = METRICS[key]
        redundant = members == 1 and info.needs_members
        if info.role == "count" or is_of_detection(key) or redundant:
            continue
        table.add_row(info.label, _cell(float(value)), BETTER[info.higher_is_better], str(count))
    return table


def _detection_table(values: Metrics, members: int) -> Table:
    """A row per uncertainty score, a column per measure of detection."""
    heads = [METRICS[detection_key(measure, "msp")] for measure in DETECTION_MEASURES]
    table = columns(["score"], [info.measure_label for info in heads])
    table.add_row("better", *(BETTER[info.higher_is_better] for info in heads))
    for key in values:
        info = METRICS[key]
        if info.measure != "auroc" or (members == 1 and info.needs_members):
            continue
        keys = (detection_key(measure, info.score) for measure in DETECTION_MEASURES)
        table.add_row(info.score_label, *(_cell(float(values[each])) for each in keys))
    return table


def columns(names: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table with columns of names and of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cell(value: int | float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else number(value)
