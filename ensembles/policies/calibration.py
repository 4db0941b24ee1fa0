"""Thresholds and windows of a cascade, from in-distribution validation images."""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...metrics.core.mixture import (
    validate_choice,
    validate_share,
    validate_targets,
    validate_values,
)
from ...metrics.core.ranking import rank
from ...metrics.core.reliability_bands import wilson_interval
from ...metrics.io.arrays import read_logits, read_targets
from ..policy import Answers
from .cascade import replay
from .window import NOTHING, Window, WindowPolicy

TARGETS = {
    "selective": ("target_risk", "target_coverage"),
    "ood": ("target_tpr",),
    "scod": ("target_coverage",),
    "accuracy": (),
}
"""The targets of each task, of which exactly one is given."""
TASKS = tuple(TARGETS)
WIDTH = 0.10
"""Half a window's width as a share of the images: about 20 % continue."""
_NEXT_TO_1 = 1.0 - 2.0**-40  # beyond it probabilities are too coarse to set a threshold
FEWEST, FEW = 50, 200
"""Images below which a window is refused, and below which it is warned of."""


class OutOfReachError(ValueError):
    """No threshold keeps the target risk."""


class TooFewImagesError(ValueError):
    """A window would rest on too few images."""


Logits = Sequence[Any]
"""Of each stage, ``[m, images, classes]``, or whatever `deepens.metrics.evaluate` takes."""


@dataclass(frozen=True)
class Task:
    """What a cascade is used for, which determines the threshold of acceptance.

    Attributes:
        kind: ``"selective"`` (accept what is likely right), ``"ood"`` (accept in-distribution
            images), ``"scod"`` (accept in-distribution images that are likely right) or
            ``"accuracy"`` (accept all).
        target_risk: Of selective classification: largest error rate of the accepted images.
        target_coverage: Of selective classification and SCOD: least share of accepted images.
        target_tpr: Of OOD detection: least share of accepted in-distribution images.

    Raises:
        ValueError: If the targets do not belong to the kind, or leave their ranges.
    """

    kind: str = "selective"
    target_risk: float | None = None
    target_coverage: float | None = None
    target_tpr: float | None = None

    def __post_init__(self) -> None:
        validate_choice(self.kind, "task", TASKS)
        names = ("target_risk", "target_coverage", "target_tpr")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        wanted = TARGETS[self.kind]
        if set(given) - set(wanted) or len(given) != min(1, len(wanted)):
            asked = f"exactly one of {', '.join(wanted)}" if wanted else "no target"
            raise ValueError(f"the task {self.kind} takes {asked}, got {given or 'none'}")
        for name, value in given.items():
            validate_share(value, name, "[0, 1]" if name == "target_risk" else "(0, 1]")

    def threshold(
        self, confidence: Float[Tensor, "images"], correct: Bool[Tensor, "images"]
    ) -> float:
        """Return tau, the least confidence of an accepted answer, as `threshold_at_risk` does."""
        if self.target_risk is not None:
            return threshold_at_risk(confidence, correct, self.target_risk)
        share = self.target_tpr if self.target_coverage is None else self.target_coverage
        return -math.inf if share is None else threshold_at_coverage(confidence, share)

    def loss(self, answers: Answers, correct: Bool[Tensor, "images"]) -> float:
        """Return the loss of a search over windows: 1 - coverage at a target risk, else the risk.

        Raises:
            ValueError: If the task's loss needs OOD images.
        """
        if self.kind in ("ood", "scod"):
            raise ValueError(
                f"a budget cannot be searched for with the task {self.kind}: its loss needs OOD "
                "images, and those to report on must not be chosen on; set the window's width"
            )
        right = answers.accepted if self.target_risk is not None else correct[answers.accepted]
        return 1.0 - right.double().mean().item()


