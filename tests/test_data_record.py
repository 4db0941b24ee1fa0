import csv
import gzip
import hashlib
import json
import os
import shutil

import pytest
import torch
from deepens.datasets import DataOptions, Split, Splits, load
from deepens.datasets.image_reading import image_hash
from deepens.experiments.cli.compare_command import write_reports
from deepens.experiments.comparison.compare import compare
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.store.data_record import keep_data_record
from image_folders import labelled_folder, write_images


def _table(path):
    with gzip.open(path / "images.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _options(tmp_path, **changes):
    return {"data": f"folder:{tmp_path / 'pets'}", "cache": str(tmp_path / "cache")} | changes


@pytest.mark.parametrize("limit", [4.0, 0.0], ids=["memory", "disk"])
def test_the_table_names_the_file_and_hash_of_each_image_by_split(tmp_path, limit):
    root = labelled_folder(tmp_path / "pets")
    far = write_images(tmp_path / "far", 2)[0].parent
    shutil.copy(root / "train" / "cat" / "0000.png", root / "test" / "cat" / "copy.png")
    how = {"memory_limit": limit, "far_ood": (f"folder:{far}",)}
    splits = load(DataOptions(**_options(tmp_path, **how)))
    keep_data_record(tmp_path, splits)
    rows = _table(tmp_path)
    names = [name for name in splits if "shift" not in name]
    assert [row["split"] for row in rows] == [n for n in names for _ in range(len(splits[n]))]
    for name in names:
        images = torch.cat(list(splits[name].image_batches()))
        own = [row for row in rows if row["split"] == name]
        assert [int(row["index"]) for row in own] == list(range(len(images)))
        for row, image, path in zip(own, images, splits[name].paths, strict=True):
            assert row["file"] == str(path)
            known = image_hash(image.movedim(0, -1).numpy()) % 2**64
            assert row["hash"] == f"{known:016x}"
    by_hash = {row["hash"]: row["file"] for row in rows if row["split"] == "test"}
    copied = [row for row in rows if row["hash"] in by_hash and row["split"] != "test"]
    assert [os.path.basename(by_hash[row["hash"]]) for row in copied] == ["copy.png"]
    content = json.loads((tmp_path / "data.json").read_text())
    assert content["cautions"] == list(splits.cautions)
    assert sum(content["copies_of_training_images"].values()) in (0, 1)  # or of validation


def test_images_that_came_from_nowhere_have_a_hash_alone(tmp_path):
    split = Split(torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2), torch.tensor([0, 1]))
    keep_data_record(tmp_path, Splits("own", ("a", "b"), {"train": split}, (0.5,), (0.5,)))
    rows = _table(tmp_path)
    assert [row["file"] for row in rows] == ["", ""]
    assert len({row["hash"] for row in rows}) == 2
    first = hashlib.sha256((tmp_path / "images.csv.gz").read_bytes()).digest()
    keep_data_record(tmp_path, Splits("own", ("a", "b"), {"train": split}, (0.5,), (0.5,)))
    assert hashlib.sha256((tmp_path / "images.csv.gz").read_bytes()).digest() == first


def test_a_run_keeps_the_table_and_a_comparison_one_for_all_runs(tmp_path):
    labelled_folder(tmp_path / "pets", size=(16, 16))
    small = {
        "backbone": "small-cnn",
        "epochs": 1,
        "members": 1,
        "batch_size": 8,
        "corruptions": ("none",),
    }
    run = TrainConfig(**_options(tmp_path, **small, out=str(tmp_path / "run")))
    assert len(_table(train_and_evaluate(run).path)) == 52
    (tmp_path / "run" / "images.csv.gz").unlink()
    train_and_evaluate(run)  # of an earlier version, which kept none
    assert len(_table(tmp_path / "run")) == 52
    both = CompareConfig(
        **_options(tmp_path, **small, out=str(tmp_path / "both")),
        methods=("single",),
        replicates=2,
    )
    comparison = compare(both)
    assert len(_table(tmp_path / "both")) == 52
    assert not (tmp_path / "both" / "single-0" / "images.csv.gz").exists()
    write_reports(comparison, tmp_path / "both")
    names = {row["file"][-13:] for row in _table(tmp_path / "both") if row["split"] == "test"}
    report = (tmp_path / "both" / "report.md").read_text()
    assert sum(name.lstrip("/") in report for name in names) == 12


def test_train_says_what_its_data_are_made_of_at_its_end(single_run, capsys, monkeypatch, copy_run):
    from deepens.experiments.cli import commands

    run = copy_run(single_run)
    images, labels = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2), torch.tensor([0, 1])
    remarks = {"notes": ("Cut from one.",), "cautions": ("Copied.",)}
    splits = Splits("own", ("a", "b"), {"train": Split(images, labels)}, (0.5,), (0.5,), **remarks)
    keep_data_record(run.path, splits)
    monkeypatch.setattr(commands, "train_and_evaluate", lambda config, display: run)
    assert commands.run_train(run.config) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["caution: Copied.", "note: Cut from one."]
    (run.path / "data.json").unlink()  # as of an earlier version
    assert commands.run_train(run.config) == 0
    assert "note: " not in capsys.readouterr().out
