"""A finished comparison, read from its directory and judged, and its tables written there."""

import csv
import dataclasses
import math
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from ...datasets.files import whole_file
from ...datasets.plain_data import construct
from ...metrics.samples import SampleValues
from ..config import CompareConfig, plugin_words
from ..cost.measurement import Cost
from ..evaluation.predictions import Predictions
from ..evaluation.temperatures import JUDGED, scaled_keys
from ..store.errors import damaged
from ..store.progress import Display
from ..store.run import Run, read_config, read_json
from ..training.devices import threads
from ..training.independence import networks_of
from .cascade_runs import CascadeRecord
from .command_line import command_line
from .examples import Examples, load_examples
from .judging import judge_all
from .methods import find_method
from .partners import Partner, around, partner_of, without_equal
from .shared_methods import sharing_notes
from .single_models import ensembles_of, frontier_of, single_models
from .verdicts import RESULT_COLUMNS, Comparison, MethodSummary, Replicate

EXAMPLES = "examples.safetensors"
"""Pictures of test images, which a report shows where the data is not."""


def load_comparison(
    path: Path | str, *, display: Display | None = None, opened: Iterable[Predictions] = ()
) -> Comparison:
    """Read a finished comparison and judge its ensembles, without training and without the data.

    Args:
        path: Its directory.
        display: Where progress is shown; nowhere by default.
        opened: Predictions of its runs that are open already.

    Returns:
        The comparison, as `compare` returned it.

    Raises:
        ValueError: The directory holds no comparison, or an unfinished one.
    """
    path, display = Path(path), display or Display(quiet=True)
    config = read_config(path, CompareConfig)
    known = stored_record(path, config)
    left_out = known.left_out
    held = {each.run.path: each for each in opened}
    methods = [
        _method(path, config, name, known, held) for name in config.methods if name not in left_out
    ]
    examples, picture_notes = _load_examples(path / EXAMPLES, methods)
    singles, ensembles = single_models(methods), ensembles_of(methods)
    tolerance, best_kept = config.cost_tolerance, config.keep == "best"
    partners = {
        each.name: partner_of(each, singles, tolerance=tolerance, best_kept=best_kept)
        for each in ensembles
    }
    with threads(1):  # many small steps: more threads would wait for each other
        found = judge_all(
            ensembles,
            singles,
            draws=config.draws,
            seed=config.seed,
            tolerance=tolerance,
            partners=partners,
            display=display,
        )
    pairs = {(name, partner.name) for name, partner in partners.items() if partner is not None}
    wanted = {f"{name}-{r}" for name in config.methods for r in range(config.replicates)}
    more = {p.parent.name for p in path.glob("*/weights.safetensors")} - wanted
    left = [f"Left out by --methods or --replicates: {', '.join(sorted(more))}."] if more else []
    return Comparison(
        data=config.data,
        caveat=known.caveat,
        conclusive="data cannot tell" not in known.caveat  # as earlier versions said so
        if known.conclusive is None
        else known.conclusive,
        methods=tuple(methods),
        judgements=tuple(v for v in found if (v.challenger, v.baseline) in pairs),
        draws=config.draws,
        notes=(*known.notes, *sharing_notes(methods), *left),
        configuration=config.to_yaml(),
        environment=known.environment,
        command=command_line(config),
        examples=examples,
        cautions=known.cautions,
        data_notes=known.data_notes,
        verdict_notes=(
            *(
                f"There is no {name}, {reason}; change --cascade.target-risk or "
                f"--cascade.target-coverage, or leave {name} out of --methods."
                for name, reason in left_out.items()
            ),
            *_without_equal(partners, methods, config),
            *_unscaled(methods),
        ),
        picture_notes=picture_notes,
        against_singles=tuple(v for v in found if not v.between),
        cost_tolerance=tolerance,
    )


def write_tables(comparison: Comparison, path: Path) -> None:
    """Write ``results.csv`` and ``verdicts.csv`` into a directory, each whole or not at all."""
    import pandas

    # As objects, so that counts stay integers beside numbers that are none.
    results = pandas.DataFrame(comparison.rows(), columns=list(RESULT_COLUMNS), dtype=object)
    for name, frame in (("results", results), ("verdicts", comparison.verdicts)):
        with whole_file(path / f"{name}.csv") as aside:
            frame.to_csv(aside, index=False, na_rep="nan", lineterminator="\n")


@dataclasses.dataclass(frozen=True)
class _Record:
    """What ``comparison.json`` holds; those of earlier versions lack what has a default."""

    methods: tuple[str, ...]
    replicates: int
    caveat: str
    notes: tuple[str, ...]
    environment: Mapping[str, Any]
    costs: Mapping[str, Cost]
    descriptions: Mapping[str, str]
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cascade: Mapping[str, Any] | None = None
    conclusive: bool | None = None
    cautions: tuple[str, ...] = ()
    data_notes: tuple[str, ...] = ()