@dataclass(frozen=True)
class Calibration:
    """A calibrated policy, and its results on a number of images.

    Attributes:
        policy: Windows and threshold.
        images: Number of images.
        reached: Share of them that each stage ran on.
        coverage: Share of them accepted.
        risk: Share of errors among the accepted; NaN without any.
        notes: Warnings, such as that the images were few.
    """

    policy: WindowPolicy
    images: int
    reached: tuple[float, ...]
    coverage: float
    risk: float
    notes: tuple[str, ...] = ()

    @property
    def passing(self) -> list[float]:
        """Of each stage but the last, the share of its images that continued."""
        pairs = itertools.pairwise(self.reached)
        return [after / before if before else 0.0 for before, after in pairs]

    def average_macs(self, macs: Sequence[int] | Sequence[float]) -> float:
        """Return ``sum_m reached_m C_m`` for the stages' multiply-accumulates C."""
        return sum(share * cost for share, cost in zip(self.reached, macs, strict=True))


def threshold_at_risk(
    confidence: Float[Tensor, "images"], correct: Bool[Tensor, "images"], risk: float
) -> float:
    """Return the threshold of the largest coverage whose risk is at most the target.

    That is the confidence of the least certain accepted image; ties are accepted together. The
    risk is the error rate of the accepted images.

    Raises:
        OutOfReachError: If no threshold keeps the risk, with the lowest attainable.

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import threshold_at_risk
        >>> correct = torch.tensor([True, True, False, True, False])
        >>> threshold_at_risk(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), correct, 0.25)
        0.6000000238418579
    """
    validate_values(correct, name="correct", num_samples=confidence.shape[0])
    thresholds, accepted, risks = _risks(confidence, correct)
    kept = (risks <= risk).nonzero()
    if not len(kept):
        best = int(risks.argmin())
        raise OutOfReachError(
            f"a risk of {risk} is out of reach: the lowest is {risks[best]:.4f}, at a coverage of "
            f"{accepted[best] / len(confidence):.4f}"
        )
    return thresholds[kept[-1]].item()


def threshold_at_coverage(confidence: Float[Tensor, "images"], coverage: float) -> float:
    """Return the highest threshold, a confidence, that accepts at least a share of the images.

    On in-distribution images the share is the true-positive rate of OOD detection.

    Raises:
        ValueError: If ``coverage`` leaves ``(0, 1]``.

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import threshold_at_coverage
        >>> threshold_at_coverage(torch.tensor([0.75, 0.5, 0.25, 0.125]), 0.5)
        0.5
    """
    validate_values(confidence, name="confidence")
    validate_share(coverage, "coverage")
    number = max(1, math.ceil(coverage * len(confidence) - 1e-9))  # 0.1 times 30 is just above 3
    return confidence.sort(descending=True).values[number - 1].item()


def window_around(
    confidence: Float[Tensor, "images"], threshold: float, *, below: float, above: float
) -> Window:
    """Return the window of confidences around a threshold, by shares of the images.

    ``[Q(q - below), Q(q + above)]``, q the percentile rank of the threshold and Q the quantile
    function, of the images that reach the stage. An end at or beyond 0 or 1 is infinite.

    Raises:
        ValueError: If a share is below 0.

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import window_around
        >>> window_around(torch.arange(101.0), 50.0, below=0.1, above=0.1)
        (40.0, 60.0)
    """
    if not (below >= 0 and above >= 0):
        raise ValueError(f"below and above must be >= 0, got {below} and {above}")
    if below == above == 0.0:
        return NOTHING
    values = confidence.double()
    lower = (values < threshold).double().mean().item()
    upper = (values <= threshold).double().mean().item()
    place = (lower + upper) / 2
    low = -math.inf if place - below <= 0 else values.quantile(place - below).item()
    high = math.inf if place + above >= 1 else values.quantile(place + above).item()
    return low, high


