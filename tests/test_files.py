"""Files appear whole or not at all, and an error names the file and what is wrong with it."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from deepens.datasets import tensor_files
from deepens.datasets.files import ASIDE, whole_file
from deepens.ensembles.backbones.files import load_network
from deepens.experiments.cli import main
from deepens.experiments.store.checkpoint import load_tensors, save_tensors
from deepens.experiments.store.errors import one_line
from deepens.experiments.store.run import check_file_names, write_json, write_whole_text
from deepens.metrics.io.array_files import open_array
from image_folders import labelled_folder
from safetensors.torch import save_file


@pytest.fixture
def full(monkeypatch):
    """A disk on which nothing more can be written."""

    def refuse(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


WRITERS = {
    "x.safetensors": lambda path: save_tensors(path, {"a": torch.ones(100)}, None),
    "x.json": lambda path: write_json(path, {"a": 1}),
    "x.csv": lambda path: write_whole_text(path, "a,b\n"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_with_path_and_bytes_and_keeps_what_was_there(tmp_path, full, name):
    (tmp_path / name).write_text("before")
    with pytest.raises(OSError, match="No space left on device") as refused:
        WRITERS[name](tmp_path / name)
    line = one_line(refused.value)
    assert line.startswith(f"{tmp_path / name}: no space left on device (")
    assert " bytes are needed, " in line
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "before"


def test_what_safetensors_cannot_write_is_an_error_of_the_system(tmp_path):
    """A limit on the size of files, in a process of its own, stands for a quota."""
    code = f"""
        import pathlib, resource, torch
        from deepens.experiments.store.checkpoint import save_tensors
        from deepens.experiments.store.errors import one_line
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        file = pathlib.Path({str(tmp_path / "x.safetensors")!r})
        try:
            save_tensors(file, {{"a": torch.ones(9999)}}, 1)
        except OSError as error:
            print(one_line(error))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{tmp_path / 'x.safetensors'}: file too large (39997 bytes are")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as refused, whole_file(tmp_path / "x.txt"):
        (tmp_path / "other.txt").read_text()
    assert refused.value.filename == str(tmp_path / "other.txt")


def test_what_a_killed_process_left_is_swept_but_not_what_another_is_writing(tmp_path):
    code = f"""
        import os, pathlib, sys
        from deepens.datasets.files import whole_file
        with whole_file(pathlib.Path({str(tmp_path / "killed.txt")!r})) as aside:
            aside.write_text("half")
            print("writing", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"writing\n"
    write_whole_text(tmp_path / "x.txt", "x")
    assert len(list(tmp_path.glob(f"{ASIDE}*"))) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    write_whole_text(tmp_path / "y.txt", "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.txt", "y.txt"]


@pytest.fixture
def unreadable(tmp_path, monkeypatch):
    """A sound file of tensors that may not be opened, not even by the superuser."""
    file = tmp_path / "sound.safetensors"
    save_tensors(file, {"a": torch.ones(2)}, None)
    real = type(file).open

    def refused(path, *arguments, **options):
        if path == file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(type(file), "open", refused)
    return file


@pytest.mark.parametrize(
    "read",
    [load_tensors, open_array, lambda path: load_network(torch.nn.Linear(2, 2), path)],
    ids=["run", "logits", "base"],
)
def test_a_sound_file_that_may_not_be_opened_is_not_called_damaged(unreadable, read):
    with pytest.raises(PermissionError) as refused:
        read(unreadable)
    assert one_line(refused.value) == f"{unreadable}: permission denied"


def test_what_is_no_file_is_not_called_damaged(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is not a regular file"):
            load_tensors(path)


def test_a_path_that_is_no_utf_8_is_written_and_read(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff \xc3\xa9")
    save_tensors(folder / "x.safetensors", {"a": torch.arange(3)}, {"b": 1})
    assert load_tensors(folder / "x.safetensors")[0]["a"].tolist() == [0, 1, 2]
    save_file({"logits": torch.ones(4, 2)}, folder / "y.safetensors")
    assert open_array(folder / "y.safetensors").read(0, 4).shape == (4, 2)
    write_whole_text(folder / "x.md", f"see {folder}")
    assert (folder / "x.md").read_text(encoding="utf-8").endswith(r"\udcff é")


def test_reading_that_the_system_refuses_is_not_called_damage(tmp_path, monkeypatch):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, None)

    def refuse(*arguments, **options):
        raise tensor_files.SafetensorError("I/O error: Too many open files (os error 24)")

    monkeypatch.setattr(tensor_files, "safe_open", refuse)
    with pytest.raises(OSError, match="Too many open files") as refused:
        load_tensors(tmp_path / "x.safetensors")
    assert refused.value.filename == str(tmp_path / "x.safetensors")


def test_names_of_splits_that_are_too_long_are_refused_before_the_training(tmp_path, capsys):
    data = labelled_folder(tmp_path / "data")
    for length, code in ((243, 0), (244, 2)):
        other = tmp_path / ("o" * length)
        shutil.copytree(data / "test" / "cat", other)
        out = tmp_path / f"run{length}"
        words = ["train", "--data", f"folder:{data}", "--near-ood", f"folder:{other}"]
        words += ["--epochs", "1", "--members", "1", "--batch-size", "8", "--corruptions", "none"]
        assert main([*words, "--out", str(out), "--cache", str(tmp_path / "cache")]) == code
    assert "must have <= 255 bytes, got 256; rename" in capsys.readouterr().err
    assert not out.exists()


def test_names_of_splits_are_counted_in_bytes(tmp_path):
    check_file_names(tmp_path / "new" / "run", ["test", "far_ood/" + "é" * 121])
    with pytest.raises(ValueError, match="must have <= 255 bytes, got 256"):
        check_file_names(tmp_path / "new" / "run", ["far_ood/" + "é" * 122])
