"""A run's temperatures: fitted on val/calibrate alone, kept, and frozen everywhere else."""

import dataclasses
import json

import pytest
import torch
from deepens.experiments.comparison.judging import judge
from deepens.experiments.comparison.verdicts import MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.predictions import Predictions, load_metrics
from deepens.experiments.evaluation.temperatures import SCALED, load_temperatures
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import read_json, write_json
from deepens.metrics import WAYS, fit_temperature
from deepens.metrics import evaluate as evaluate_logits
from stored_logits import load_logits

QUIET = Display(quiet=True)


@pytest.mark.parametrize("way", WAYS)
def test_temperatures_are_those_of_the_calibration_split(run, way):
    logits, targets = load_logits(run)["val/calibrate"]
    assert load_temperatures(run)[way] == fit_temperature(logits, targets, way)


@pytest.mark.filterwarnings("ignore:.*in any other order:RuntimeWarning")
@pytest.mark.parametrize("split", ["val/calibrate", "test", "shift/contrast/3"])
@pytest.mark.parametrize("way", WAYS)
def test_scaled_metrics_are_those_of_scaled_logits_also_under_shift(run, way, split):
    logits, targets = load_logits(run)[split]
    scaled = evaluate_logits(load_temperatures(run)[way].scale(logits), targets)
    held = load_metrics(run)[split]
    for name in SCALED:
        assert held[f"{name}_{way}"] == pytest.approx(scaled[name], abs=1e-9)


def test_the_fit_improves_what_it_is_fitted_on(run):
    held = load_metrics(run)["val/calibrate"]
    assert held["nll_pooled"] <= held["nll"] + 1e-12
    assert held["nll_joint"] <= held["nll"] + 1e-12
    assert held["temperature_pooled"] == load_temperatures(run)["pooled"].values[0]


def test_a_single_model_has_one_temperature_whatever_the_way(single_run):
    held = load_metrics(single_run)["test"]
    assert held["nll_pooled"] == pytest.approx(held["nll_member"], abs=1e-9)
    assert held["nll_pooled"] == pytest.approx(held["nll_joint"], abs=1e-9)


def test_without_a_calibration_split_there_is_no_temperature(run):
    index = run.path / "predictions" / "index.json"
    content = read_json(index)
    content["splits"].remove("val/calibrate")
    write_json(index, content)
    evaluate(run)
    assert not run.temperature.exists()
    assert Predictions(run).scaled() is None
    assert not any(name.endswith("_pooled") for name in load_metrics(run)["test"])


@pytest.mark.parametrize(
    "content",
    [
        {"temperatures": [{"way": "pooled"}]},
        {"temperatures": [{"way": "pooled", "values": [-1.0]}]},
        {"temperatures": 3},
    ],
)
def test_damaged_temperatures_are_named(run, content):
    run.temperature.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="temperature.json is missing or damaged; run `deepens ev"):
        Predictions(run).scaled()


def load_values(run, **options):
    predictions = Predictions(run)
    return {n: predictions.values(n, **options) for n in predictions.splits if "shift" not in n}


def summary(name, replicates):
    return MethodSummary(name, name, Cost(1, 1, 1.0, 1.0, 1, 1.0), tuple(replicates))


def test_methods_are_judged_at_the_temperature_too_where_all_have_one(run):
    values, metrics = load_values(run), load_metrics(run)
    replicate = Replicate("a", metrics, values, (), Predictions(run).scaled())
    ours, theirs = summary("ours", [replicate]), summary("theirs", [replicate])
    judged = {v.metric for v in judge(ours, theirs, draws=20, seed=0) if v.split == "test"}
    assert {"nll_pooled", "brier_pooled", "ece_pooled"} <= judged
    bare = summary("bare", [dataclasses.replace(replicate, scaled=None)])
    judged = {v.metric for v in judge(ours, bare, draws=20, seed=0) if v.split == "test"}
    assert not any(name.endswith("_pooled") for name in judged)
    assert "nll" in judged


def test_scaled_values_are_resampled_as_the_metric_is_computed(run):
    scaled = Predictions(run).scaled()
    held = load_metrics(run)["test"]
    assert scaled.nll.mean().item() == pytest.approx(held["nll_pooled"], abs=1e-9)
    assert torch.equal(scaled.correct, Predictions(run).values("test").correct)


def test_values_for_comparisons_leave_out_what_is_never_resampled(run):
    whole, bare = load_values(run), load_values(run, more=False)
    for name, values in bare.items():
        assert values.more is None
        assert not values.detectors
        assert torch.equal(values.confidence, whole[name].confidence)
        assert torch.equal(values.entropy, whole[name].entropy)
