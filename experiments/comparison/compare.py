"""The main job: train every method several times, and measure what each costs and is worth."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...datasets import Splits, load
from ...datasets.image_format import ImageFormat
from ...ensembles import DeepEnsemble
from ...ensembles.policies import OutOfReachError, TooFewImagesError
from ..config import CompareConfig, TrainConfig
from ..cost.measurement import Cost
from ..evaluation.detectors import choose_detectors
from ..evaluation.predict_splits import say_if_unjudged
from ..evaluation.predictions import EvaluatedRun, Predictions
from ..evaluation.train_and_evaluate import (
    finish_runs,
    is_finished,
    train_and_evaluate,
    train_and_evaluate_together,
)
from ..store.data_record import keep_data_record
from ..store.environment import describe_environment
from ..store.progress import Display
from ..store.run import (
    Run,
    check_claim,
    check_file_names,
    claimed,
    settled,
    write_json,
)
from ..training.building import build_network, check_options, check_size
from ..training.precision import choose_precision, settle_precision
from .cascade_runs import CascadeRecord, make_cascade
from .examples import examples_of_runs, save_examples
from .method_costs import method_costs
from .method_names import current_name
from .methods import Changes, Method, find_method, numbered, settle_names
from .notes import comparison_notes, describe_method, other_backbones
from .plan import Plan, make_plan
from .stored import EXAMPLES, load_comparison, write_tables
from .units import Unit, units_of
from .verdicts import Comparison

GROWING = (
    *("methods", "replicates", "draws", "cost_tolerance"),
    *("cascade.target_coverage", "cascade.target_risk", "cascade.width", "cascade.confidence"),
)
"""Options that may change between two sessions of one comparison: finished runs are kept."""


def compare(
    config: CompareConfig,
    *,
    splits: Splits | None = None,
    display: Display | None = None,
    finished: Callable[[str], None] | None = None,
) -> Comparison:
    """Train what is missing of methods x replicates, measure costs, and judge the ensembles.

    Use it from Python as `deepens compare` is used in a shell; `write_report` then writes the
    report. Finished runs are not repeated, and an interrupted comparison continues where it was.

    Args:
        config: What to compare.
        splits: The data of ``config.data``, where it is loaded already.
        display: Where progress is shown; nowhere by default.
        finished: Is called with the name of each run's directory when the run is finished.

    Returns:
        The comparison, with its ``results`` and ``verdicts`` as data frames; its directory holds
        them as ``results.csv``, ``verdicts.csv`` and ``comparison.json``.

    Raises:
        ValueError: Options that do not fit, or a directory that holds something else.
    """
    started = time.monotonic()
    display = display or Display(quiet=True)
    config, methods, changes, splits = _prepare(config, splits, display)
    planned = make_plan(config, methods, changes, splits)
    for warning in planned.warnings:
        display.say(warning)
    path = config.directory()
    check_file_names(path, splits.names())
    with claimed(path, config, growing=GROWING) as config:
        config = settle_precision(config, _one_network(config, splits), splits, display)
        session = _Session(config, splits, display, methods, changes)
        session.train(finished, planned)
        costs = method_costs(config, session.runs, session.cascades, session.data_of, display)
        keep_data_record(path, splits)
        examples = examples_of_runs(session.answers, splits, data=config.data, display=display)
        save_examples(path / EXAMPLES, examples)
        record = session.record(costs)
        record["environment"]["wall_seconds_of_this_sitting"] = round(time.monotonic() - started, 1)
        write_json(path / "comparison.json", record)
        opened = [each for replicates in session.answers.values() for each in replicates]
        comparison = load_comparison(path, display=display, opened=opened)
        write_tables(comparison, path)
    return comparison


def plan(config: CompareConfig, *, display: Display | None = None) -> Plan:
    """What `compare` would do: costs, time and what will be missing; nothing is written.

    Raises:
        ValueError: As of `compare`.
    """
    display = display or Display(quiet=True)
    config, methods, changes, splits = _prepare(config, None, display)
    config = choose_precision(config, _one_network(config, splits), splits, display)
    return make_plan(config, methods, changes, splits, timed=True)


def _one_network(config: CompareConfig, splits: Splits) -> Callable[[], DeepEnsemble]:
    """What a single model trains, by which all methods' precision is chosen."""
    image_format = ImageFormat.of(splits)
    return lambda: DeepEnsemble(lambda: build_network(config, image_format), seeds=[config.seed])


