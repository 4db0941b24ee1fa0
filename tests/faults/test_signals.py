"""Whatever stops a process and whenever: the same command again ends in the same results."""

import csv
import shutil
import signal
from pathlib import Path

import pytest
import torch
from deepens.experiments.store.checkpoint import load_tensors
from image_folders import labelled_folder
from processes import QUICK, Command, results

TRAIN = [
    *("train", "--out", "out", "--cache", "cache", "--members", "2", "--epochs", "25"),
    *("--checkpoint-seconds", "0", *QUICK),
]
COMPARE = [
    *("compare", "--out", "out", "--data", "digits", "--methods", "single,deep-2", "--epochs", "1"),
    *("--members", "2", "--replicates", "1", "--draws", "100", *QUICK),
]
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
STATUS = {"kill": -signal.SIGKILL, "term": 128 + signal.SIGTERM, "int": 128 + signal.SIGINT}
LINE = {"kill": [], "term": ["deepens: terminated"], "int": ["deepens: interrupted"]}

# When a phase has begun, and about how long it takes, in seconds.
TRAINING_PHASES = {
    "decoding": (lambda path: any((path / "cache").glob("contents-*")), 0.2),
    "training": (lambda path: (path / "out" / "resume.safetensors").exists(), 0.3),
    "prediction": (lambda path: (path / "out" / "weights.safetensors").exists(), 0.05),
    "evaluation": (lambda path: (path / "out" / "predictions" / "index.json").exists(), 0.03),
}
COMPARISON_PHASES = {
    "cost": (lambda path: (path / "out" / "deep-2-0" / "metrics.json").exists(), 0.5),
    "report": (lambda path: (path / "out" / "comparison.json").exists(), 0.5),
}


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Images that have to be decoded."""
    return labelled_folder(tmp_path_factory.mktemp("data"), train=150, test=60, size=(16, 16))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, photographs):
    """The results of a command that nothing stops, by its words."""
    known: dict[tuple[str, ...], dict[str, object]] = {}

    def get(*words: str) -> dict[str, object]:
        if words not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            assert Command([*words], folder).wait() == 0
            known[words] = results(folder / "out")
        return known[words]

    return get


def stop_and_start_again(start, words, ready, kind, delay, path):
    command = start(*words)
    status = command.signal_when(lambda: ready(path), SIGNALS[kind], delay)
    assert status in (STATUS[kind], 0)  # the last phases may be over
    assert not any("Traceback" in line for line in command.said)
    if status:
        lines = [line.partition(";")[0] for line in command.said if line.startswith("deepens: ")]
        assert lines == LINE[kind]
    again = start(*words)
    assert again.wait() == 0, again.said
    assert not list(path.rglob(".deepens-*"))
    return status


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("phase", TRAINING_PHASES)
def test_a_training_ends_in_the_same_results(
    start, undisturbed, photographs, tmp_path, draws, phase, kind
):
    words = [*TRAIN, "--data", f"folder:{photographs}"]
    ready, seconds = TRAINING_PHASES[phase]
    status = stop_and_start_again(start, words, ready, kind, draws.uniform(0, seconds), tmp_path)
    assert status == STATUS[kind] or phase in ("prediction", "evaluation")
    assert results(tmp_path / "out") == undisturbed(*words)


@pytest.mark.parametrize("kind", SIGNALS)
@pytest.mark.parametrize("phase", COMPARISON_PHASES)
def test_a_comparison_ends_in_the_same_results(start, undisturbed, tmp_path, draws, phase, kind):
    ready, seconds = COMPARISON_PHASES[phase]
    stop_and_start_again(start, COMPARE, ready, kind, draws.uniform(0, seconds), tmp_path)
    assert results(tmp_path / "out") == undisturbed(*COMPARE)


def test_sigterm_writes_a_checkpoint_even_where_none_is_due(start, tmp_path):
    out = tmp_path / "out"
    words = ["train", "--data", "digits", "--out", "out", "--epochs", "100000", *QUICK]
    command = start(*words, "--checkpoint-seconds", "100000")
    log = out / "log.csv"
    assert command.signal_when(log.exists, signal.SIGTERM, 0.1) == 143
    again = "the same command continues from the last checkpoint"
    assert command.said == [f"deepens: terminated; {again}"]
    tensors, _ = load_tensors(out / "resume.safetensors")
    assert all(torch.isfinite(each.float()).all() for each in tensors.values())
    epochs = len(log.read_text().splitlines()) - 1
    more = start(*words, "--checkpoint-seconds", "100000")
    longer = lambda: log.exists() and len(log.read_text().splitlines()) - 1 > epochs  # noqa: E731
    assert more.signal_when(longer, signal.SIGKILL, 0) == -signal.SIGKILL
    rows = [row["epoch"] for row in csv.DictReader(log.open())]
    assert rows == [str(n) for n in range(1, len(rows) + 1)]


def test_two_configurations_at_once_in_one_directory(start, tmp_path):
    """One of them gets the directory, whole; the other waits its ten seconds and is refused."""
    common = ["train", "--data", "digits", "--out", "out", "--members", "1", *QUICK]
    both = [start(*common, "--epochs", epochs) for epochs in ("40", "41")]
    statuses = [command.wait() for command in both]
    assert sorted(statuses) == [0, 2]
    (refused,) = [command for command in both if command.process.exitcode == 2]
    assert len(refused.said) == 1
    assert "another process is working in" in refused.said[0] or "another conf" in refused.said[0]
    won = ("40", "41")[statuses.index(0)]
    assert start("evaluate", "out").wait() == 0
    assert start(*common, "--epochs", won).wait() == 0


def test_two_equal_commands_at_once(start, undisturbed, photographs, tmp_path):
    words = [*TRAIN, "--data", f"folder:{photographs}"]
    both = [start(*words) for _ in range(2)]
    assert [command.wait() for command in both] == [0, 0]
    assert results(tmp_path / "out") == undisturbed(*words)


def test_a_moved_directory_goes_on_where_it_was(start, undisturbed, photographs, tmp_path):
    words = [*TRAIN, "--data", f"folder:{photographs}"]
    command = start(*words)
    ready, _ = TRAINING_PHASES["training"]
    command.signal_when(lambda: ready(tmp_path), signal.SIGKILL, 0.05)
    moved = tmp_path / "mögliche Orte 場所" / "it's here"
    moved.parent.mkdir()
    shutil.move(tmp_path / "out", moved)
    again = [str(moved) if word == "out" else word for word in words]
    assert start(*again).wait() == 0
    assert results(moved) == undisturbed(*words)
    last = moved.with_name("renamed")
    moved.rename(last)
    before = results(last)
    assert start("evaluate", str(last), "--predict").wait() == 0
    images = f"folder:{photographs / 'test' / 'cat'}"
    table = last / "answers of 場所.csv"
    assert start("predict", str(last), "--images", images, "--out", str(table)).wait() == 0
    assert len(table.read_text().splitlines()) == 61
    after = results(last)
    assert {name: after[name] for name in before} == before
