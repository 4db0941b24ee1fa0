"""All metrics in one collection: the values that they have alone, and one sort for them all."""

import gc

import numpy as np
import pytest
import torch
from deepens import metrics
from deepens.metrics.core import ranking
from deepens.metrics.streaming import base
from torchmetrics import MetricCollection

RANKED = (
    "AreaUnderRiskCoverage",
    "ExcessAreaUnderRiskCoverage",
    "AreaUnderGeneralizedRiskCoverage",
    "CoverageAtRisk",
    "RiskAtCoverage",
    "AUROCOfFailures",
)
BINNED = (
    "ExpectedCalibrationError",
    "MaximumCalibrationError",
    "RootMeanSquareCalibrationError",
    "DebiasedSquaredCalibrationError",
)
OTHERS = (
    *("Accuracy", "NegativeLogLikelihood", "BrierScore", "MeanConfidence", "Disagreement"),
    "NormalizedDisagreement",
    *(
        "ConfidenceGap",
        "MutualInformation",
        "PairwiseKL",
        "SmoothCalibrationError",
        "AdaptiveCalibrationError",
    ),
)


def draw(n=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, (n,), generator=generator)
    logits = torch.randn(3, n, 4, generator=generator).round(decimals=1)
    logits[:, torch.arange(n), targets] += 1.5
    return logits, targets


def make():
    members = [getattr(metrics, name)() for name in (*RANKED, *BINNED, *OTHERS)]
    rows = [metrics.ClasswiseCalibrationError(4), metrics.TopLabelCalibrationError(4)]
    pairs = [metrics.QStatistic(3), metrics.ErrorCorrelation(3), metrics.DoubleFault(3)]
    return MetricCollection([*members, *rows, *pairs])


def make_ood(score="entropy"):
    kinds = {
        "auroc": metrics.OODAreaUnderROC(score),
        "aupr_out": metrics.OODAveragePrecision(score),
        "aupr_in": metrics.OODAveragePrecision(score, positive="id"),
        "fpr": metrics.OODFalsePositiveRate(score),
    }
    return MetricCollection(kinds)


def feed(metric, logits, second, size=40):
    for batch, labels in zip(logits.split(size, 1), second.split(size), strict=True):
        metric.update(batch, labels)
    return metric


@pytest.fixture
def sorts(monkeypatch):
    """Sizes of what is sorted."""
    calls = []

    def counting(values):
        calls.append(len(values))
        return argsort(values)

    argsort = np.argsort
    monkeypatch.setattr(ranking.np, "argsort", counting)
    return calls


def test_a_collection_gives_the_values_of_its_metrics_alone():
    logits, targets = draw()
    together = feed(make(), logits, targets).compute()
    for name, alone in make().items():
        value = feed(alone, logits, targets).compute().item()
        assert together[name].item() == pytest.approx(value, abs=1e-14)


def test_metrics_that_are_alike_on_the_first_batch_stay_apart():
    sure, (logits, targets) = torch.zeros(3, 8, 4), draw()
    sure[..., 0] = 50.0  # every mean is 0, or every one 1
    batches = [(sure, torch.zeros(8, dtype=torch.int64)), (logits, targets)]
    together, alone = make(), make()
    detection = MetricCollection(
        {score: metrics.OODAreaUnderROC(score) for score in metrics.SCORES}
    )
    apart = {score: metrics.OODAreaUnderROC(score) for score in metrics.SCORES}
    for batch, labels in batches:
        together.update(batch, labels)
        detection.update(batch, labels == 0)
        for metric in alone.values():
            metric.update(batch, labels)
        for metric in apart.values():
            metric.update(batch, labels == 0)
    found = together.compute()
    for name, metric in alone.items():
        assert found[name].item() == pytest.approx(metric.compute().item(), abs=1e-14), name
    found = detection.compute()
    for score, metric in apart.items():
        assert found[score].item() == pytest.approx(metric.compute().item(), abs=1e-14), score


def test_metrics_with_the_same_states_keep_them_once():
    collection = feed(make(), *draw())
    groups = [set(names) for names in collection.compute_groups.values()]
    assert set(RANKED) in groups
    assert set(BINNED) in groups
    assert {"QStatistic", "ErrorCorrelation", "DoubleFault"} in groups


def test_a_collection_of_selective_metrics_sorts_once(sorts):
    collection = MetricCollection([getattr(metrics, name)() for name in RANKED])
    logits, targets = draw()
    feed(collection, logits, targets)
    collection.compute()
    assert sorts == [150]
    collection.update(logits, targets)
    collection.compute()
    assert sorts == [150, 300]


def test_a_collection_of_detection_metrics_sorts_once(sorts):
    logits, _ = draw()
    collection = feed(make_ood(), logits, torch.arange(150) % 3 == 0)
    values = collection.compute()
    assert sorts == [150]
    for name, alone in make_ood().items():
        expected = feed(alone, logits, torch.arange(150) % 3 == 0).compute()
        assert values[name].item() == pytest.approx(expected.item(), abs=1e-14)


def test_a_shared_result_is_not_used_for_other_or_changed_states():
    shared = base.Shared(lambda states: states.sum().item())
    states = [torch.ones(3), torch.ones(2)]
    assert shared(states) == shared(states) == 5.0
    states[0] += 1
    assert shared(states) == 8.0
    assert shared([states[0]]) == 6.0
    assert shared([torch.zeros(3)]) == 0.0


def test_a_shared_result_goes_with_its_states():
    shared = base.Shared(lambda states: ranking.rank(states))
    states = [torch.rand(5)]
    shared(states)
    assert shared.is_kept
    del states
    gc.collect()
    assert not shared.is_kept


@pytest.mark.parametrize("kind", [make, make_ood])
def test_states_hold_at_most_sixteen_bytes_a_sample(kind):
    logits, targets = draw(n=2000)
    second = targets if kind is make else targets == 0
    for metric in feed(kind(), logits, second).values():
        lists = [state for state in metric.metric_state.values() if isinstance(state, list)]
        held = sum(t.numel() * t.element_size() for state in lists for t in state)
        assert held <= 16 * 2000
