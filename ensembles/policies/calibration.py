"""Thresholds and windows of a cascade, from in-distribution validation images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from ...metrics.core.mixture import validate_targets, validate_values
from ...metrics.core.ranking import rank
from ...metrics.core.reliability_bands import wilson_interval
from ...metrics.selective.risk_coverage import validate_coverage
from ..policy import Answers
from .cascade import replay
from .window import NOTHING, Window, WindowPolicy

TASKS = ("selective", "ood", "scod", "accuracy")
WIDTH = 0.10
"""Half a window's width as a share of the images: about 20 % continue."""
FEWEST, FEW = 50, 200
"""Images below which a window is refused, and below which it is warned of."""


class OutOfReachError(ValueError):
    """No threshold keeps the target risk."""


class TooFewImagesError(ValueError):
    """A window would rest on too few images."""


Logits = Sequence[Float[Tensor, "_ images classes"]]


@dataclass(frozen=True)
class Task:
    """What the cascade's answers are for, and with it the threshold of acceptance.

    Attributes:
        kind: ``"selective"`` (accept what is likely right), ``"ood"`` (accept in-distribution
            images), ``"scod"`` (accept in-distribution images that are likely right) or
            ``"accuracy"`` (accept all).
        target_risk: Of selective classification: share of errors among the accepted at most.
        target_coverage: Of selective classification and SCOD: share of images accepted at least.
        target_tpr: Of OOD detection: share of in-distribution images accepted at least.

    Raises:
        ValueError: If the targets do not belong to the kind, or leave their ranges.
    """

    kind: str = "selective"
    target_risk: float | None = None
    target_coverage: float | None = None
    target_tpr: float | None = None

    def __post_init__(self) -> None:
        allowed = {
            "selective": ("target_risk", "target_coverage"),
            "ood": ("target_tpr",),
            "scod": ("target_coverage",),
            "accuracy": (),
        }
        if self.kind not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.kind!r}")
        names = ("target_risk", "target_coverage", "target_tpr")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        wanted = allowed[self.kind]
        if set(given) - set(wanted) or len(given) != min(1, len(wanted)):
            asked = f"exactly one of {', '.join(wanted)}" if wanted else "no target"
            raise ValueError(f"the task {self.kind} takes {asked}, got {given or 'none'}")
        for name, value in given.items():
            if not (0 <= value <= 1 if name == "target_risk" else 0 < value <= 1):
                bounds = "[0, 1]" if name == "target_risk" else "(0, 1]"
                raise ValueError(f"{name} must lie in {bounds}, got {value}")

    def threshold(
        self, confidence: Float[Tensor, "images"], correct: Bool[Tensor, "images"]
    ) -> float:
        """Return tau, the least confidence of an accepted answer.

        Raises:
            OutOfReachError: If no threshold reaches the target risk.
        """
        if self.target_risk is not None:
            return threshold_at_risk(confidence, correct, self.target_risk)
        share = self.target_tpr if self.target_coverage is None else self.target_coverage
        return -math.inf if share is None else threshold_at_coverage(confidence, share)

    def loss(self, answers: Answers, correct: Bool[Tensor, "images"]) -> float:
        """Return what a search over windows makes small, on labelled in-distribution images.

        Selective classification: 1 - coverage at a target risk, or the risk at a target coverage;
        accuracy: the share of errors.

        Raises:
            ValueError: If the loss of the task cannot be computed without OOD images.
        """
        if self.kind in ("ood", "scod"):
            raise ValueError(
                f"a budget cannot be searched for with the task {self.kind}: its loss needs OOD "
                "images, and those to report on must not be chosen on; set the window's width"
            )
        accepted = answers.accepted
        if self.target_risk is not None:
            return 1.0 - accepted.double().mean().item()
        return 1.0 - correct[accepted].double().mean().item()


@dataclass(frozen=True)
class Calibration:
    """A calibrated policy, and what it did on the images that it was calibrated on.

    Attributes:
        policy: Windows and threshold.
        images: Number of calibration images.
        reached: Share of them that each stage ran on.
        coverage: Share of them accepted.
        risk: Share of errors among the accepted; NaN without any.
        notes: What its user must know, such as that the images were few.
    """

    policy: WindowPolicy
    images: int
    reached: tuple[float, ...]
    coverage: float
    risk: float
    notes: tuple[str, ...] = ()

    @property
    def passing(self) -> list[float]:
        """Of each stage but the last, the share of the images there that went on."""
        return [
            after / before if before else 0.0
            for before, after in zip(self.reached, self.reached[1:], strict=False)
        ]

    def average_macs(self, macs: Sequence[int] | Sequence[float]) -> float:
        """Return ``sum_m reached_m C_m`` for the stages' multiply-accumulates C."""
        return sum(share * cost for share, cost in zip(self.reached, macs, strict=True))


