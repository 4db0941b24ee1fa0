"""Effective robustness against numpy's line, and its intervals by a textbook's and simulation."""

import math

import numpy as np
import pytest
import torch
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
    found = robustness(models, singles)
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
    assert robustness(singles, singles).logit_estimate.mean().abs() < 1e-12


def test_order_of_the_models_does_not_matter_to_estimates():
    models, singles = draw(n=4, seed=1), draw()
    order = torch.randperm(8)
    found = robustness(models, singles)
    again = robustness(models, (singles[0][order], singles[1][order]))
    torch.testing.assert_close(again.estimate, found.estimate, rtol=0, atol=1e-13)


def test_interval_is_that_of_the_textbooks_prediction_with_the_design_matrix():
    models, singles = draw(n=4, seed=1), draw()
    found = robustness(models, singles, level=0.8)
    x, y = (special.logit(each.numpy()) for each in singles)
    design = np.stack([np.ones_like(x), x], axis=1)
    solution, (squared,), *_ = np.linalg.lstsq(design, y)
    inverse = np.linalg.inv(design.T @ design)
    new = np.stack([np.ones(4), special.logit(models[0].numpy())], axis=1)
    error = np.sqrt(squared / 6 * (1 + np.einsum("ij,jk,ik->i", new, inverse, new)))
    reach = stats.t.ppf(0.9, 6) * error
    expected, under = new @ solution, models[1].numpy()
    np.testing.assert_allclose(found.logit_high - found.logit_estimate, reach, rtol=1e-9)
    np.testing.assert_allclose(found.logit_estimate - found.logit_low, reach, rtol=1e-9)
    np.testing.assert_allclose(found.low, under - special.expit(expected + reach), rtol=1e-9)
    np.testing.assert_allclose(found.high, under - special.expit(expected - reach), rtol=1e-9)


@pytest.mark.parametrize("n", [3, 4])
def test_of_fewer_than_five_single_models_there_is_no_interval(n):
    found = robustness(draw(n=2, seed=1), draw(n))
    assert found.estimate.isfinite().all()
    for end in (found.low, found.high, found.logit_low, found.logit_high):
        assert end.isnan().all()
    assert robustness(draw(n=2, seed=1), draw(5)).low.isfinite().all()


def measure(true_x, scatter, random, *, images, replicates):
    """Accuracies on so many images, means over replicates, of models about a line in logits."""
    true_y = -0.5 + 0.9 * true_x + scatter * random.normal(size=true_x.shape)
    noise = 0.03 * random.normal(size=(replicates, 2, *true_x.shape))
    shares = special.expit(np.stack([true_x, true_y]) + noise)
    measured = random.binomial(images, shares) / images
    return (torch.from_numpy(each) for each in measured.mean(0))


@pytest.mark.parametrize(
    ("n", "trials"),
    [
        (5, 400),
        (20, 400),
        *(pytest.param(n, 4000, marks=pytest.mark.slow) for n in (5, 10, 20, 40)),
    ],
)
def test_a_further_model_that_scatters_as_single_models_do_is_covered_as_often_as_said(n, trials):
    """Ensembles too: 2,000 images, three replicates of each, accuracies of the singles' range."""
    random = np.random.default_rng(n)
    covered = 0
    for _ in range(trials):
        x = random.normal(1.5, 0.6, n + 1)
        id_accuracy, ood_accuracy = measure(x, 0.1, random, images=2000, replicates=3)
        found = robustness((id_accuracy[:1], ood_accuracy[:1]), (id_accuracy[1:], ood_accuracy[1:]))
        covered += (found.low <= 0 <= found.high).item()
    chance = 3 * math.sqrt(0.95 * 0.05 / trials) if trials < 1000 else 0.0
    assert 0.93 - chance <= covered / trials <= 0.97 + chance


def test_what_lies_beyond_the_scatter_is_found():
    singles = draw(n=10, noise=0.05)
    x = torch.tensor([0.8], dtype=torch.float64)
    line = fit_robustness_line(*singles)
    above = (line.predict(x).logit() + 0.5).sigmoid()
    within = (line.predict(x).logit() + 0.02).sigmoid()
    assert robustness((x, above), singles).low > 0
    assert robustness((x, within), singles).low < 0


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
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 1"):
        robustness(models, (x, y), level=1.0)
