"""A user's images: an answer for each that can be read, and a line for each that cannot."""

import csv
import dataclasses
import gc
import os
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from deepens.datasets import load
from deepens.datasets.image_format import ImageFormat
from deepens.experiments.cli import entry as cli
from deepens.experiments.cli.commands import run_predict
from deepens.experiments.evaluation import answers
from deepens.experiments.evaluation import predict as predicting
from deepens.experiments.evaluation import table_writer as table_file
from deepens.experiments.evaluation.options import PredictConfig
from deepens.experiments.evaluation.predict import (
    LISTED,
    BadImages,
    batch_size,
    find_images,
    predict_folder,
)
from deepens.experiments.evaluation.read_ahead import CHUNK, read_ahead
from deepens.experiments.store.progress import Display
from PIL import Image
from stored_logits import load_logits

QUIET = Display(quiet=True)


@pytest.fixture
def run(trained_run):
    return trained_run  # nothing here changes it


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
    assert not predict_folder(run, f"folder:{folder}", tmp_path / "out.csv", display=QUIET)
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
        assert float(row["confidence"]) == pytest.approx(mixture[index].max(), abs=1e-6)
        assert float(row["entropy"]) == pytest.approx(entropy[index], abs=1e-6)
        information = entropy[index] - expected[index]
        assert float(row["mutual_information"]) == pytest.approx(information, abs=1e-6)


