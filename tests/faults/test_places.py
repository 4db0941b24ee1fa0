"""Places where nothing can be written: a disk that is full, and one that is read-only."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
from deepens.experiments.store.checkpoint import load_tensors
from image_folders import write_images
from processes import QUICK, Command

TRAIN = ["train", "--data", "digits", "--members", "1", "--epochs", "2", *QUICK, "--out"]


def mount(folder: Path, options: str) -> bool:
    """Mount a small file system in memory, where that is allowed."""
    if os.geteuid() != 0:
        return False
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture
def place(tmp_path):
    """A folder that is unmounted in the end."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert Command([*TRAIN, "run"], folder).wait() == 0
    return load_tensors(folder / "run" / "weights.safetensors")[0]


@pytest.mark.parametrize("kilobytes", [4, 24, 64, 84, 104, 128])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(start, place, weights, kilobytes):
    """The sizes end in the log, the weights, the predictions of three splits and the metrics."""
    if not mount(place, f"size={kilobytes}k"):
        pytest.skip("mounting needs the superuser; see the test with a limit on the size of files")
    command = start(*TRAIN, "place/run")
    assert command.wait() == 2
    (line,) = command.said
    assert line.startswith("deepens: place/run/")
    assert "no space left on device (" in line
    assert " bytes are needed, " in line
    assert not list(place.rglob(".deepens-*"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
    assert start(*TRAIN, "place/run").wait() == 0
    after = load_tensors(place / "run" / "weights.safetensors")[0]
    assert all(after[name].equal(weights[name]) for name in weights)


def test_a_quota_is_one_line_and_the_same_command_goes_on(start, weights, tmp_path):
    """A limit on the size of files stands for a quota, for which nobody needs rights."""
    command = start(*TRAIN, "run")
    resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (20_000, 1_000_000))
    assert command.wait() == 2
    (line,) = command.said
    assert line.startswith("deepens: run/weights.safetensors: file too large (")
    assert start(*TRAIN, "run").wait() == 0
    after = load_tensors(tmp_path / "run" / "weights.safetensors")[0]
    assert all(after[name].equal(weights[name]) for name in weights)


def test_a_read_only_place_is_one_line(start, place, tmp_path):
    if not mount(place, "size=1m"):
        pytest.skip("mounting needs the superuser")
    assert start(*TRAIN, "place/run").wait() == 0
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    before = sorted(place.rglob("*"))
    write_images(tmp_path / "images", 2, mode="L")
    for words in (
        [*TRAIN, "place/run"],
        [*TRAIN, "place/new"],
        ["evaluate", "place/run", "--predict"],
        ["predict", "place/run", "--images", "folder:images", "--out", "place/x.csv"],
    ):
        command = start(*words)
        assert command.wait() == 2, words
        lines = [line for line in command.said if line.startswith("deepens: ")]
        assert len(lines) == 1
        assert "place/" in lines[0]
        assert "read-only file system" in lines[0]
    assert sorted(place.rglob("*")) == before
