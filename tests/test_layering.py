"""Imports run one way: between the folders, between the rooms of experiments/, and in no circle."""

import ast
import graphlib
from pathlib import Path

import deepens
import pytest

ROOT = Path(deepens.__file__).parent
FLOORS = {
    "datasets": {"datasets"},
    "metrics": {"metrics", "datasets"},
    "ensembles": {"ensembles", "metrics"},
    "experiments": {"experiments", "ensembles", "metrics", "datasets"},
}
ROOMS = (
    "cli",
    "benchmarks",
    "report",
    "comparison",
    "evaluation",
    "training",
    "cost",
    "store",
    "config",
)


def module_of(file: Path) -> tuple[str, ...]:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


FILES = {module_of(file): file for floor in FLOORS for file in sorted((ROOT / floor).rglob("*.py"))}


def imports_of(module: tuple[str, ...], text: str) -> set[tuple[str, ...]]:
    """The modules of the product that a file imports, also inside functions."""
    package = module if FILES[module].name == "__init__.py" else module[:-1]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        start = package[: len(package) - node.level + 1] + tuple((node.module or "").split("."))
        start = tuple(filter(None, start))
        for alias in node.names:
            found.add((*start, alias.name) if (*start, alias.name) in FILES else start)
    return found & FILES.keys()


@pytest.fixture(scope="module")
def graph():
    return {module: imports_of(module, file.read_text()) for module, file in FILES.items()}


def test_folders_import_downwards(graph):
    upward = [
        (".".join(module), ".".join(other))
        for module, others in graph.items()
        for other in others
        if other[0] not in FLOORS[module[0]]
    ]
    assert upward == []


def test_rooms_of_experiments_import_downwards(graph):
    def place(module):
        return ROOMS.index(module[1]) if module[1:] and module[1] in ROOMS else -1

    upward = [
        (".".join(module), ".".join(other))
        for module, others in graph.items()
        for other in others
        if module[0] == other[0] == "experiments" and place(other) < place(module)
    ]
    assert upward == []
    assert {module[1] for module in graph if module[0] == "experiments" and module[1:]} <= {
        *ROOMS,
        *("results", "protocols"),
    }


def test_no_files_import_each_other_in_a_circle(graph):
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(".".join(module) for module in error.args[1]))


SCRIPTS = ("cli", "benchmarks", "protocols")
"""Rooms whose files are commands, or scripts that are run by name."""


def test_only_the_commands_and_the_progress_display_print():
    printing = [
        ".".join(module)
        for module, file in FILES.items()
        if module[:2] not in [("experiments", room) for room in SCRIPTS]
        and module != ("experiments", "store", "progress")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert printing == []
