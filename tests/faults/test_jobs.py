"""Several processes train what one process would, bit for bit, whichever of them is killed."""

import os
import signal
import time
from pathlib import Path

import pytest
from joblib import cpu_count
from processes import QUICK, Command, results

pytestmark = pytest.mark.skipif(cpu_count() < 2, reason="two processes need two cores")

TRAIN = [
    *("train", "--out", "out", "--data", "digits", "--members", "3", "--epochs", "60"),
    *("--checkpoint-seconds", "0", *QUICK),
]


def by_weights(path: Path) -> dict[str, object]:
    """What is the same whether members are trained together or alone."""
    return {name: value for name, value in results(path).items() if not name.endswith("log.csv")}


@pytest.fixture(scope="session")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert Command([*TRAIN, "--jobs", "1"], folder).wait() == 0
    return by_weights(folder / "out")


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def begun(folder: Path) -> int:
    return len(list((folder / "out" / "fits").glob("member*/resume.safetensors")))


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def trainer_of(folder: Path, parent: int) -> int:
    """The process that holds the lock of a member's run that has a checkpoint."""
    for pid in children(parent):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            place = Path(os.path.realpath(link)).parent
            if place.name.startswith("member") and (place / "resume.safetensors").exists():
                return pid
    raise AssertionError("nobody trains")


def test_members_in_two_processes_are_those_of_one(start, tmp_path, expected):
    assert start(*TRAIN, "--jobs", "2").wait() == 0
    assert by_weights(tmp_path / "out") == expected
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {"fits", "resume.safetensors"} & left


def test_a_killed_process_costs_its_fit_only(start, tmp_path, expected):
    words = [word for word in TRAIN if word not in ("--quiet", "true")]
    command = start(*words, "--jobs", "2")
    wait_until(lambda: begun(tmp_path))
    os.kill(trainer_of(tmp_path, command.process.pid), signal.SIGKILL)
    assert command.wait() == 0
    again = [line for line in command.said if line.endswith("it is tried again")]
    assert len(again) == 1
    assert "was killed (SIGKILL(-9))" in again[0]
    assert by_weights(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGTERM, 143, "deepens: terminated; the same command continues from the last c"),
        (signal.SIGINT, 130, "deepens: interrupted; the same command continues from the last c"),
        (signal.SIGKILL, -9, None),
    ],
)
def test_whatever_ends_the_command_it_goes_on_where_it_was(
    start, tmp_path, expected, number, status, line
):
    words = [*TRAIN, "--jobs", "2", "--checkpoint-seconds", "3600"]
    if number == signal.SIGKILL:  # which saves nothing
        words[-1] = "0"
    command = start(*words)
    logs = tmp_path / "out" / "fits"
    wait_until(lambda: any(len(f.read_text().splitlines()) > 3 for f in logs.glob("*/log.csv")))
    pids = children(command.process.pid)
    os.kill(command.process.pid, number)
    assert command.wait() == status
    if line is not None:
        assert [said.startswith(line) for said in command.said] == [True]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 15.0)
    assert begun(tmp_path) >= 1
    assert not (tmp_path / "out" / "weights.safetensors").exists()
    assert start(*words).wait() == 0
    assert by_weights(tmp_path / "out") == expected


COMPARE = [
    *("compare", "--out", "out", "--data", "digits", "--methods", "single,deep-2,packed-2"),
    *("--members", "2", "--epochs", "20", "--replicates", "1", "--draws", "100", *QUICK),
    *("--checkpoint-seconds", "0"),
]


def test_a_comparison_by_two_processes_of_which_one_is_killed_is_that_of_one(
    start, tmp_path, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("one")
    assert Command([*COMPARE, "--jobs", "1"], folder).wait() == 0
    command = start(*COMPARE, "--jobs", "2")
    wait_until(lambda: list((tmp_path / "out").rglob("resume.safetensors")))
    workers = [
        pid for pid in children(command.process.pid) if b"popen_loky" in cmdline(pid).read_bytes()
    ]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert command.wait() == 0
    assert by_weights(tmp_path / "out") == by_weights(folder / "out")
    assert not list((tmp_path / "out").rglob("fits"))


def cmdline(pid: int) -> Path:
    return Path(f"/proc/{pid}/cmdline")
