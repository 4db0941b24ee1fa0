"""The record of a cascade in a comparison: how it decides, and what it answered."""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from ...datasets import SplitName
from ...ensembles.policies import WindowPolicy
from ..evaluation.predictions import Predictions
from ..store.errors import damaged
from ..store.run import CALIBRATION, Run, read_json
from .verdicts import shown_copies


@dataclasses.dataclass(frozen=True)
class CascadeRecord:
    """A cascade over a run's members, as a comparison keeps it.

    Its directory holds ``calibration.json`` and, as that of a run does, ``predictions/``,
    ``metrics.json`` and ``temperature.json``; nothing was trained for it.

    Attributes:
        path: Its directory.
        source: The run over whose members it decides.
        policy: Calibrated on ``val/calibrate``.
        reached: Share of each split's images that each stage ran on.
        macs: Of each stage alone.
        notes: What its user must know.
    """

    path: Path
    source: Run
    policy: WindowPolicy
    reached: Mapping[str, tuple[float, ...]]
    macs: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, source: Run) -> "CascadeRecord":
        """Read a cascade's directory, also of earlier versions, without its predictions.

        Raises:
            ValueError: The file is missing or damaged.
        """
        content = read_json(path / CALIBRATION)
        try:
            policy = WindowPolicy.from_dict(content["policy"])
            reached = {split: tuple(shares) for split, shares in content["reached"].items()}
            macs, notes = tuple(content["macs"]), tuple(content["notes"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise damaged(path / CALIBRATION, "run `deepens compare` again") from None
        return cls(path, source, policy, reached, macs, notes)

    @property
    def run(self) -> Run:
        """Its directory as a run of one network: each image has one answer."""
        return answers_of(self.path, self.source)

    @cached_property
    def predictions(self) -> Predictions:
        """The answers, as the logits of one network."""
        return Predictions(self.run)

    @property
    def average_macs(self) -> float:
        """Multiply-accumulates of a test image, on average."""
        return self.times("test") * self.macs[0]

    def times(self, kind: str) -> float:
        """Average multiply-accumulates over the first stage's, mean over a kind's splits.

        Args:
            kind: ``test``, ``near_ood`` and so on; of OOD sets the copy that counts.

        Returns:
            The ratio, NaN without such a split.
        """
        costs = [
            sum(share * cost for share, cost in zip(self.reached[split], self.macs, strict=True))
            for split in shown_copies(self.reached)
            if SplitName.parse(split).kind == kind
        ]
        return statistics.fmean(costs) / self.macs[0] if costs else math.nan


def answers_of(path: Path, source: Run) -> Run:
    """Return a cascade's directory as a run of one network, for the code that evaluates runs."""
    config = dataclasses.replace(source.config, members=1, member=None, out=str(path))
    return Run(path, config)
