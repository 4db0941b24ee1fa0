"""Calibrate a run's cascade on ``val/calibrate``, and measure it on every split."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...datasets import SplitName
from ...ensembles.policies import (
    Calibration,
    OutOfReachError,
    Task,
    TooFewImagesError,
    WindowPolicy,
    assess,
    calibrate,
    calibrate_passing,
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
from ..store.progress import Display
from ..store.run import Run, write_json, write_whole_text
from ..training.devices import threads
from ..training.weights import hash_file, load_ensemble
from .cascade import check_overwrite, checksum, stage_macs
from .predictions import Predictions
from .temperatures import CALIBRATE

WIDTHS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Half widths of the windows whose cost and quality are drawn."""

FLAGGED = 0.95
"""Share of in-distribution images that are not flagged as OOD."""

Logits = list[Tensor]
Split = tuple[Logits, Tensor | None]


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


@dataclass(frozen=True)
class CalibratedCascade:
    """A calibrated cascade, and what it does on every split.

    Attributes:
        content: What ``cascade.json`` stores.
        rows: Measures of the cascade and its baselines, per policy and split.
        points: Of the curve of quality against cost.
        label: The measure of the curve's quality.
    """

    content: dict[str, Any]
    rows: list[dict[str, Any]]
    points: list[Point]
    label: str

    def save(self, file: Path) -> None:
        """Write ``cascade.json``, and the measures as CSV beside it.

        Raises:
            ValueError: The file exists and is not a cascade.
        """
        check_overwrite(file)
        write_json(file, self.content)
        write_whole_text(file.with_suffix(".csv"), _as_csv(self.rows))


@threads(1)  # a few numbers per image: more threads would wait for each other
def calibrate_run(
    run: Run, config: CascadeConfig, *, display: Display | None = None
) -> CalibratedCascade:
    """Calibrate a run's cascade and measure it on every split, from the stored logits.

    Use it to run members only on the images that need them: most of the ensemble's quality at
    little more than the cost of one member.

    Args:
        run: A trained and evaluated run.
        config: The task and the policy.
        display: Where progress is shown; nowhere by default.

    Returns:
        The cascade, which `CalibratedCascade.save` writes, with its measures and its curve.

    Raises:
        ValueError: If the run has one member or no calibration split, the order is not one of its
            members, an OOD task has no OOD images, or as `calibrate` and `search_windows`.
    """
    display = display or Display(quiet=True)
    ensemble, form = load_ensemble(run)
    count = ensemble.num_members
    if count < 2:
        raise ValueError(f"a cascade needs >= 2 stages, and {run.path} has {count} member")
    members = list(config.order) or list(range(count))
    if not all(0 <= member < count for member in members):
        raise ValueError(f"order must name members in [0, {count}), got {members}")
    if len(set(members)) < len(members) or len(members) < 2:
        raise ValueError(f"order must name >= 2 members, each once, got {members}")
    predictions = Predictions(run)
    splits: dict[str, Split] = {
        name: ([predictions.logits(name)[[i]] for i in members], predictions.targets(name))
        for name in predictions.splits
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
    reported = found if held_out is None else held_out
    notes = [*found.notes]
    for reason, widths in lacking.items():
        notes.append(f"the curve lacks half widths {', '.join(widths)}: {reason}")
    if predictions.shift and not any(SplitName.parse(name).is_shift for name in splits):
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
        "data": predictions.data,
        "images": reported.images,
        "reached": list(reported.reached),
    }
    content = {
        **stored,
        "checksum": checksum(stored),
        "task": asdict(task),
        "calibrated_on": CALIBRATE,
        "macs": macs,
        "average_macs": reported.average_macs(macs),
        "coverage": reported.coverage,
        "risk": reported.risk,
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
    return CalibratedCascade(content, rows, curve, quality_label(task))


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
