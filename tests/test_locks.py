"""One process at a time works in a directory, and what another holds is not touched."""

import os
import signal
import subprocess
import sys

import pytest
from deepens.experiments.cli import entry as cli
from deepens.experiments.comparison.compare import compare
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.store import run as run_module
from deepens.experiments.store.run import exclusive

HOLD = (
    "import sys, pathlib; from deepens.experiments.store.run import exclusive\n"
    "with exclusive(pathlib.Path(sys.argv[1])):\n"
    "    print('locked', flush=True); sys.stdin.read()"
)


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A directory in which another process is at work."""
    monkeypatch.setattr(run_module, "LOCK_SECONDS", 0.01)
    path = tmp_path / "run"
    path.mkdir()
    words = [sys.executable, "-c", HOLD, str(path)]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"locked\n"
    yield path
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    with exclusive(path):  # the lock of a killed process is not in the way
        pass


SMALL = {"members": 1, "epochs": 1, "corruptions": ("none",), "quiet": True}


def test_a_run_is_claimed_after_it_is_locked(held, few_splits):
    """The configuration of one that comes too late must not stand beside the other's weights."""
    with pytest.raises(ValueError, match="another process is working in .*run; wait for it"):
        train_and_evaluate(TrainConfig(**SMALL, out=str(held)), splits=few_splits)
    assert [path.name for path in held.iterdir()] == [".lock"]


def test_a_comparison_is_claimed_after_it_is_locked(held, few_splits):
    config = CompareConfig(**SMALL, methods=("single",), replicates=1, out=str(held))
    with pytest.raises(ValueError, match="another process is working in .*run; wait for it"):
        compare(config, splits=few_splits)
    assert [path.name for path in held.iterdir()] == [".lock"]


def test_a_report_waits_for_the_comparison_that_is_written(held, capsys):
    (held / "config.yaml").write_text(CompareConfig(**SMALL, methods=("single",)).to_yaml())
    assert cli.main(["report", str(held), "--quiet"]) == 2
    said = f"another process is working in {held}; wait for it, then give the same command again"
    assert capsys.readouterr().err == f"deepens: {said}\n"
    assert sorted(path.name for path in held.iterdir()) == [".lock", "config.yaml"]


def test_a_report_of_another_directory_leaves_no_lock(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path), "--quiet"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_gets_no_lock(tmp_path, few_splits):
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(ValueError, match="is not a run directory; choose another --out"):
        train_and_evaluate(TrainConfig(**SMALL, out=str(tmp_path)), splits=few_splits)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
