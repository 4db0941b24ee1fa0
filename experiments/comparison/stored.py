"""A finished comparison, read from its directory and judged."""

import csv
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config import CompareConfig, plugin_words
from ..cost.measurement import COST_TOLERANCE, Cost
from ..evaluation.predictions import Predictions
from ..store.errors import damaged
from ..store.progress import Display
from ..store.run import Run, read_config, read_json
from ..training.devices import threads
from .cascade_record import CascadeRecord
from .command_line import command_line
from .examples import Examples, load_examples
from .judging import judge_all
from .methods import find_method
from .single_models import is_single, validation_nll
from .verdicts import Comparison, MethodSummary, Replicate

EXAMPLES = "examples.safetensors"
"""Pictures of test images, which a report shows where the data is not."""


def load_comparison(path: Path | str, *, display: Display | None = None) -> Comparison:
    """Read a finished comparison and judge its ensembles, without training and without the data.

    Args:
        path: Its directory.
        display: Where progress is shown; nowhere by default.

    Returns:
        The comparison, as `compare` returned it.

    Raises:
        ValueError: The directory holds no comparison, or an unfinished one.
    """
    path, display = Path(path), display or Display(quiet=True)
    config = read_config(path, CompareConfig)
    known = _record(path, config)
    left_out: Mapping[str, str] = known.get("left_out", {})
    methods = [
        _method(path, config, name, known) for name in config.methods if name not in left_out
    ]
    examples, picture_notes = _load_examples(path / EXAMPLES, methods)
    display.say("compare methods by paired bootstrap")
    singles = [method for method in methods if is_single(method)]
    ensembles = [method for method in methods if not is_single(method)]
    with threads(1):  # many small steps: more threads would wait for each other
        against = judge_all(ensembles, singles, draws=config.draws, seed=config.seed)
    partners = {
        each.name: single_of_equal_cost(each, singles, best_kept=config.keep == "best")
        for each in ensembles
    }
    pairs = {(name, single.name) for name, single in partners.items() if single is not None}
    return Comparison(
        data=config.data,
        caveat=known["caveat"],
        # Earlier versions said so only in words.
        conclusive=known.get("conclusive", "data cannot tell" not in known["caveat"]),
        methods=tuple(methods),
        judgements=tuple(v for v in against if (v.challenger, v.baseline) in pairs),
        draws=config.draws,
        notes=(*known["notes"], *_left_out(path, config)),
        configuration=config.to_yaml(),
        environment=known["environment"],
        command=command_line(config),
        examples=examples,
        cautions=tuple(known.get("cautions", ())),  # files of earlier versions have none
        data_notes=tuple(known.get("data_notes", ())),
        verdict_notes=(
            *(
                f"There is no {name}, {reason}; change --cascade.target-risk or "
                f"--cascade.target-coverage, or leave {name} out of --methods."
                for name, reason in left_out.items()
            ),
            *(_unjudged(each, singles) for each in ensembles if partners[each.name] is None),
        ),
        picture_notes=tuple(picture_notes),
        against_singles=against,
    )


def _record(path: Path, config: CompareConfig) -> dict[str, Any]:
    """What ``comparison.json`` holds, if it is of the configuration that the directory has."""
    known = read_json(path / "comparison.json") if (path / "comparison.json").exists() else {}
    wanted = (list(config.methods), config.replicates)
    cascade = known.get("cascade")  # None where no method is one
    changed = cascade is not None and cascade != dataclasses.asdict(config.cascade)
    if changed or (known.get("methods"), known.get("replicates")) != wanted:
        raise ValueError(
            f"{path} holds an unfinished comparison; "
            f"run `deepens compare --config {path / 'config.yaml'}"
            f"{plugin_words(config.plugins)}` to finish it"
        )
    if missing := {"caveat", "notes", "environment", "costs", "descriptions"} - known.keys():
        remedy = f"it lacks {', '.join(sorted(missing))}; run `deepens compare` again"
        raise damaged(path / "comparison.json", remedy)
    return known


def _method(
    path: Path, config: CompareConfig, name: str, known: Mapping[str, Any]
) -> MethodSummary:
    method = find_method(name, config.members, config.plugins)
    replicates = tuple(
        _replicate(path, f"{name}-{r}", f"{method.over}-{r}" if method.over else "")
        for r in range(config.replicates)
    )
    try:
        cost, description = Cost(**known["costs"][name]), known["descriptions"][name]
    except (KeyError, TypeError):
        raise damaged(path / "comparison.json", "run `deepens compare` again") from None
    return MethodSummary(name, description, cost, replicates, method.family)


def single_of_equal_cost(
    ensemble: MethodSummary, singles: Sequence[MethodSummary], *, best_kept: bool = False
) -> MethodSummary | None:
    """The best single model that costs as many MACs as an ensemble, within the tolerance.

    Of several the one of lowest validation NLL (on val/select), so that nothing is chosen on the
    test images; where that is not known of all, the one of the nearest cost.
    """

    def distance(method: MethodSummary) -> float:
        return abs(method.cost.macs / ensemble.cost.macs - 1)

    near = [method for method in singles if distance(method) <= COST_TOLERANCE]
    losses = {each.name: validation_nll(each, best_kept=best_kept) for each in near}
    if any(map(math.isnan, losses.values())):
        return min(near, key=distance)
    return min(near, key=lambda each: losses[each.name], default=None)


def _unjudged(ensemble: MethodSummary, singles: Sequence[MethodSummary]) -> str:
    """Say why an ensemble has no verdict, and which method would give it one."""
    method = find_method(ensemble.name)
    plain = next((single for single in singles if single.name == "single"), None)
    remedy = method.matched
    if not remedy and plain is not None:
        remedy = f"wide-{ensemble.cost.macs / plain.cost.macs:.3g}"
    return (
        f"No verdict on {ensemble.name}: no single model among the methods costs the same within "
        f"{COST_TOLERANCE:.0%}; add {remedy or 'one'} to --methods."
    )


def _left_out(path: Path, config: CompareConfig) -> list[str]:
    """Say which runs in the directory are not part of this comparison."""
    wanted = {f"{name}-{r}" for name in config.methods for r in range(config.replicates)}
    there = {p.parent.name for p in path.glob("*/weights.safetensors")}
    return [f"Left out by --methods or --replicates: {', '.join(sorted(there - wanted))}."] * (
        there > wanted
    )


def _replicate(path: Path, name: str, over: str) -> Replicate:
    """A run, or a cascade over one, by the names of their directories."""
    if over:
        predictions = CascadeRecord.open(path / name, Run.open(path / over)).predictions
    else:
        predictions = Predictions(path / name)
    values = {split: predictions.values(split, more=False) for split in predictions.splits}
    log = _log(path / name / "log.csv")
    return Replicate(name, predictions.metrics, values, log, predictions.scaled())


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
