"""Which of the processes that train an ensemble together this one is, and what each may say.

The processes are started by Lightning (`--devices 2` alone), by ``torchrun``, or by SLURM's
``srun``. The first writes, predicts and speaks; the others train, and end.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

PATIENCE_SECONDS = 2.0
"""How long another process than the first waits before it tells of an error, which the first may
tell of as well; that one ends all others."""


@dataclass(frozen=True)
class Place:
    """One of ``count`` processes that train together: its rank, and its rank on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    launched: bool = False

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def said(self, line: str) -> str:
        """A line of this process, which has a name where it is not the first."""
        return line if self.first else f"process {self.rank} of {self.count}: {line}"


class LostProcessError(ValueError):
    """One of the processes ended early.

    ``told`` is the exit status of one that told why, so that nothing is left to say.
    """

    def __init__(self, message: str, told: int | None = None) -> None:
        super().__init__(message)
        self.told = told


def place_of(config: Any) -> Place:
    """The place of this process in the training of a configuration, by its environment."""
    count = getattr(config, "devices", 1) * getattr(config, "num_nodes", 1)
    if count == 1:
        return Place()
    if _by_torchrun():
        return Place(_number("RANK"), count, _number("LOCAL_RANK"), launched=True)
    if by_slurm(count):
        return Place(_number("SLURM_PROCID"), count, _number("SLURM_LOCALID"), launched=True)
    local, node = _number("LOCAL_RANK"), _number("NODE_RANK")
    return Place(node * config.devices + local, count, local)


def by_slurm(count: int) -> bool:
    """Whether ``srun`` started so many processes, as Lightning tells it."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return not interactive and not _by_torchrun() and _number("SLURM_NTASKS") == count > 1


def check_launcher(config: Any) -> None:
    """Refuse processes of a launcher that are not those a configuration asks for.

    Each of several would do the same; those of Lightning have its number in ``WORLD_SIZE``.
    """
    devices, nodes = getattr(config, "devices", 1), getattr(config, "num_nodes", 1)
    count = devices * nodes
    if by_slurm(count):
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ValueError(
                f"srun started {count} processes without saying how many on each machine: start "
                f"it with --ntasks-per-node={devices}"
            )
        return
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        number = _number(name)
        if number == count and (count == 1 or name == "WORLD_SIZE"):
            return
        if number > 1 or (number == 1 and count > 1 and _by_torchrun()):
            remedy = "start the command once"
            if hasattr(config, "devices"):
                remedy = (
                    "give --devices as many as it starts on a machine, and --num-nodes the number "
                    f"of machines (torchrun or srun), or {remedy}"
                )
            raise ValueError(
                f"a launcher such as torchrun started {number} processes ({name}), and {count} "
                f"{'is' if count == 1 else 'are'} asked for: {remedy}"
            )
    if count > 1 and _number("SLURM_PROCID") > 0:
        raise ValueError(
            f"srun started {_number('SLURM_NTASKS')} processes, and {count} are asked for: make "
            "--ntasks-per-node equal to --devices and --nodes to --num-nodes"
        )


def wait_for_first(place: Place, error: BaseException) -> bool:
    """Whether a process is to tell of an error: the first at once, others if they outlive it.

    Where a process is lost, the second tells of it if the first is.
    """
    if place.first:
        return True
    parent = os.getppid()
    time.sleep(PATIENCE_SECONDS)
    if isinstance(error, LostProcessError):
        return place.rank == 1 and (place.launched or os.getppid() != parent or _orphan())
    return True


def _orphan() -> bool:
    return os.getppid() == 1


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0
