"""A finished comparison, read from its directory and judged."""

import csv
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .comparison import Comparison, MethodSummary, Replicate, Verdict, judge
from .configuration import CompareConfig
from .cost import COST_TOLERANCE, Cost
from .devices import threads
from .examples import Examples, load_examples
from .methods import METHODS
from .predictions import load_metrics, load_scaled, load_values
from .progress import Display
from .run import Run, damaged, read_config, read_json

EXAMPLES = "examples.safetensors"
"""Pictures of test images, which a report shows where the data is not."""


def load_comparison(path: Path, *, display: Display) -> Comparison:
    """Read a comparison's runs and judge them.

    Raises:
        ValueError: The directory holds no comparison, or an unfinished one.
    """
    config = read_config(path, CompareConfig)
    known = read_json(path / "comparison.json") if (path / "comparison.json").exists() else {}
    if (known.get("methods"), known.get("replicates")) != (list(config.methods), config.replicates):
        raise ValueError(
            f"{path} holds an unfinished comparison; "
            f"run `deepens compare --config {path / 'config.yaml'}` to finish it"
        )
    if missing := {"caveat", "notes", "environment", "costs", "descriptions"} - known.keys():
        remedy = f"it lacks {', '.join(sorted(missing))}; run `deepens compare` again"
        raise damaged(path / "comparison.json", remedy)
    methods = []
    for name in config.methods:
        replicates = tuple(_replicate(path, f"{name}-{r}") for r in range(config.replicates))
        try:
            cost = Cost(**known["costs"][name])
            methods.append(MethodSummary(name, known["descriptions"][name], cost, replicates))
        except (KeyError, TypeError):
            raise damaged(path / "comparison.json", "run `deepens compare` again") from None
    verdicts: list[Verdict] = []
    unjudged: list[str] = []
    examples, lacking = _load_examples(path / EXAMPLES, methods)
    display.say("compare methods by paired bootstrap")
    for ensemble in (method for method in methods if METHODS[method.name].ensemble):
        single = _single_of_equal_cost(ensemble, methods)
        if single is None:
            unjudged.append(
                f"No verdict on {ensemble.name}: no single model among the methods costs the same "
                f"within {COST_TOLERANCE:.0%}; add {METHODS[ensemble.name].matched} "
                "to --methods."
            )
            continue
        with threads(1):  # many small steps: more threads would wait for each other
            verdicts += judge(ensemble, single, draws=config.draws, seed=config.seed)
    return Comparison(
        data=config.data,
        caveat=known["caveat"],
        methods=tuple(methods),
        verdicts=tuple(verdicts),
        draws=config.draws,
        notes=(*known["notes"], *_left_out(path, config)),
        configuration=config.to_yaml(),
        environment=known["environment"],
        command=_command(config),
        examples=examples,
        cautions=tuple(known.get("cautions", ())),  # files of earlier versions have none
        data_notes=tuple(known.get("data_notes", ())),
        verdict_notes=tuple(unjudged),
        picture_notes=tuple(lacking),
    )


def _single_of_equal_cost(
    ensemble: MethodSummary, methods: Sequence[MethodSummary]
) -> MethodSummary | None:
    """The single model whose inference cost is nearest to the ensemble's, if it is near enough."""

    def distance(method: MethodSummary) -> float:
        return abs(method.cost.macs / ensemble.cost.macs - 1)

    singles = [method for method in methods if not METHODS[method.name].ensemble]
    nearest = min(singles, key=distance, default=None)
    return nearest if nearest is not None and distance(nearest) <= COST_TOLERANCE else None


def _left_out(path: Path, config: CompareConfig) -> list[str]:
    """Say which runs in the directory are not part of this comparison."""
    wanted = {f"{name}-{r}" for name in config.methods for r in range(config.replicates)}
    there = {p.parent.name for p in path.glob("*/weights.safetensors")}
    return [f"Left out by --methods or --replicates: {', '.join(sorted(there - wanted))}."] * (
        there > wanted
    )


def _replicate(path: Path, name: str) -> Replicate:
    run = Run.open(path / name)
    values = load_values(run, shift=True, more=False)
    log = _log(run.path / "log.csv")
    return Replicate(name, load_metrics(run), values, log, load_scaled(run))


def _log(file: Path) -> tuple[dict[str, float], ...]:
    """Rows of a run's log, without what is no number; none where there is no log."""
    if not file.exists():
        return ()
    with file.open(encoding="utf-8", newline="") as lines:
        return tuple(dict(_numbers(row)) for row in csv.DictReader(lines))


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, text in row.items():
        with suppress(TypeError, ValueError):  # a cell that is missing, or cut off
            yield name, float(text)


def _load_examples(
    file: Path, methods: Sequence[MethodSummary]
) -> tuple[Examples | None, list[str]]:
    """The pictures chosen by these very runs; otherwise none, and a note that says why."""
    again = "`deepens compare` chooses them again."
    if not file.exists():
        return None, [f"There are no pictures of test images: {file.name} is missing. {again}"]
    try:
        examples = load_examples(file)
    except ValueError as error:
        return None, [f"There are no pictures of test images: {error}."]
    if examples.runs != tuple(r.directory for method in methods for r in method.replicates):
        note = f"There are no pictures of test images: {file.name} is of other runs. {again}"
        return None, [note]
    return examples, []


def _command(config: CompareConfig) -> str:
    """The shortest command line that makes the same comparison."""
    words = ["deepens compare"]
    for name, value in _flat_changes(config.to_dict(), CompareConfig().to_dict()):
        for shown in _spelled(value) if isinstance(value, list) else [str(value)]:
            between = "=" if shown.startswith("-") else " "  # or it would be read as an option
            words.append(f"--{name.replace('_', '-')}{between}{shlex.quote(shown)}")
    return " ".join(words)


def _spelled(values: Sequence[Any]) -> list[str]:
    """Write a list as one word, or as a word a value where one of them must be quoted."""
    texts = [str(value) for value in values]
    if all(re.fullmatch(r"[^\s,\"\[\]]+", text) for text in texts):
        return [",".join(texts)]
    return ['"{}"'.format(text.replace('"', '""')) for text in texts]


def _flat_changes(
    options: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> Sequence[tuple[str, Any]]:
    changes: list[tuple[str, Any]] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            changes += _flat_changes(value, defaults[name], f"{prefix}{name}.")
        elif value != defaults[name] or name == "data":
            changes.append((prefix + name, value))
    return changes
