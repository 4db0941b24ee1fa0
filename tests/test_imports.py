"""Commands import what they need: what takes seconds to load stays out of those that do without."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"
HEAVY = ("torchmetrics", "lightning", "torchvision", "sklearn", "pandas", "matplotlib")
COMPILERS = ("torch._dynamo", "triton")
ENTRY = """
import contextlib, io, json, sys
from deepens.experiments.cli import main
found = {}
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    found[words[0]] = (status, [name for name in json.loads(sys.argv[2]) if name in sys.modules])
print(json.dumps(found))
"""


def _imported(commands, watched):
    """Status and imported modules of each command, run one after the other in a fresh process."""
    words = [sys.executable, "-c", ENTRY, json.dumps(commands), json.dumps(watched)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [*HEAVY, *COMPILERS])
def test_what_is_watched_exists(name):
    assert importlib.util.find_spec(name) is not None


def test_commands_on_what_is_stored_import_nothing_that_only_training_needs(tmp_path):
    drawn = np.random.default_rng(0)
    np.save(tmp_path / "logits.npy", drawn.normal(size=(2, 40, 3)).astype(np.float32))
    np.save(tmp_path / "labels.npy", drawn.integers(0, 3, 40))
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    (tmp_path / "images").mkdir()
    Image.fromarray(drawn.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / "images" / "a.png")
    files = ["--logits", f"{tmp_path}/logits.npy", "--labels", f"{tmp_path}/labels.npy"]
    commands = [
        ["score", *files, "--quiet"],
        ["evaluate", f"{tmp_path}/run", "--quiet"],
        ["predict", f"{tmp_path}/run", "--images", f"{tmp_path}/images", "--quiet"],
    ]
    found = _imported(commands, [*HEAVY, *COMPILERS])
    status, there = found["predict"]
    found["predict"] = [status, [name for name in there if name in HEAVY]]  # torch compiles there
    assert found == {words[0]: [0, []] for words in commands}


def test_refusals_import_nothing_that_only_training_needs(tmp_path):
    missing = f"folder:{tmp_path / 'missing'}"
    commands = [
        ["score", "--logits", "missing.npy", "--labels", "missing.npy"],
        ["report", str(tmp_path / "missing")],
        ["assemble", str(tmp_path / "missing")],
        ["compare", "--data", missing, "--quiet"],
        ["train", "--data", missing, "--quiet"],
    ]
    found = _imported(commands, [*HEAVY, *COMPILERS])
    assert found == {words[0]: [2, []] for words in commands}