Prepared = tuple[CompareConfig, dict[str, Method], dict[str, Changes], Splits]


def _prepare(config: CompareConfig, splits: Splits | None, display: Display) -> Prepared:
    """Refuse what cannot be, what needs no image before any is read."""
    if config.jobs is not None or config.in_processes:
        from ..training.processes import settle_jobs  # likewise

        config = settle_jobs(config)
    asked, fewer = set(map(current_name, config.methods)), config.replicates
    sharing = config.share_members
    config = settle_names(config)
    if config.share_members < sharing:
        display.say("the methods of this comparison share no members, as when it was begun")
    if config.replicates > fewer:
        display.say(f"the {config.replicates} replicates of the comparison stay")
    methods = check_methods(config)
    if stay := ",".join(name for name in methods if current_name(name) not in asked):
        display.say(f"what is finished stays in the comparison, unless you give --drop {stay}")
    check_options(config)
    detectors = choose_detectors(config.detectors)
    check_claim(config.directory(), config, growing=GROWING)
    config = settled(config.directory(), config)
    splits = splits or load(config, watcher=display)
    say_if_unjudged(detectors, splits, display)
    image_format = ImageFormat.of(splits)
    check_size(config, image_format, config.members)
    build_network(config, image_format)
    changes = {
        name: method.changes(config, image_format)
        for name, method in methods.items()
        if not method.over
    }
    return config, methods, changes, splits


