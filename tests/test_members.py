"""Which runs are trained member by member, and how many processes there may be."""

import dataclasses

import pytest
from deepens.experiments.config import TrainConfig
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.store import run as run_module
from deepens.experiments.store.run import exclusive
from deepens.experiments.training import processes
from deepens.experiments.training.members import members_apart, side_by_side
from deepens.experiments.training.processes import settle_jobs

APART = TrainConfig(members=3, out="runs/whole")


def test_members_are_apart_where_they_share_nothing():
    runs = members_apart(APART)
    assert [run.member for run in runs] == [0, 1, 2]
    assert len({run.directory() for run in runs}) == 3
    assert {run.batches for run in runs} == {"own"}


@pytest.mark.parametrize(
    "options",
    [
        {"members": 1},
        {"member": 1},
        {"ensemble": "packed"},
        {"ensemble": "lora"},
        {"ensemble": "explicit"},  # whose base is trained first
        {"ensemble": "multi-exit"},
        {"objective": "forde"},
        {"objective": "greedy"},
        {"batches": "shared"},
        {"keep": "best"},
        {"early_stopping": 3},
    ],
    ids=str,
)
def test_members_that_depend_on_others_are_trained_together(options):
    assert members_apart(dataclasses.replace(APART, **options)) == ()


@pytest.mark.parametrize("file", ["resume.safetensors", "weights.safetensors"])
def test_a_begun_training_goes_on_as_it_was(tmp_path, file):
    config = dataclasses.replace(APART, out=str(tmp_path))
    assert members_apart(config)
    (tmp_path / file).touch()
    assert members_apart(config) == ()


def test_logs_of_members_stand_side_by_side():
    logs = [
        f"epoch,train/loss,train/loss_{i},val/nll,val/nll_{i}\n1,{i}.5,{i}.5,0.1,{i}.25\n"
        for i in (0, 1)
    ]
    assert side_by_side(logs) == (
        "epoch,train/loss_0,val/nll_0,train/loss_1,val/nll_1,train/loss\n1,0.5,0.25,1.5,1.25,2.0\n"
    )


def test_each_process_gets_one_thread_unless_more_are_asked_for(monkeypatch):
    monkeypatch.setattr(processes, "cpu_count", lambda: 8)
    assert settle_jobs(TrainConfig()).threads is None
    assert settle_jobs(TrainConfig(jobs=1)).threads == 1
    assert settle_jobs(TrainConfig(jobs=8)).threads == 1
    assert settle_jobs(TrainConfig(jobs=4, threads=2)).threads == 2


def test_more_processes_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "cpu_count", lambda: 8)
    with pytest.raises(ValueError, match="jobs must be <= 8, since this machine has 8 .* got 9"):
        settle_jobs(TrainConfig(jobs=9))
    with pytest.raises(ValueError, match="jobs must be <= 2, .* got 4 jobs of 3 threads"):
        settle_jobs(TrainConfig(jobs=4, threads=3))
    with pytest.raises(ValueError, match="jobs must be >= 1, got 0"):
        TrainConfig(jobs=0)


def test_two_commands_in_one_directory_are_refused(tmp_path, few_splits, monkeypatch):
    monkeypatch.setattr(processes, "cpu_count", lambda: 2)
    monkeypatch.setattr(run_module, "LOCK_SECONDS", 0.01)
    config = TrainConfig(members=2, jobs=2, epochs=1, corruptions=("none",), out=str(tmp_path))
    with (
        exclusive(tmp_path, processes.LOCK),
        pytest.raises(ValueError, match="another process is working in .*; wait for it"),
    ):
        train_and_evaluate(config, splits=few_splits)
    assert not (tmp_path / "fits").exists()
