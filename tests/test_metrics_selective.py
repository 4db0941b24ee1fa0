import numpy as np
import pytest
import torch
from deepens.metrics import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    auroc_of_failures,
    coverage_at_risk,
    excess_area_under_risk_coverage,
    risk_at_coverage,
    risk_coverage_curve,
)
from sklearn.metrics import roc_auc_score

METRICS = {
    "aurc": area_under_risk_coverage,
    "augrc": area_under_generalized_risk_coverage,
    "auroc_f": auroc_of_failures,
    "e-aurc": excess_area_under_risk_coverage,
    "coverage": lambda confidence, correct, weights=None: coverage_at_risk(
        confidence, correct, 0.3, weights
    ),
    "risk": lambda confidence, correct, weights=None: risk_at_coverage(
        confidence, correct, 0.6, weights
    ),
}


def draw(n=150, levels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, dtype=torch.float64, generator=generator)
    if levels is not None:
        confidence = (confidence * levels).floor() / levels
    return confidence, torch.rand(n, generator=generator) < 0.4 + 0.5 * confidence


def spread_errors(confidence, correct):
    """Sort by confidence and give every error its tie-block mean, the slow way."""
    order = np.argsort(-confidence, kind="stable")
    confidence, errors = confidence[order], 1.0 - correct[order]
    mean = np.array([errors[confidence == value].mean() for value in confidence])
    is_end = np.append(confidence[:-1] != confidence[1:], True)
    return np.cumsum(mean), is_end


def brute_force(confidence, correct):
    errors, is_end = spread_errors(confidence, correct)
    n, k = len(errors), np.arange(1, len(errors) + 1)
    number = round(errors[-1])
    risk, coverage = errors / k, k / n
    good = coverage[is_end & (risk <= 0.3 + 1e-12)]
    return {
        "aurc": risk.mean(),
        "augrc": ((errors + np.append(0, errors[:-1])) / 2).sum() / n**2,  # trapezoids
        "auroc_f": roc_auc_score(correct, confidence),
        "e-aurc": risk.mean() - sum((j - n + number) / j for j in k if j > n - number) / n,
        "coverage": good.max() if len(good) else 0.0,
        "risk": risk[is_end & (coverage >= 0.6 - 1e-12)][0],
    }


@pytest.mark.parametrize("levels", [None, 2, 5, 30])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", METRICS)
def test_equals_brute_force(name, levels, seed):
    confidence, correct = draw(levels=levels, seed=seed)
    reference = brute_force(confidence.numpy(), correct.numpy())[name]
    assert METRICS[name](confidence, correct).item() == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("name", METRICS)
def test_weights_equal_repeated_data(name, levels):
    confidence, correct = draw(levels=levels)
    weights = torch.randint(0, 4, (6, 150), generator=torch.Generator().manual_seed(3))
    weights[0, confidence > 0.5] = 0  # whole blocks absent from the top
    values = METRICS[name](confidence, correct, weights=weights)
    for row, value in zip(weights, values, strict=True):
        repeated = METRICS[name](confidence.repeat_interleave(row), correct.repeat_interleave(row))
        assert value.item() == pytest.approx(repeated.item(), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_does_not_depend_on_the_order_of_samples(name):
    confidence, correct = draw(levels=6)
    value = METRICS[name](confidence, correct)
    for seed in range(5):
        order = torch.randperm(150, generator=torch.Generator().manual_seed(seed))
        assert METRICS[name](confidence[order], correct[order]).item() == value.item()


def test_golden_risks_and_area():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    correct = torch.tensor([True, True, False, True, False])
    curve = risk_coverage_curve(confidence, correct)
    np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3, 1 / 4, 2 / 5], atol=1e-15)
    np.testing.assert_allclose(curve.coverage, [0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-15)
    assert area_under_risk_coverage(confidence, correct).item() == pytest.approx(
        59 / 300, abs=1e-15
    )


@pytest.mark.parametrize(
    ("confidence", "correct", "value"),
    [
        ([0.9, 0.5], [True, False], 0.125),
        ([0.9, 0.5], [False, True], 0.375),
        ([0.5] * 4, [True, False, True, False], 0.25),
    ],
)
def test_golden_generalized_areas(confidence, correct, value):
    area = area_under_generalized_risk_coverage(torch.tensor(confidence), torch.tensor(correct))
    assert area.item() == value


@pytest.mark.parametrize("levels", [None, 5])
def test_generalized_area_is_ranking_and_accuracy(levels):
    confidence, correct = draw(levels=levels)
    accuracy, auroc = correct.double().mean().item(), roc_auc_score(correct, confidence)
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    area = area_under_generalized_risk_coverage(confidence, correct).item()
    assert area == pytest.approx(expected, abs=1e-12)


def test_excess_area_is_zero_when_errors_are_the_least_confident():
    confidence = torch.linspace(1, 0, 40, dtype=torch.float64)
    area = excess_area_under_risk_coverage(confidence, torch.arange(40) < 27)
    assert area.item() == pytest.approx(0.0, abs=1e-14)


def test_coverage_is_the_largest_even_past_a_riskier_stretch():
    confidence = torch.linspace(1, 0, 20, dtype=torch.float64)
    correct = torch.arange(20) != 0
    assert coverage_at_risk(confidence, correct, 0.05).item() == 1.0
    assert coverage_at_risk(confidence[:19], correct[:19], 0.05).item() == 0.0


def test_a_threshold_cannot_split_a_tie():
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.1])
    correct = torch.tensor([True, True, False, False])
    assert coverage_at_risk(confidence, correct, 0.2).item() == 0.25
    assert risk_at_coverage(confidence, correct, 0.5).item() == pytest.approx(1 / 3)


def test_all_right_and_all_wrong_are_the_extremes():
    confidence = torch.rand(30, dtype=torch.float64)
    right = torch.ones(30, dtype=torch.bool)
    for correct, area, half, coverage in ((right, 0.0, 0.0, 1.0), (~right, 1.0, 0.5, 0.0)):
        assert area_under_risk_coverage(confidence, correct).item() == pytest.approx(area)
        assert area_under_generalized_risk_coverage(confidence, correct).item() == half
        assert coverage_at_risk(confidence, correct).item() == coverage
        assert excess_area_under_risk_coverage(confidence, correct).item() == pytest.approx(0)


def test_bad_bounds_are_refused():
    confidence, correct = draw()
    with pytest.raises(ValueError, match=r"risk must lie in \[0, 1\], got 1.5"):
        coverage_at_risk(confidence, correct, 1.5)
    with pytest.raises(ValueError, match=r"coverage must lie in \(0, 1\], got 0"):
        risk_at_coverage(confidence, correct, 0.0)


@pytest.mark.parametrize("levels", [None, 3])
def test_generalized_area_is_made_of_failure_detection_and_accuracy(levels):
    confidence, correct = draw(levels=levels)
    accuracy = correct.double().mean().item()
    failures = auroc_of_failures(confidence, correct).item()
    expected = (1 - failures) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    value = area_under_generalized_risk_coverage(confidence, correct).item()
    assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("right", [True, False])
def test_auroc_of_failures_without_both_kinds_is_nan_with_a_warning(right):
    with pytest.warns(RuntimeWarning, match="AUROC of failures is undefined where all"):
        assert auroc_of_failures(torch.rand(5), torch.full((5,), right)).isnan()
