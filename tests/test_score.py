"""``deepens score``: anybody's files in, a table and files out, or one clear line."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from deepens.experiments.cli import entry as cli
from deepens.experiments.evaluation.score import ood_files
from deepens.metrics import METRICS, evaluate, evaluate_ood
from safetensors.torch import save_file


def draw(members=3, n=60, classes=7, seed=0, signal=2.0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(members, n, classes)).astype(np.float32)
    targets = generator.integers(classes, size=n)
    logits[:, np.arange(n), targets] += signal
    return logits, targets


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Logits of three members, labels and an OOD set, in the working directory."""
    monkeypatch.chdir(tmp_path)
    logits, targets = draw()
    ood, _ = draw(n=25, seed=1, signal=0.0)
    np.save("logits.npy", logits)
    np.save("labels.npy", targets)
    np.save("ood.npy", ood)
    for member in range(3):
        np.save(f"m{member}.npy", logits[member])
        np.save(f"o{member}.npy", ood[member])
    evaluated = evaluate(torch.from_numpy(logits), torch.from_numpy(targets))
    detected = evaluate_ood(torch.from_numpy(logits), torch.from_numpy(ood))
    return {"test": evaluated, "ood/ood": detected}


def score(*words):
    assert cli.main(["score", "--quiet", *words]) == 0


