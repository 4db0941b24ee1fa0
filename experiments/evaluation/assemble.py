"""Assemble members that were trained one by one into the ensemble that they form."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ...ensembles.backbones import architecture_only
from ..cost.energy import total_joules
from ..store.checkpoint import load_content
from ..store.progress import Display
from ..store.run import Run, read_json, training_joules, training_seconds, write_json
from ..training.building import build_ensemble
from ..training.registry import base_run
from ..training.weights import base_of, load_ensemble, save_ensemble
from .evaluate import evaluate
from .predictions import EvaluatedRun


def assemble(
    paths: Sequence[Path], out: str | None = None, *, display: Display | None = None
) -> EvaluatedRun:
    """Make one run of separately trained members, equal to the run that trains them together.

    Use it when members are trained on different machines or at different times.

    Args:
        paths: The run of each member, by ``deepens train --member I`` with otherwise equal options.
        out: Directory of the whole; made from the options when absent.
        display: Where progress is shown; nowhere by default.

    Returns:
        The assembled run, with predictions and metrics.

    Raises:
        ValueError: A run is not of a single member, the runs differ, or a member is missing or
            given twice.
    """
    parts = [Run.open(path) for path in paths]
    if not parts:
        raise ValueError("assemble needs the run of each member, got none")
    whole = dataclasses.replace(parts[0].config, member=None, out=out)
    for part in parts:
        if part.config.member is None:
            raise ValueError(f"{part.path} trains a whole ensemble; only runs of --member fit")
        alone = dataclasses.replace(whole, member=part.config.member)
        if differing := part.config.differences(alone):
            these, both = "; ".join(sorted(differing)[:4]), f"{part.path} and {parts[0].path}"
            raise ValueError(f"{both} do not belong to one ensemble ({these})")
    numbers = sorted(part.config.member for part in parts if part.config.member is not None)
    if numbers != list(range(whole.members)):
        needed = f"each of the members 0 to {whole.members - 1} once"
        raise ValueError(f"assemble needs {needed}, got {numbers}")
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
    if display is not None and len(set(counts)) > 1:
        display.say(
            f"the members were trained on {', '.join(map(str, counts))} threads: the ensemble is "
            "as good as the joint run's, but not equal to it bit for bit"
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
    with Run.start(whole) as run:
        if first.base is not None and base_run(whole) and not whole.save_base:
            shutil.copytree(parts[0].path / "base", run.path / "base", dirs_exist_ok=True)
        write_json(run.environment, environment)
        save_ensemble(run, ensemble, image_format, data.pop(), start=starts.pop())
        evaluate(run, predict=True, display=display)
    return EvaluatedRun(run.path, run.config)