class _Session:
    """What is made of a comparison, by method.

    Attributes:
        runs: The replicates; of a cascade those of the ensemble that it runs over.
        answers: The predictions of each, opened once for all that follows; of a cascade its own.
        cascades: Of the methods that are cascades.
        left_out: Cascades that could not be calibrated, and why.
    """

    def __init__(
        self,
        config: CompareConfig,
        splits: Splits,
        display: Display,
        methods: Mapping[str, Method],
        changes: Mapping[str, Changes],
    ) -> None:
        self.config, self.splits, self.display = config, splits, display
        self.methods, self.changes = methods, changes
        self.data = {config.image_size: splits}
        self.runs: dict[str, list[Run]] = {name: [] for name in methods}
        self.answers: dict[str, list[Predictions]] = {name: [] for name in methods}
        over = [name for name, method in methods.items() if method.over]
        self.cascades: dict[str, list[CascadeRecord]] = {name: [] for name in over}
        self.left_out: dict[str, str] = {}

    def data_of(self, config: TrainConfig) -> Splits:
        """The splits of a run; of other sizes than the comparison's one is held at a time."""
        if config.image_size not in self.data:
            self.data = {self.config.image_size: self.splits}  # there may be no room for both
            self.data[config.image_size] = load(config, watcher=self.display)
        return self.data[config.image_size]

    def train(self, finished: Callable[[str], None] | None, plan: Plan) -> None:
        """Train and evaluate what is missing, one replicate of all methods after the other.

        A cascade comes after what it runs over.
        """
        count = self.config.replicates
        if self.config.in_processes:
            self._fit_in_processes(plan)
        units = itertools.groupby(units_of(self.config, self.changes), lambda u: u.replicate)
        with self.display.task(f"compare on {self.config.data}", len(self.methods) * count) as task:

            def done(name: str, replicate: int) -> None:
                task.advance(f"{name} {replicate + 1} of {count}")
                if finished is not None:
                    finished(f"{name}-{replicate}")

            for replicate, trainings in units:
                for unit in trainings:
                    for name, run in self._fit(unit).items():
                        self.runs[name].append(run)
                        self.answers[name].append(run.predictions)
                        done(name, replicate)
                for name in self.cascades:
                    self._derive(self.methods[name], replicate)
                    done(name, replicate)
        for name in self.left_out:
            del self.runs[name], self.answers[name], self.cascades[name]

    def _fit_in_processes(self, plan: Plan) -> None:
        """Let other processes do the trainings that are missing."""
        from ..training.processes import Training, fit_in_processes  # takes its time to import

        macs = {method.name: float(method.macs or 1) for method in plan.methods}
        trainings = []
        for unit in units_of(self.config, self.changes):
            runs = list(unit.runs.values())
            if not all(is_finished(run, functools.partial(self.data_of, run)) for run in runs):
                cost = max(macs[name] * run.epochs for name, run in unit.runs.items())
                trainings.append(Training(runs, cost, self.config.share_members))
        fit_in_processes(self.config, trainings, finish_runs, self.display)

    def _fit(self, unit: Unit) -> dict[str, EvaluatedRun]:
        """Do one training and evaluate the runs that come of it, by method."""
        names, configs = list(unit.runs), list(unit.runs.values())
        given: dict[str, Any] = {"splits": self.data_of(configs[0]), "display": self.display}
        if self.config.share_members:
            return dict(zip(names, train_and_evaluate_together(configs, **given), strict=True))
        return {names[0]: train_and_evaluate(configs[0], **given)}

    def _derive(self, method: Method, replicate: int) -> None:
        """Calibrate a cascade; one that cannot be calibrated does not stop the other methods."""
        name, source = method.name, self.answers[method.over][replicate]
        path = self.config.directory() / f"{name}-{replicate}"
        try:
            found = make_cascade(source, path, self.config.cascade, policy=method.policy)
        except (OutOfReachError, TooFewImagesError) as error:
            self.left_out.setdefault(name, f"replicate {replicate}: {error}")
        else:
            self.cascades[name].append(found)
            self.answers[name].append(found.predictions)
            self.runs[name].append(source.run)

    def record(self, costs: Mapping[str, Cost]) -> dict[str, Any]:
        """What a comparison's directory keeps beside its runs."""
        config, splits, changes = self.config, self.splits, self.changes
        any_cascade = self.cascades or self.left_out
        return {
            "methods": config.methods,
            "left_out": self.left_out,
            "cascade": dataclasses.asdict(config.cascade) if any_cascade else None,
            "replicates": config.replicates,
            "caveat": " ".join(filter(None, (config.caveat, splits.caveat))),
            "conclusive": splits.conclusive,
            "cautions": [*splits.cautions, *other_backbones(config, changes)],
            "data_notes": splits.notes,
            "notes": comparison_notes(config, changes, self.runs, self.cascades),
            "descriptions": {
                name: describe_method(method, config, changes.get(method.over or name, ({}, ""))[0])
                for name, method in self.methods.items()
            },
            "costs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
            "environment": describe_environment(),
        }


def check_methods(config: CompareConfig) -> dict[str, Method]:
    """Find a comparison's methods by name, and refuse those that do not go together.

    Raises:
        ValueError: An unknown method, two names of one, or a cascade over members that nobody
            trains.
    """
    methods = {name: find_method(name, config.members, config.plugins) for name in config.methods}
    names: dict[str, str] = {}
    for name, method in methods.items():
        first = names.setdefault(numbered(name, config.members), name)
        if first != name:
            raise ValueError(
                f"{first} and {name} are one method, since members is {config.members}; leave one "
                "of them out of --methods"
            )
        if method.over and method.over not in methods:
            raise ValueError(
                f"the method {name} runs over the members of {method.over}, which must be among "
                f"the methods too; add {method.over} to --methods"
            )
    return methods
