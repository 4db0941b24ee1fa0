"""Fits as tasks of a local Ray cluster: the weights of one process, whatever is killed or joins."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from deepens.experiments.config import TrainConfig
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.store.checkpoint import load_tensors
from deepens.experiments.training.processes import settle_jobs
from deepens.experiments.training.ray_executor import RayExecutor
from processes import Command

SMALL = {"data": "digits", "members": 3, "corruptions": ("none",), "device": "cpu", "threads": 1}
SMALL |= {"epochs": 60, "checkpoint_seconds": 0.0}


def test_a_missing_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="not installed: pip install 'deepens"):
        settle_jobs(TrainConfig(executor="ray"))


def test_an_address_is_a_host_and_a_port():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="address must be auto or HOST:PORT, got 'here'"):
        settle_jobs(TrainConfig(executor="ray", address="here"))


def test_options_of_ray_need_ray():
    with pytest.raises(ValueError, match="gpus_per_fit must be left out without --executor ray"):
        TrainConfig(gpus_per_fit=0.5)
    with pytest.raises(ValueError, match="address must be left out without --executor ray"):
        TrainConfig(address="head:6379")
    with pytest.raises(ValueError, match="gpus_per_fit must be >= 0, got -1"):
        TrainConfig(executor="ray", gpus_per_fit=-1.0)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_refused_soon():
    pytest.importorskip("ray")
    started = time.monotonic()
    with pytest.raises(ValueError, match="no Ray cluster answers at address 127.0.0.1:1 "):
        settle_jobs(TrainConfig(executor="ray", address="127.0.0.1:1"))
    assert time.monotonic() - started < 15


@pytest.fixture
def cluster():
    """A cluster of one machine with one processor core."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return results(train_and_evaluate(TrainConfig(**SMALL, out=str(folder / "out"))).path)


def results(path: Path):
    files = (path / "weights.safetensors", path / "predictions" / "test.safetensors")
    return [{k: v.tolist() for k, v in load_tensors(file)[0].items()} for file in files]


def trainers(path: Path) -> set[int]:
    """The processes that hold the locks of the runs of members."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            place = Path(os.readlink(link))
        except OSError:
            continue
        if place.name == ".lock" and path in place.parents and place.parent != path:
            found.add(int(link.parts[2]))
    return found


@pytest.fixture
def start(cluster, tmp_path):
    """Start a training on the cluster, in the test's folder."""
    words = [
        *("train", "--out", "out", "--data", "digits", "--members", "3", "--epochs", "60"),
        *("--checkpoint-seconds", "0", "--device", "cpu", "--corruptions", "none"),
        *("--executor", "ray", "--address", cluster.address),
    ]
    started = []

    def start() -> Command:
        started.append(Command(words, tmp_path))
        return started[-1]

    yield start
    for command in started:
        command.process.kill()


def wait_for(condition):
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_worker_costs_its_fit_only_and_a_late_machine_is_used(
    cluster, start, tmp_path, expected
):
    path = tmp_path / "out"
    command = start()
    wait_for(lambda: list(path.glob("fits/*/resume.safetensors")) and trainers(path))
    (pid,) = trainers(path)  # one core, one fit
    os.kill(pid, signal.SIGKILL)
    cluster.add_node(num_cpus=1)
    wait_for(lambda: len(trainers(path)) == 2)
    assert command.wait() == 0
    again = [line for line in command.said if line.endswith("it is tried again")]
    assert [": its process was killed" in line for line in again] == [True]
    assert results(path) == expected


@pytest.mark.slow
def test_a_command_that_is_asked_to_end_leaves_checkpoints_and_goes_on(start, tmp_path, expected):
    path = tmp_path / "out"
    command = start()
    wait_for(lambda: list(path.glob("fits/*/log.csv")))
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.wait() == 143
    assert list(path.glob("fits/*/resume.safetensors"))
    wait_for(lambda: not trainers(path))
    assert start().wait() == 0
    assert results(path) == expected


@pytest.mark.slow
def test_more_than_a_machine_of_the_cluster_has_is_refused(cluster):
    with pytest.raises(ValueError, match="gpus_per_fit must be <= 0, the most GPUs of a machine"):
        RayExecutor(cluster.address, None, 1, 0.25)
    with pytest.raises(ValueError, match="threads must be <= 1, the most CPUs of a machine"):
        RayExecutor(cluster.address, None, 2, 0.0)
