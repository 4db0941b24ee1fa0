"""What a cascade and its baselines do on every split: cost, quality and their curve."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ensembles import policies
from ...ensembles.policies import Calibration, OutOfReachError, WindowPolicy, calibrate, replay
from ...ensembles.policy import Answers
from ...metrics.core.mixture import log_doubt
from ...metrics.detection.ood import area_under_roc
from ...metrics.scoring.proper_scores import negative_log_likelihood
from ...metrics.selective.risk_coverage import (
    area_under_risk_coverage,
    coverage_at_risk,
    risk_at_coverage,
)
from .temperatures import CALIBRATE

Logits = list[Tensor]
"""Of each stage, ``[1, N, C]``."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Average MACs over the first stage's, and quality, of one policy on the test images.

    It is a ``"window"`` or ``"single threshold"`` of a half width, ``"first stage"``, or ``"all
    stages"``.
    """

    policy: str
    width: float | None
    macs: float
    quality: float


@dataclass(frozen=True)
class CascadeMeasures:
    """Measures policies over the same stages, for one task.

    ``splits`` holds each stage's logits and the labels, None of OOD images. ``macs`` is what each
    stage adds. A stage answers by ``pool``: the ``"mean"`` of the members so far, or the
    ``"last"``.
    """

    splits: Mapping[str, tuple[Logits, Tensor | None]]
    task: policies.Task
    macs: Sequence[int]
    confidence: str
    pool: str

    @property
    def label(self) -> str:
        """The measure of quality by which policies are compared on test images."""
        if self.task.target_risk is not None:
            return f"Coverage at {100 * self.task.target_risk:.3g} % risk"
        if self.task.kind == "selective":
            return f"Risk at {self.task.target_coverage:.0%} coverage"
        if self.task.kind == "accuracy":
            return "Accuracy"
        return "FPR of OOD images" if self.task.kind == "ood" else "SCOD risk"

    def policies(
        self, cascade: Calibration, logits: Logits, targets: Tensor
    ) -> dict[str, Calibration]:
        """The cascade, the single threshold of the same cost, the first stage, and all stages.

        Logits are of each stage on the calibration images.
        """
        options: dict[str, Any] = {"confidence": self.confidence}
        single = {}
        with suppress(OutOfReachError, policies.TooFewImagesError):  # it is then left out
            single["single threshold"] = policies.calibrate_passing(
                logits, targets, self.task, passing=cascade.passing, pool=self.pool, **options
            )
        if self.confidence == "msp":
            options = {"confidence": "log_msp"}
        ends = {
            "first stage": WindowPolicy.first(len(logits), **options),
            "all stages": WindowPolicy.full(len(logits), **options),
        }
        fixed = {name: self._at_threshold(each, logits, targets) for name, each in ends.items()}
        return {"cascade": cascade, **single, **fixed}

    def rows(self, name: str, policy: WindowPolicy) -> Iterator[Row]:
        """A row of measures per split of a named policy; OOD sets beside the test images."""
        answers = {
            split: replay(policy, logits, pool=self.pool)
            for split, (logits, _) in self.splits.items()
        }
        for split, each in answers.items():
            targets = self.splits[split][1]
            row: Row = {"policy": name, "split": split, "n": len(each)}
            if targets is not None:
                row |= _labelled(each, targets, self._certainty(each))
            else:
                certainty = self._certainty(answers["test"]), self._certainty(each)
                row |= _beside(answers["test"], self.splits["test"][1], each, certainty)
            reached = each.reached(policy.num_stages).tolist()
            row |= {f"reached_{number}": share for number, share in enumerate(reached, start=1)}
            average = self._average_macs(reached)
            yield row | {"macs": average, "macs_over_first": average / self.macs[0]}

    def points(self, width: float) -> Iterator[Point]:
        """Test cost and quality of windows of one width, and of the baseline of their cost.

        Raises `TooFewImagesError` where a later window would rest on too few images, and
        `OutOfReachError` where no threshold keeps the target.
        """
        logits, targets = self.splits[CALIBRATE]
        assert targets is not None  # validation images have labels
        options: dict[str, Any] = {"confidence": self.confidence, "pool": self.pool}
        cascade = calibrate(logits, targets, self.task, width=width, **options)
        measured = self.policies(cascade, logits, targets)
        ends = {0.0: ["first stage"], 1.0: ["all stages"]}
        names = ends.get(width, ["cascade", "single threshold"])
        for name in filter(measured.__contains__, names):
            cost, quality = self._quality(measured[name].policy)
            shown = "window" if name == "cascade" else name
            yield Point(shown, width if len(names) > 1 else None, cost, quality)

    def _at_threshold(self, policy: WindowPolicy, logits: Logits, targets: Tensor) -> Calibration:
        answers = replay(policy, logits, pool=self.pool)
        try:
            threshold = self.task.threshold(answers.confidence, _right(answers, targets))
        except OutOfReachError:
            threshold = math.inf  # it accepts nothing: its risk is undefined
        options: dict[str, Any] = {"confidence": policy.confidence, "threshold": threshold}
        judged = WindowPolicy(policy.windows, **options)
        return policies.assess(judged, logits, targets, pool=self.pool)

    def _quality(self, policy: WindowPolicy) -> tuple[float, float]:
        logits, targets = self.splits["test"]
        answers = replay(policy, logits, pool=self.pool)
        correct, confidence = _right(answers, targets), self._certainty(answers)
        cost = self._average_macs(answers.reached(policy.num_stages).tolist()) / self.macs[0]
        if (risk := self.task.target_risk) is not None:
            return cost, coverage_at_risk(confidence, correct, risk=risk).item()
        if self.task.kind == "accuracy":
            return cost, correct.double().mean().item()
        if self.task.kind == "selective":
            coverage = self.task.target_coverage or 1.0
            return cost, risk_at_coverage(confidence, correct, coverage=coverage).item()
        measure = "ood_accepted" if self.task.kind == "ood" else "scod_risk"
        values = [row[measure] for row in self.rows("", policy) if measure in row]
        return cost, sum(values) / len(values)  # the unweighted mean over OOD sets

    def _certainty(self, answers: Answers) -> Tensor:
        """What answers are ranked by: not by a probability, which may round to 1."""
        return answers.confidence if self.confidence == "energy" else -log_doubt(answers.log_probs)

    def _average_macs(self, reached: Sequence[float]) -> float:
        return sum(share * cost for share, cost in zip(reached, self.macs, strict=True))


def _labelled(answers: Answers, targets: Tensor, certainty: Tensor) -> Row:
    correct = _right(answers, targets)
    return {
        "accuracy": correct.double().mean().item(),
        "nll": negative_log_likelihood(answers.log_probs, targets).mean().item(),
        "coverage": answers.accepted.double().mean().item(),
        "risk": _share(~correct[answers.accepted]),
        "coverage_at_5_risk": coverage_at_risk(certainty, correct, risk=0.05).item(),
        "aurc": area_under_risk_coverage(certainty, correct).item(),
    }


def _beside(
    test: Answers, targets: Tensor | None, ood: Answers, certainty: tuple[Tensor, Tensor]
) -> Row:
    """Measures of OOD images among the test images."""
    scores = -torch.cat(certainty)
    is_ood = torch.arange(len(scores)) >= len(test)
    accepted = int(test.accepted.sum()) + int(ood.accepted.sum())
    failures = int((test.accepted & ~_right(test, targets)).sum()) + int(ood.accepted.sum())
    return {
        "auroc": area_under_roc(scores, is_ood).item(),
        "ood_accepted": _share(ood.accepted),
        "scod_risk": failures / accepted if accepted else math.nan,
    }


def _right(answers: Answers, targets: Tensor | None) -> Tensor:
    assert targets is not None  # of a labelled split
    return answers.predicted == targets


def _share(flags: Tensor) -> float:
    return flags.double().mean().item() if len(flags) else math.nan
