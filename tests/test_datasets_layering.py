"""Imports inside ``datasets`` run one way."""

import ast
from pathlib import Path

import pytest
from deepens import datasets

ROOT = Path(datasets.__file__).parent
MAY_IMPORT = {
    "ground": {"ground"},
    "augmentation": {"augmentation", "ground"},
    "corruptions": {"corruptions", "ground"},
    "loading": {"loading", "augmentation", "ground"},
    "sources": {"sources", "corruptions", "ground"},
}
FILES = sorted(file for file in ROOT.rglob("*.py") if file != ROOT / "__init__.py")


def _room(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else "ground"


def _imports(file: Path) -> list[Path]:
    """Files of the package that a file imports, relative to the package, wherever it does so."""
    own = file.relative_to(ROOT)
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level <= len(own.parts), f"{own} imports from outside of datasets"
            folder = own.parents[node.level - 1]
            names = [node.module.replace(".", "/")] if node.module else [a.name for a in node.names]
            found += [folder / f"{name}.py" for name in names]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_room_imports_only_what_lies_below_it(file):
    allowed = MAY_IMPORT[_room(file.relative_to(ROOT))]
    assert {_room(each) for each in _imports(file)} <= allowed


def test_no_file_imports_itself_in_a_circle():
    left = {file.relative_to(ROOT): set(_imports(file)) for file in FILES}
    assert any(left.values())
    while left:
        free = [file for file, needed in left.items() if not needed & set(left)]
        assert free, f"these import each other: {sorted(map(str, left))}"
        for file in free:
            del left[file]
