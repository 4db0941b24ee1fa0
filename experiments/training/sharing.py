"""Runs that are made of other runs' members: each network is trained once."""

import csv
import dataclasses
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ...datasets import Splits
from ...ensembles.backbones import architecture_only
from ..config import TrainConfig
from ..cost.energy import total_joules
from ..store.checkpoint import load_content
from ..store.progress import Display
from ..store.run import (
    Run,
    csv_text,
    read_config,
    read_json,
    training_joules,
    training_seconds,
    write_json,
    write_whole_text,
)
from .building import build_ensemble
from .independence import are_independent, networks_of
from .train import train
from .weights import check_data, load_ensemble, save_ensemble

SHARED = "members_of"
"""Key in ``environment.json``: the runs that members were taken from, and which of them."""


def train_shared(config: TrainConfig, splits: Splits, display: Display) -> Run | None:
    """Make a run of the members that other runs beside it have, and train only what is missing.

    Nothing is done where the run has weights, where its own training was begun, or where no run
    beside it has members of it. An interrupted call goes on where it was.

    Returns:
        The run whose members were taken, None without one.

    Raises:
        ValueError: That run is damaged, or was trained on other data.
    """
    own = Run(config.directory(), config)
    if own.weights.exists() or own.resume.exists():
        return None
    donor = donor_of(config)
    if donor is None:
        return None
    load_ensemble(donor)  # refuses what is damaged
    check_data(donor, splits)
    common = min(donor.config.members, config.members)
    missing = range(common, config.members)
    if missing:
        which = "member 0" if common == 1 else f"members 0 to {common - 1}"
        display.say(f"{own.path} takes {which} of {donor.path}, and trains the others")
    with Run.start(config) as run:
        members = [(donor, index) for index in range(common)]
        for index in missing:
            path = str(run.path / "members" / str(index))
            alone = dataclasses.replace(config, member=index, out=path)
            members.append((train(alone, splits=splits, display=display), 0))
        compose(run, members)
        shutil.rmtree(run.path / "members", ignore_errors=True)
    return donor


def donor_of(config: TrainConfig) -> Run | None:
    """The finished run beside this one that shares most members with it."""
    path, wanted = config.directory(), networks_of(config)
    found: list[Run] = []
    if not are_independent(config):
        return None
    for file in sorted(path.parent.glob("*/weights.safetensors")):
        with suppress(ValueError):  # what cannot be read is not taken from
            known = read_config(file.parent, TrainConfig)
            if file.parent != path and networks_of(known) == wanted:
                found.append(Run(file.parent, dataclasses.replace(known, device=config.device)))
    return max(found, key=lambda run: run.config.members, default=None)


def compose(run: Run, members: Sequence[tuple[Run, int]]) -> None:
    """Write weights, log and environment of a run, each member being one of another run's.

    Time and energy are those of the members, each its share of its run's: what training them alone
    would have taken.

    Args:
        run: A run in its directory.
        members: The run of each member, and its place there.

    Raises:
        ValueError: A run is not trained, is damaged, or runs were trained on different data.
    """
    sources = {source.path: source for source, _ in members}
    loaded = {path: load_ensemble(source) for path, source in sources.items()}
    _, image_format = loaded[members[0][0].path]
    data = {load_content(source.weights)["data"] for source in sources.values()}
    if len(data) > 1:
        raise ValueError(
            f"{', '.join(map(str, sources))} were trained on different data; delete those of other "
            "data than now, and train again"
        )
    with architecture_only():
        ensemble = build_ensemble(run.config, image_format)
    with torch.no_grad():
        for index, (source, place) in enumerate(members):
            state = loaded[source.path][0].member_state(place)
            for name, value in ensemble.member_state(index).items():
                value.copy_(state[name])
    environment = read_json(members[0][0].environment)
    shares = [(source, 1 / loaded[source.path][0].num_members) for source, _ in members]
    joules = [(training_joules(source), share) for source, share in shares]
    taken: dict[str, list[int]] = {}
    for source, place in members:
        if source.config.member is None:  # those that are trained alone are its own
            taken.setdefault(source.path.name, []).append(place)
    cost = {
        "training_seconds": sum(share * training_seconds(source) for source, share in shares),
        "training_joules": total_joules(None if j is None else share * j for j, share in joules),
        SHARED: taken,
    }
    write_json(run.environment, environment | cost)
    if log := _log([source.path / "log.csv" for source, _ in members]):
        write_whole_text(run.path / "log.csv", log)
    save_ensemble(run, ensemble, image_format, data.pop())
    run.metrics.unlink(missing_ok=True)


def _log(files: Sequence[Path]) -> str:
    """The epochs of each member as a log of the whole; empty where a log is missing or damaged.

    What all members validate together is known of one member alone.
    """
    rows = []
    with suppress(KeyError, TypeError, ValueError, OSError):
        tables = [list(csv.DictReader(file.read_text("utf-8").splitlines())) for file in files]
        for epochs in zip(*tables, strict=True):
            row: dict[str, Any] = {name: epochs[0][name] for name in ("epoch", "step", "lr")}
            own = dict[str, Any]()
            for index, epoch in enumerate(epochs):
                own |= {name: text for name, text in epoch.items() if name.endswith(f"_{index}")}
            losses = [float(own[f"train/loss_{index}"]) for index in range(len(files))]
            own["train/loss"] = repr(torch.tensor(losses).sum().item())
            if len(files) == 1:
                own |= {name: own[f"{name}_0"] for name in ("val/nll", "val/accuracy")}
            rows.append(row | dict(sorted(own.items())))
        return csv_text(rows)
    return ""