def stored_record(path: Path, config: CompareConfig) -> _Record:
    """What ``comparison.json`` holds, if it is of the configuration that the directory has."""
    file = path / "comparison.json"
    known = read_json(file) if file.exists() else {}
    wanted = (list(config.methods), config.replicates)
    cascade = known.get("cascade")  # None where no method is one
    changed = cascade is not None and cascade != dataclasses.asdict(config.cascade)
    if changed or (known.get("methods"), known.get("replicates")) != wanted:
        raise ValueError(
            f"{path} holds an unfinished comparison; "
            f"run `deepens compare --config {path / 'config.yaml'}"
            f"{plugin_words(config.plugins)}` to finish it"
        )
    try:
        return construct(_Record, known, file.name, more=True)
    except ValueError as error:
        raise damaged(file, f"{error}; run `deepens compare` again") from None


def _method(
    path: Path,
    config: CompareConfig,
    name: str,
    known: _Record,
    opened: Mapping[Path, Predictions],
) -> MethodSummary:
    method = find_method(name, config.members, config.plugins)
    replicates = tuple(
        _replicate(
            path / f"{name}-{r}", path / f"{method.over}-{r}" if method.over else None, opened
        )
        for r in range(config.replicates)
    )
    if name not in known.costs or name not in known.descriptions:
        raise damaged(path / "comparison.json", "run `deepens compare` again")
    cost, description = known.costs[name], known.descriptions[name]
    return MethodSummary(name, description, cost, replicates, method.family, method.over)


def _without_equal(
    partners: Mapping[str, Partner | None],
    methods: Sequence[MethodSummary],
    config: CompareConfig,
) -> Iterator[str]:
    """Say which ensembles have no single model of equal cost, and what becomes of them."""
    macs = {each.name: each.cost.macs for each in methods}
    for name, partner in partners.items():
        if partner is not None and not partner.between:
            continue
        costs = {single.name: single.cost.macs for single in frontier_of(methods)}
        chosen = [end for end, _ in partner.between] if partner else []
        for sides in around(macs[name], costs, config.cost_tolerance) if chosen else ():
            costs = {each: costs[each] for each in costs if each in chosen or each not in sides}
        yield f"{without_equal(name, macs[name], costs, config)}."


def _unscaled(methods: Sequence[MethodSummary]) -> list[str]:
    """Say of which methods nothing is judged after temperature scaling, and why."""
    reasons: dict[str, list[str]] = {}
    for method in methods:
        why = [
            each.unidentified[JUDGED] for each in method.replicates if JUDGED in each.unidentified
        ]
        if why:
            reasons.setdefault(why[0], []).append(method.name)
    listed = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
    return (
        [
            "Nothing is judged after temperature scaling where a temperature is not identified: "
            f"that of {'; '.join(listed)}."
        ]
        if listed
        else []
    )


def _replicate(path: Path, over: Path | None, opened: Mapping[Path, Predictions]) -> Replicate:
    """A run, or a cascade over one, by their directories."""
    predictions, whole = opened.get(path), None if over is None else Run.open(over)
    if predictions is None and whole is not None:
        predictions = CascadeRecord.open(path, whole).predictions
    predictions = predictions or Predictions(path)
    networks = networks_of((whole or predictions.run).config)
    values = {split: predictions.values(split, more=False) for split in predictions.splits}
    scaled, unidentified = predictions.scaled(), predictions.unidentified
    # Earlier versions used what was fitted at the bound of the search.
    lacking = {key: math.nan for way in unidentified for key in scaled_keys(way)}
    metrics = {
        split: {**found, **{key: lacking[key] for key in lacking.keys() & found.keys()}}
        for split, found in predictions.metrics.items()
    }
    # Those under shift, of which there are many, stay as compact as they are stored.
    shifted = cast("MutableMapping[str, SampleValues]", predictions.shift_values)
    unmeasured = () if whole is not None else predictions.lacking
    predictions.release()
    held, log = ChainMap(values, shifted), _log(path / "log.csv")
    return Replicate(path.name, metrics, held, log, scaled, unidentified, networks, unmeasured)


def _log(file: Path) -> tuple[dict[str, float], ...]:
    """Rows of a run's log, without what is no number; none where there is no log."""
    rows: list[dict[str, float]] = []
    try:
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
    except UnicodeDecodeError:
        remedy = "delete it, and the report has no training curves"
        raise ValueError(f"{file} is not text in UTF-8; {remedy}") from None
    for row in csv.DictReader(lines):
        rows.append({})
        for name, text in row.items():
            with suppress(TypeError, ValueError):  # a cell that is missing, or cut off
                rows[-1][name] = float(text)
    return tuple(rows)


def _load_examples(
    file: Path, methods: Sequence[MethodSummary]
) -> tuple[Examples | None, tuple[str, ...]]:
    """The pictures chosen by these very runs; otherwise none, and a note that says why."""
    reason = f"{file.name} is missing. `deepens compare` chooses them again."
    if file.exists():
        try:
            examples = load_examples(file)
        except ValueError as error:
            reason = f"{error}."
        else:
            if examples.runs == tuple(r.directory for m in methods for r in m.replicates):
                return examples, ()
            reason = f"{file.name} is of other runs. `deepens compare` chooses them again."
    return None, (f"There are no pictures of test images: {reason}",)
