"""Rooms of the metrics import one way, and the suite works without torchmetrics."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deepens import metrics

ROOT = Path(__file__).resolve().parent.parent / "metrics"
LEVELS = (
    ("suite",),
    ("streaming",),
    ("samples",),
    ("calibration", "conformal", "detection", "selective", "statistics"),
    ("diversity",),
    ("scoring",),
    ("registry",),
    ("io",),
    ("core",),
)
"""Each room may import those of later lines, and itself."""


def imports(file):
    """Rooms that a file imports from."""
    inside = file.relative_to(ROOT).parts
    for dots, name in re.findall(r"^ *from (\.+)(\w*)[\w.]* import", file.read_text(), re.M):
        assert len(dots) <= len(inside), file
        yield name if len(dots) == len(inside) else inside[0]


@pytest.mark.parametrize("level", range(len(LEVELS)), ids=map("-".join, LEVELS))
def test_rooms_import_one_way(level):
    below = {room for rooms in LEVELS[level + 1 :] for room in rooms}
    for room in LEVELS[level]:
        for file in (*ROOT.glob(f"{room}.py"), *ROOT.glob(f"{room}/*.py")):
            assert set(imports(file)) <= below | {room}, file


def test_every_room_has_a_level():
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} == {room for rooms in LEVELS for room in rooms}


@pytest.mark.parametrize(
    ("code", "unneeded"),
    [
        ("import deepens.metrics", "torch"),
        ("from deepens.metrics import evaluate", "torchmetrics"),
    ],
)
def test_names_load_when_they_are_used(code, unneeded):
    code = f"import sys\n{code}\nprint({unneeded!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there_and_no_other():
    for name in dir(metrics):
        assert getattr(metrics, name) is not None
    assert set(metrics.__all__) < set(dir(metrics))
    with pytest.raises(AttributeError, match="no attribute 'of_nothing'"):
        _ = metrics.of_nothing
