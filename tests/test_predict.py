"""A user's images: an answer for each that can be read, and a line for each that cannot."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from deepens.datasets import load
from deepens.experiments import commands
from deepens.experiments.configuration import PredictConfig, TrainConfig
from deepens.experiments.evaluate import load_logits
from deepens.experiments.predict import predict
from deepens.experiments.progress import Display
from deepens.experiments.train import train
from PIL import Image

QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = TrainConfig(
        out=str(tmp_path_factory.mktemp("runs") / "run"), epochs=4, members=2, quiet=True
    )
    return train(config, display=QUIET)


@pytest.fixture
def folder(tmp_path):
    """The first test images as PNG files, whose names do not sort like their numbers."""
    images = load("digits")["test"].images[:12, 0].numpy()
    (tmp_path / "images" / "über us").mkdir(parents=True)
    for index, image in enumerate(images):
        place = tmp_path / "images" / ("über us" if index % 2 else "")
        Image.fromarray(image).save(place / f"{index} é.png")
    return tmp_path / "images"


def _rows(file):
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def _index(path):
    return int(Path(path).name.split()[0])


def test_answers_are_those_of_the_saved_logits_of_the_same_images(run, folder, tmp_path):
    assert predict(run, f"folder:{folder}", tmp_path / "out.csv", display=QUIET) == []
    rows = _rows(tmp_path / "out.csv")
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert sorted(_index(row["path"]) for row in rows) == list(range(12))
    logits, _ = load_logits(run)["test"]
    members = logits[:, :12].double().softmax(-1).numpy()
    mixture = members.mean(0)
    entropy = -(mixture * np.log(mixture)).sum(-1)
    expected = -(members * np.log(members)).sum(-1).mean(0)
    for row in rows:
        index = _index(row["path"])
        assert row["class"] == str(mixture[index].argmax())
        assert row["error"] == ""
        assert float(row["confidence"]) == pytest.approx(mixture[index].max(), abs=1e-5)
        assert float(row["entropy"]) == pytest.approx(entropy[index], abs=1e-5)
        information = entropy[index] - expected[index]
        assert float(row["mutual_information"]) == pytest.approx(information, abs=1e-5)


def test_parquet_holds_the_same_as_csv(run, folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    predict(run, f"folder:{folder}", tmp_path / "out.csv", display=QUIET)
    predict(run, f"folder:{folder}", tmp_path / "out.parquet", display=QUIET)
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    for row, other in zip(_rows(tmp_path / "out.csv"), table, strict=True):
        assert row.keys() == other.keys()
        assert row["path"] == other["path"]
        assert float(row["entropy"]) == other["entropy"]


def test_unreadable_images_are_named_and_the_others_answered(run, folder, tmp_path, capsys):
    (folder / "empty.png").touch()
    whole = (folder / "0 é.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "notes.txt").write_text("not asked about")
    out = tmp_path / "out.csv"
    config = PredictConfig(str(run.path), f"folder:{folder}", out=str(out), quiet=True)
    assert commands.run_predict(config) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 4
    assert "3 images could not be read" in lines[-1]
    rows = {Path(row["path"]).name: row for row in _rows(out)}
    assert len(rows) == 15
    for name in ("empty.png", "cut.png", "text.jpg"):
        assert any(name in line for line in lines)
        assert name in rows[name]["error"]
        assert rows[name]["class"] == rows[name]["confidence"] == ""
    assert sum(row["class"] != "" for row in rows.values()) == 12


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_name_that_is_no_utf8_is_escaped_and_loses_nothing(run, folder, tmp_path, suffix):
    bad = os.fsencode(folder) + b"/bad\xff.png"
    (folder / "0 é.png").rename(os.fsdecode(bad))
    (folder / os.fsdecode(b"cut\xfe.png")).touch()
    out = tmp_path / f"out.{suffix}"
    (error,) = predict(run, f"folder:{folder}", out, display=QUIET)
    assert "cut\\xfe.png" in error
    if suffix == "csv":
        names = [row["path"] for row in _rows(out)]
        assert sum("bad\\xff.png" in name for name in names) == 1
        assert len(names) == 13


@pytest.mark.parametrize(
    ("images", "out", "line"),
    [
        ("nowhere", "x.csv", "images must be given as folder:PATH, got 'nowhere'"),
        ("folder:", "x.csv", "images must be given as folder:PATH"),
        ("folder:{folder}", "x.xlsx", "out must end in .csv or .parquet, got 'x.xlsx'"),
        ("folder:/no/such/folder", "x.csv", "/no/such/folder"),
    ],
)
def test_bad_arguments_are_refused(run, folder, tmp_path, monkeypatch, images, out, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=line):
        predict(run, images.format(folder=folder), Path(out), display=QUIET)
    assert not Path(out).exists()


def test_parquet_without_pyarrow_is_refused_with_the_remedy(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'deepens\[parquet\]'"):
        predict(run, f"folder:{folder}", tmp_path / "x.parquet", display=QUIET)


@pytest.mark.skipif("DEEPENS_DATA" not in os.environ, reason="DEEPENS_DATA is not set")
def test_real_photographs_of_any_size_and_colour_are_classified(run, tmp_path):
    folder = Path(os.environ["DEEPENS_DATA"]) / "tiny-imagenet" / "val"
    classes = sorted(p for p in folder.iterdir() if p.is_dir())[:3]
    (tmp_path / "some").mkdir()
    count = 0
    for each in classes:
        for image in sorted(each.iterdir()):
            (tmp_path / "some" / f"{each.name}-{image.name}").symlink_to(image)
            count += 1
    assert predict(run, f"folder:{tmp_path / 'some'}", tmp_path / "x.csv", display=QUIET) == []
    rows = _rows(tmp_path / "x.csv")
    assert len(rows) == count > 0
    confidence = torch.tensor([float(row["confidence"]) for row in rows])
    assert ((confidence >= 1 / 8) & (confidence <= 1)).all()
