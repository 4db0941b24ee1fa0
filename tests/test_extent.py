"""A quick evaluation leaves out what takes long, says so, and is completed without repetition."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from deepens.experiments.cli.commands import run_evaluate
from deepens.experiments.comparison.compare import compare
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.evaluation import predict_splits
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.options import EvaluateConfig
from deepens.experiments.evaluation.predictions import Predictions
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.report import build_report
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run

GOLDEN = Path(__file__).parent / "golden"
QUICK = {"members": 2, "epochs": 1, "quiet": True}
FIVE = ("gaussian_noise", "impulse_noise", "gaussian_blur", "brightness", "contrast")
PREDICTED = ("metrics.json", "temperature.json", "predictions")

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def quick_run(once, shifted_splits):
    """The path of a run as ``deepens train`` evaluates it by default; tests must not change it."""

    def make(path):
        train_and_evaluate(TrainConfig(**QUICK, out=str(path)), splits=shifted_splits)

    return once("quick", make)


@pytest.fixture
def again(quick_run, tmp_path, monkeypatch):
    """A copy of the run, and the splits on which networks have been run since."""
    shutil.copytree(quick_run, tmp_path / "run")
    predicted = []
    network = predict_splits.predict_batches

    def spy(ensemble, loaded, detectors=None):
        predicted.append(loaded)
        return network(ensemble, loaded, detectors)

    monkeypatch.setattr(predict_splits, "predict_batches", spy)
    return tmp_path / "run", predicted


class _Shown(Display):
    """Remembers the tasks that it shows."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tasks = {}

    @contextlib.contextmanager
    def task(self, name, total, **options):
        with super().task(name, total, **options) as task:
            self.tasks[name] = task
            yield task


def _contents(path):
    files = [path / name for name in PREDICTED]
    files = [f for each in files for f in ([each] if each.is_file() else each.rglob("*"))]
    return {f.relative_to(path): f.read_bytes() for f in sorted(files) if f.is_file()}


def test_quick_is_the_default_of_train_and_full_that_of_compare():
    assert TrainConfig().evaluate == "quick"
    assert CompareConfig().evaluate == "full"


def test_quick_leaves_out_corrupted_copies_and_gradients(quick_run, shifted_splits):
    held = Predictions(quick_run)
    assert held.extent == "quick"
    assert set(held.metrics) == set(shifted_splits.names("test", "val", "near_ood", "far_ood")) - {
        "val/select"
    }
    assert held.unpredicted == shifted_splits.names("shift")
    assert held.gradients == {}
    assert held.unmeasured == (
        "5 corrupted copies of the test images",
        "the similarity of the members' input gradients",
    )


def test_completed_it_is_what_a_full_evaluation_makes(again, shifted_splits, tmp_path):
    path, predicted = again
    evaluate(Run.open(path), extent="full", splits=shifted_splits)
    assert len(predicted) == len(shifted_splits.names("shift"))
    whole = TrainConfig(**QUICK, evaluate="full", out=str(tmp_path / "whole"))
    train_and_evaluate(whole, splits=shifted_splits)
    assert _contents(path) == _contents(tmp_path / "whole")
    assert Predictions(path).unmeasured == ()


def test_training_again_adds_what_is_asked_for_and_keeps_the_rest(again, shifted_splits):
    path, predicted = again
    config = TrainConfig(**QUICK, out=str(path))
    train_and_evaluate(config, splits=shifted_splits)
    assert predicted == []
    named = TrainConfig(**QUICK, corruptions=FIVE, out=str(path))
    train_and_evaluate(named, splits=shifted_splits)  # what is named wins over quick
    assert len(predicted) == 5
    held = Predictions(path)
    assert held.unmeasured == ("the similarity of the members' input gradients",)
    before = held.shift, {split: held.shift_values[split].nll for split in held.shift}
    full = TrainConfig(**QUICK, evaluate="full", out=str(path))
    train_and_evaluate(full, splits=shifted_splits)
    held = Predictions(path)
    assert len(predicted) == 5
    assert held.unmeasured == ()
    assert held.shift == before[0]
    assert all(held.shift_values[name].nll.equal(nll) for name, nll in before[1].items())
    assert set(held.gradients) == set(shifted_splits.names("test", "shift", "near_ood", "far_ood"))
    train_and_evaluate(config, splits=shifted_splits)  # quick again: nothing is taken away
    assert (len(predicted), Predictions(path).extent) == (5, "full")


def test_predicting_again_measures_what_was_measured(again, shifted_splits):
    path, predicted = again
    before = _contents(path)
    evaluate(Run.open(path), predict=True, splits=shifted_splits)
    assert len(predicted) == 5  # two validation parts, test, near and far OOD
    assert _contents(path) == before


def test_evaluate_says_what_is_there_and_what_is_not(again, capsys):
    path, _ = again
    assert run_evaluate(EvaluateConfig(str(path), quiet=True)) == 0
    said = capsys.readouterr().out.splitlines()
    assert "predicted: 2 validation parts, test, 1 near OOD set, 1 far OOD set" in said
    assert (
        "not measured: 5 corrupted copies of the test images and the similarity of the members' "
        f"input gradients; `deepens evaluate {path} --evaluate full` adds them"
    ) in said


def test_runs_of_earlier_versions_were_evaluated_in_full(tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.config.evaluate == "full"
    assert Predictions(run).unmeasured == ()
    before = _contents(run.path)["predictions" / Path("index.json")]
    evaluate(run, extent="full")  # has no weights to predict with: nothing is missing
    assert _contents(run.path)["predictions" / Path("index.json")] == before


def test_a_quick_comparison_says_so_where_results_would_stand(shifted_splits, tmp_path):
    options = {"methods": ("single", "deep"), "members": 2, "replicates": 1, "draws": 100}
    options |= {"epochs": 1, "quiet": True, "out": str(tmp_path)}
    quick = compare(CompareConfig(**options, evaluate="quick"), splits=shifted_splits)
    assert quick.unmeasured == ("shift", "gradients")
    sections = {section.anchor: str(section.blocks) for section in build_report(quick).sections}
    assert "Corrupted copies of the test images were not measured" in sections["shift"]
    assert "similarity of input gradients was not measured" in sections["diversity"]
    weights = {p: p.read_bytes() for p in tmp_path.glob("*/weights.safetensors")}
    shown = _Shown(quiet=True)
    full = compare(CompareConfig(**options), splits=shifted_splits, display=shown)
    ends = {name: task.done == task.total > 0 for name, task in shown.tasks.items()}
    wanted = ("measure costs", "choose example pictures", "compare methods by paired bootstrap")
    assert [ends[name] for name in wanted] == [True] * 3
    assert full.unmeasured == ()
    assert weights == {p: p.read_bytes() for p in weights}
    index = json.loads((tmp_path / "deep-0" / "predictions" / "index.json").read_text())
    assert set(index["shift"]) == set(shifted_splits.names("shift"))
