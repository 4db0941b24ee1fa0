"""Shape checking for the whole library, and trained runs that are made once per test session.

With ``DEEPENS_SHAPES=1`` shapes and types of all annotated functions are checked; the check is
switched on before anything of the library is imported. It doubles the time of the suite, so CI has
one pass with it, and it is off while the shared runs below are made, and in tests that ask for
``unchecked``.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # One core per worker: threads of two processes would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest
import torch
from filelock import FileLock
from hypothesis import settings

if os.environ.get("DEEPENS_SHAPES"):
    jaxtyping.install_import_hook("deepens", "beartype.beartype")

# A check of a change must not fail by chance; `--hypothesis-profile=default` draws new examples.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

GOLDEN = Path(__file__).parent / "golden"


@contextlib.contextmanager
def shapes_unchecked() -> Iterator[None]:
    """Switch shape checking off for a while."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same seeds: what it draws depends on no test before it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked():
    """Switch shape checking off, as it is for users: what a library refuses, it refuses itself."""
    with shapes_unchecked():
        yield


@pytest.fixture(scope="session")
def shifted_splits():
    """The digits, of the shifted splits those of less contrast only, so that predicting is quick.

    Loaded once per process; tests must not write into it.
    """
    from deepens.datasets import load

    with shapes_unchecked():
        digits = load("digits")
    few = {n: s for n, s in digits.splits.items() if not n.startswith("shift/") or "contrast" in n}
    return dataclasses.replace(digits, splits=few)


@pytest.fixture(scope="session")
def splits(shifted_splits):
    """The data of most tests, by its short name; a file may use other data by this name."""
    return shifted_splits


@pytest.fixture(scope="session")
def few_splits():
    """The digits without any shifted split."""
    from deepens.datasets import load
    from deepens.experiments.config import TrainConfig

    with shapes_unchecked():
        return load(TrainConfig(corruptions=("none",)))


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a directory once per test session, by whichever worker needs it first.

    ``once(name, make)`` calls ``make(path)`` without shape checking where no process of this
    session has, waits where another one is at it, and returns the path. Tests must not change what
    is there; they copy it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def get(name: str, make: Callable[[Path], object]) -> Path:
        path = root / "shared" / name
        path.parent.mkdir(exist_ok=True)
        finished = path.with_name(f"{name}.finished")
        with FileLock(f"{path}.lock"):
            if not finished.exists():
                shutil.rmtree(path, ignore_errors=True)
                with shapes_unchecked():
                    make(path)
                finished.touch()
        return path

    return get


@pytest.fixture(scope="session")
def shared_run(once, shifted_splits, few_splits):
    """Train, predict and evaluate a run once per test session: ``shared_run(name, **options)``.

    The options are those of `TrainConfig`; a name belongs to one set of options. Corrupted splits
    are left out unless ``shifted``, which gives those of `shifted_splits`. Tests must not change
    the run; `copy_run` gives them a copy.
    """
    from deepens.experiments.config import TrainConfig
    from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
    from deepens.experiments.store.run import Run

    def get(name: str, *, shifted: bool = False, **options):
        data = shifted_splits if shifted else few_splits
        if not shifted:
            options["corruptions"] = ("none",)
        options = {"quiet": True, "evaluate": "full", **options}
        config = TrainConfig(**options, out=name)
        path = once(name, lambda at: train_and_evaluate(_at(config, at), splits=data))
        run = Run.open(path, device=config.device)
        assert not run.config.differences(_at(config, path)), (
            f"{name} is trained with other options elsewhere"
        )
        return run

    return get


@pytest.fixture(scope="session")
def shared_comparison(once, shifted_splits):
    """Make a comparison once per test session: ``shared_comparison(name, **options)``.

    The options are those of `CompareConfig`. Returns the configuration, whose directory tests must
    not change.
    """
    from deepens.experiments.comparison.compare import compare
    from deepens.experiments.config import CompareConfig

    def get(name: str, **options):
        config = CompareConfig(**{"draws": 200, "quiet": True, **options}, out=name)
        return _at(config, once(name, lambda at: compare(_at(config, at), splits=shifted_splits)))

    return get


@pytest.fixture(scope="session")
def trained_run(shared_run):
    """A deep ensemble of three on the digits: all splits predicted, all logits kept."""
    return shared_run("deep", shifted=True, members=3, epochs=4, keep_logits=True)


@pytest.fixture(scope="session")
def single_run(shared_run):
    """A single model on the digits, without corrupted splits."""
    return shared_run("single", members=1, epochs=2)


@pytest.fixture(scope="session")
def packed_run(shared_run):
    """A packed ensemble of two on the digits, without corrupted splits."""
    return shared_run("packed", ensemble="packed", members=2, epochs=2)


@pytest.fixture(scope="session")
def lora_run(shared_run):
    """A LoRA-ensemble of two on a very small transformer, without corrupted splits."""
    from deepens.ensembles import LoRA

    return shared_run(
        "lora", ensemble="lora", members=2, epochs=2, base_epochs=1, lora=LoRA(rank=2),
        backbone="vit-micro/4", width=0.25, depth=0.5, seed=4,
    )  # fmt: skip


@pytest.fixture
def copy_run(tmp_path):
    """Copy a run into a directory that the test may change: ``copy_run(run, name="run")``."""
    from deepens.experiments.store.run import Run

    def get(run, name: str = "run"):
        shutil.copytree(run.path, tmp_path / name)
        return Run(tmp_path / name, _at(run.config, tmp_path / name))

    return get


@pytest.fixture
def run(trained_run, copy_run):
    """A copy of `trained_run` that the test may change."""
    return copy_run(trained_run)


@pytest.fixture
def finished_comparison(tmp_path):
    """A copy of the golden comparison, which the test may change: its configuration.

    Methods ``single``, ``wide``, ``deep``, ``packed`` and ``cascade-deep`` in two replicates, with
    two of the shifted splits; nothing has to be trained for it.
    """
    from deepens.experiments.config import CompareConfig
    from deepens.experiments.store.run import read_config

    path = tmp_path / "comparison"
    shutil.copytree(GOLDEN / "comparison", path)
    return _at(read_config(path, CompareConfig), path)


@pytest.fixture(scope="session")
def loaded() -> Callable[[Path], object]:
    """Load a comparison with its verdicts, once per process and without shape checking."""
    from deepens.experiments.comparison.stored import load_comparison

    @functools.cache
    def get(path: Path):
        with shapes_unchecked():
            return load_comparison(path)

    return get


@pytest.fixture(scope="session")
def loaded_comparison(loaded):
    """The golden comparison, with its verdicts."""
    return loaded(GOLDEN / "comparison")


def _at(config, path: Path):
    return type(config)(**{**vars(config), "out": str(path)})
