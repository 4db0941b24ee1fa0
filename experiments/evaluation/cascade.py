"""A run's cascade: calibrated on ``val/calibrate``, kept with the run, and told of every split."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...datasets.image_format import ImageFormat
from ...ensembles import Ensemble
from ...ensembles.policies import (
    Calibration,
    OutOfReachError,
    Task,
    TooFewImagesError,
    WindowPolicy,
    assess,
    calibrate,
    calibrate_passing,
    ensemble_stages,
    halves,
    replay,
    search_windows,
    threshold_at_coverage,
)
from ...ensembles.policies.calibration import FEWEST
from ...ensembles.policy import Answers
from ...metrics.detection.ood import area_under_roc
from ...metrics.scoring.proper_scores import negative_log_likelihood
from ...metrics.selective.areas import area_under_risk_coverage, coverage_at_risk, risk_at_coverage
from ..config import CascadeConfig
from ..cost.macs import count_macs
from ..store.progress import Display
from ..store.run import Run, write_json, write_whole_text
from ..training.devices import threads
from ..training.weights import hash_file, load_ensemble
from .predictions import SHIFT, load_logits, predicted_data, read_index
from .temperatures import CALIBRATE

WIDTHS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Half widths of the windows whose cost and quality are drawn."""

FLAGGED = 0.95
"""Share of in-distribution images that are not flagged as OOD."""

_AGAIN = "run `deepens cascade RUN` again"

Logits = list[Tensor]
Split = tuple[Logits, Tensor | None]


@dataclass(frozen=True)
class StoredCascade:
    """A calibrated cascade of a run's members.

    Attributes:
        policy: Windows and threshold.
        order: Members in the order in which they run.
        reached: Expected share of in-distribution images that each stage runs on.
        images: Number of images that it was calibrated on.
        ood_threshold: Confidence below which an image is flagged as OOD.
        pool: ``"mean"`` of the members that ran, or the ``"last"`` one alone.
    """

    policy: WindowPolicy
    order: tuple[int, ...]
    reached: tuple[float, ...]
    images: int
    ood_threshold: float
    pool: str = "mean"


@dataclass(frozen=True)
class Point:
    """Cost and quality of one policy on the test images.

    Attributes:
        policy: ``"window"``, ``"single threshold"``, ``"first stage"`` or ``"all stages"``.
        width: Half a window's width, of the policies that have one.
        macs: Average multiply-accumulates, over the first stage's.
        quality: By the task's measure.
    """

    policy: str
    width: float | None
    macs: float
    quality: float


def run_cascade(config: CascadeConfig) -> int:
    """Calibrate, write the cascade and what it does, and print a table."""
    run = Run.open(config.run)
    with threads(1):
        content, rows, points, label = calibrate_run(run, config, Display(quiet=config.quiet))
    file = config.file()
    _check_out(file)
    write_json(file, content)
    write_whole_text(file.with_suffix(".csv"), _as_csv(rows))
    from ..cli.cascade_figure import (
        draw_curves,  # matplotlib takes its time, and prediction has none
    )

    figure = draw_curves([asdict(point) for point in points], label)
    write_whole_text(file.with_suffix(".svg"), figure)
    for line in _table(rows):
        print(line)
    if (held := content["held_out"]) is not None:
        print(
            f"on the {held['images']} calibration images that nothing was chosen on: coverage "
            f"{held['coverage']:.4f}, risk {held['risk']:.4f}, "
            f"{held['average_macs'] / content['macs'][0]:.4f} times the first stage's MACs"
        )
    for note in content["notes"]:
        print(f"note: {note}")
    print(f"{label} against average MACs: {file.with_suffix('.svg')}")
    print(file)
    return 0