def threshold_at_risk(
    confidence: Float[Tensor, "images"], correct: Bool[Tensor, "images"], risk: float
) -> float:
    """Return the threshold of the largest coverage whose risk is at most the target.

    The *largest*, and never the nearest: the risk at the threshold keeps the target on these
    images. A threshold does not split images of equal confidence.

    Args:
        confidence: Higher for more certain images.
        correct: Whether the answer is right.
        risk: Share of errors among the accepted at most.

    Returns:
        The confidence of the least certain image that is accepted.

    Raises:
        OutOfReachError: If no threshold keeps the risk, with the lowest that is to be had.

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import threshold_at_risk
        >>> correct = torch.tensor([True, True, False, True, False])
        >>> threshold_at_risk(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), correct, 0.25)
        0.6000000238418579
    """
    validate_values(correct, name="correct", num_samples=confidence.shape[0])
    ranking = rank(confidence)
    counts = ranking.cumulate(~correct)
    risks = counts.flagged / counts.total
    kept = (risks <= risk).nonzero()
    if not len(kept):
        best = int(risks.argmin())
        raise OutOfReachError(
            f"a risk of {risk} is out of reach: the lowest is {risks[best]:.4f}, at a coverage of "
            f"{counts.total[best] / len(confidence):.4f}"
        )
    return confidence[ranking.order[ranking.block_ends[kept[-1]]]].item()


def threshold_at_coverage(confidence: Float[Tensor, "images"], coverage: float) -> float:
    """Return the highest threshold that accepts at least a share of the images.

    On in-distribution images the share is the true-positive rate of OOD detection, and the
    threshold their ``1 - TPR`` quantile.

    Args:
        confidence: Higher for more certain images.
        coverage: Share to accept, in ``(0, 1]``.

    Returns:
        The confidence of the least certain image that is accepted.

    Raises:
        ValueError: If ``coverage`` leaves ``(0, 1]``.

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import threshold_at_coverage
        >>> threshold_at_coverage(torch.tensor([0.75, 0.5, 0.25, 0.125]), 0.5)
        0.5
    """
    validate_values(confidence, name="confidence")
    validate_coverage(coverage)
    number = max(1, math.ceil(coverage * len(confidence) - 1e-9))  # 0.1 times 30 is just above 3
    return confidence.sort(descending=True).values[number - 1].item()


def window_around(
    confidence: Float[Tensor, "images"], threshold: float, *, below: float, above: float
) -> Window:
    """Return the window of confidences near a threshold, by shares of the images.

    ``[Q(q - below), Q(q + above)]``, q the percentile rank of the threshold and Q the quantile
    function. An end at or beyond 0 or 1 is infinite: nothing lies outside it.

    Args:
        confidence: Of the images that reach the stage.
        threshold: tau.
        below: Share of images below it that continue.
        above: Share above it.

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
    ends = [place - below, place + above]
    low = -math.inf if ends[0] <= 0 else values.quantile(ends[0]).item()
    high = math.inf if ends[1] >= 1 else values.quantile(ends[1]).item()
    return low, high


def calibrate(
    logits: Logits,
    targets: Integer[Tensor, "images"],
    task: Task,
    *,
    width: float | Sequence[tuple[float, float]] = WIDTH,
    confidence: str = "msp",
    single_threshold: bool = False,
    pool: str = "mean",
) -> Calibration:
    """Return the windows and the threshold of a task.

    Stage by stage: tau is set on the cascade's own confidences so far, and the stage's window lies
    around it among the *survivors* that reach the stage. At last tau is set again on the whole
    cascade, since averaging lowers the confidence of what went on.

    Args:
        logits: Of each stage, its members first, on in-distribution validation images.
        targets: Their class indices.
        task: What the cascade is for.
        width: Half a window's width as a share of a stage's images; or ``(below, above)`` of each.
        confidence: ``"msp"`` or ``"energy"``.
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
            window = _least_certain(here, below + above)
        else:
            window = window_around(here, threshold, below=below, above=above)
        if single_threshold and window != NOTHING:
            return -math.inf, window[1]
        return window

    return _calibrate(logits, targets, task, choose, confidence, pool)


def calibrate_passing(
    logits: Logits,
    targets: Integer[Tensor, "images"],
    task: Task,
    *,
    passing: Sequence[float],
    confidence: str = "msp",
    pool: str = "mean",
) -> Calibration:
    """Return the single-threshold policy on which given shares of a stage's images continue.

    The least certain ones: ``(-inf, Q(share)]``. So the baseline can have a window cascade's cost.

    Args:
        logits: As for `calibrate`.
        targets: As for `calibrate`.
        task: As for `calibrate`.
        passing: Of each stage but the last, the share of the images that it ran on.
        confidence: As for `calibrate`.
        pool: As for `calibrate`.

    Raises:
        ValueError: As for `calibrate`.
    """
    pairs = _offsets([(share, 0.0) for share in passing], len(logits) - 1)

    def choose(here: Tensor, threshold: float, stage: int) -> Window:
        return _least_certain(here, pairs[stage - 1][0])

    return _calibrate(logits, targets, task, choose, confidence, pool)