def refused(capsys, *words):
    """The one line on standard error with which files are refused."""
    capsys.readouterr()
    assert cli.main(["score", "--quiet", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("deepens: ")
    return line


GIVEN = ("--logits", "logits.npy", "--labels", "labels.npy")


@pytest.mark.parametrize(
    "words",
    [
        ("--logits", "logits.npy", "--ood", "ood.npy"),
        ("--logits", "logits.npy", "--ood", "ood.npy", "--chunk", "7"),
        (
            "--logits",
            "m0.npy",
            "m1.npy",
            "m2.npy",
            "--ood",
            "ood=o0.npy",
            "ood=o1.npy",
            "ood=o2.npy",
        ),
        (
            "--logits",
            "m0.npy,m1.npy",
            "--logits=m2.npy",
            "--ood",
            "ood=o0.npy,ood=o1.npy,ood=o2.npy",
        ),
    ],
)
def test_metrics_are_those_of_the_arrays(files, words):
    score(*words, "--labels", "labels.npy", "--out", "folder/all.json")
    with open("folder/all.json") as file:
        found = json.load(file)
    assert set(found) == set(files)
    for name, expected in files.items():
        assert found[name] == pytest.approx(expected, abs=1e-12)


def test_table_shows_value_direction_and_number(files, capsys):
    score(*GIVEN, "--ood", "far=ood.npy")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = files["test"]
    assert ["Accuracy", f"{expected['accuracy']:.4f}", "higher", "60"] in lines
    assert ["NLL", f"{expected['nll']:.4f}", "lower", "60"] in lines
    assert ["Disagreement", f"{expected['disagreement']:.4f}", "60"] in lines
    assert ["test:", "60", "samples,", "7", "classes,", "3", "members"] in lines
    assert ["ood/far:", "25", "samples,", "beside", "60", "of", "test"] in lines
    measures = ("auroc", "aupr_out", "aupr_in", "fpr95")
    row = ["energy", *(f"{files['ood/ood'][f'{each}_energy']:.4f}" for each in measures)]
    assert row in lines
    assert ["better", "higher", "higher", "higher", "lower"] in lines


def test_table_of_one_model_leaves_out_what_compares_members(files, capsys):
    score("--logits", "m0.npy", "--layout", "NC", "--labels", "labels.npy", "--out", "all.json")
    shown = capsys.readouterr().out
    assert "Accuracy" in shown
    for name in ("disagreement", "mutual_information", "jensen_gap", "pairwise_kl"):
        assert METRICS[name].label not in shown
        assert name in json.loads(Path("all.json").read_text())["test"]


def test_csv_holds_a_row_a_metric_with_its_number_of_samples(files):
    score(*GIVEN, "--ood", "ood.npy", "--out", "all.csv")
    with open("all.csv", newline="") as file:
        rows = {(row["set"], row["metric"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(name, key) for name, each in files.items() for key in each}
    for (name, key), row in rows.items():
        assert float(row["value"]) == pytest.approx(files[name][key], abs=1e-12)
        assert row["label"] == METRICS[key].label
    counted = {key: (row["n_id"], row["n_ood"]) for key, row in rows.items()}
    assert counted["test", "auroc_of_failures"] == ("60", "")
    assert counted["ood/ood", "auroc_msp"] == ("60", "25")
    assert counted["ood/ood", "confidence"] == ("", "25")
    assert rows["ood/ood", "fpr95_msp"]["better"] == "lower"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_of_every_sample_are_written(files, suffix):
    score(*GIVEN, "--ood", "far=ood.npy", "--per-sample", f"samples{suffix}")
    if suffix == ".csv":
        with open("samples.csv", newline="") as file:
            rows = [{k: v or None for k, v in row.items()} for row in csv.DictReader(file)]
    else:
        rows = pq.read_table("samples.parquet").to_pylist()
    test = [row for row in rows if row["set"] == "test"]
    far = [row for row in rows if row["set"] == "ood/far"]
    assert (len(test), len(far)) == (60, 25)
    assert [int(row["sample"]) for row in test] == list(range(60))
    nll = sum(float(row["nll"]) for row in test) / 60
    assert nll == pytest.approx(files["test"]["nll"], abs=1e-12)
    right = [float(row["label"]) == float(row["predicted"]) for row in test]
    assert sum(right) / 60 == pytest.approx(files["test"]["accuracy"])
    assert right == [float(row["correct"]) == 1 for row in test]
    assert all(row["label"] is row["nll"] is row["correct"] is None for row in far)
    confidence = sum(float(row["confidence"]) for row in far) / 25
    assert confidence == pytest.approx(files["ood/ood"]["confidence"], abs=1e-12)


def test_one_file_may_hold_logits_and_labels(files):
    logits, targets = draw()
    np.savez("both.npz", z=logits.transpose(1, 0, 2), y=targets)
    words = ("--logits", "both.npz", "--labels", "both.npz", "--key", "z", "--label-key", "y")
    score(*words, "--layout", "NMC", "--out", "all.json")
    with open("all.json") as file:
        assert json.load(file)["test"] == pytest.approx(files["test"], abs=1e-12)


def test_zero_probabilities_are_counted_and_mentioned(files, capsys):
    probs = torch.from_numpy(draw()[0]).softmax(-1)
    probs[:, 3] = torch.nn.functional.one_hot(torch.tensor(2), 7).float()
    np.save("probs.npy", probs.numpy())
    score("--logits", "probs.npy", "--labels", "labels.npy", "--kind", "probs")
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "deepens: probs.npy: 18 probabilities are 0 and were raised to 1.18e-38" in err


@pytest.mark.parametrize("correct", [True, False])
def test_undefined_metrics_are_named_with_the_reason(files, capsys, correct):
    targets = draw()[1]
    logits = np.zeros((3, 60, 7), dtype=np.float32)
    logits[:, np.arange(60), targets if correct else (targets + 1) % 7] = 5
    np.save("sure.npy", logits)
    score("--logits", "sure.npy", "--labels", "labels.npy", "--out", "all.json")
    captured = capsys.readouterr()
    reason = "AUROC of failures of test is undefined: all predictions are right, or all wrong"
    assert reason in captured.err
    assert captured.err.count("AUROC of failures") == 1
    assert "undefined" in captured.out
    with open("all.json") as file:
        assert json.load(file)["test"]["auroc_of_failures"] is None


@pytest.mark.parametrize(("n", "members"), [(1, 1), (1, 3), (2, 1)])
def test_very_few_samples_are_scored(files, n, members):
    logits, targets = draw(n=n, members=members)
    np.save("few.npy", logits)
    np.save("y.npy", targets)
    score("--logits", "few.npy", "--labels", "y.npy", "--ood", "few.npy", "--out", "all.json")
    with open("all.json") as file:
        found = json.load(file)
    assert found["test"]["n"] == n
    assert found["ood/few"]["auroc_msp"] == 0.5


@pytest.mark.parametrize("same", ["logits", "labels"])
def test_equal_scores_and_a_single_label_are_scored(files, capsys, same):
    logits, targets = draw()
    np.save("z.npy", np.ones_like(logits) if same == "logits" else logits)
    np.save("y.npy", targets * 0 if same == "labels" else targets)
    score("--logits", "z.npy", "--labels", "y.npy", "--ood", "z.npy", "--out", "all.json")
    with open("all.json") as file:
        found = json.load(file)
    values = [value for each in found.values() for value in each.values() if value is not None]
    assert all(math.isfinite(value) for value in values)
    if same == "logits":
        assert found["test"]["auroc_of_failures"] == found["ood/z"]["auroc_energy"] == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored(files, dtype):
    logits, targets = draw()
    half = torch.from_numpy(logits).to(dtype)
    save_file({"z": half}, "half.safetensors")
    score("--logits", "half.safetensors", "--labels", "labels.npy", "--out", "all.json")
    with open("all.json") as file:
        found = json.load(file)["test"]
    expected = evaluate(half.double(), torch.from_numpy(targets))
    assert found == pytest.approx(expected, abs=1e-12)


def _spoil(logits, place, value):
    logits[place] = value
    return logits


@pytest.mark.parametrize(
    ("name", "array", "line"),
    [
        ("logits", _spoil(draw()[0], (1, 8, 2), np.nan), "row 8, class 2, member 1"),
        ("logits", _spoil(draw()[0], (0, 0, 6), np.inf), "got inf at [0, 0, 6]: row 0, class 6"),
        ("logits", draw()[0][0, 0], "logits.npy must have 3 dimensions"),
        ("logits", draw(n=0)[0], "logits.npy must hold >= 1 member, >= 1 sample"),
        ("logits", draw(classes=1)[0], ">= 2 classes, got shape [3, 60, 1]"),
        (
            "logits",
            draw()[0].argmax(-1),
            "logits.npy must be floating point, got int64: convert",
        ),
        ("logits", torch.from_numpy(draw()[0]).softmax(-1).numpy(), "say kind='probs'"),
        ("labels", draw()[1] + 1, "labels.npy must lie in [0, 7), got 7 at position"),
        ("labels", draw()[1] - 100, "labels.npy must lie in [0, 7), got -9"),
        ("labels", draw()[1].astype(np.float32), "labels.npy must be integers, got torch.float32"),
        ("labels", np.eye(7)[draw()[1]], "looks one-hot"),
        ("labels", draw()[1][:-1], "labels.npy must have shape [60]"),
        ("ood", draw(classes=6)[0], "ood.npy must have the 7 classes of logits.npy, got 6"),
        ("ood", draw(members=2)[0], "ood.npy must have the 3 members of logits.npy, got 2"),
        ("ood", _spoil(draw()[0], (2, 5, 1), np.nan), "ood.npy must be finite, got nan"),
    ],
)
def test_bad_arrays_are_refused_in_one_line_and_nothing_is_written(
    files, capsys, name, array, line
):
    np.save(f"{name}.npy", array)
    words = (*GIVEN, "--ood", "ood.npy", "--out", "all.json", "--per-sample", "s.csv")
    assert line in refused(capsys, *words)
    assert not Path("all.json").exists()
    assert not Path("s.csv").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--labels", "labels.npy"), "logits"),
        (("--logits", "logits.npy"), "labels"),
        (("--logits", "none.npy", "--labels", "labels.npy"), "none.npy: no such file"),
        (("--logits", "logits.npy", "--labels", "none.npy"), "none.npy: no such file"),
        (("--logits", ".", "--labels", "labels.npy"), ". is a directory, not a file"),
        (("--logits", "a.pt", "--labels", "labels.npy"), "a.pt must end in one of .npy, "),
        (("--logits", "m0.npy", "logits.npy", "--labels", "labels.npy"), "must have 2 dimensions"),
        ((*GIVEN, "--kind", "probs"), "say kind='logits' (--kind logits)"),
        ((*GIVEN, "--kind", "prob"), "kind must be one of logits, log_probs, probs, got 'prob'"),
        ((*GIVEN, "--layout", "NCM"), "layout must be one of MNC, NMC, NC, got 'NCM'"),
        ((*GIVEN, "--out", "all.txt"), "out must end in .json or .csv, got 'all.txt'"),
        ((*GIVEN, "--per-sample", "s.json"), "per_sample must end in .csv or .parquet"),
        ((*GIVEN, "--chunk", "0"), "chunk must be >= 1, got 0"),
        ((*GIVEN, "--ood", "far="), "ood must be FILE or NAME=FILE, got 'far='"),
        ((*GIVEN, "--ood", "ood.npy", "ood.npy"), "ood has two sets called 'ood'"),
        ((*GIVEN, "--ood", "far=o0.npy"), "o0.npy must have the 3 members of logits.npy, got 1"),
        ((*GIVEN, "--out", "a.csv", "--per-sample", "./a.csv"), "a.csv would be overwritten"),
    ],
)
def test_wrong_words_are_refused_in_one_line(files, capsys, words, line):
    assert line in refused(capsys, *words)


def test_no_input_is_overwritten(files, capsys):
    with open("m0.csv", "w") as file:
        file.write("a,b\n1,2\n")
    words = ("--logits", "m0.csv", "--labels", "labels.npy", "--out", "m0.csv")
    assert "m0.csv would be overwritten, and is to be read" in refused(capsys, *words)
    with open("m0.csv") as file:
        assert file.read() == "a,b\n1,2\n"


def test_ood_sets_are_named_by_the_user_or_by_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ood_files(["a/svhn.npy", "far=x.npy", "far=y.npy"]) == {
        "svhn": ["a/svhn.npy"],
        "far": ["x.npy", "y.npy"],
    }
    (tmp_path / "t=1.npy").touch()
    assert ood_files(["t=1.npy"]) == {"t=1": ["t=1.npy"]}
    with pytest.raises(ValueError, match="two sets called 'x'"):
        ood_files(["x=a.npy", "b/x.npy"])


def test_progress_and_remarks_stay_apart_from_the_table(files):
    command = [sys.executable, "-m", "deepens.experiments.cli.entry", "score", *GIVEN]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("test: 60 samples")
    assert done.stderr.splitlines()[0].startswith("score test: done in")