def calibrate_run(
    run: Run, config: CascadeConfig, display: Display
) -> tuple[dict[str, Any], list[dict[str, Any]], list[Point], str]:
    """Calibrate a run's cascade and measure it on every split, from the saved logits.

    Args:
        run: A trained and evaluated run.
        config: The task and the policy.
        display: Where progress is shown.

    Returns:
        What ``cascade.json`` holds; a row of measures for each policy and split; the points of the
        curve; and the name of their measure.

    Raises:
        ValueError: If the run has one member or no calibration split, the order is not one of its
            members, an OOD task has no OOD images, or as `calibrate` and `search_windows`.
    """
    ensemble, form = load_ensemble(run)
    count = ensemble.num_members
    if count < 2:
        raise ValueError(f"a cascade needs >= 2 stages, and {run.path} has {count} member")
    members = list(config.order) or list(range(count))
    if not all(0 <= member < count for member in members):
        raise ValueError(f"order must name members in [0, {count}), got {members}")
    if len(set(members)) < len(members) or len(members) < 2:
        raise ValueError(f"order must name >= 2 members, each once, got {members}")
    splits: dict[str, Split] = {
        name: ([logits[[i]] for i in members], targets)
        for name, (logits, targets) in load_logits(run).items()
    }
    if CALIBRATE not in splits:
        raise ValueError(f"{run.path} has no predictions of {CALIBRATE}, on which to calibrate")
    if config.task in ("ood", "scod") and not any(t is None for _, t in splits.values()):
        raise ValueError(
            f"the task {config.task} needs OOD images, and {run.path} has predictions of none; "
            "train with --near-ood or --far-ood, or evaluate again with data that has some"
        )
    task = Task(config.task, config.target_risk, config.target_coverage, config.target_tpr)
    macs = stage_macs(ensemble, form, members)
    logits, targets = splits[CALIBRATE]
    assert targets is not None  # validation images have labels
    with display.task(f"cascade of {run.path}", 6 + len(WIDTHS)) as task_done:
        found, held_out = _chosen(logits, targets, task, macs, config)
        task_done.advance()
        if held_out is not None:  # the baselines see the same images, and no others
            here, _ = halves(len(targets), config.seed)
            logits, targets = [each[:, here] for each in logits], targets[here]
        policies = _policies(found, logits, targets, task, config)
        task_done.advance()
        rows: list[dict[str, Any]] = []
        for name, each in policies.items():
            rows += _rows(name, each.policy, splits, macs, task, config.pool)
            task_done.advance()
        curve: list[Point] = []
        lacking: dict[str, list[str]] = {}
        for width in WIDTHS:
            try:
                curve += _points(width, splits, task, macs, config)
            except TooFewImagesError:
                few = f"a later window would rest on fewer than {FEWEST} images"
                lacking.setdefault(few, []).append(f"{width:g}")
            except OutOfReachError:
                lacking.setdefault("the target is out of reach", []).append(f"{width:g}")
            task_done.advance()
    told = found if held_out is None else held_out
    notes = [*found.notes]
    for reason, widths in lacking.items():
        notes.append(f"the curve lacks half widths {', '.join(widths)}: {reason}")
    if read_index(run).get("shift") and not any(name.startswith(SHIFT) for name in splits):
        notes.append(
            "corrupted images are left out, since their logits were not kept: train with "
            "--keep-logits, or run `deepens evaluate RUN --predict` on such a run"
        )
    confidence = replay(found.policy, logits, pool=config.pool).confidence
    flagged_below = (
        found.policy.threshold if task.kind == "ood" else threshold_at_coverage(confidence, FLAGGED)
    )
    stored = {
        "policy": found.policy.to_dict(),
        "pool": config.pool,
        "ood_threshold": flagged_below,
        "order": members,
        "weights": hash_file(run.weights),
        "data": predicted_data(run),
        "images": told.images,
        "reached": list(told.reached),
    }
    content = {
        **stored,
        "checksum": _checksum(stored),
        "task": asdict(task),
        "calibrated_on": CALIBRATE,
        "macs": macs,
        "average_macs": told.average_macs(macs),
        "coverage": told.coverage,
        "risk": told.risk,
        "held_out": None
        if held_out is None
        else {
            "images": held_out.images,
            "coverage": held_out.coverage,
            "risk": held_out.risk,
            "reached": list(held_out.reached),
            "average_macs": held_out.average_macs(macs),
        },
        "notes": notes,
        "results": rows,
    }
    return content, rows, curve, quality_label(task)


_STORED = ("policy", "pool", "ood_threshold", "order", "weights", "data", "images", "reached")


def _checksum(stored: Mapping[str, Any]) -> str:
    """Of all that decides what the cascade answers."""
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def _check_out(file: Path) -> None:
    """Refuse to write over anything but a cascade."""
    if not file.exists():
        return
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        held = None
    if not isinstance(held, dict) or "checksum" not in held:
        raise ValueError(f"{file} is there already and is no cascade; choose another --out")


def load_cascade(run: Run, file: Path) -> StoredCascade:
    """Read a cascade of a run.

    Raises:
        ValueError: If the file is missing or damaged, or the cascade was calibrated on other
            members or another order of them.
    """
    if not file.exists():
        raise ValueError(f"{file} does not exist; run `deepens cascade {run.path}` first")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = [name for name in _STORED if name != "pool" or name in content]  # once always mean
        held = {name: content[name] for name in names}
        if content["checksum"] != _checksum(held):
            raise ValueError("changed")
        stored = StoredCascade(
            WindowPolicy.from_dict(held["policy"]),
            tuple(held["order"]),
            tuple(held["reached"]),
            held["images"],
            float(held["ood_threshold"]),
            held.get("pool", "mean"),
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{file} is no cascade, or was changed since it was written; {_AGAIN}"
        ) from None
    if held["weights"] != hash_file(run.weights):
        raise ValueError(
            f"{file} was calibrated on other members, or another order of them, than {run.path} "
            f"holds now; {_AGAIN}"
        )
    return stored