def _calibrate(
    logits: Logits,
    targets: Tensor,
    task: Task,
    choose: Callable[[Tensor, float, int], Window],
    confidence: str,
    pool: str,
) -> Calibration:
    """Choose each stage's window from the confidences that reach it and the threshold so far."""
    stages = len(logits)
    if stages < 2:
        raise ValueError(f"a cascade needs >= 2 stages, got {stages}")
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
        if window != NOTHING:
            _check_number(len(here), stage)
            if len(here) < FEW:
                passing = ((here >= window[0]) & (here <= window[1])).double().mean().item()
                notes.append(_few_here(stage, len(here), passing))
        windows.append(window)
    policy = WindowPolicy(windows, confidence=confidence)
    answers = replay(policy, logits, pool=pool)
    correct = answers.predicted == targets
    threshold = task.threshold(answers.confidence, correct)
    policy = WindowPolicy(windows, confidence=confidence, threshold=threshold)
    accepted = answers.confidence >= threshold
    risk = 1.0 - correct[accepted].double().mean().item() if accepted.any() else math.nan
    reached = tuple(answers.reached(stages).tolist())
    for stage, (low, high) in enumerate(windows, start=1):
        if (low, high) != NOTHING and math.isfinite(threshold) and not low <= threshold <= high:
            notes.append(
                f"the threshold {threshold:.6g} left the window [{low:.6g}, {high:.6g}] after "
                f"stage {stage} when it was set on the whole cascade: images near it stop"
            )
    if images < FEW:
        notes.append(_few(images, risk, int(accepted.sum())))
    coverage = accepted.double().mean().item()
    return Calibration(policy, images, reached, coverage, risk, tuple(notes))


def assess(
    policy: WindowPolicy, logits: Logits, targets: Integer[Tensor, "images"], *, pool: str = "mean"
) -> Calibration:
    """Return what a policy does on other labelled images than those it was calibrated on.

    Args:
        policy: Calibrated.
        logits: Of each stage, its members first.
        targets: Class indices.
        pool: As `Cascade` takes it.

    Returns:
        Coverage, risk and the share that reaches each stage.
    """
    answers = replay(policy, logits, pool=pool)
    correct = answers.predicted == targets
    accepted = answers.accepted
    risk = 1.0 - correct[accepted].double().mean().item() if accepted.any() else math.nan
    reached = tuple(answers.reached(policy.num_stages).tolist())
    return Calibration(policy, len(answers), reached, accepted.double().mean().item(), risk)


def _offsets(
    width: float | Sequence[tuple[float, float]], windows: int
) -> list[tuple[float, float]]:
    pairs = [(width, width)] * windows if isinstance(width, (int, float)) else list(width)
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


def _provisional(task: Task, confidence: Tensor, correct: Tensor) -> float:
    """The task's threshold; where it is out of reach so far, that of the lowest risk."""
    try:
        return task.threshold(confidence, correct)
    except OutOfReachError:
        ranking = rank(confidence)
        counts = ranking.cumulate(~correct)
        risks = counts.flagged / counts.total
        lowest = (risks == risks.min()).nonzero()[-1]
        return confidence[ranking.order[ranking.block_ends[lowest]]].item()


def _check_number(images: int, stage: int) -> None:
    if images < FEWEST:
        raise TooFewImagesError(
            f"the window after stage {stage} would be calibrated on {images} images, of at least "
            f"{FEWEST}; take more validation images, fewer stages or wider windows before it"
        )


def _few_here(stage: int, images: int, passing: float) -> str:
    low, high = _interval(passing, images)
    return (
        f"the window after stage {stage} was calibrated on {images} images, fewer than {FEW}: of "
        f"others {low:.1%} to {high:.1%} may continue (here {passing:.1%}), at 95 %"
    )


def _few(images: int, risk: float, accepted: int) -> str:
    low, high = _interval(risk, accepted)
    return (
        f"calibrated on {images} images, fewer than {FEW}: of others {low:.1%} to {high:.1%} of "
        f"the accepted may be wrong (here {risk:.1%}), at 95 %"
    )


def _interval(share: float, number: int) -> tuple[float, float]:
    ends = wilson_interval(
        torch.tensor([share]).double().nan_to_num(), torch.tensor([number]).double()
    )
    return ends[0].item(), ends[1].item()