def calibrate(
    logits: Logits,
    targets: Any,
    task: Task,
    *,
    width: float | Sequence[tuple[float, float]] = WIDTH,
    confidence: str = "msp",
    single_threshold: bool = False,
    pool: str = "mean",
) -> Calibration:
    """Return the windows and the threshold of a task.

    Stage by stage, tau is set on the cascade's confidences so far, and the stage's window lies
    around it among the images that *reach* the stage. In the end tau is set again on the whole
    cascade, since averaging lowers the confidence of the images that continued.

    Args:
        logits: ``[m, N, C]`` of each stage, or ``[N, C]`` of one member, on in-distribution
            validation images: tensors, or whatever `deepens.metrics.evaluate` takes.
        targets: Their class indices.
        task: What the cascade is for.
        width: Half a window's width as a share of a stage's images; or ``(below, above)`` of each.
        confidence: ``"msp"`` or ``"energy"``. Where an end of a window or the threshold would be
            an msp that rounds to 1, the policy is of its logarithm, ``"log_msp"``.
        single_threshold: Whether windows have no lower end: the baseline.
        pool: As `Cascade` takes it.

    Raises:
        ValueError: If there are fewer than two stages, a window would rest on fewer than 50 images,
            a width leaves ``[0, 1]``, or the target is out of reach.

    Reference: Xia & Bouganis (2023), arXiv:2303.08010
    """
    pairs = _offsets(width, len(logits) - 1)

    def choose(here: Tensor, threshold: float, stage: int) -> Window:
        below, above = pairs[stage - 1]
        if threshold == -math.inf:  # all are accepted: the least certain continue
            return _least_certain(here, below + above)
        window = window_around(here, threshold, below=below, above=above)
        return (-math.inf, window[1]) if single_threshold and window != NOTHING else window

    return _calibrate(logits, targets, task, choose, confidence, pool)


def calibrate_passing(
    logits: Logits,
    targets: Any,
    task: Task,
    *,
    passing: Sequence[float],
    confidence: str = "msp",
    pool: str = "mean",
) -> Calibration:
    """Return the single-threshold policy by which given shares of a stage's images continue.

    The least certain ones do: ``(-inf, Q(share)]``. This gives the baseline a window cascade's
    cost. ``passing`` has one share for each stage but the last; other arguments and errors are
    those of `calibrate`.
    """
    pairs = _offsets([(share, 0.0) for share in passing], len(logits) - 1)
    return _calibrate(
        logits,
        targets,
        task,
        lambda here, threshold, stage: _least_certain(here, pairs[stage - 1][0]),
        confidence,
        pool,
    )


def _calibrate(
    logits: Logits,
    targets: Any,
    task: Task,
    choose: Callable[[Tensor, float, int], Window],
    confidence: str,
    pool: str,
) -> Calibration:
    """Choose each stage's window from the confidences that reach it and the threshold so far."""
    if confidence != "msp":
        return _calibrate_by(logits, targets, task, choose, confidence, pool)
    with suppress(OutOfReachError):  # which may be so for images that tie
        found = _calibrate_by(logits, targets, task, choose, confidence, pool)
        ends = (*itertools.chain(*found.policy.windows), found.policy.threshold)
        if not any(_NEXT_TO_1 < end < math.inf for end in ends):
            return found
    return _calibrate_by(logits, targets, task, choose, "log_msp", pool)


