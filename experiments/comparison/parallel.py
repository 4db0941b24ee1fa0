"""The trainings of a comparison in several processes: whole runs, or their members one by one."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..config import CompareConfig, TrainConfig
from ..evaluation.predictions import metrics_are_current
from ..evaluation.train_and_evaluate import train_and_evaluate
from ..store.progress import Display
from ..store.run import Run, claimed
from ..training.fit_members import executor_for, member_units, save_members
from ..training.members import members_apart
from ..training.scheduling import WorkUnit, run_units
from ..training.worker import splits_of
from .plan import Plan
from .units import Unit


def fit_in_processes(
    config: CompareConfig, units: Iterable[Unit], plan: Plan, display: Display
) -> None:
    """Train and evaluate what is missing of a comparison's trainings, ``config.jobs`` at a time.

    The members of an ensemble that can be trained alone are units of work of their own. What is
    finished is only read afterwards.

    Raises:
        ValueError: A training failed twice; the others are finished.
    """
    macs = {method.name: float(method.macs or 1) for method in plan.methods}
    work: list[WorkUnit] = []
    for unit in units:
        if not all(_finished(run) for run in unit.runs.values()):
            work += _work_of(unit, macs)
    if not work:
        return
    title = f"compare on {config.data}, {len(work)} fits on {config.jobs} processes, percent"
    executor = executor_for(config, len(work))
    run_units(work, executor, display, title=title, folder=config.directory())


def _work_of(unit: Unit, macs: Mapping[str, float]) -> list[WorkUnit]:
    """The units of work of a training: its members, where they are apart, and its runs after them.

    A member's cost is its share of the whole; what is left to do after members is a tenth of it.
    """
    name, whole = max(unit.runs.items(), key=lambda item: item[1].members)
    cost = macs[name] * whole.epochs
    members = members_apart(whole)
    if members:
        with claimed(whole.directory(), whole) as path:
            (path / "fits").mkdir(exist_ok=True)
    parts = member_units(members, cost / len(members)) if members else []
    rest = WorkUnit(
        str(whole.directory()),
        fit_runs,
        {"runs": [run.to_dict() for run in unit.runs.values()]},
        0.1 * cost if members else cost,
        whole.plugins,
        tuple(part.name for part in parts),
    )
    return [*parts, rest]


def fit_runs(options: Mapping[str, Any], display: Display) -> None:
    """Train and evaluate the runs of one training: the work of a process."""
    configs = [TrainConfig.from_dict(each) for each in options["runs"]]
    whole = max(configs, key=lambda config: config.members)
    if members := members_apart(whole):
        with Run.start(whole) as run:
            save_members(whole, run, members, display)
    for config in configs:
        train_and_evaluate(config, splits=splits_of(config, display), display=display)


def _finished(config: TrainConfig) -> bool:
    run = Run(config.directory(), config)
    return run.weights.exists() and metrics_are_current(run)
