"""Tests use what users can: no test imports, calls or replaces a private name of the product."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(text: str) -> set[str]:
    """Private names of ``deepens`` in a test's text: imported, used as attributes, or patched."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    ours, used = {"deepens"}, set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deepens":
            parts = node.module.split(".")
            used |= {name for name in parts + [a.name for a in node.names] if private(name)}
            ours |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            used |= {
                part
                for alias in node.names
                if alias.name.split(".")[0] == "deepens"
                for part in alias.name.split(".")
                if private(part)
            }
            ours |= {a.asname for a in node.names if a.asname and a.name.startswith("deepens.")}
    for node in nodes:
        if isinstance(node, ast.Attribute) and private(node.attr) and _root(node.value) in ours:
            used.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"deepens(\.\w+)+", node.value):
                used |= {part for part in node.value.split(".") if private(part)}
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            # monkeypatch.setattr(module, "_name", ...)
            target, name = node.args[:2]
            text = name.value if isinstance(name, ast.Constant) else None
            if isinstance(text, str) and private(text) and _root(target) in ours:
                used.add(text)
    return used


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@pytest.mark.parametrize("name", sorted(file.name for file in TESTS.glob("*.py")))
def test_no_private_name_is_used(name):
    used = private_names((TESTS / name).read_text(encoding="utf-8"))
    assert not used, f"{name} uses {', '.join(sorted(used))}: test what users can call"


@pytest.mark.parametrize(
    "text",
    [
        "from deepens.metrics import _core",
        "from deepens._core import metrics",
        "import deepens._core",
        "from deepens import metrics\nmetrics.core._bins(3)",
        "from deepens.metrics import Ece\nEce._state",
        "import deepens.metrics as m\nmonkeypatch.setattr(m, '_SIZE', 3)",
        "monkeypatch.setattr('deepens.metrics._SIZE', 3)",
    ],
)
def test_private_names_are_found(text):
    assert len(private_names(text)) == 1


def test_other_names_are_not():
    text = "from deepens.metrics import ece\nece.__doc__\nself._x\ndef _helper(): pass\n_helper()"
    assert private_names(text) == set()
