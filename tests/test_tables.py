"""Tables: columns by name, a column of labels, no formulas; files bounded by their headers."""

import csv
import os
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pandas
import pytest
import torch
from deepens import metrics
from deepens.experiments.evaluation.table_writer import open_table
from deepens.experiments.store.run import csv_text
from deepens.metrics import evaluate, evaluate_ood, open_logits

NAMES = ["cat", "dog", "eel"]
OTHER = ["eel", "cat", "dog"]


def draw(n=60, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=n)
    logits = random.normal(size=(n, 3))
    logits[np.arange(n), labels] += 3
    return pandas.DataFrame(logits, columns=NAMES), labels


def kept(kind, frame, at):
    if kind == "frame":
        return frame
    path = at / f"{len(list(at.iterdir()))}.{kind}"
    getattr(frame, f"to_{kind}")(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["frame", "csv", "parquet"])
def test_columns_are_aligned_by_their_names(kind, tmp_path):
    (first, labels), (second, _) = draw(), draw(seed=1)
    expected = evaluate([kept(kind, first, tmp_path), kept(kind, second, tmp_path)], labels)
    moved = kept(kind, second[OTHER], tmp_path)
    assert evaluate([kept(kind, first, tmp_path), moved], labels) == pytest.approx(expected)
    inside = kept(kind, first, tmp_path)
    found = evaluate_ood(inside, kept(kind, second[OTHER], tmp_path))
    assert found == pytest.approx(evaluate_ood(inside, kept(kind, second, tmp_path)), abs=1e-12)


@pytest.mark.parametrize("kind", ["frame", "csv", "parquet"])
def test_columns_of_other_names_are_refused(kind, tmp_path):
    first, labels = draw()
    other = first.rename(columns={"dog": "fox"})
    pair = [kept(kind, first, tmp_path), kept(kind, other, tmp_path)]
    with pytest.raises(
        ValueError, match="must have the columns of .*cat, dog, eel; it lacks 'dog'"
    ):
        evaluate(pair, labels)
    with pytest.raises(ValueError, match="it lacks 'dog'"):
        evaluate_ood(*pair)
    with pytest.raises(ValueError, match="column 'label', number 2, which is not a class"):
        evaluate(kept(kind, first.rename(columns={"dog": "label"}), tmp_path), labels)


def test_names_that_differ_by_unicode_form_only_are_one(tmp_path):
    first, labels = draw()
    composed, apart = "caf\u00e9", "cafe\u0301"
    one = kept("csv", first.rename(columns={"cat": composed}), tmp_path)
    two = kept("csv", first.rename(columns={"cat": apart})[["eel", apart, "dog"]], tmp_path)
    with pytest.warns(RuntimeWarning, match="members 0, 1 are identical"):
        assert evaluate([one, two], labels)["disagreement"] == 0.0


@pytest.mark.parametrize("kind", ["frame", "csv", "parquet"])
@pytest.mark.parametrize("name", ["label", "Target"])
def test_labels_are_the_column_of_that_name(kind, name, tmp_path):
    first, labels = draw()
    files = [f"{place}.png" for place in range(len(labels))]
    table = pandas.DataFrame({"filename": files, name: labels})
    assert evaluate(first, kept(kind, table, tmp_path)) == evaluate(first, labels)


@pytest.mark.parametrize("kind", ["frame", "csv", "parquet"])
def test_a_table_without_one_column_of_labels_is_refused(kind, tmp_path):
    first, labels = draw()
    for columns in ({"a": labels, "b": labels}, {"label": labels, "target": labels}):
        table = kept(kind, pandas.DataFrame(columns), tmp_path)
        with pytest.raises(ValueError, match="must have one column, or one that is called label"):
            evaluate(first, table)


