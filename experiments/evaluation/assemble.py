"""Assemble members that were trained one by one into the ensemble that they form."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..store.progress import Display
from ..store.run import Run
from ..training.members import join_members
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
    precisions = sorted({part.config.precision for part in parts})
    alike = precisions[0] if len(precisions) == 1 else "auto"
    whole = dataclasses.replace(parts[0].config, member=None, out=out, precision=alike)
    for part in parts:
        if part.config.member is None:
            raise ValueError(f"{part.path} trains a whole ensemble; only runs of --member fit")
        own = part.config
        alone = dataclasses.replace(whole, member=own.member, precision=own.precision)
        if differing := part.config.differences(alone):
            these, both = "; ".join(sorted(differing)[:4]), f"{part.path} and {parts[0].path}"
            raise ValueError(f"{both} do not belong to one ensemble ({these})")
    numbers = sorted(part.config.member for part in parts if part.config.member is not None)
    if numbers != list(range(whole.members)):
        needed = f"each of the members 0 to {whole.members - 1} once"
        raise ValueError(f"assemble needs {needed}, got {numbers}")
    joined = join_members(whole, parts, display or Display(quiet=True))
    with Run.start(whole) as run:
        joined.save(run)
        evaluate(run, predict=True, display=display)
    return EvaluatedRun(run.path, run.config)
