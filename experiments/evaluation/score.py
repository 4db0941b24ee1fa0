"""Metrics of logits from files of any framework."""

import functools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...datasets.files import whole_file
from ...metrics.core.catalogue import DETECTION_MEASURES, METRICS
from ...metrics.core.doubts import overlap_doubts
from ...metrics.io.array_files import UNPACKED
from ...metrics.io.arrays import check_ood, open_logits
from ...metrics.io.logit_source import LogitSource
from ...metrics.samples import SampleValues, labels_of, score_split
from ...metrics.suite import evaluate_ood_values, evaluate_values
from ..store.progress import Display
from ..store.run import csv_text, json_text, write_whole_text
from ..training.devices import threads
from .options import ScoreConfig
from .table_writer import check_table_file

TEST = "test"
OOD = "ood/"
OUT_COLUMNS = ("set", "metric", "label", "value", "better", "n_id", "n_ood")

BETTER = {True: "higher", False: "lower", None: ""}

Metrics = Mapping[str, int | float]


@dataclass(frozen=True)
class Scored:
    """Logits that were scored: members, samples and classes, labels, values and metrics by set.

    The sets are ``test``, and ``ood/NAME`` of each OOD set.
    """

    shape: tuple[int, int, int]
    targets: Tensor
    values: Mapping[str, SampleValues]
    metrics: Mapping[str, Metrics]


@threads(1)  # chunks are small: more threads would wait for each other
def score(config: ScoreConfig, *, display: Display | None = None) -> Scored:
    """Score logits in a few passes over their files, only chunks of which are in memory.

    Use it for logits that deepens did not make; `evaluate` is for runs.

    Raises:
        ValueError: A file that is damaged or does not hold what the options say; labels or OOD sets
            that do not fit the logits.
    """
    display = display or Display(quiet=True)
    with ExitStack() as opened:
        source = opened.enter_context(_open("logits", config.logits, config, display))
        targets = labels_of(source, Path(config.labels), key=config.label_key)
        others = {}
        for name, files in ood_files(config.ood).items():
            others[name] = opened.enter_context(_open(name, files, config, display))
            check_ood(source, others[name])
        values = {TEST: _score(TEST, source, targets, config, display)}
        for name, ood in others.items():
            values[f"{OOD}{name}"] = _score(name, ood, None, config, display)
            for line in overlap_doubts(values[TEST], values[f"{OOD}{name}"]):
                warnings.warn(f"{name}: {line}", RuntimeWarning, stacklevel=2)
    metrics: dict[str, Metrics] = {}
    with display.task("metrics", len(values)) as task:
        for name, each in values.items():
            if name == TEST:
                metrics[name] = evaluate_values(each)
            else:
                metrics[name] = evaluate_ood_values(values[TEST], each)
            task.advance(name)
    return Scored(source.shape, targets, values, metrics)


def ood_files(given: Sequence[str]) -> dict[str, list[str]]:
    """The files of each OOD set, from FILE or NAME=FILE; without NAME, the file's is taken.

    A missing name or file, and two sets of one name, are a ValueError.
    """
    files: dict[str, list[str]] = {}
    alone: set[str] = set()
    for each in given:
        name, named, file = each.partition("=")
        if not named or Path(each).exists():
            name, file = Path(each).stem, each
            alone.add(name)
        if not name or not file:
            raise ValueError(f"ood must be FILE or NAME=FILE, got {each!r}")
        files.setdefault(name, []).append(file)
        if name in alone and len(files[name]) > 1:
            raise ValueError(f"ood has two sets called {name!r}; give each as NAME=FILE")
    return files


def undefined(metrics: Mapping[str, Metrics]) -> Iterator[str]:
    """Yield one line per undefined metric, with the reason."""
    for name, values in metrics.items():
        for key, value in values.items():
            if math.isnan(value):
                reason = METRICS[key].undefined_if or "these samples do not define it"
                yield f"{METRICS[key].label} of {name} is undefined: {reason}"


