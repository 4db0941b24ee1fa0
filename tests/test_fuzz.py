"""Malformed input of every kind: one line and exit status 2, or an answer; never a traceback.

``DEEPENS_FUZZ`` is the number of cases, 500 by default, the same in every run; a nightly run draws
10,000 of its own: ``DEEPENS_FUZZ=10000 pytest -n 0 -m fuzz``.
"""

import ast
import contextlib
import copy
import json
import os
import shutil
import tempfile
from pathlib import Path

import deepens
import numpy as np
import pytest
import torch
import yaml
from deepens.datasets import read_image
from deepens.experiments.cli import entry as cli
from deepens.experiments.store.checkpoint import load_tensors
from deepens.experiments.store.training_checkpoint import SafetensorsCheckpointIO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

CASES = int(os.environ.get("DEEPENS_FUZZ", "500"))
GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(deepens.__file__).parent


def fuzzed(share, seconds=10):
    """A share of all cases, each of them within so many seconds."""
    return settings(
        max_examples=max(5, round(CASES * share)),
        deadline=1000 * seconds,
        suppress_health_check=list(HealthCheck),
        derandomize="DEEPENS_FUZZ" not in os.environ,
        database=None,
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, -1e308, float("inf"), float("nan")]),
    st.floats(),
    st.text(max_size=8),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=5,
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert"]), st.binary(min_size=1)),
    min_size=1,
    max_size=3,
)


def damage(content, edits):
    """Bytes with some flipped, cut off or inserted, at places that are shares of their length."""
    for place, how, more in edits:
        at = int(place * max(0, len(content) - 1))
        if how == "flip":
            content = content[:at] + bytes([content[at] ^ (more[0] or 1)]) + content[at + 1 :]
        elif how == "cut":
            content = content[: max(1, at)]
        else:
            content = content[:at] + more + content[at:]
    return content


