"""A run's predictions are one object: each file is read and hashed once, when it is needed."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import deepens
import pytest
import torch
from deepens.experiments.comparison.stored import load_comparison
from deepens.experiments.evaluation import predictions as module
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.predictions import Predictions
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def reads(monkeypatch):
    """How often each file of tensors, and of JSON, was read, and which were hashed."""
    counts = Counter()

    def counted(function):
        def call(path, *arguments, **options):
            counts[function.__name__, str(path)] += 1
            return function(path, *arguments, **options)

        return call

    for name in ("load_tensors", "hash_file", "read_json"):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return counts


def test_a_report_reads_and_hashes_each_file_once(finished_comparison, reads, unchecked):
    path = finished_comparison.directory()
    few = dataclasses.replace(finished_comparison, draws=100)
    (path / "config.yaml").write_text(few.to_yaml())
    load_comparison(path, display=Display(quiet=True))
    read = {file for kind, file in reads if kind == "load_tensors"}
    assert {str(p) for p in path.glob("*/predictions/**/*.safetensors")} == read
    assert set(reads.values()) == {1}


def test_evaluating_reads_and_hashes_each_file_once(reads, tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    evaluate(Run.open(tmp_path / "run"))
    assert set(reads.values()) == {1}
    assert reads["hash_file", str(tmp_path / "run" / "weights.safetensors")] == 1


def test_nothing_is_read_before_it_is_asked_for(reads):
    predictions = deepens.load_run(GOLDEN / "run").predictions
    assert not reads
    assert predictions.metrics["test"]["n"] == 577
    assert [Path(path).name for _, path in reads] == ["metrics.json"]
    predictions.logits("test")
    predictions.targets("test")
    predictions.values("test")
    assert [Path(path).stem for kind, path in reads if kind == "load_tensors"] == ["test"]


def test_parts_of_a_split_belong_together():
    predictions = Predictions(GOLDEN / "run")
    logits, targets = predictions.logits("test"), predictions.targets("test")
    right = logits.double().softmax(-1).mean(0).argmax(-1) == targets
    assert torch.equal(predictions.values("test").correct, right)
    assert predictions.metrics["test"]["accuracy"] == right.double().mean().item()
    assert predictions.targets("near_ood/digits-8-9") is None
    assert len(logits) == predictions.num_members


def test_a_split_that_was_not_predicted_is_named_with_those_that_were():
    with pytest.raises(ValueError, match=r"no predictions of 'val/select', only of .*test"):
        Predictions(GOLDEN / "run").logits("val/select")