def test_parquet_holds_the_same_as_csv(run, folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    predict_folder(run, f"folder:{folder}", tmp_path / "out.csv", display=QUIET)
    predict_folder(run, f"folder:{folder}", tmp_path / "out.parquet", display=QUIET)
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
    assert run_predict(config) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 5
    assert lines[0].endswith("1 file that is not read as an image is passed over: 1 .txt")
    assert "3 images could not be read" in lines[-1]
    rows = {Path(row["path"]).name: row for row in _rows(out)}
    assert len(rows) == 15
    for name in ("empty.png", "cut.png", "text.jpg"):
        assert any(name in line for line in lines)
        assert name in rows[name]["error"]
        assert rows[name]["class"] == rows[name]["confidence"] == ""
    assert sum(row["class"] != "" for row in rows.values()) == 12


def test_skipped_images_are_counted_listed_and_left_out(run, folder, tmp_path, capsys):
    for index in range(LISTED + 5):
        (folder / f"bad {index:02}.png").touch()
    out = tmp_path / "out.csv"
    config = PredictConfig(str(run.path), f"folder:{folder}", out=str(out), quiet=True)
    assert run_predict(dataclasses.replace(config, skip_bad_images=True)) == 0
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == LISTED + 2
    assert all(f"bad {index:02}.png" in lines[index] for index in range(LISTED))
    assert "… and 5 more" in lines[-2]
    assert f"{LISTED + 5} images could not be read" in lines[-1]
    assert printed.out.strip() == str(out)
    assert [row["error"] for row in _rows(out)] == [""] * 12
    assert run_predict(dataclasses.replace(config, overwrite=True)) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == LISTED + 2
    assert sum(row["error"] != "" for row in _rows(out)) == LISTED + 5


def test_files_of_a_folder_that_are_not_read_are_counted_by_suffix(run, folder, tmp_path, capsys):
    for number in range(3):
        (folder / "über us" / f"{number}.heic").touch()
    (folder / "notes.txt").touch()
    config = PredictConfig(str(run.path), images=str(folder), out=str(tmp_path / "answers.csv"))
    said = "4 files that are not read as images are passed over: 3 .heic, 1 .txt"
    assert run_predict(config) == 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert len(_rows(tmp_path / "answers.csv")) == 12
    with pytest.warns(RuntimeWarning, match=said):
        find_images(str(folder))


def test_a_folder_of_bad_images_alone_gives_a_table_without_answers(run, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    for suffix in ("csv", "parquet"):
        out = tmp_path / f"out.{suffix}"
        assert len(predict_folder(run, f"folder:{tmp_path / 'images'}", out, display=QUIET)) == 1
        skipped = {"display": QUIET, "skip_bad_images": True}
        assert len(predict_folder(run, f"folder:{tmp_path / 'images'}", out, **skipped)) == 1
    assert (tmp_path / "out.csv").read_text() == ",".join(answers.COLUMNS) + "\n"


def test_only_the_first_bad_images_are_kept_in_memory():
    bad = BadImages()
    for index in range(1000):
        bad.add(f"line {index}")
    assert len(bad) == 1000
    assert list(bad) == [f"line {index}" for index in range(LISTED)] + ["… and 980 more"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_name_that_is_no_utf8_is_escaped_and_loses_nothing(run, folder, tmp_path, suffix):
    bad = os.fsencode(folder) + b"/bad\xff.png"
    (folder / "0 é.png").rename(os.fsdecode(bad))
    (folder / os.fsdecode(b"cut\xfe.png")).touch()
    out = tmp_path / f"out.{suffix}"
    (error,) = predict_folder(run, f"folder:{folder}", out, display=QUIET)
    assert "cut\\xfe.png" in error
    if suffix == "csv":
        names = [row["path"] for row in _rows(out)]
        assert sum("bad\\xff.png" in name for name in names) == 1
        assert len(names) == 13


@pytest.mark.parametrize(
    ("images", "out", "line"),
    [
        ("nowhere", "x.csv", "images must be a folder, a file or a pattern .* got 'nowhere'"),
        ("no*.png", "x.csv", "images must be a folder, a file or a pattern .* not found"),
        ("folder:", "x.csv", "a folder must be given as folder:PATH, got no path"),
        ("folder:{folder}", "x.xlsx", "out must end in .csv or .parquet, got 'x.xlsx'"),
        ("folder:/no/such/folder", "x.csv", "/no/such/folder"),
    ],
)
def test_bad_arguments_are_refused(run, folder, tmp_path, monkeypatch, images, out, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=line):
        predict_folder(run, images.format(folder=folder), Path(out), display=QUIET)
    assert not Path(out).exists()


def test_parquet_without_pyarrow_is_refused_with_the_remedy(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'deepens\[parquet\]'"):
        predict_folder(run, f"folder:{folder}", tmp_path / "x.parquet", display=QUIET)


def test_answers_do_not_depend_on_batches_or_readers(run, folder, tmp_path, monkeypatch):
    tables = []
    for batch, readers in [(256, 1), (5, 3), (1, 2)]:
        monkeypatch.setattr(predicting, "BATCH", batch)
        monkeypatch.setattr(predicting, "MOST_READERS", readers)
        monkeypatch.setattr(predicting, "available_cores", lambda: 8)
        predict_folder(run, f"folder:{folder}", tmp_path / "out.csv", display=QUIET)
        tables.append(_rows(tmp_path / "out.csv"))
    for other in tables[1:]:
        for row, same in zip(tables[0], other, strict=True):
            assert (row["path"], row["class"]) == (same["path"], same["class"])
            for score in answers.SCORES:
                assert float(row[score]) == pytest.approx(float(same[score]), abs=1e-6)


def test_images_in_memory_are_bounded_whatever_the_folder_holds(run, folder, tmp_path, monkeypatch):
    """Counts pixel tensors alive, over a thousand images in batches of 32."""
    many = tmp_path / "many"
    many.mkdir()
    for index in range(1000):
        (many / f"{index}.png").symlink_to(folder / "0 é.png")
    monkeypatch.setattr(predicting, "BATCH", 32)
    lock, alive, most, count = threading.Lock(), 0, 0, 0
    read_image, iterate_images = predicting.read_image, predicting.iterate_images
    named, ahead = 0, []

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    def read(path, **form):
        nonlocal alive, most, count
        pixels = read_image(path, **form)
        with lock:
            alive, count = alive + 1, count + 1
            most = max(most, alive)
        weakref.finalize(pixels, gone)
        return pixels

    def names(path):
        nonlocal named
        for image in iterate_images(path):
            named += 1
            ahead.append(named - count)
            yield image

    monkeypatch.setattr(predicting, "read_image", read)
    monkeypatch.setattr(predicting, "iterate_images", names)
    assert not predict_folder(run, f"folder:{many}", tmp_path / "out.csv", display=QUIET)
    gc.collect()
    assert (count, alive) == (1000, 0)
    # What is read ahead, the batch that is put together, and the one on its way to the device.
    assert most <= (predicting.BATCHES_AHEAD + 2) * 32 + CHUNK
    assert max(ahead) <= predicting.BATCHES_AHEAD * 32


def test_large_images_come_in_smaller_batches():
    def form(side):
        return ImageFormat(("a", "b"), 3, (side, side), (0.5,) * 3, (0.5,) * 3)

    assert batch_size(form(224)) == 256
    assert batch_size(form(1024)) == 21
    assert batch_size(form(8192)) == 1


def test_reading_goes_on_while_the_batch_before_is_worked_on():
    """Each of two batches waits, while it is worked on, until the other's reading has begun."""
    begun = [threading.Event() for _ in range(4 * CHUNK)]

    def read(index):
        begun[index].set()
        return index

    pairs = read_ahead(range(4 * CHUNK), read, readers=1, ahead=2 * CHUNK)
    for index, content in pairs:
        assert index == content
        assert begun[min(index + CHUNK, 4 * CHUNK - 1)].wait(10), "nothing is read ahead"


@pytest.mark.parametrize("readers", [1, 2, 7])
def test_what_is_read_comes_in_order_whichever_is_read_first(readers):
    def read(index):
        time.sleep(0.02 if index == 0 else 0)
        return -index

    pairs = list(read_ahead(iter(range(100)), read, readers=readers, ahead=64))
    assert pairs == [(index, -index) for index in range(100)]


def test_reading_stops_when_it_is_no_longer_wanted():
    read = []

    def endless():
        index = 0
        while True:
            yield (index := index + 1)

    pairs = read_ahead(endless(), read.append, readers=2, ahead=2 * CHUNK)
    assert next(pairs)[0] == 1
    pairs.close()
    assert not any(each.name.startswith("deepens-reader") for each in threading.enumerate())
    assert len(read) <= 3 * CHUNK


def test_an_error_of_the_reader_itself_reaches_the_caller():
    def read(index):
        raise KeyError(index)

    with pytest.raises(KeyError):
        list(read_ahead(range(10), read, readers=2, ahead=4))
    with pytest.raises(ValueError, match="readers and ahead must be >= 1, got 0 and 4"):
        next(read_ahead(range(10), read, readers=0, ahead=4))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("fails", ["normalize", "read_image"])
def test_interrupted_nothing_is_left(run, folder, tmp_path, monkeypatch, suffix, fails):
    monkeypatch.setattr(predicting, "BATCH", 4)
    module = answers if fails == "normalize" else predicting
    calls, real = [], getattr(module, fails)

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, fails, interrupted)
    place = tmp_path / "answers"
    with pytest.raises(KeyboardInterrupt):
        predict_folder(run, f"folder:{folder}", place / f"out.{suffix}", display=QUIET)
    assert list(place.iterdir()) == []
    assert not any(each.name.startswith("deepens-reader") for each in threading.enumerate())


def test_row_groups_are_large_and_keep_the_order(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(table_file, "ROW_GROUP", 1000)
    rows = [
        {"name": f"{index}", "value": None if index % 7 else index / 3} for index in range(2500)
    ]
    with table_file.open_table(tmp_path / "x.parquet", {"name": str, "value": float}) as append:
        for start in range(0, 2500, 50):
            append(rows[start : start + 50])
    file = parquet.ParquetFile(tmp_path / "x.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [1000, 1000, 500]
    assert file.read().to_pylist() == rows


def test_row_groups_have_ten_thousand_rows_or_more():
    assert table_file.ROW_GROUP >= 10_000


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
    assert not predict_folder(run, f"folder:{tmp_path / 'some'}", tmp_path / "x.csv", display=QUIET)
    rows = _rows(tmp_path / "x.csv")
    assert len(rows) == count > 0
    confidence = torch.tensor([float(row["confidence"]) for row in rows])
    assert ((confidence >= 1 / 8) & (confidence <= 1)).all()


@pytest.mark.parametrize("given", ["{}", "folder:{}", "{}/0 é.png", "{}/* é.png", "{}/**/*.png"])
def test_images_are_a_folder_a_file_or_a_pattern(folder, given):
    total, files = find_images(given.format(folder))
    found = list(files())
    assert total == len(found)
    expected = {"{}/0 é.png": 1, "{}/* é.png": 6}.get(given, 12)
    assert len(found) == expected
    assert all(path.suffix == ".png" for path in found)


def test_several_paths_follow_one_another(folder):
    pictures = sorted(folder.glob("*.png"))
    total, files = find_images([str(pictures[3]), str(folder), str(pictures[0])])
    found = list(files())
    assert total == len(found) == 14
    assert found[0] == pictures[3]
    assert found[-1] == pictures[0]
    with pytest.raises(ValueError, match="got 'nowhere': not found"):
        find_images([str(folder), "nowhere"])


@pytest.mark.parametrize("run_first", [True, False])
def test_a_pattern_that_the_shell_wrote_out_is_taken(run, folder, tmp_path, capsys, run_first):
    (folder / "a, b.png").write_bytes((folder / "0 é.png").read_bytes())
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) > 2
    words = ["--images", *pictures]
    words = [run.path, *words] if run_first else [*words, run.path]
    assert _predicts(capsys, *words, "--out", tmp_path / "out.csv")[0] == 0
    assert [row["path"] for row in _rows(tmp_path / "out.csv")] == [str(each) for each in pictures]


def _predicts(capsys, *words):
    status = cli.main(["predict", *map(str, words), "--quiet"])
    return status, capsys.readouterr()


def test_an_output_of_other_options_is_replaced_only_where_that_is_asked_for(
    run, folder, tmp_path, capsys
):
    out = tmp_path / "out.csv"
    words = [run.path, "--images", folder, "--out", out]
    assert _predicts(capsys, *words)[0] == 0
    assert _predicts(capsys, *words)[0] == 0  # the same options again
    before = out.read_bytes()
    one = [run.path, "--images", next(folder.glob("*.png")), "--out", out]
    status, said = _predicts(capsys, *one)
    assert status == 2
    assert f"{out} exists and was made with other options (images)" in said.err
    assert out.read_bytes() == before
    assert _predicts(capsys, *one, "--overwrite")[0] == 0
    assert len(_rows(out)) == 1
    foreign = tmp_path / "mine.csv"
    foreign.write_text("mine")
    assert _predicts(capsys, run.path, "--images", folder, "--out", foreign)[0] == 2
    assert foreign.read_text() == "mine"


def test_answers_of_a_cascade_have_a_file_of_their_own():
    plain = PredictConfig("runs/x", "photos")
    by_cascade = dataclasses.replace(plain, cascade="runs/x/cascade.json")
    assert plain.file() == Path("runs/x/predicted.csv")
    assert by_cascade.file() == Path("runs/x/predicted-cascade.csv")


def test_the_directory_of_a_comparison_names_its_runs(finished_comparison, capsys, folder):
    path = finished_comparison.directory()
    said = _predicts(capsys, path, "--images", folder)[1].err
    assert "is the directory of a comparison, not of a run: its runs are deep-0, deep-1" in said
    assert f"such as {path / 'deep-0'}" in said
    assert cli.main(["report", str(path / "deep-0")]) == 2
    assert "is the directory of a run, not of a comparison" in capsys.readouterr().err
    assert cli.main(["evaluate", str(folder)]) == 2
    assert "config.yaml does not exist, and deepens made nothing else" in capsys.readouterr().err
