"""Members that are trained one by one, in runs of their own, and the ensemble that they form."""

import csv
import dataclasses
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...datasets.image_format import ImageFormat
from ...ensembles import Ensemble
from ...ensembles.backbones import architecture_only
from ..config import TrainConfig
from ..cost.energy import total_joules
from ..store.checkpoint import load_content
from ..store.progress import Display
from ..store.run import (
    Run,
    csv_text,
    read_json,
    training_joules,
    training_seconds,
    write_json,
    write_whole_text,
)
from .building import build_ensemble, settle_batches
from .independence import are_independent
from .registry import base_run
from .weights import base_of, load_ensemble, save_ensemble

MIXTURE = ("train/loss", "val/nll", "val/accuracy")
"""Columns of a log that are of all members that are trained together."""


def members_apart(config: TrainConfig) -> tuple[TrainConfig, ...]:
    """The runs that train each member of a run alone, with the same result; none where they cannot.

    A training that was begun with all members together goes on so, and so does one that writes
    TensorBoard's logs, which are of all members.
    """
    config = settle_batches(config)
    run = Run(config.directory(), config)
    begun = run.weights.exists() or run.resume.exists()
    if config.members == 1 or begun or config.tensorboard or not are_independent(config):
        return ()
    return tuple(
        dataclasses.replace(config, member=i, out=str(run.path / "fits" / f"member{i}"))
        for i in range(config.members)
    )


def join_trained_members(config: TrainConfig, display: Display) -> None:
    """Write the weights of a run whose members were trained alone, if they were."""
    parts = [Run(each.directory(), each) for each in members_apart(config)]
    if parts and all(part.weights.exists() for part in parts):
        with Run.start(config) as run:
            join_members(config, parts, display).save(run)


@dataclass(frozen=True)
class Joined:
    """An ensemble of members that were trained alone, and what its run records."""

    ensemble: Ensemble
    image_format: ImageFormat
    data: str
    start: str | None
    environment: Mapping[str, Any]
    log: str | None
    base: Path | None

    def save(self, run: Run) -> None:
        """Write the weights of a run, last, and its records."""
        if self.base is not None:
            shutil.copytree(self.base, run.path / "base", dirs_exist_ok=True)
        if self.log is not None:
            write_whole_text(run.path / "log.csv", self.log)
        write_json(run.environment, self.environment)
        save_ensemble(run, self.ensemble, self.image_format, self.data, start=self.start)


def join_members(whole: TrainConfig, parts: Sequence[Run], display: Display) -> Joined:
    """Make the ensemble of a run from the runs of all its members, in any order.

    Members of other bases or data, and members that share parameters, are a ValueError. The time
    and the energy of the training are the sums of the members'.
    """
    loaded = [(part, *load_ensemble(part)) for part in parts]
    first, image_format = loaded[0][1:]
    contents = [load_content(part.weights) for part in parts]
    starts = {content.get("start") for content in contents}
    if len(starts) > 1:
        raise ValueError("the members start from different bases; train them again on the same")
    base = None if first.base is None or whole.save_base else base_of(parts[0], image_format)
    with architecture_only():
        ensemble = build_ensemble(whole, image_format, base=base)
    if ensemble.shares_parameters:
        raise ValueError(
            f"members of --ensemble {whole.ensemble} share parameters, so that members trained "
            "alone form no ensemble; train them together, without --member"
        )
    if first.base is not None and ensemble.base is not None:
        ensemble.base.load_state_dict(first.base.state_dict())  # with save_base, there is no other
    data = {content["data"] for content in contents}
    if len(data) > 1:
        raise ValueError("the runs were trained on different data; train them again on the same")
    environments = [read_json(part.environment) for part in parts]
    counts = [each.get("fit_threads") for each in environments]  # earlier versions stored none
    if len(set(counts)) > 1:
        display.say(
            f"the members were trained on {', '.join(map(str, counts))} threads: the ensemble is "
            "as good as the joint run's, but not equal to it bit for bit"
        )
    precisions = sorted({part.config.precision for part in parts})
    if len(precisions) > 1:
        display.say(
            f"the members were trained in precision {' and '.join(precisions)}: none that is "
            "trained as a whole equals this ensemble; for one, give all members one --precision"
        )
    environment = environments[0] | {
        "training_seconds": sum(training_seconds(part) for part in parts),
        "training_joules": total_joules(training_joules(part) for part in parts),
    }
    with torch.no_grad():
        for part, single, _ in loaded:
            target = ensemble.member_state(part.config.member or 0)
            for name, value in single.member_state(0).items():
                target[name].copy_(value)
    own_base = first.base is not None and base_run(whole) and not whole.save_base
    return Joined(
        ensemble,
        image_format,
        data.pop(),
        starts.pop(),
        environment,
        _joined_log(parts),
        parts[0].path / "base" if own_base else None,
    )


def _joined_log(parts: Sequence[Run]) -> str | None:
    """The logs of members side by side, in their order; None where a log is gone."""
    ordered = sorted(parts, key=lambda part: part.config.member or 0)
    files = [part.path / "log.csv" for part in ordered]
    if not all(file.exists() for file in files):
        return None
    return side_by_side([file.read_text(encoding="utf-8") for file in files])


def side_by_side(logs: Sequence[str]) -> str:
    """Join the logs of members by epoch, as CSV; the training loss is their sum."""
    tables = [list(csv.DictReader(io.StringIO(log))) for log in logs]
    rows = []
    for epoch in range(max(map(len, tables))):
        there = [table[epoch] for table in tables if epoch < len(table)]
        own = [{k: v for k, v in row.items() if k not in MIXTURE} for row in there]
        joined = {name: value for row in own for name, value in row.items()}
        joined["train/loss"] = repr(sum(float(row["train/loss"]) for row in there))
        rows.append(joined)
    return csv_text(rows)
