import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepens import metrics
from deepens.metrics import (
    METRICS,
    MeanEvaluation,
    MetricInfo,
    SplitEvaluation,
    evaluate,
    evaluate_values,
    paired_bootstrap,
    register_metric,
    registered_metric,
    sample_values,
    unregister_metric,
)
from deepens.metrics.core.catalogue import metric_info, metrics_with
from deepens.metrics.samples import join_values
from sklearn.metrics import balanced_accuracy_score

ROOT = Path(metrics.__file__).parent

INFO = MetricInfo(
    "balanced_accuracy",
    "Balanced accuracy",
    True,
    "share",
    (0.0, 1.0),
    "Mean over classes of the share of its images that are classified rightly.",
)


def balanced_accuracy(values, weights):
    """All that a contributor writes: from values and weights to one value per draw."""
    classes = torch.nn.functional.one_hot(values.targets).double()
    right = (weights * values.correct) @ classes
    return (right / (weights @ classes)).nanmean(-1)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (60,), generator=generator)
    return torch.randn(2, 60, 4, generator=generator), targets


@pytest.fixture
def registered():
    with registered_metric(INFO, balanced_accuracy):
        yield


def reference(values, weights=None):
    return balanced_accuracy_score(values.targets, values.predicted, sample_weight=weights)


@pytest.mark.usefixtures("registered")
def test_evaluate_computes_a_registered_metric(data):
    expected = reference(sample_values(*data))
    assert evaluate(*data)["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert list(METRICS)[-1] == "balanced_accuracy"
    assert metric_info("balanced_accuracy") is INFO
    assert "balanced_accuracy" in metrics_with(scope="split", role="primary")


@pytest.mark.usefixtures("registered")
def test_every_draw_of_a_bootstrap_counts_samples_by_their_weights(data):
    values = sample_values(*data)
    weights = torch.randint(3, (5, 60), generator=torch.Generator().manual_seed(1))
    found = SplitEvaluation(values)(weights)["balanced_accuracy"]
    expected = [reference(values, row) for row in weights]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    other = sample_values(data[0] + 3 * torch.nn.functional.one_hot(data[1]), data[1])
    sizes, evaluations = [60], [[SplitEvaluation(each)] for each in (other, values)]
    interval = paired_bootstrap(*evaluations, sizes=sizes, draws=50)["balanced_accuracy"]
    assert interval.estimate == pytest.approx(reference(other) - reference(values), abs=1e-12)
    assert 0 < interval.low <= interval.estimate <= interval.high


@pytest.mark.usefixtures("registered")
def test_two_batches_give_what_one_gives(data):
    logits, targets = data
    parts = [sample_values(logits[:, s], targets[s]) for s in (slice(23), slice(23, None))]
    whole = evaluate_values(sample_values(logits, targets))["balanced_accuracy"]
    assert evaluate_values(join_values(parts))["balanced_accuracy"] == whole


@pytest.mark.usefixtures("registered")
def test_the_mean_over_shifted_copies_has_it_too(data):
    copies = [sample_values(*data), sample_values(-data[0], data[1])]
    found = MeanEvaluation(copies)()["balanced_accuracy"].item()
    assert found == pytest.approx(sum(map(reference, copies)) / 2, abs=1e-12)


def test_a_secondary_metric_is_computed_once_and_not_resampled(data):
    info = MetricInfo("b", "B", True, "share", (0.0, 1.0), "B.", role="secondary")
    with registered_metric(info, balanced_accuracy):
        values = sample_values(*data)
        assert evaluate_values(values)["b"] == pytest.approx(reference(values), abs=1e-12)
        assert "b" not in SplitEvaluation(values)()


def test_registration_ends_and_names_are_unique(data):
    before = evaluate(*data)
    with registered_metric(INFO, balanced_accuracy):
        assert set(evaluate(*data)) - set(before) == {"balanced_accuracy"}
        with pytest.raises(ValueError, match="'balanced_accuracy' exists already"):
            register_metric(INFO)
    assert evaluate(*data) == before
    with pytest.raises(ValueError, match="must be a registered metric, got 'accuracy'"):
        unregister_metric("accuracy")
    with pytest.raises(ValueError, match="scope 'split'"):
        register_metric(MetricInfo("x", "X", None, "share", (0.0, 1.0), "", scope="detection"))


def test_a_metric_that_forgets_the_draws_is_refused(data):
    with registered_metric(INFO, lambda values, weights: values.confidence.mean()):
        evaluation = SplitEvaluation(sample_values(*data))
        with pytest.raises(ValueError, match=r"one value per draw, \[3\], got shape \[\]"):
            evaluation(torch.ones(3, 60, dtype=torch.int64))


FILE = '''
"""Accuracy that counts every class alike."""

import torch
from jaxtyping import Float64
from torch import Tensor

from ..core.catalogue import MetricInfo
from ..core.values import SampleValues
from ..registry import register_metric


@register_metric(
    MetricInfo("balanced_accuracy", "Balanced accuracy", True, "share", (0.0, 1.0), "Mean recall.")
)
def balanced_accuracy(
    values: SampleValues, weights: Float64[Tensor, "*draws samples"]
) -> Float64[Tensor, "*draws"]:
    """Return the mean recall over the classes that occur."""
    classes = torch.nn.functional.one_hot(values.targets).double()
    return ((weights * values.correct) @ classes / (weights @ classes)).nanmean(-1)
'''
LINE = "from .scoring import balanced_accuracy as balanced_accuracy\n"
USE = """
import sys, torch
from extended import METRICS, SplitEvaluation, evaluate, sample_values
assert "balanced_accuracy" in METRICS
logits, targets, weights = torch.load(sys.argv[1])
drawn = SplitEvaluation(sample_values(logits, targets))(weights)["balanced_accuracy"]
print(evaluate(logits, targets)["balanced_accuracy"], *drawn.tolist())
"""


@pytest.mark.slow
def test_a_metric_of_the_suite_is_one_file_and_one_line(data, tmp_path):
    package = tmp_path / "extended"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "scoring" / "balanced_accuracy.py").write_text(FILE)
    suite = (package / "suite.py").read_text()
    (package / "suite.py").write_text(suite.replace("from .selective", LINE + "from .selective", 1))
    weights = torch.randint(3, (2, 60), generator=torch.Generator().manual_seed(1))
    torch.save((*data, weights), tmp_path / "data.pt")
    command = [sys.executable, "-c", USE, "data.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    values = sample_values(*data)
    expected = [reference(values), *(reference(values, row) for row in weights)]
    assert [float(each) for each in done.stdout.split()] == pytest.approx(expected, abs=1e-12)
