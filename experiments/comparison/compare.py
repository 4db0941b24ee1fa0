"""The main job: train every method several times, and say which is worth its cost."""

import csv
import dataclasses
import io
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ...datasets import Splits, load
from ...datasets.image_format import ImageFormat
from ...ensembles.policies import OutOfReachError, TooFewImagesError
from ..config import CompareConfig, ReportConfig, TrainConfig
from ..cost.training_compute import why_not_counted
from ..evaluation.detectors import choose_detectors
from ..evaluation.evaluate import say_if_unjudged
from ..evaluation.predictions import load_logits
from ..evaluation.train_and_evaluate import train_and_evaluate
from ..report import write_markdown, write_report
from ..report.verdict_list import outcome_of
from ..store.progress import Display
from ..store.run import Run, claim, describe_environment, read_config, write_json, write_whole_text
from ..training.building import base_run, build_network, build_objective
from ..training.devices import threads
from .cascade_runs import CALIBRATION, CascadeRun, cascade_run
from .examples import Examples, choose_examples, save_examples
from .headlines import headlines
from .method_costs import method_costs
from .methods import Changes, Method, find_method, numbered, training_config
from .pairs import describe_pairs
from .stored import EXAMPLES, load_comparison
from .verdicts import FEWEST_REPLICATES, Comparison, why_undefined

GROWING = (
    *("methods", "replicates", "draws"),
    *("cascade.target_coverage", "cascade.target_risk", "cascade.width", "cascade.confidence"),
)
"""Options that may change between two sittings of one comparison: finished runs are kept."""


def run_compare(config: CompareConfig) -> int:
    """Compare, and print the verdict."""
    display = Display(quiet=config.quiet)
    _show(compare(config, display=display), config.directory())
    return 0


def run_report(config: ReportConfig) -> int:
    """Rebuild the report from the runs, and print the verdict."""
    path = Path(config.run)
    if (path / "grid.yaml").exists():
        from ..cli.grid import run_grid_report  # which makes comparisons itself

        return run_grid_report(path, quiet=config.quiet)
    found = report(path, display=Display(quiet=config.quiet))
    _show(found, path)
    seed = read_config(path, CompareConfig).seed
    backbones = {
        method.name: Run.open(path / method.replicates[0].directory).config.backbone
        for method in found.methods
    }
    for line in describe_pairs(found, config.pairs, backbones=backbones, seed=seed):
        print(line)
    return 0


