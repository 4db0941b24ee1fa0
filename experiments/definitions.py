"""What other definitions of the same measures make of a run's logits.

``python -m deepens.experiments.definitions RUN``: a line a measure, with our value and that by the
definition of the authors of window cascades (`nearest_definitions`). Measures are of all members'
mixture on test and OOD images; windows lie around tau of the first member on ``val/calibrate``.

Reference: Xia & Bouganis (2023), arXiv:2303.08010
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..ensembles.policies import (
    WindowPolicy,
    threshold_at_coverage,
    threshold_at_risk,
    window_around,
)
from ..ensembles.policies.calibration import WIDTH, OutOfReachError
from ..metrics import (
    area_under_risk_coverage,
    coverage_at_risk,
    false_positive_rate,
    risk_at_coverage,
)
from .benchmarks.harness import table
from .evaluation.predictions import SHIFT, load_logits
from .nearest_definitions import (
    SKIPPED,
    clamped_window,
    coverage_at_nearest_risk,
    false_positive_rate_at_nearest_recall,
    risk_at_nearest_coverage,
    single_sample_risks,
    threshold_at_nearest_coverage,
    threshold_at_nearest_rate,
    threshold_at_nearest_risk,
    trapezoidal_aurc,
)
from .store.run import Run

RISKS, COVERAGE, RATE = (0.05, 0.10, 0.20), 0.80, 0.95
CALIBRATE, TEST = "val/calibrate", "test"


@dataclass(frozen=True)
class Row:
    """One measure by both definitions.

    Attributes:
        name: What is measured, and how theirs differs.
        samples: N.
        ours: Our value; None where it is undefined.
        theirs: Theirs.
    """

    name: str
    samples: int
    ours: float | None
    theirs: float | None

    def cells(self) -> list[str]:
        """Of a line of the table."""
        gap = "" if self.ours is None or self.theirs is None else f"{self.theirs - self.ours:+.6f}"
        return [self.name, str(self.samples), _value(self.ours), _value(self.theirs), gap]


@dataclass(frozen=True)
class _Judged:
    """Confidences of images and, where they are labelled, what is right."""

    confidence: Tensor
    correct: Tensor | None

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor | None) -> "_Judged":
        answers = WindowPolicy([]).judge(logits)
        return cls(answers.confidence, None if targets is None else answers.predicted == targets)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Print the table.

    Args:
        arguments: Of the command line.

    Returns:
        Its rows.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a trained and evaluated run")
    parser.add_argument("--skipped", type=int, default=SKIPPED, help="points left out by theirs")
    parser.add_argument("--out", type=Path, help="a CSV file for the rows")
    given = parser.parse_args(arguments)
    try:
        splits = load_logits(Run.open(given.run))
    except ValueError as error:
        print(f"definitions: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    rows = list(compare(splits, skipped=given.skipped))
    confidence = _Judged.of(*splits[TEST]).confidence
    ties = len(confidence) - len(confidence.unique())
    print(f"{len(confidence)} test images, {ties} of them tied with one before\n")
    print(table([["", "n", "ours", "theirs", "theirs - ours"], *(row.cells() for row in rows)]))
    if given.out is not None:
        with given.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("measure", "n", "ours", "theirs"))
            writer.writerows((row.name, row.samples, row.ours, row.theirs) for row in rows)
    return rows


def compare(
    splits: Mapping[str, tuple[Tensor, Tensor | None]], *, skipped: int = SKIPPED
) -> Iterator[Row]:
    """Measure member logits by both definitions.

    Args:
        splits: Logits ``[M, N, C]`` and targets, None for OOD, by the names that a run gives.
        skipped: Points at the start of a risk-coverage curve at which theirs look for no risk.

    Yields:
        One row a measure.
    """
    test = _Judged.of(*splits[TEST])
    assert test.correct is not None  # test images are labelled
    yield from _selective(test.confidence, test.correct, skipped)
    for name, (logits, targets) in splits.items():
        if targets is None and not name.startswith(SHIFT):
            yield from _detection(name, test.confidence, _Judged.of(logits, None).confidence)
    if CALIBRATE in splits:
        here, there = (
            _Judged.of(logits[:1], targets) for logits, targets in (splits[CALIBRATE], splits[TEST])
        )
        yield from _windows(here, there.confidence, skipped)


def _selective(confidence: Tensor, correct: Tensor, skipped: int) -> Iterator[Row]:
    number = len(confidence)
    for risk in RISKS:
        ours = coverage_at_risk(confidence, correct, risk=risk).item()
        name = f"coverage at {risk:.0%} risk"
        for skip in dict.fromkeys((0, skipped)):
            theirs = (
                coverage_at_nearest_risk(confidence, correct, risk, skipped=skip)
                if skip <= number
                else None
            )
            told = f", first {skip} points left out" if skip else ""
            yield Row(f"{name}: nearest risk{told}", number, ours, theirs)
            if theirs is not None:
                risks = single_sample_risks(confidence, correct)
                at_ours, at_theirs = (risks[round(each * number)].item() for each in (ours, theirs))
                yield Row(f"  risk there{told}", number, at_ours, at_theirs)
    yield Row(
        f"risk at {COVERAGE:.0%} coverage: nearest coverage",
        number,
        risk_at_coverage(confidence, correct, coverage=COVERAGE).item(),
        risk_at_nearest_coverage(confidence, correct, COVERAGE),
    )
    yield Row(
        "AURC: trapezoids from (0, 0)",
        number,
        area_under_risk_coverage(confidence, correct).item(),
        trapezoidal_aurc(confidence, correct),
    )


def _detection(name: str, confidence: Tensor, ood_confidence: Tensor) -> Iterator[Row]:
    scores = -torch.cat([confidence, ood_confidence])
    is_ood = torch.arange(len(scores)) >= len(confidence)
    theirs = false_positive_rate_at_nearest_recall(confidence, ood_confidence, RATE)
    threshold = threshold_at_coverage(confidence, RATE)
    accepted = (ood_confidence >= threshold).double().mean().item()
    measure = f"{name}, FPR at {RATE:.0%} TPR"
    yield Row(f"{measure}: ID positive in both", len(scores), accepted, theirs)
    ours = false_positive_rate(scores, is_ood, true_positive_rate=RATE).item()
    yield Row(f"{measure}: OOD positive in ours", len(scores), ours, theirs)


def _windows(here: _Judged, test: Tensor, skipped: int) -> Iterator[Row]:
    """Of the window after the first member, set for several targets."""
    confidence, number = here.confidence, len(here.confidence)
    for target, ours, theirs in _thresholds(here, skipped):
        yield Row(f"tau for {target}", number, ours, theirs)
        if ours is None or theirs is None:
            continue
        windows = (
            window_around(confidence, ours, below=WIDTH, above=WIDTH),
            clamped_window(confidence, theirs, WIDTH),
        )
        for end, name in enumerate(("lower", "upper")):
            yield Row(f"  {name} end of the window", number, *(each[end] for each in windows))
        for where, scores in ((CALIBRATE, confidence), (TEST, test)):
            inside = [(scores >= low) & (scores <= high) for low, high in windows]
            yield Row(f"  go on, {where}", len(scores), *(_share(each) for each in inside))
            alone = (_share(inside[0] & ~inside[1]), _share(inside[1] & ~inside[0]))
            yield Row(f"  go on by one window alone, {where}", len(scores), *alone)


def _thresholds(here: _Judged, skipped: int) -> Iterator[tuple[str, float | None, float | None]]:
    """Each target with the tau of both definitions, None where there is none."""
    confidence, correct = here.confidence, here.correct
    assert correct is not None  # validation images are labelled
    for risk in RISKS:
        ours = theirs = None
        with suppress(OutOfReachError):
            ours = threshold_at_risk(confidence, correct, risk)
        with suppress(ValueError):  # too few images, or no sample follows
            theirs = threshold_at_nearest_risk(confidence, correct, risk, skipped=skipped)
        yield f"{risk:.0%} risk", ours, theirs
    ours, theirs = (find(confidence, COVERAGE) for find in _AT_COVERAGE)
    yield f"{COVERAGE:.0%} coverage", ours, theirs
    ours, theirs = (find(confidence, RATE) for find in _AT_RATE)
    yield f"{RATE:.0%} TPR", ours, theirs


_AT_COVERAGE = threshold_at_coverage, threshold_at_nearest_coverage
_AT_RATE = threshold_at_coverage, threshold_at_nearest_rate


def _value(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.6f}"


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


if __name__ == "__main__":
    main()