def test_labels_that_are_words_are_names_of_columns(tmp_path):
    first, labels = draw()
    words = [NAMES[label] for label in labels]
    table = pandas.DataFrame({"file": labels, "label": words})
    assert evaluate(first, kept("csv", table, tmp_path)) == evaluate(first, labels)
    table.loc[3, "label"] = "zebra"
    with pytest.raises(ValueError, match="names of the logits' columns, .* 'zebra' at position 3"):
        evaluate(first, kept("csv", table, tmp_path))


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@sum", "\tx", "cat"])
def test_no_text_of_a_csv_file_is_a_formula(text, tmp_path):
    written = text if text == "cat" else f"'{text}"
    with open_table(tmp_path / "a.csv", {"class": str, "confidence": float}) as append:
        append([{"class": text, "confidence": -0.5}])
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"class": written, "confidence": "-0.5"}]
    [row] = csv.DictReader(csv_text([{"class": text, "value": -1}]).splitlines())
    assert row == {"class": written.replace("\t", row["class"][1:2]), "value": "-1"}


def test_parquet_holds_text_as_it_is(tmp_path):
    with open_table(tmp_path / "a.parquet", {"class": str}) as append:
        append([{"class": "=1+1"}])
    assert pandas.read_parquet(tmp_path / "a.parquet")["class"].tolist() == ["=1+1"]


def header(text):
    body = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def test_what_is_unpacked_is_bounded_by_the_header(tmp_path):
    few = header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", few + bytes(48) + bytes(2**26))
    with open_logits(tmp_path / "a.npz") as source:
        assert source.shape == (1, 2, 3)
        assert os.fstat(source._parts[0]._file.fileno()).st_size == len(few) + 48


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ("(2, 3, 4, 5)", "at most 3 axes"),
        ("(10**15, 3)", "is not a .npy file, or damaged"),
        ("(1000000000000, 3)", "bytes, of .* free; TMPDIR names another folder"),
    ],
)
def test_archives_that_would_fill_the_disk_are_refused_before_anything_is_written(
    tmp_path, shape, line
):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
        archive.writestr("a.npy", header(text) + bytes(2**20))
    with pytest.raises(ValueError, match=line):
        open_logits(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-2, 3), }",
        "{'descr': 7, 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': '<f8', 'fortran_order': 'x', 'shape': (2, 3), }",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 3), }",
        "(" * 100,
        "\x00",
        "1 +",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2.5, 3), }",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2, 3), }",
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_headers_that_do_not_parse_are_one_line(tmp_path, text, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        path.write_bytes(header(text) + bytes(48))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", header(text) + bytes(48))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=str(path)) as caught:
            open_logits(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    logits = str(tmp_path / "logits.npy")
    np.save(logits, np.zeros((2, 3)))
    calls = []
    for suffix in ("npy", "npz", "csv", "parquet", "safetensors"):
        pipe = str(tmp_path / f"a.{suffix}")
        os.mkfifo(pipe)
        calls += [["--logits", pipe, "--labels", logits], ["--logits", logits, "--labels", pipe]]
    code = f"""
from deepens.experiments.cli.entry import main
print([main(["score", *words, "--quiet"]) for words in {calls!r}])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str([2] * len(calls))
    assert done.stderr.count("must be a regular file") == len(calls)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize(
    "metric",
    [
        metrics.AreaUnderRiskCoverage,
        metrics.AUROCOfFailures,
        metrics.AdaptiveCalibrationError,
        metrics.OODAreaUnderROC,
        metrics.OODFalsePositiveRate,
    ],
)
def test_metrics_of_a_ranking_say_that_they_have_seen_nothing(metric):
    line = rf"^{metric.__name__} needs >= 1 sample, got 0: call update first$"
    with pytest.raises(ValueError, match=line):
        metric().compute()
    with pytest.raises(ValueError, match=line):
        metric().plot()


@pytest.mark.parametrize("given", [np.full((4, 1), 0.3), torch.full((2, 4, 1), 0.3)])
def test_the_output_of_a_sigmoid_gets_a_hint(given):
    with pytest.raises(ValueError, match="give two columns, 1 - p beside p"):
        evaluate(given, [0, 1, 0, 1], kind="probs")


@pytest.mark.parametrize("name", ["pred", "y_true", "Predicted", "split"])
def test_columns_that_are_no_classes_are_named(tmp_path, name):
    file = tmp_path / "logits.csv"
    file.write_text(f"cat,dog,{name}\n1.0,2.0,1\n2.0,1.0,0\n")
    with pytest.raises(ValueError, match=f"column '{name}'"):
        evaluate([str(file)], [1, 0])
