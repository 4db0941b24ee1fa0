"""The members of one ensemble trained in processes of their own, and put together afterwards."""

from collections.abc import Iterable

from ...datasets import Splits
from ...datasets.image_format import ImageFormat
from ..config import TrainConfig
from ..store.progress import Display
from ..store.run import Run
from .building import build_ensemble
from .executor import Executor, LocalExecutor
from .members import join_members, members_apart
from .precision import settle_precision
from .scheduling import WorkUnit, run_units
from .worker import train_member


def fit_members(config: TrainConfig, splits: Splits, display: Display) -> None:
    """Train what is missing of a run's members, ``config.jobs`` at a time.

    The weights are those of the joint run, bit for bit. Nothing is done where members cannot be
    trained alone, which is said, or where the training was begun or finished otherwise.
    """
    run = Run(config.directory(), config)
    members = members_apart(config)
    if not members:
        if not run.weights.exists():
            display.say(
                f"{run.path} is trained by one process: its members cannot be trained alone, or "
                "are in the midst of a common training"
            )
        return
    with Run.start(config) as run:
        image_format = ImageFormat.of(splits)
        config = settle_precision(
            run.config, lambda: build_ensemble(config, image_format, members=[0]), splits, display
        )
        run, members = Run(run.path, config), members_apart(config)
        (run.path / "fits").mkdir(exist_ok=True)
        title = f"train {run.path}, {len(members)} members on {config.jobs} processes, percent"
        run_units(
            member_units(members),
            executor_for(config, len(members)),
            display,
            title=title,
            folder=run.path / "fits",
        )
        save_members(config, run, members, display)


def member_units(members: Iterable[TrainConfig], cost: float = 1.0) -> list[WorkUnit]:
    """The units of work that train members alone."""
    return [
        WorkUnit(str(each.directory()), train_member, each.to_dict(), cost, each.plugins)
        for each in members
    ]


def save_members(
    config: TrainConfig, run: Run, members: Iterable[TrainConfig], display: Display
) -> None:
    """Write the weights of a run whose members are trained."""
    parts = [Run(each.directory(), each) for each in members]
    join_members(config, parts, display).save(run)


def executor_for(config: TrainConfig, units: int) -> Executor:
    """What carries out so many units, as the options say."""
    return LocalExecutor(min(config.jobs or 1, units), config.threads or 1)
