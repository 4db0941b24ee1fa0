"""A run's conformal sets: fitted on val/conform alone, and evaluated on all labelled splits."""

import pytest
import torch
from deepens.experiments.evaluation import validation_fit
from deepens.experiments.evaluation.evaluate import evaluate
from deepens.experiments.evaluation.predictions import load_metrics
from deepens.experiments.evaluation.validation_fit import fit_sets, set_metrics
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import read_json, write_json
from deepens.metrics.conformal.prediction_sets import ConformalSets
from stored_logits import load_logits

QUIET = Display(quiet=True)
pytestmark = pytest.mark.usefixtures("unchecked")  # whole trainings; their parts are checked


def by_hand(logits, targets, fitted_on, labels):
    """LAC at alpha = 0.1 from the members' mean softmax: a loop, as one would write it first."""
    mean = logits.double().softmax(-1).mean(0)
    scores = 1 - fitted_on.double().softmax(-1).mean(0)[torch.arange(len(labels)), labels]
    threshold = sorted(scores.tolist())[-(-(len(labels) + 1) * 9 // 10) - 1]
    sets = [[c for c, p in enumerate(row) if 1 - p <= threshold + 1e-12] for row in mean.tolist()]
    hits = [int(label) in each for label, each in zip(targets, sets, strict=True)]
    by_class = {}
    for label, hit in zip(targets.tolist(), hits, strict=True):
        by_class.setdefault(label, []).append(hit)
    by_size = {}
    for each, hit in zip(sets, hits, strict=True):
        by_size.setdefault(len(each), []).append(hit)
    large = [v for size, v in by_size.items() if size and len(v) >= 0.05 * len(sets)]
    return {
        "coverage_lac": sum(hits) / len(hits),
        "set_size_lac": sum(map(len, sets)) / len(sets),
        "empty_sets_lac": sum(not each for each in sets) / len(sets),
        "worst_class_coverage_lac": min(sum(v) / len(v) for v in by_class.values()),
        "worst_size_coverage_lac": min(
            (sum(v) / len(v) for v in large), default=sum(hits) / len(hits)
        ),
    }


@pytest.mark.parametrize("split", ["test", "val/calibrate", "shift/contrast/1"])
def test_sets_are_fitted_on_val_conform_also_under_shift(run, split):
    logits = load_logits(run)
    held = load_metrics(run)[split]
    for name, value in by_hand(*logits[split], *logits["val/conform"]).items():
        assert held[name] == pytest.approx(value, abs=1e-12), name
    assert 0 < held["coverage_aps"] <= 1
    assert not any(name.startswith("set_size_") for name in load_metrics(run)["val/conform"])


def test_metrics_do_not_depend_on_how_samples_are_cut(run, monkeypatch):
    logits = load_logits(run)
    fitted = fit_sets(*logits["val/conform"])
    whole = set_metrics(*logits["test"], fitted)
    monkeypatch.setattr(validation_fit, "CHUNK", 2 * 8 * 100)
    assert set_metrics(*logits["test"], fitted) == pytest.approx(whole, abs=0)


@pytest.mark.parametrize(("others", "worst"), [(38, 0.0), (39, 1.0)])
def test_coverage_of_a_size_that_few_sets_have_is_left_out(others, worst):
    # Two images with one class in the set, the wrong one; sets of the others hold both classes.
    logits = torch.zeros(1, 2 + others, 2)
    logits[:, :2, 1] = 5.0
    sets = {"lac": ConformalSets("lac", 0.9, 0.1)}
    held = set_metrics(logits, torch.zeros(2 + others, dtype=torch.long), sets)
    assert held["worst_size_coverage_lac"] == worst
    assert held["coverage_lac"] == pytest.approx(others / (2 + others))


def test_without_a_split_to_fit_on_there_are_no_sets(run):
    index = run.path / "predictions" / "index.json"
    content = read_json(index)
    content["splits"].remove("val/conform")
    write_json(index, content)
    assert not any("_lac" in name for name in evaluate(run)["test"])


def test_where_nearly_all_sets_are_empty_the_worst_size_is_told_as_all():
    sets = {"lac": ConformalSets("lac", 0.1, 0.1)}  # only what is 90 % certain
    held = set_metrics(torch.zeros(1, 50, 4), torch.zeros(50, dtype=torch.long), sets)
    assert held["empty_sets_lac"] == 1.0
    assert held["worst_size_coverage_lac"] == held["coverage_lac"] == 0.0
