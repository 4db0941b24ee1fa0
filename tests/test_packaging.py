"""The package as users get it: a wheel, an editable checkout, doctests, types."""

import doctest
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from pathlib import Path

import deepens
import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES_OF_THE_FLOORS = (
    "tests/test_metrics_mixture.py",
    "tests/test_datasets_splits.py",
    "tests/test_deep.py",
    "tests/test_packaging.py",
)
IGNORED = {".git", ".ci", "tests", "runs", "build", "dist", ".venv", "__pycache__"}


def _packages_of_the_tree():
    found = {"deepens"}
    for init in ROOT.rglob("__init__.py"):
        parts = init.parent.relative_to(ROOT).parts
        if parts and not IGNORED & set(parts) and not parts[0].startswith("."):
            found.add(".".join(("deepens", *parts)))
    return found


def _modules():
    yield "deepens"
    for module in pkgutil.walk_packages(deepens.__path__, "deepens."):
        # The root of the checkout is the package: what is no part of it is not in the wheel.
        if module.name.split(".")[1] in ("datasets", "ensembles", "experiments", "metrics"):
            yield module.name


def _copy(target):
    ignore = shutil.ignore_patterns(*(IGNORED - {"tests", ".ci"}), "*.egg-info", ".*_cache")
    shutil.copytree(ROOT, target, ignore=ignore, symlinks=True)


def test_configuration_lists_every_package_of_the_tree():
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(configuration["tool"]["setuptools"]["packages"]) == _packages_of_the_tree()


@pytest.mark.parametrize("name", list(_modules()))
def test_doctests_pass(name):
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_floors_import_downwards_only():
    allowed = {
        "metrics": {"metrics"},
        "datasets": {"datasets"},
        "ensembles": {"ensembles", "metrics"},
        "experiments": {"experiments", "ensembles", "metrics", "datasets"},
    }
    for floor, below in allowed.items():
        for file in (ROOT / floor).rglob("*.py"):
            depth = len(file.relative_to(ROOT).parts) - 1
            text = file.read_text()
            up = re.findall(rf"from \.{{{depth + 1}}}(\w+)[\w.]* import", text)
            assert set(up) <= below, f"{file} imports {set(up) - below}"
            code = re.sub(r'"""[\s\S]*?"""', "", text)
            assert not re.search(r"^\s*(from|import) deepens", code, re.M), file


def test_importing_the_package_is_quick_and_lazy():
    code = "import sys, deepens, deepens.ensembles, deepens.datasets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_files_of_the_library_are_imported_under_one_name():
    """Were one imported under its folder's name too, its classes would exist twice."""
    importlib.import_module("deepens.experiments.config")  # a test process may have none so far
    ours = {
        name: Path(module.__file__).resolve()
        for name, module in list(sys.modules.items())
        if isinstance(getattr(module, "__file__", None), str)
    }
    floors = [ROOT / floor for floor in ("datasets", "ensembles", "experiments", "metrics")]
    ours = {name: file for name, file in ours.items() if not set(floors).isdisjoint(file.parents)}
    assert ours
    assert all(name.startswith("deepens.") for name in ours), ours


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_documents_lead_somewhere(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    for link in links:
        assert (ROOT / link).exists(), link
    assert links or name != "README.md"


def test_types_link_leads_to_the_package():
    link = ROOT / ".ci" / "types" / "deepens"
    assert link.is_symlink()
    assert os.readlink(link) == "../.."


@pytest.mark.slow
def test_examples_of_the_readme_run(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    training, _ = [
        subprocess.run(
            [sys.executable, "-c", each], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        for each in examples
    ]
    assert "'accuracy': 0.9" in training.stdout
    assert "'auroc_entropy': 0.9" in training.stdout
    assert (tmp_path / "runs" / "deep" / "metrics.json").exists()


@pytest.mark.slow
def test_types_resolve_and_check():
    pytest.importorskip("mypy")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", os.devnull],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"MYPYPATH": str(ROOT / ".ci" / "types")},
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_wheel_holds_every_package_and_no_foreign_top_level(tmp_path):
    _copy(tmp_path / "source")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
            "--wheel-dir", str(tmp_path), str(tmp_path / "source"),
        ],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"deepens"}
    packages = {
        name.removesuffix("/__init__.py").replace("/", ".")
        for name in names
        if name.endswith("/__init__.py")
    }
    assert packages == _packages_of_the_tree()
    assert "deepens/py.typed" in names
    assert {f"deepens/experiments/report/{n}" for n in ("style.css", "script.js")} <= set(names)
    assert not any({"tests", ".ci"} & set(name.split("/")) for name in names)


@pytest.mark.slow
def test_tests_run_in_a_folder_of_another_name(tmp_path):
    """What breaks there is that the package is called after its folder.

    ``conftest.py`` or pytest's own collection that imports by the folder's name, or a file imported
    a second time under it, shows when one file of each floor is run. ``.ci/run`` runs all tests in
    such a folder.
    """
    _copy(tmp_path / "deepens-main")
    # The checkout stands in for an editable install: a link of the package's name on the path.
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "deepens").symlink_to(tmp_path / "deepens-main")
    code = "import deepens, sys; sys.stdout.write(deepens.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "path")}
    where = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in where.stdout
    command = [sys.executable, "-m", "pytest", "-n", "0", "-rA", "-k", "not doctests"]
    done = subprocess.run(
        [*command, *FILES_OF_THE_FLOORS],
        cwd=tmp_path / "deepens-main",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    for file in FILES_OF_THE_FLOORS:
        assert f"PASSED {file}::" in done.stdout
