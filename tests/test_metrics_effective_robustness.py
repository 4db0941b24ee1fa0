"""Effective robustness against numpy's line, and its intervals by brute force."""

import math

import numpy as np
import pytest
import torch
from deepens.metrics import resampling_weights
from deepens.metrics.statistics.effective_robustness import (
    effective_robustness,
    fit_robustness_line,
)
from scipy import special, stats


def draw(n=8, seed=0, noise=0.1):
    """Accuracies of single models around a line in logits."""
    random = np.random.default_rng(seed)
    x = random.normal(1.5, 0.6, n)
    y = -0.5 + 0.9 * x + noise * random.normal(size=n)
    return torch.from_numpy(special.expit(x)), torch.from_numpy(special.expit(y))


def robustness(models, singles, **options):
    return effective_robustness(
        *models, single_id_accuracy=singles[0], single_ood_accuracy=singles[1], **options
    )


def by_numpy(models, singles):
    """Effective robustness in shares and in logits."""
    slope, intercept = np.polyfit(*(special.logit(np.asarray(each)) for each in singles), 1)
    expected = intercept + slope * special.logit(models[0].numpy())
    return (
        models[1].numpy() - special.expit(expected),
        special.logit(models[1].numpy()) - expected,
    )


@pytest.mark.parametrize("n", [3, 8, 50])
def test_line_is_that_of_numpy_and_scipy(n):
    singles = draw(n)
    line = fit_robustness_line(*singles)
    logits = [special.logit(each.numpy()) for each in singles]
    assert [line.slope, line.intercept] == pytest.approx(np.polyfit(*logits, 1), abs=1e-11)
    assert line.slope == pytest.approx(stats.linregress(*logits).slope, abs=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_robustness_is_the_distance_to_numpys_line(seed):
    models, singles = draw(n=5, seed=seed + 10, noise=0.4), draw(seed=seed)
    found = robustness(models, singles, draws=10)
    shares, logits = by_numpy(models, singles)
    np.testing.assert_allclose(found.estimate, shares, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.logit_estimate, logits, rtol=0, atol=1e-12)
    assert found.line == fit_robustness_line(*singles)
    np.testing.assert_allclose(
        models[1] - found.line.predict(models[0]), found.estimate, rtol=0, atol=1e-12
    )


def test_models_on_the_line_have_none_surely():
    singles = draw(noise=0.0)
    x = torch.tensor([0.3, 0.8, 0.99], dtype=torch.float64)
    y = (-0.5 + 0.9 * x.logit()).sigmoid()
    found = robustness((x, y), singles)
    for values in (found.estimate, found.logit_estimate, found.low, found.high):
        assert values.abs().max() < 1e-12


def test_single_models_have_none_on_average_in_logits():
    singles = draw()
    assert robustness(singles, singles, draws=10).logit_estimate.mean().abs() < 1e-12


def test_order_of_the_models_does_not_matter_to_estimates():
    models, singles = draw(n=4, seed=1), draw()
    order = torch.randperm(8)
    found = robustness(models, singles, draws=10)
    again = robustness(models, (singles[0][order], singles[1][order]), draws=10)
    torch.testing.assert_close(again.estimate, found.estimate, rtol=0, atol=1e-13)


def test_interval_is_made_of_quantiles_over_lines_of_resamples_by_brute_force():
    models, singles = draw(n=4, seed=1), draw()
    found = robustness(models, singles, draws=50, level=0.8, seed=5)
    weights = resampling_weights(8, 50, torch.Generator().manual_seed(5)).numpy()
    drawn = [
        by_numpy(models, [np.repeat(each.numpy(), row) for each in singles]) for row in weights
    ]
    shares, logits = (np.array(each) for each in zip(*drawn, strict=True))
    for low, high, values in (
        (found.low, found.high, shares),
        (found.logit_low, found.logit_high, logits),
    ):
        expected = np.quantile(values, [0.1, 0.9], axis=0)
        np.testing.assert_allclose(torch.stack([low, high]), expected, rtol=0, atol=1e-11)


def test_draws_without_a_line_are_drawn_again():
    """Of three models, two of them equally accurate, every third resample has one accuracy only."""
    x = torch.tensor([0.6, 0.6, 0.8], dtype=torch.float64)
    y = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    found = robustness((x[:1], y[:1]), (x, y), draws=500)
    # A line goes through 0.6 at the accuracy drawn there: 0.4, 0.5 or between.
    assert found.low.item() == pytest.approx(-0.1, abs=1e-12)
    assert found.high.item() == pytest.approx(0.0, abs=1e-12)


def test_intervals_of_many_single_models_cover_the_truth_as_often_as_they_say():
    x = torch.tensor([special.expit(1.5)], dtype=torch.float64)
    y = torch.tensor([special.expit(-0.5 + 0.9 * 1.5)], dtype=torch.float64)
    covered, trials = 0, 300
    for seed in range(trials):
        found = robustness((x, y), draw(n=40, seed=seed), draws=200, seed=seed)
        covered += (found.low <= 0 <= found.high).item()
    assert 0.89 <= covered / trials <= 0.98


def test_results_depend_on_the_seed():
    models, singles = draw(n=4, seed=1), draw()
    first, again, other = (robustness(models, singles, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.low, again.low)
    assert not torch.equal(first.low, other.low)
    assert torch.equal(first.estimate, other.estimate)


def replaced(values, value):
    values = values.clone()
    values[1] = value
    return values


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 87.3, math.nan])
def test_accuracies_outside_the_open_interval_are_refused(bad):
    (x, y), singles = draw(n=4, seed=1), draw()
    with pytest.raises(ValueError, match=rf"^id_accuracy must .*{bad:.6g}"):
        robustness((replaced(x, bad), y), singles)
    with pytest.raises(ValueError, match=rf"^ood_accuracy must .*{bad:.6g}"):
        robustness((x, replaced(y, bad)), singles)
    with pytest.raises(ValueError, match=rf"^single_id_accuracy must .*{bad:.6g}"):
        robustness((x, y), (replaced(singles[0], bad), singles[1]))
    with pytest.raises(ValueError, match=rf"^single_ood_accuracy must .*{bad:.6g}"):
        robustness((x, y), (singles[0], replaced(singles[1], bad)))
    with pytest.raises(ValueError, match=rf"^ood_accuracy must .*{bad:.6g}"):
        fit_robustness_line(x, replaced(y, bad))
    with pytest.raises(ValueError, match=rf"^id_accuracy must .*{bad:.6g}"):
        fit_robustness_line(*singles).predict(replaced(x, bad))


def test_too_few_or_equal_single_models_and_bad_options_are_refused(unchecked):
    models, (x, y) = draw(n=4, seed=1), draw()
    with pytest.raises(ValueError, match="single_id_accuracy must hold >= 3 single models .* 2$"):
        robustness(models, (x[:2], y[:2]))
    with pytest.raises(
        ValueError,
        match="single_id_accuracy must differ between single models, got 0.75 for all: add",
    ):
        robustness(models, (torch.full_like(x, 0.75), y))
    with pytest.raises(ValueError, match="single_ood_accuracy must hold 8 models, got 7"):
        robustness(models, (x, y[1:]))
    with pytest.raises(ValueError, match="ood_accuracy must hold 4 models, got 3"):
        robustness((models[0], models[1][1:]), (x, y))
    with pytest.raises(ValueError, match="id_accuracy must hold >= 1 sample, got 0"):
        robustness((x[:0], y[:0]), (x, y))
    with pytest.raises(ValueError, match="draws must be >= 2, got 1"):
        robustness(models, (x, y), draws=1)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 1"):
        robustness(models, (x, y), level=1.0)
