"""Whether live images pass from stage to stage as often as the calibration images did."""

import math
import warnings
from collections import deque
from collections.abc import Sequence

import scipy
import torch

from ..policy import Answers


class PassThroughMonitor:
    """Warns, once per stage, when the share of images that reach it has drifted.

    With π the calibrated share of n images, and π' the live share of n', the drift is
    ``z = (π' - π) / sqrt(q (1 - q) (1/n + 1/n'))``, q the share of both together; a warning is
    issued where ``|z|`` exceeds the normal quantile of the level. Use it in deployment: shifted
    images change a cascade's cost and risk.

    Args:
        reached: Calibrated share of images that each stage runs on, the first being 1.
        calibrated: n, the number of calibration images.
        level: Chance of a false alarm, for one look at one stage.
        fewest: Live images before the first look.
        window: About how many of the latest images are counted, so that a late drift shows.

    Raises:
        ValueError: If the shares do not begin with 1 or are none, or a number is out of range.

    Example:
        >>> import torch
        >>> from deepens.ensembles.policies import PassThroughMonitor
        >>> monitor = PassThroughMonitor([1.0, 0.2], calibrated=1000)
        >>> monitor.count(torch.tensor([1] * 80 + [2] * 20))
        >>> monitor.drift()
        [0.0]
    """

    def __init__(
        self,
        reached: Sequence[float],
        *,
        calibrated: int,
        level: float = 1e-4,
        fewest: int = 100,
        window: int = 10_000,
    ) -> None:
        if not reached or reached[0] != 1 or not all(0 <= share <= 1 for share in reached):
            raise ValueError(f"reached must be shares that begin with 1, got {list(reached)}")
        if min(calibrated, fewest, window) < 1:
            numbers = f"{calibrated}, {fewest} and {window}"
            raise ValueError(f"calibrated, fewest and window must be >= 1, got {numbers}")
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level}")
        self.reached, self.calibrated = tuple(reached), calibrated
        self.fewest, self.window = fewest, window
        self.live = [0] * len(reached)
        self._parts: deque[list[int]] = deque()
        self._most = -float(scipy.special.ndtri(level / 2))
        self._told: set[int] = set()

    def count(self, stage: torch.Tensor) -> None:
        """Count images by how many stages ran on them, as in `Answers.stage`."""
        self._parts.append([int((stage > number).sum()) for number in range(len(self.live))])
        self.live = [held + new for held, new in zip(self.live, self._parts[-1], strict=True)]
        while self.live[0] - self._parts[0][0] >= self.window:
            gone = self._parts.popleft()
            self.live = [held - old for held, old in zip(self.live, gone, strict=True)]

    def drift(self) -> list[float]:
        """Return z of every stage but the first, above 0 where more images reach it."""
        return [self._z(number) for number in range(1, len(self.live))]

    def watch(self, answers: Answers) -> None:
        """Count answers, and warn where a stage has drifted."""
        self.count(answers.stage)
        if self.live[0] < self.fewest:
            return
        for number, z in enumerate(self.drift(), start=1):
            if abs(z) > self._most and number not in self._told:
                self._told.add(number)
                warnings.warn(
                    f"stage {number + 1} runs on {self.live[number] / self.live[0]:.1%} of "
                    f"{self.live[0]} images, where {self.reached[number]:.1%} of "
                    f"{self.calibrated} calibration images reached it: these images are unlike "
                    "those, so risk and cost are not what was calibrated",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _z(self, number: int) -> float:
        live, images, expected = self.live[number], self.live[0], self.reached[number]
        if not images:
            return 0.0
        both = (live + expected * self.calibrated) / (images + self.calibrated)
        variance = both * (1 - both) * (1 / images + 1 / self.calibrated)
        # A variance of 0: none, or all, in both.
        return (live / images - expected) / math.sqrt(variance) if variance > 0 else 0.0