def compare(
    config: CompareConfig,
    *,
    splits: Splits | None = None,
    display: Display,
    finished: Callable[[str], None] | None = None,
) -> Comparison:
    """Train what is missing of methods x replicates, measure costs, and write the report.

    Args:
        config: What to compare.
        splits: The data of ``config.data``, where it is loaded already.
        display: Where progress is shown.
        finished: Is told of each run that is done, by the name of its directory.

    Returns:
        The comparison; ``results.csv``, ``comparison.json`` and the report hold it.

    Raises:
        ValueError: Options that do not fit, or a directory that holds something else.
    """
    started = time.monotonic()
    methods = check_methods(config)
    build_objective(config)
    detectors = choose_detectors(config.detectors)
    splits = splits or load(config, watcher=display)
    say_if_unjudged(detectors, splits, display)
    form = ImageFormat.of(splits)
    build_network(config, form)
    changes = {
        name: method.changes(config, form) for name, method in methods.items() if not method.over
    }
    for name, method in methods.items():
        if method.matched and method.matched not in methods:
            display.say(f"{name} may find no single model of its cost; {method.matched} makes one")
    path = config.directory()
    claim(path, config, growing=GROWING)
    data = _Data(config, splits, display)
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    cascades: dict[str, list[CascadeRun]] = {name: [] for name in methods if methods[name].over}
    left_out: dict[str, str] = {}
    with display.task(f"compare on {config.data}", len(methods) * config.replicates) as task:
        for name in (*changes, *cascades):  # a cascade comes after what it runs over
            for replicate in range(config.replicates):
                if name in cascades:
                    over, kind = runs[methods[name].over][replicate], methods[name].policy
                    directory = path / f"{name}-{replicate}"
                    try:
                        found = cascade_run(over, directory, config.cascade, policy=kind)
                    except (OutOfReachError, TooFewImagesError) as error:
                        # Its members are trained: what they are worth is told without it.
                        left_out.setdefault(name, f"replicate {replicate}: {error}")
                    else:
                        cascades[name].append(found)
                        runs[name].append(over)
                else:
                    single = training_config(config, name, replicate, changes[name][0])
                    run = train_and_evaluate(single, splits=data.of(single), display=display)
                    runs[name].append(run)
                task.advance(f"{name} {replicate + 1} of {config.replicates}")
                if finished is not None:
                    finished(f"{name}-{replicate}")
    for name in left_out:
        del runs[name], cascades[name]
    display.say("measure costs")
    costs = method_costs(config, runs, cascades, data.of)
    display.say("choose example pictures")
    answering = runs | {name: [each.run for each in found] for name, found in cascades.items()}
    save_examples(path / EXAMPLES, _examples(config, answering, splits))
    notes = [note for _, note in changes.values() if note]
    reasons = {name: why_not_counted(runs[name][0].config) for name in changes}
    notes += [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
    notes += [note for name, found in cascades.items() for note in _cascade_notes(name, found)]
    write_json(
        path / "comparison.json",
        {
            "methods": config.methods,
            "left_out": left_out,
            "cascade": dataclasses.asdict(config.cascade) if cascades or left_out else None,
            "replicates": config.replicates,
            "caveat": " ".join(filter(None, (config.caveat, splits.caveat))),
            "conclusive": not splits.caveat,
            "cautions": [*splits.cautions, *_other_backbones(config, changes)],
            "data_notes": splits.notes,
            "notes": [*notes, *_general_notes(config, changes)],
            "descriptions": {
                name: _description(method, config, changes.get(method.over or name, ({}, ""))[0])
                for name, method in methods.items()
            },
            "costs": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
            "environment": describe_environment()
            | {"wall_seconds_of_this_sitting": round(time.monotonic() - started, 1)},
        },
    )
    return report(path, display=display)


def check_methods(config: CompareConfig) -> dict[str, Method]:
    """Find a comparison's methods by name, and refuse those that do not go together.

    Raises:
        ValueError: An unknown method, two names of one, or a cascade over members that nobody
            trains, or over one member.
    """
    methods = {name: find_method(name) for name in config.methods}
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
        if method.over and (find_method(method.over).count or config.members) < 2:
            raise ValueError(
                f"the method {name} is a cascade, which needs >= 2 members, and {method.over} has "
                f"1; leave {name} out of --methods"
            )
    return methods


class _Data:
    """The images of a comparison, and at another size where a method takes them so."""

    def __init__(self, config: CompareConfig, splits: Splits, display: Display) -> None:
        self._held = {config.image_size: splits}
        self._own, self._display = config.image_size, display

    def of(self, config: TrainConfig) -> Splits:
        """The splits of a run; of other sizes than the comparison's one is held at a time."""
        if config.image_size not in self._held:
            own = self._held[self._own]
            self._held = {
                self._own: own,
                config.image_size: load(config, watcher=self._display),
            }
        return self._held[config.image_size]


def _description(method: Method, config: CompareConfig, options: Mapping[str, Any]) -> str:
    return method.description.format(
        members=f"{method.count or config.members:g}",
        backbone=options.get("backbone", config.backbone),
    )


def _cascade_notes(name: str, found: Sequence[CascadeRun]) -> list[str]:
    """Say what a cascade does with the test images, and what its calibration warns of."""
    kinds = {kind: [each.times(kind) for each in found] for kind in ("test", "near_ood", "far_ood")}
    told = "; ".join(
        f"{', '.join(f'{value:.3f}' for value in values)} on {title}"
        for (kind, values), title in zip(
            kinds.items(), ("a test image", "a near OOD image", "a far OOD image"), strict=True
        )
        if not any(map(math.isnan, values))
    )
    notes = [
        f"{name} takes {told} times its first stage's MACs, on average over images, one number a "
        "replicate; its costs here are those on test images, its latency with one image at a time "
        "the mean; its windows were chosen on val/calibrate"
    ]
    warned = [note for each in found for note in each.notes]
    more = f" ({len(warned) - 1} more such warnings in {name}-*/{CALIBRATION})"
    return notes + [f"{name}: {note}{more if len(warned) > 1 else ''}" for note in warned[:1]]


def report(path: Path, *, display: Display) -> Comparison:
    """Write the results and the report from the runs of a comparison, without training or data.

    The results are ``results.csv``; the report is ``report.html``, and ``report.md`` with its
    figures in ``report_figures/``.

    Raises:
        ValueError: The directory holds no finished comparison.
    """
    comparison = load_comparison(path, display=display)
    write_whole_text(path / "results.csv", _results(comparison))
    write_report(comparison, path / "report.html")
    write_markdown(comparison, path / "report.md")
    return comparison


def _examples(config: CompareConfig, runs: Mapping[str, Sequence[Run]], splits: Splits) -> Examples:
    """Pictures of test images, chosen by what the runs predict for them."""
    test = splits["test"]
    labels = cast(torch.Tensor, test.targets)  # `Splits` has checked that there are some

    def logits(run: Run) -> torch.Tensor:
        found, targets = load_logits(run)["test"]
        if targets is None or not torch.equal(targets, labels):
            raise ValueError(
                f"{run.path} was evaluated on other test images than {config.data} holds now; run "
                f"`deepens evaluate {run.path} --predict`"
            )
        return found

    with threads(1):  # a few numbers an image: more threads would wait for each other
        return choose_examples(
            test.images,
            labels,
            classes=splits.classes,
            runs=[f"{name}-{r}" for name in runs for r in range(config.replicates)],
            predictions=((name, [logits(run) for run in held]) for name, held in runs.items()),
        )


def _other_backbones(config: CompareConfig, changes: Mapping[str, Changes]) -> list[str]:
    """Say which methods are made of another network than the comparison's."""
    others = {
        name: options["backbone"]
        for name, (options, _) in changes.items()
        if options.get("backbone", config.backbone) != config.backbone
    }
    if not others:
        return []
    told = ", ".join(f"{name} of {backbone}" for name, backbone in others.items())
    return [
        f"the methods are made of different networks: {told}, the others of {config.backbone}; "
        "across them, a difference is one of networks too"
    ]


def _general_notes(config: CompareConfig, changes: Mapping[str, Changes]) -> list[str]:
    runs = {name: training_config(config, name, 0, own) for name, (own, _) in changes.items()}
    based = {name: base.epochs for name, run in runs.items() if (base := base_run(run))}
    more = "".join(
        f"; {name} on top of the {epochs} epochs of its base" for name, epochs in based.items()
    )
    more += "".join(
        f"; {name} for {run.epochs}" for name, run in runs.items() if run.epochs != config.epochs
    )
    sized = [name for name, run in runs.items() if run.image_size != config.image_size]
    apart = [
        f"{' and '.join(sized)} see images of another size, which are corrupted after they were "
        "resized: the same images under other draws; and OOD images that were larger keep more of "
        "their detail than the training images, which were enlarged"
    ] * bool(sized)
    return [
        *apart,
        f"All methods are trained for the same {config.epochs} epochs{more}; an ensemble's "
        "training time is that of all its members, and of a base that is trained for them.",
    ]


def _results(comparison: Comparison) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "replicate", "split", "metric", "value"])
    for method in comparison.methods:
        for number, replicate in enumerate(method.replicates):
            for split, metrics in replicate.metrics.items():
                for metric, value in metrics.items():
                    writer.writerow([method.name, number, split, metric, repr(value)])
    return text.getvalue()


def _show(comparison: Comparison, path: Path) -> None:
    reasons: Counter[str] = Counter()
    for verdict in comparison.verdicts:
        if outcome_of(verdict) == "undefined":
            reasons[why_undefined(verdict.metric)] += 1
        else:
            print(verdict.sentence)
    for reason, count in reasons.items():
        print(f"{count} comparison{'' if count == 1 else 's'} without a verdict, since {reason}")
    for caution in comparison.cautions:
        print(f"caution: {caution}")
    fewest = min(len(method.replicates) for method in comparison.methods)
    if fewest < FEWEST_REPLICATES:
        print(
            f"caution: only {fewest} of the {FEWEST_REPLICATES} replicates that a claim needs at "
            "least"
        )
    for headline in headlines(comparison):
        print(f"{headline.answer}. {headline.sentence}")
    notes = (
        *comparison.verdict_notes,
        *comparison.picture_notes,
        *comparison.data_notes,
        *comparison.notes,
        comparison.caveat,
    )
    for note in filter(None, notes):
        print(f"note: {note}")
    print(path / "report.html")