def write_metrics(path: Path, metrics: Mapping[str, Metrics]) -> None:
    """Write all metrics as JSON, ``{set: {metric: value}}``, or as CSV, one row per metric.

    An undefined value is null, or an empty cell.
    """
    if path.suffix == ".json":
        write_whole_text(path, json_text(metrics))
        return
    rows = []
    for name, values in metrics.items():
        for key, value in values.items():
            info = METRICS[key]
            shown = "" if math.isnan(value) else value
            cells = (name, key, info.label, shown, BETTER[info.higher_is_better])
            rows.append(dict(zip(OUT_COLUMNS, (*cells, *_counts(key, values)), strict=True)))
    write_whole_text(path, csv_text(rows))


def write_samples(path: Path, scored: Scored) -> None:
    """Write a row per sample, its scores and those of its label, to a .csv or .parquet file."""
    import pandas

    frames = []
    for name, values in scored.values.items():
        columns = _columns(values, scored.targets if name == TEST else None)
        numbers = {key: column.numpy() for key, column in columns.items()}
        frames.append(pandas.DataFrame({"set": name, **numbers}))
    # Labels of OOD samples are missing, and whole numbers stay whole.
    table = pandas.concat(frames, ignore_index=True)
    whole = [each for each in ("predicted", "label", "correct") if each in table]
    table = table.astype(dict.fromkeys(whole, "Int64"))
    with whole_file(path) as aside:
        if path.suffix == ".csv":
            table.to_csv(aside, index=False, lineterminator="\n")
        else:
            table.to_parquet(aside, index=False)


def check_outputs(config: ScoreConfig, outputs: Sequence[Path]) -> None:
    """Refuse tables of an unknown kind, and outputs that would overwrite an input or each other."""
    read = {Path(file).resolve() for file in (*config.logits, config.labels)}
    read |= {Path(file).resolve() for each in ood_files(config.ood).values() for file in each}
    for file in outputs:
        if file.resolve() in read:
            raise ValueError(f"{file} would be overwritten, and is to be read; choose another name")
        read.add(file.resolve())
    if config.per_sample is not None:
        check_table_file(Path(config.per_sample))


def _open(name: str, files: Sequence[str], config: ScoreConfig, display: Display) -> LogitSource:
    paths = [Path(file) for file in files]
    options: dict[str, Any] = {"layout": config.layout, "kind": config.kind, "key": config.key}
    given = paths[0] if len(paths) == 1 else paths
    open_with = functools.partial(open_logits, given, name=name, **options)
    if not any(path.suffix.lower() in UNPACKED for path in paths):
        return open_with()
    with display.task(f"read {name}", 100) as task:

        def watch(share: float) -> None:
            for _ in range(task.done, min(100, int(100 * share))):
                task.advance()

        return open_with(watch=watch)


def _score(
    name: str, source: LogitSource, targets: Tensor | None, config: ScoreConfig, display: Display
) -> SampleValues:
    with display.task(f"score {name}", len(source.bounds(config.chunk))) as task:
        return score_split(source, targets, rows=config.chunk, advance=task.advance)


def is_of_detection(key: str) -> bool:
    """Whether a metric measures the detection of OOD samples among in-distribution ones."""
    return METRICS[key].measure in DETECTION_MEASURES


def _counts(key: str, values: Metrics) -> tuple[int | str, int | str]:
    """The number of in-distribution and of OOD samples behind a metric."""
    if "n" in values:
        return int(values["n"]), ""
    within = int(values["n_id"]) if is_of_detection(key) or key == "n_id" else ""
    return within, "" if key == "n_id" else int(values["n_ood"])


def _columns(values: SampleValues, targets: Tensor | None) -> dict[str, Tensor]:
    """Columns of the table of samples; those of labels last."""
    columns = {"sample": torch.arange(len(values))}
    if values.predicted is not None:
        columns["predicted"] = values.predicted
    for name in ("confidence", "entropy", "mutual_information", "disagreement"):
        columns[name] = getattr(values, name)
    columns |= values.detectors
    if targets is not None and values.correct is not None:
        columns |= {"label": targets, "correct": values.correct.long()}
        columns |= {name: getattr(values, name) for name in ("nll", "brier")}
    return columns
