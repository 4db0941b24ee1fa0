"""Trainings in several processes: whole runs, or their members one by one, put together after."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from joblib import cpu_count

from ..config import CompareConfig, Recipe, TrainConfig
from ..store.progress import Display
from ..store.run import claimed, exclusive
from .executor import Executor, LocalExecutor
from .members import members_apart
from .scheduling import WorkUnit, run_units
from .sharing import donor_of
from .worker import Work, train_member

Settled = TypeVar("Settled", bound=Recipe)

LOCK = ".processes.lock"
"""The lock of a directory whose runs processes are training, each of which locks its own."""

AFTER_MEMBERS = 0.1
"""Cost of what is done with a run when its members are trained, relative to that of training it."""


def settle_jobs(config: Settled) -> Settled:
    """The recipe with one thread for each process of ``jobs``, unless it says how many.

    More processes, with all their threads, than this machine has cores are a ValueError.
    """
    if config.jobs is None and config.executor == "local":
        return config
    jobs, threads, cores = config.jobs or 1, config.threads or 1, cpu_count()
    if config.executor == "local" and jobs > 1 and jobs * threads > cores:
        each = f" of {threads} threads" if threads > 1 else ""
        raise ValueError(
            f"jobs must be <= {max(1, cores // threads)}, since this machine has {cores} processor "
            f"cores for them, got {jobs} jobs{each}"
        )
    if config.executor == "ray":
        from .ray_executor import check_ray  # only where it is asked for

        check_ray(config.address)
    return dataclasses.replace(config, threads=threads)


@dataclass(frozen=True)
class Training:
    """Runs that come of one training, and its cost relative to that of others.

    ``together`` says whether they share their networks, with each other and with runs beside them.
    """

    runs: Sequence[TrainConfig]
    cost: float = 1.0
    together: bool = False

    @property
    def whole(self) -> TrainConfig:
        """The run with most members."""
        return max(self.runs, key=lambda run: run.members)

    @property
    def members(self) -> Sequence[TrainConfig]:
        """The runs of members that are trained alone; none where another run has some already."""
        taken = self.together and donor_of(self.whole) is not None
        return () if taken else members_apart(self.whole)


def fit_in_processes(
    config: TrainConfig | CompareConfig,
    trainings: Sequence[Training],
    finish: Work,
    display: Display,
) -> None:
    """Train and evaluate runs, as many at a time as a recipe says and where it says.

    The members of an ensemble that can be trained alone are units of work of their own, after which
    its weights are those of the joint training, bit for bit.

    Args:
        config: Its ``directory`` is that of the only run, or holds all runs.
        trainings: The runs.
        finish: Makes and evaluates the runs of a training, of its trained members if it has some;
            its options are ``{"runs": [...], "together": ...}``.
        display: Where progress is shown.

    Raises:
        ValueError: A training failed twice, the others being finished; another process works in the
            directory; there is no such executor.
    """
    path = config.directory()
    units = [unit for training in trainings for unit in _units(training, finish)]
    if not units:
        return
    path.mkdir(parents=True, exist_ok=True)
    with exclusive(path, LOCK):
        for training in trainings:
            if training.members:  # whose runs are inside
                with claimed(training.whole.directory(), training.whole):
                    pass
        executor = executor_for(config, len(units))
        title = f"{len(units)} fits of {path}, percent"
        run_units(units, executor, display, title=title, folder=path)


def _units(training: Training, finish: Work) -> Iterator[WorkUnit]:
    whole = training.whole
    members = [
        WorkUnit(
            f"{whole.directory()}, member {each.member}",
            train_member,
            each.to_dict(),
            training.cost / whole.members,
            each.plugins,
        )
        for each in training.members
    ]
    yield from members
    yield WorkUnit(
        str(whole.directory()),
        finish,
        {"runs": [run.to_dict() for run in training.runs], "together": training.together},
        training.cost * (AFTER_MEMBERS if members else 1),
        whole.plugins,
        tuple(member.name for member in members),
    )


def executor_for(config: Recipe, units: int) -> Executor:
    """What carries out so many units, as the options say."""
    threads = config.threads or 1
    if config.executor == "ray":
        from .ray_executor import RayExecutor  # ray is optional

        return RayExecutor(config.address, config.jobs, threads, config.gpus_per_fit)
    return LocalExecutor(min(config.jobs or 1, units), threads)
