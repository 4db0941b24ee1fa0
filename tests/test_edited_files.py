"""Files of a run or a comparison that somebody edited: one line that names the file."""

import json
import shutil
from pathlib import Path

import pytest
from deepens.experiments.cli import entry as cli
from deepens.experiments.store.checkpoint import load_tensors, save_tensors

GOLDEN = Path(__file__).parent / "golden"


def _said(capsys, *words):
    status = cli.main([*words, "--quiet"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2, lines
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("costs", 3, "costs must hold values by name, got 3"),
        ("costs", {"single": {"macs": "many"}}, "costs.single"),
        ("costs", {}, "is missing or damaged"),
        ("notes", "none", "notes must be a list, got 'none'"),
        ("notes", [3], "notes[0] must be text, got 3"),
        ("caveat", None, "caveat must have a value, got none"),
        ("environment", [], "environment must hold values by name"),
        ("descriptions", {"single": 4}, "descriptions.single must be text, got 4"),
        ("left_out", ["deep"], "left_out must hold values by name"),
        ("conclusive", "yes", "conclusive must be true or false, got 'yes'"),
    ],
)
def test_a_comparison_with_a_value_of_another_type_is_refused(tmp_path, capsys, name, value, line):
    shutil.copytree(GOLDEN / "comparison", tmp_path / "c")
    file = tmp_path / "c" / "comparison.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    said = _said(capsys, "report", str(tmp_path / "c"))
    assert str(file) in said
    assert line in said


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda m: m["test"].update(nll="low"), "test.nll must be a number, got 'low'"),
        (lambda m: m["test"].update(nll={}), "test.nll must be a number, got a dict of 0"),
        (lambda m: m.update(test=3), "test must hold values by name, got 3"),
        (lambda m: m.pop("test"), "is missing or damaged"),
    ],
)
def test_metrics_of_other_types_are_refused(tmp_path, capsys, edit, line):
    shutil.copytree(GOLDEN / "comparison", tmp_path / "c")
    file = tmp_path / "c" / "deep-0" / "metrics.json"
    metrics = json.loads(file.read_text())
    edit(metrics)
    file.write_text(json.dumps(metrics))
    said = _said(capsys, "report", str(tmp_path / "c"))
    assert str(file) in said
    assert line in said


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda h: h.update(config=[]), "its header.config must hold values by name"),
        (lambda h: h["config"].update(members="four"), "members must be a whole number"),
        (lambda h: h["format"].update(size=8), "its header.format.size must be a list, got 8"),
        (lambda h: h["format"].update(classes=[1]), "classes[0] must be text, got 1"),
        (lambda h: h.pop("format"), "its header lacks format"),
        (lambda h: h.pop("data"), "its header lacks data"),
    ],
)
def test_a_header_of_weights_with_other_types_is_refused(tmp_path, capsys, edit, line):
    shutil.copytree(GOLDEN / "run", tmp_path / "r")
    file = tmp_path / "r" / "weights.safetensors"
    tensors, header = load_tensors(file)
    edit(header)
    save_tensors(file, tensors, header)
    said = _said(capsys, "evaluate", str(tmp_path / "r"), "--predict")
    assert str(file) in said
    assert line in said


@pytest.mark.parametrize(
    "name", ["metrics.json", "comparison.json", "deep-0/predictions/index.json"]
)
def test_json_nested_without_end_is_damaged(tmp_path, capsys, name):
    shutil.copytree(GOLDEN / "comparison", tmp_path / "c")
    name = f"deep-0/{name}" if name == "metrics.json" else name
    (tmp_path / "c" / name).write_text("[" * 3000)
    assert name in _said(capsys, "report", str(tmp_path / "c"))
