"""What validation images do not determine is not used or judged, and said where it would stand."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from deepens.datasets import Split
from deepens.experiments.cli.compare_command import rebuild
from deepens.experiments.cli.entry import main
from deepens.experiments.comparison.stored import load_comparison
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.predictions import Predictions, load_metrics
from deepens.experiments.evaluation.temperatures import load_temperatures, load_unidentified
from deepens.experiments.evaluation.validation_fit import ValidationFit
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run
from deepens.metrics import Temperature, fit_conformal, fit_temperature
from deepens.metrics.conformal.prediction_sets import least_samples
from deepens.metrics.core.catalogue import metrics_with

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.usefixtures("unchecked")


def draw(n, *, right=False, members=2, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(members, n, classes, generator=generator)
    targets = torch.randint(classes, (n,), generator=generator)
    gain = torch.full((members, n, 1), 20.0 if right else 2.0)
    logits = logits.scatter_add(2, targets.expand(members, n)[..., None], gain)
    return logits, targets


def fitted(calibrate, conform, **options):
    fit = ValidationFit(**options)
    fit.fit("val/calibrate", *calibrate)
    fit.fit("val/conform", *conform)
    return fit


@pytest.mark.filterwarnings("ignore:temperature")
@pytest.mark.parametrize("way", ["pooled", "joint", "member"])
def test_a_temperature_of_images_that_are_all_right_is_not_used(way):
    fit = fitted(draw(74, right=True), draw(50))
    assert fit.temperatures[way].unidentified.startswith("all 74 calibration images right")
    found = fit.metrics("test", *draw(80, seed=1))
    keys = [key for key in metrics_with(scope="temperature", way=way) if key in found]
    assert len(keys) >= 4
    assert all(math.isnan(found[key]) for key in keys)
    assert found["coverage_lac"] > 0.5


def test_a_temperature_inside_its_search_is_used():
    fit = fitted(draw(74), draw(50))
    assert not any(each.unidentified for each in fit.temperatures.values())
    assert math.isfinite(fit.metrics("test", *draw(80, seed=1))["nll_pooled"])


def test_a_temperature_at_the_upper_bound_says_so():
    logits, targets = draw(60, right=True)
    with pytest.warns(RuntimeWarning, match="bound of its search, 20"):
        found = fit_temperature(logits, (targets + 1) % 3)
    assert found.unidentified == "at 20, the bound of its search"
    assert Temperature.from_dict(found.to_dict()) == found


def test_old_files_with_a_temperature_at_its_bound_are_not_used_either():
    old = {"way": "pooled", "values": [0.05000000000000001]}
    assert Temperature.from_dict(old).unidentified == "at 0.05, the bound of its search"
    assert not Temperature.from_dict(old | {"values": [0.06]}).unidentified


@pytest.mark.parametrize(("alpha", "least"), [(0.1, 9), (0.05, 19), (0.3, 3), (0.01, 99)])
def test_as_many_conformal_samples_as_the_threshold_needs(alpha, least):
    assert least_samples(alpha) == least
    log_probs, targets = draw(least, members=1)
    log_probs = log_probs[0].log_softmax(-1)
    assert math.isfinite(fit_conformal(log_probs, targets, alpha=alpha).threshold)
    with pytest.warns(RuntimeWarning, match=f"alpha={alpha} needs >= {least} .* got {least - 1}"):
        few = fit_conformal(log_probs[1:], targets[1:], alpha=alpha)
    assert few.sets(log_probs).all()


@pytest.mark.parametrize(("n", "known"), [(8, False), (9, True)])
def test_sets_of_too_few_images_have_no_coverage(n, known):
    fit = fitted(draw(74), draw(n))
    found = fit.metrics("test", *draw(80, seed=1))
    assert fit.sets_unidentified == ("" if known else "8 val/conform images, of at least 9 for 90%")
    for key in metrics_with(scope="conformal"):
        assert math.isfinite(found[key]) == known


@pytest.mark.parametrize(("copies", "used"), [(0, True), (1, True), (44, False)])
def test_nothing_is_fitted_on_training_images(copies, used):
    copied = {"val/calibrate": copies, "val/conform": copies}
    fit = fitted(draw(45), draw(45), copied=copied)
    why = "" if used else "44 of 45 {} images are training images"
    assert fit.temperatures["pooled"].unidentified == why.format("val/calibrate")
    assert fit.sets_unidentified == why.format("val/conform")
    found = fit.metrics("test", *draw(80, seed=1))
    assert math.isfinite(found["ece_pooled"]) == math.isfinite(found["coverage_aps"]) == used


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_run_keeps_the_reasons_and_says_them(tmp_path, capsys):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    run = Run.open(tmp_path / "run")
    index = tmp_path / "run" / "predictions" / "index.json"
    rewrite(index, copied={"val/calibrate": 70, "val/conform": 74})
    evaluate(run)
    assert load_unidentified(run)["conformal"] == "74 of 74 val/conform images are training images"
    assert load_temperatures(run)["pooled"].unidentified.startswith("70 of 74 val/calibrate")
    held = load_metrics(run)["test"]
    assert math.isnan(held["nll_pooled"])
    assert math.isnan(held["coverage_lac"])
    assert Predictions(run).scaled() is None
    assert main(["evaluate", str(run.path), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert (
        "not identified (70 of 74 val/calibrate images are training images), and not used: " in said
    )
    assert "conformal sets" in said


def test_predicting_counts_validation_images_that_are_training_images(
    single_run, copy_run, few_splits
):
    run = copy_run(single_run)
    training, known = few_splits["train"], few_splits["val/calibrate"]
    chosen = torch.arange(len(known))
    copied = Split(training.images[chosen], training.targets[chosen])
    splits = {**few_splits.splits, "val/calibrate": copied}
    mixed = dataclasses.replace(few_splits, splits=splits)
    evaluate(run, predict=True, splits=mixed)
    assert Predictions(run).copied == {"val/calibrate": len(known), "val/conform": 0}
    why = f"{len(known)} of {len(known)} val/calibrate images are training images"
    assert load_unidentified(run)["pooled"] == why
    assert math.isnan(load_metrics(run)["test"]["nll_pooled"])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    path = tmp_path_factory.mktemp("not identified") / "comparison"
    shutil.copytree(GOLDEN / "comparison", path)
    for name in ("deep-0", "deep-1"):
        at_bound = [{"way": "pooled", "values": [0.05]}, {"way": "joint", "values": [0.3]}]
        rewrite(path / name / "temperature.json", temperatures=at_bound)
    rebuild(path, display=Display(quiet=True))
    return load_comparison(path), path


def test_a_comparison_judges_only_what_is_identified(comparison):
    found, _ = comparison
    judged = {(v.challenger, v.metric) for v in found.against_singles}
    assert ("deep", "nll") in judged
    assert ("deep", "nll_pooled") not in judged
    assert ("packed", "nll_pooled") in judged
    [note] = [note for note in found.verdict_notes if "temperature" in note]
    assert "deep (at 0.05, the bound of its search)" in note


def test_a_report_says_it_where_it_would_have_stood(comparison):
    found, path = comparison
    [deep] = [method for method in found.methods if method.name == "deep"]
    assert all(math.isnan(each.metrics["test"]["nll_pooled"]) for each in deep.replicates)
    assert all(math.isfinite(each.metrics["test"]["nll_joint"]) for each in deep.replicates)
    text = (path / "report.md").read_text()
    assert "not identified (at 0.05, the bound of its search)" in text
    assert "not identified" in (path / "report.html").read_text()
