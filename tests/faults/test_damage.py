"""Each kind of file truncated, emptied, replaced and changed by a bit, before each command.

A command then gives the same results as with sound files, or refuses in one line that names the
file. Files of earlier versions, which have no checksum, are out of reach of this.
"""

import csv
import re
import shutil
import signal
from pathlib import Path

import pytest
from deepens.experiments.cli import main
from deepens.experiments.store.run import read_json
from image_folders import labelled_folder, write_images
from processes import QUICK, Command

RUN = Path("out", "deep-2-0")
MADE = [
    [
        *("compare", "--out", "out", "--data", "digits", "--methods", "single,deep-2"),
        *("--epochs", "1", "--members", "2", "--replicates", "1", "--draws", "100", *QUICK),
    ],
    ["cascade", str(RUN), "--target-coverage", "0.9", "--quiet", "true"],
]
OF_RUN = ("evaluate", "again", "predict", "decide", "cascade")
FILES = {
    RUN / "weights.safetensors": (*OF_RUN, "report", "compare"),
    RUN / "predictions/test.safetensors": (*OF_RUN, "report"),
    RUN / "predictions/index.json": (*OF_RUN, "report"),
    RUN / "metrics.json": (*OF_RUN, "report"),
    RUN / "temperature.json": (*OF_RUN, "report"),
    RUN / "environment.json": ("evaluate", "predict", "report"),
    RUN / "config.yaml": (*OF_RUN, "report"),
    RUN / "cascade.json": ("cascade", "decide"),
    RUN / "log.csv": ("evaluate", "report"),
    Path("out/comparison.json"): ("report", "compare"),
    Path("out/examples.safetensors"): ("report",),
    Path("out/config.yaml"): ("report", "compare"),
}
"""The files, and the commands that might read them."""
ANSWER = ["predict", str(RUN), "--images", "folder:images", "--out", "answers.csv", "--overwrite"]
COMMANDS = {
    "evaluate": ["evaluate", str(RUN)],
    "again": ["evaluate", str(RUN), "--predict"],
    "predict": ANSWER,
    "decide": [*ANSWER, "--cascade", str(RUN / "cascade.json")],
    "cascade": MADE[1],
    "report": ["report", "out"],
    "compare": MADE[0],
}


def changed(content: bytes, name: str) -> bytes:
    """One bit of a number or of a tensor's last value; of YAML, of an option's name."""
    digit = re.search(rb"\.\d", content) if name.endswith(("json", "csv")) else None
    position = digit.end() - 1 if digit else 0 if name.endswith("yaml") else len(content) - 1
    flipped = content[position] ^ (1 if digit or name.endswith("yaml") else 64)
    return content[:position] + bytes([flipped]) + content[position + 1 :]


DAMAGE = {
    "truncated": lambda content, name: content[: len(content) // 2],
    "emptied": lambda content, name: b"",
    "replaced": lambda content, name: b"\x89PNG\r\n\x1a\n" * 50,
    "changed": changed,
}


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    """A folder with a comparison, a cascade and images."""
    folder = tmp_path_factory.mktemp("sound")
    write_images(folder / "images", 5, mode="L")
    for words in MADE:
        assert Command(words, folder).wait() == 0
    return folder


def outcome(folder: Path, command: str) -> object:
    """What a command is for."""
    if command in ("predict", "decide"):
        return (folder / "answers.csv").read_text()
    if command in ("report", "compare"):
        with (folder / "out" / "results.csv").open() as lines:
            values = [[row["method"], row["metric"], row["value"]] for row in csv.DictReader(lines)]
        return values, (folder / "out" / "verdicts.csv").read_text()
    if command == "cascade":
        return read_json(folder / RUN / "cascade.json")
    return {k: v for k, v in read_json(folder / RUN / "metrics.json").items() if k != "predictions"}


@pytest.fixture(scope="session")
def expected(sound, tmp_path_factory):
    """The outcome of each command on sound files."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("copies") / "sound"
        shutil.copytree(sound, folder)
        patch.chdir(folder)
        found = {}
        for name, words in COMMANDS.items():
            assert main(words) == 0
            found[name] = outcome(folder, name)
    return found


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES, ids=str)
def test_damage_is_refused_by_name_or_changes_nothing(
    sound, expected, tmp_path, monkeypatch, capsys, file, damage
):
    refusals = 0
    for name in FILES[file]:
        words, folder = COMMANDS[name], tmp_path / name
        shutil.copytree(sound, folder)
        monkeypatch.chdir(folder)
        Path(file).write_bytes(DAMAGE[damage](Path(file).read_bytes(), file.name))
        capsys.readouterr()
        status = main(words)
        said = [line for line in capsys.readouterr().err.splitlines() if "deepens: " in line]
        if status == 0:
            assert outcome(folder, name) == expected[name], (name, said)
        else:
            refusals += 1
            assert status == 2, (name, said)
            assert len(said) == 1
            assert file.name in said[0], (name, said)
        shutil.rmtree(folder)
    # Curves and pictures of a report, which says so; and what is only read for costs.
    harmless = ("log.csv", "examples.safetensors", "environment.json")
    assert refusals or file.name in harmless


TRAIN = [
    *("train", "--out", "run", "--cache", "cache", "--members", "2", "--epochs", "40"),
    *("--checkpoint-seconds", "0", *QUICK, "--data", "folder:data"),
]


@pytest.fixture(scope="session")
def stopped(tmp_path_factory):
    """A training with an objective of its own that was killed, and what it would have become."""
    folder = tmp_path_factory.mktemp("stopped")
    labelled_folder(folder / "data", train=100, test=40)
    words = [
        *TRAIN,
        "--objective",
        "forde",
        "--batches",
        "shared",
        "--repulsion.lengthscale",
        "pca",
    ]
    resume = folder / "run" / "resume.safetensors"
    Command(words, folder).signal_when(resume.exists, signal.SIGKILL, 0.05)
    assert resume.exists()
    whole = tmp_path_factory.mktemp("whole") / "whole"
    shutil.copytree(folder, whole)
    assert Command(words, whole).wait() == 0
    return folder, words, (whole / "run" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "pattern",
    ["run/resume.safetensors", "run/objective.safetensors", "cache/*.safetensors", "cache/*.json"],
)
def test_a_training_resumes_from_sound_files_only(
    stopped, tmp_path, monkeypatch, capsys, pattern, damage
):
    source, words, weights = stopped
    folder = tmp_path / "copy"
    shutil.copytree(source, folder)
    monkeypatch.chdir(folder)
    files = list(folder.glob(pattern))
    assert files
    for file in files:
        file.write_bytes(DAMAGE[damage](file.read_bytes(), file.name))
    status = main(words)
    said = [line for line in capsys.readouterr().err.splitlines() if "deepens: " in line]
    if status:
        assert status == 2
        assert len(said) == 1
        assert files[0].name in said[0]
        files[0].unlink()  # the remedy
        assert main(words) == 0
    assert (folder / "run" / "weights.safetensors").read_bytes() == weights