def places(tree, path=()):
    """Paths to all values in a tree of dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def replaced(tree, place, value):
    tree = copy.deepcopy(tree)
    inner = tree
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return tree


def refused_or_answered(capsys, *words):
    """Run a command: status 0, or 2 with one line at the end; anything else is a fault."""
    capsys.readouterr()
    status = cli.main([*map(str, words), "--quiet"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status in (0, 2), lines
    if status == 2:
        assert lines
        assert lines[-1].startswith("deepens: ")
        assert "unexpected" not in lines[-1]
    return status


@pytest.mark.fuzz
@pytest.mark.slow
@fuzzed(0.2)
@given(data=st.data())
def test_configurations(data):
    known = cli.COMMANDS["compare"].config().to_dict(complete=True)
    options = st.dictionaries(st.sampled_from([*known]) | st.text(max_size=6), TREES, max_size=2)
    text = yaml.safe_dump(data.draw(options), allow_unicode=True)
    content = text.encode() if data.draw(st.booleans()) else damage(text.encode(), data.draw(EDITS))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "options.yaml"
        file.write_bytes(content)
        try:
            _, config = cli.parse(["compare", "--config", str(file)])
        except (ValueError, ModuleNotFoundError):
            return
        again = type(config).from_dict(yaml.safe_load(config.to_yaml()))
        assert again == config or "nan" in config.to_yaml()  # what is taken is whole


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored")
    shutil.copytree(GOLDEN / "run", path / "run")
    return path / "run"


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["metrics.json", "predictions/index.json", "environment.json"])
def test_records_of_a_run(stored, capsys, name):
    file = stored / name
    whole = json.loads(file.read_text())
    everywhere = list(places(whole))

    @fuzzed(0.05)
    @given(st.sampled_from(everywhere), TREES)
    def edited(place, value):
        file.write_text(json.dumps(replaced(whole, place, value)))
        run = deepens.load_run(stored)
        for read in (lambda: run.predictions.metrics, lambda: run.predictions.check()):
            with contextlib.suppress(ValueError):
                read()
        refused_or_answered(capsys, "evaluate", stored)

    try:
        edited()
    finally:
        file.write_text(json.dumps(whole))


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_record_of_a_comparison(tmp_path):
    from deepens.experiments.comparison.stored import stored_record as record
    from deepens.experiments.config import CompareConfig
    from deepens.experiments.store.run import read_config

    shutil.copytree(GOLDEN / "comparison", tmp_path / "c")
    file = tmp_path / "c" / "comparison.json"
    whole, config = json.loads(file.read_text()), read_config(tmp_path / "c", CompareConfig)

    @fuzzed(0.15)
    @given(st.sampled_from(list(places(whole))), TREES)
    def edited(place, value):
        file.write_text(json.dumps(replaced(whole, place, value)))
        try:
            found = record(tmp_path / "c", config)
        except ValueError:
            return
        assert all(isinstance(cost.macs, int) for cost in found.costs.values())

    edited()


def _table(folder, suffix):
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    file = folder / f"logits.{suffix}"
    if suffix == "npy":
        np.save(file, logits)
    elif suffix == "npz":
        np.savez(file, logits=logits)
    else:
        rows = "\n".join(",".join(map(str, row)) for row in logits)
        file.write_text(f"a,b,c\n{rows}\n")
    return file


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
@pytest.mark.parametrize("target", ["logits", "labels"])
def test_logits_and_labels(tmp_path, capsys, suffix, target):
    logits = _table(tmp_path, suffix)
    labels = tmp_path / "labels.csv"
    labels.write_text("label\n0\n1\n2\n0\n1\n2\n")
    file = logits if target == "logits" else labels
    whole = file.read_bytes()

    @fuzzed(0.05)
    @given(EDITS)
    def damaged(edits):
        file.write_bytes(damage(whole, edits))
        words = ["score", "--logits", logits, "--labels", labels, "--layout", "NC"]
        refused_or_answered(capsys, *words)

    damaged()


@pytest.mark.fuzz
@pytest.mark.slow
@fuzzed(0.15)
@given(suffix=st.sampled_from(["png", "jpg", "bmp", "gif", "tif", "webp", "ppm"]), edits=EDITS)
def test_images(suffix, edits):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"image.{suffix}"
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file)
        file.write_bytes(damage(file.read_bytes(), edits))
        try:
            found = read_image(file, channels=3, size=(8, 8))
        except (ValueError, OSError):
            return
        assert found.shape == (3, 8, 8)


@pytest.mark.fuzz
@pytest.mark.slow
@fuzzed(0.15)
@given(edits=EDITS)
def test_checkpoints(edits):
    state = {"epoch": 3, "weights": torch.ones(4), "rates": (0.1, [1, None])}
    with tempfile.TemporaryDirectory() as folder:
        file, io = Path(folder) / "state.safetensors", SafetensorsCheckpointIO("this run")
        io.save_checkpoint(state, file)
        whole = file.read_bytes()
        content = damage(whole, edits)
        file.write_bytes(content)
        try:
            load_tensors(file)
            found = io.load_checkpoint(file)
        except (ValueError, OSError):
            return
        assert found["rates"] == state["rates"]  # only what the checksum covers was changed back
        assert found["weights"].tolist() == [1.0] * 4


def _executes(node):
    """Why a node of the source may execute what it loads, if it does."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        # None of these reads a file; processes of one's own pass objects to each other.
        if {alias.name for alias in node.names} <= {
            "UnpicklingError",
            "ProcessPoolExecutor",
            "cpu_count",
        }:
            return None
        names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        bad = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
        return bad & {name.partition(".")[0] for name in names}
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
    if called in ("eval", "exec", "compile", "__import__", "yaml.load", "yaml.load_all"):
        return called
    if called.startswith(("yaml.unsafe", "yaml.full", "yaml.Unsafe", "pickle.")):
        return called
    if called in ("torch.load", "torch.hub.load") and keywords.get("weights_only") != "True":
        return called
    return "allow_pickle" if keywords.get("allow_pickle", "False") != "False" else None


def test_nothing_that_is_loaded_executes_code():
    found, files = [], 0
    for floor in ("datasets", "metrics", "ensembles", "experiments"):
        for file in (ROOT / floor).rglob("*.py"):
            files += 1
            source = file.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)):
                if why := _executes(node):
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {why}")
    assert found == []
    assert files > 150


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "torch.load(f)", "yaml.load(f)", "eval(text)",
        "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "pickle.loads(b)",
    ],
)  # fmt: skip
def test_what_would_execute_code_is_seen(line):
    assert any(_executes(node) for node in ast.walk(ast.parse(line)))