def stage_macs(ensemble: Ensemble, form: ImageFormat, members: Sequence[int]) -> list[int]:
    """Multiply-accumulates that each stage adds; what members share counts where it is first done.

    Args:
        ensemble: Of any family.
        form: Its images.
        members: In the order in which they run.

    Returns:
        One number a stage; together they are the whole cascade's.

    Raises:
        ValueError: If the members cannot run in this order.
    """
    so_far = [
        count_macs(_InTurn(ensemble, members[:count]), form.shape)
        for count in range(1, len(members) + 1)
    ]
    return [after - before for before, after in zip([0, *so_far], so_far, strict=False)]


class _InTurn(nn.Module):
    """The stages of some members on the same images, the very functions that a cascade runs."""

    def __init__(self, ensemble: Ensemble, members: Sequence[int]) -> None:
        super().__init__()
        self.ensemble, self.members = ensemble, list(members)

    def forward(self, images: Tensor) -> Tensor:
        state, logits = images, images
        for stage in ensemble_stages(self.ensemble, self.members):
            state, logits = stage(state)
        return logits


def quality_label(task: Task) -> str:
    """The measure by which a task's policies are compared on test images."""
    if task.target_risk is not None:
        return f"Coverage at {100 * task.target_risk:.3g} % risk"
    if task.kind == "selective":
        return f"Risk at {task.target_coverage:.0%} coverage"
    if task.kind == "accuracy":
        return "Accuracy"
    return "FPR of OOD images" if task.kind == "ood" else "SCOD risk"


def _chosen(
    logits: Logits, targets: Tensor, task: Task, macs: Sequence[int], config: CascadeConfig
) -> tuple[Calibration, Calibration | None]:
    """The calibration, and with a budget what it does on the half that nothing was chosen on."""
    options: dict[str, Any] = {"confidence": config.confidence, "pool": config.pool}
    if config.budget is not None:
        options |= {"macs": macs, "budget": config.budget, "seed": config.seed}
        return search_windows(logits, targets, task, **options)
    options |= {"width": config.width, "single_threshold": config.policy == "single"}
    return calibrate(logits, targets, task, **options), None


def _policies(
    found: Calibration, logits: Logits, targets: Tensor, task: Task, config: CascadeConfig
) -> dict[str, Calibration]:
    """The cascade, the single-threshold policy of the same cost, the first stage, and all."""
    stages = len(logits)
    options: dict[str, Any] = {"confidence": config.confidence}
    first = WindowPolicy.first(stages, **options)
    full = WindowPolicy.full(stages, **options)
    found_single = {}
    with suppress(OutOfReachError, TooFewImagesError):  # then there is no such baseline
        single = calibrate_passing(
            logits, targets, task, passing=found.passing, pool=config.pool, **options
        )
        found_single["single threshold"] = single
    return {
        "cascade": found,
        **found_single,
        "first stage": _at_threshold(first, logits, targets, task, config.pool),
        "all stages": _at_threshold(full, logits, targets, task, config.pool),
    }


def _at_threshold(
    policy: WindowPolicy, logits: Logits, targets: Tensor, task: Task, pool: str
) -> Calibration:
    answers = replay(policy, logits, pool=pool)
    try:
        threshold = task.threshold(answers.confidence, answers.predicted == targets)
    except OutOfReachError:
        threshold = math.inf  # it accepts nothing: its risk is undefined
    options: dict[str, Any] = {"confidence": policy.confidence, "threshold": threshold}
    return assess(WindowPolicy(policy.windows, **options), logits, targets, pool=pool)