def _calibrate_by(
    logits: Logits,
    targets: Any,
    task: Task,
    choose: Callable[[Tensor, float, int], Window],
    confidence: str,
    pool: str,
) -> Calibration:
    given, logits = logits, [read_logits(each) for each in logits]
    stages = len(logits)
    if stages < 2:
        raise ValueError(f"a cascade needs >= 2 stages, got {stages}")
    targets = read_targets(targets, logits[0], like=given[0])
    images, classes = logits[0].shape[1:]
    validate_targets(targets, num_samples=images, num_classes=classes)
    notes: list[str] = []
    windows: list[Window] = []
    for stage in range(1, stages):
        policy = WindowPolicy([*windows, NOTHING], confidence=confidence)
        answers = replay(policy, logits[: stage + 1], pool=pool)
        threshold = _provisional(task, answers.confidence, answers.predicted == targets)
        here = answers.confidence[answers.stage == stage]
        window = choose(here, threshold, stage) if len(here) else NOTHING
        if window != NOTHING and len(here) < FEWEST:
            raise TooFewImagesError(
                f"the window after stage {stage} would be calibrated on {len(here)} images, of at "
                f"least {FEWEST}; take more validation images, fewer stages or wider windows "
                "before it"
            )
        if window != NOTHING and len(here) < FEW:
            passing = ((here >= window[0]) & (here <= window[1])).double().mean().item()
            notes.append(
                f"the window after stage {stage} was calibrated on {len(here)} images, fewer than "
                f"{FEW}: of others {_interval(passing, len(here))} may continue (here "
                f"{passing:.1%}), at 95 %"
            )
        windows.append(window)
    answers = replay(WindowPolicy(windows, confidence=confidence), logits, pool=pool)
    threshold = task.threshold(answers.confidence, answers.predicted == targets)
    for stage, (low, high) in enumerate(windows, start=1):
        if (low, high) != NOTHING and math.isfinite(threshold) and not low <= threshold <= high:
            notes.append(
                f"the threshold {threshold:.6g} left the window [{low:.6g}, {high:.6g}] after "
                f"stage {stage} when it was set on the whole cascade: images near it stop"
            )
    policy = WindowPolicy(windows, confidence=confidence, threshold=threshold)
    answers = replace(answers, accepted=answers.confidence >= threshold)
    found = _summary(policy, answers, targets)
    if images < FEW:
        wrong = _interval(found.risk, int(answers.accepted.sum()))
        notes.append(
            f"calibrated on {images} images, fewer than {FEW}: of others {wrong} of the accepted "
            f"may be wrong (here {found.risk:.1%}), at 95 %"
        )
    return replace(found, notes=tuple(notes))


def assess(
    policy: WindowPolicy, logits: Logits, targets: Any, *, pool: str = "mean"
) -> Calibration:
    """Return what a policy does on labelled images that it was not calibrated on."""
    given, logits = logits, [read_logits(each) for each in logits]
    targets = read_targets(targets, logits[0], like=given[0])
    return _summary(policy, replay(policy, logits, pool=pool), targets)


def _summary(policy: WindowPolicy, answers: Answers, targets: Tensor) -> Calibration:
    correct, accepted = answers.predicted == targets, answers.accepted
    risk = 1.0 - correct[accepted].double().mean().item() if accepted.any() else math.nan
    reached = tuple(answers.reached(policy.num_stages).tolist())
    return Calibration(policy, len(answers), reached, accepted.double().mean().item(), risk)


def _offsets(
    width: float | Sequence[tuple[float, float]], windows: int
) -> list[tuple[float, float]]:
    pairs = [(width, width)] * windows if isinstance(width, int | float) else list(width)
    if len(pairs) != windows:
        raise ValueError(f"width must be one number, or {windows} pairs, got {len(pairs)} pairs")
    for pair in pairs:
        if not all(0 <= share <= 1 for share in pair):
            raise ValueError(f"width must lie in [0, 1], got {pair}")
    return pairs


def _least_certain(confidence: Tensor, share: float) -> Window:
    if share == 0:
        return NOTHING
    return -math.inf, math.inf if share >= 1 else confidence.quantile(share).item()


def _risks(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every threshold, from the highest, with the number of images it accepts and their risk."""
    ranking = rank(confidence)
    counts = ranking.cumulate(~correct)
    thresholds = confidence[ranking.order[ranking.block_ends]]
    return thresholds, counts.total, counts.flagged / counts.total


def _provisional(task: Task, confidence: Tensor, correct: Tensor) -> float:
    """The task's threshold; where it is out of reach so far, that of the lowest risk."""
    try:
        return task.threshold(confidence, correct)
    except OutOfReachError:
        thresholds, _, risks = _risks(confidence, correct)
        return thresholds[(risks == risks.min()).nonzero()[-1]].item()


def _interval(share: float, number: int) -> str:
    """Wilson's 95 % interval of a share, in words."""
    low, high = wilson_interval(
        torch.tensor([share]).double().nan_to_num(), torch.tensor([number]).double()
    )
    return f"{low.item():.1%} to {high.item():.1%}"
