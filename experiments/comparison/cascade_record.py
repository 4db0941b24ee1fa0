"""The record of a cascade in a comparison: how it decides, and what it answered."""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from ...datasets import SplitName
from ...ensembles.policies import WindowPolicy
from ..evaluation.predictions import Predictions
from ..store.errors import damaged
from ..store.run import CALIBRATION, Run, read_json


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
        """Read a record, also one of earlier versions.

        Args:
            path: The cascade's directory.
            source: The run over whose members it decides.

        Returns:
            The record; its predictions are read when they are asked for.

        Raises:
            ValueError: The file is missing or damaged.
        """
        content = read_json(path / CALIBRATION)
        try:
            return cls(
                path,
                source,
                WindowPolicy.from_dict(content["policy"]),
                {split: tuple(shares) for split, shares in content["reached"].items()},
                tuple(content["macs"]),
                tuple(content["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise damaged(path / CALIBRATION, "run `deepens compare` again") from None

    @property
    def run(self) -> Run:
        """Its directory as a run of one network: each image has one answer."""
        return answers_of(self.path, self.source)

    @property
    def predictions(self) -> Predictions:
        """The answers, as the logits of one network; opened anew at each access."""
        return Predictions(self.run)

    @property
    def average_macs(self) -> float:
        """Multiply-accumulates of a test image, on average."""
        return self.times("test") * self.macs[0]

    def times(self, kind: str) -> float:
        """Average multiply-accumulates over the first stage's, mean over a kind's splits.

        Args:
            kind: ``test``, ``near_ood`` and so on; encoded copies of OOD sets are left out.

        Returns:
            The ratio, NaN without such a split.
        """
        names = {split: SplitName.parse(split) for split in self.reached}
        costs = [
            sum(share * cost for share, cost in zip(shares, self.macs, strict=True))
            for split, shares in self.reached.items()
            if names[split].kind == kind and not names[split].encoded
        ]
        return statistics.fmean(costs) / self.macs[0] if costs else math.nan


def answers_of(path: Path, source: Run) -> Run:
    """Return a cascade's directory as a run of one network, for the code that evaluates runs."""
    config = dataclasses.replace(source.config, members=1, member=None, out=str(path))
    return Run(path, config)