def _rows(
    name: str,
    policy: WindowPolicy,
    splits: Mapping[str, Split],
    macs: Sequence[int],
    task: Task,
    pool: str,
) -> Iterator[dict[str, Any]]:
    """A row of measures a split; OOD sets beside the test images."""
    answers = {split: replay(policy, logits, pool=pool) for split, (logits, _) in splits.items()}
    labels = {split: targets for split, (_, targets) in splits.items()}
    test, right = answers["test"], _right(answers["test"], labels["test"])
    for split, each in answers.items():
        targets = labels[split]
        reached = each.reached(policy.num_stages).tolist()
        average = sum(share * cost for share, cost in zip(reached, macs, strict=True))
        row: dict[str, Any] = {"policy": name, "split": split, "n": len(each)}
        if targets is not None:
            correct = _right(each, targets)
            row |= {
                "accuracy": correct.double().mean().item(),
                "nll": negative_log_likelihood(each.log_probs, targets).mean().item(),
                "coverage": each.accepted.double().mean().item(),
                "risk": _share(~correct[each.accepted]),
                "coverage_at_5_risk": coverage_at_risk(each.confidence, correct, risk=0.05).item(),
                "aurc": area_under_risk_coverage(each.confidence, correct).item(),
            }
        else:
            scores = -torch.cat([test.confidence, each.confidence])
            is_ood = torch.arange(len(scores)) >= len(test)
            accepted = int(test.accepted.sum()) + int(each.accepted.sum())
            failures = int((test.accepted & ~right).sum()) + int(each.accepted.sum())
            row |= {
                "auroc": area_under_roc(scores, is_ood).item(),
                "ood_accepted": _share(each.accepted),
                "scod_risk": failures / accepted if accepted else math.nan,
            }
        row |= {f"reached_{number}": share for number, share in enumerate(reached, start=1)}
        yield row | {"macs": average, "macs_over_first": average / macs[0]}


def _points(
    width: float,
    splits: Mapping[str, Split],
    task: Task,
    macs: Sequence[int],
    config: CascadeConfig,
) -> Iterator[Point]:
    """Cost and quality on test images of windows of one width, and of the baseline of its cost.

    Raises:
        TooFewImagesError: If a later window would rest on too few images.
        OutOfReachError: If no threshold keeps the target.
    """
    logits, targets = splits[CALIBRATE]
    assert targets is not None
    options: dict[str, Any] = {"confidence": config.confidence, "pool": config.pool}
    found = calibrate(logits, targets, task, width=width, **options)
    policies = _policies(found, logits, targets, task, config)
    names = {0.0: ["first stage"], 1.0: ["all stages"]}.get(width, ["cascade", "single threshold"])
    for name in filter(policies.__contains__, names):
        cost, quality = _quality(policies[name].policy, splits, task, macs, config.pool)
        shown = "window" if name == "cascade" else name
        yield Point(shown, width if len(names) > 1 else None, cost, quality)


def _quality(
    policy: WindowPolicy,
    splits: Mapping[str, Split],
    task: Task,
    macs: Sequence[int],
    pool: str,
) -> tuple[float, float]:
    logits, targets = splits["test"]
    answers = replay(policy, logits, pool=pool)
    correct = _right(answers, targets)
    reached = answers.reached(policy.num_stages).tolist()
    cost = sum(share * each for share, each in zip(reached, macs, strict=True)) / macs[0]
    if task.target_risk is not None:
        return cost, coverage_at_risk(answers.confidence, correct, risk=task.target_risk).item()
    if task.kind == "accuracy":
        return cost, correct.double().mean().item()
    if task.kind == "selective":
        share = task.target_coverage or 1.0
        return cost, risk_at_coverage(answers.confidence, correct, coverage=share).item()
    measure = "ood_accepted" if task.kind == "ood" else "scod_risk"
    found = [row[measure] for row in _rows("", policy, splits, macs, task, pool) if measure in row]
    return cost, sum(found) / len(found)  # the unweighted mean over OOD sets


def _right(answers: Answers, targets: Tensor | None) -> Tensor:
    assert targets is not None  # of a labelled split
    return answers.predicted == targets


def _share(flags: Tensor) -> float:
    return flags.double().mean().item() if len(flags) else math.nan


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


_SHOWN = (
    *("n", "accuracy", "coverage", "risk", "coverage_at_5_risk"),
    *("auroc", "ood_accepted", "scod_risk", "macs_over_first"),
)


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Test and OOD images; validation and shifted ones are in the file."""
    shown = [row for row in rows if not row["split"].startswith(("val/", "shift/"))]
    widths = [max(len(str(row[name])) for row in shown) for name in ("policy", "split")]
    yield " ".join(
        [
            f"{'policy':{widths[0]}}",
            f"{'split':{widths[1]}}",
            *(f"{n:>{_width(n)}}" for n in _SHOWN),
        ]
    )
    for row in shown:
        cells = [_cell(row.get(name), _width(name)) for name in _SHOWN]
        yield " ".join([f"{row['policy']:{widths[0]}}", f"{row['split']:{widths[1]}}", *cells])


def _width(name: str) -> int:
    return max(8, len(name))


def _cell(value: float | int | None, width: int) -> str:
    if value is None:
        return " " * width
    return f"{value:>{width}}" if isinstance(value, int) else f"{value:>{width}.4f}"
