"""DeLong's and McNemar's tests and Holm's adjustment against definitions and other libraries."""

import math

import numpy as np
import pytest
import torch
from deepens.metrics import (
    area_under_roc,
    bootstrap_draws,
    delong_test,
    holm_adjusted,
    least_detectable,
    mcnemar_test,
    paired_intervals,
    resampling_weights,
)
from scipy import stats


def draw(n=200, seed=0, levels=None):
    generator = torch.Generator().manual_seed(seed)
    is_positive = torch.rand(n, generator=generator) < 0.4
    shared = torch.randn(n, generator=generator, dtype=torch.float64)
    first, second = (
        shared + torch.randn(n, generator=generator) + gain * is_positive for gain in (1.2, 0.8)
    )
    if levels is not None:
        first, second = (first * levels).round() / levels, (second * levels).round() / levels
    return first, second, is_positive


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_its_definition_pair_by_pair(seed, levels):
    first, second, is_positive = draw(seed=seed, levels=levels)
    found = delong_test(first, second, is_positive)
    above, below = [], []
    for score in (first, second):
        wins = score[is_positive][:, None] - score[~is_positive]
        wins = (wins > 0).double() + 0.5 * (wins == 0)
        above.append(wins.mean(1).numpy())
        below.append(wins.mean(0).numpy())
    variance = np.var(above[0] - above[1], ddof=1) / len(above[0])
    variance += np.var(below[0] - below[1], ddof=1) / len(below[0])
    assert found.first == pytest.approx(area_under_roc(first, is_positive).item(), abs=1e-14)
    assert found.second == pytest.approx(area_under_roc(second, is_positive).item(), abs=1e-14)
    assert found.standard_error == pytest.approx(math.sqrt(variance), abs=1e-13)
    z = found.difference / math.sqrt(variance)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-12)
    reach = stats.norm.ppf(0.975) * math.sqrt(variance)
    assert (found.low, found.high) == pytest.approx(
        (found.difference - reach, found.difference + reach), abs=1e-12
    )


def test_delong_agrees_with_the_bootstrap():
    first, second, is_positive = draw(n=1500)
    weights = resampling_weights(1500, 2000, torch.Generator().manual_seed(1))
    draws = area_under_roc(first, is_positive, weights) - area_under_roc(
        second, is_positive, weights
    )
    error = delong_test(first, second, is_positive).standard_error
    assert draws.std().item() == pytest.approx(error, rel=0.06)


def test_delong_holds_its_level_where_scores_are_equally_good():
    values = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        is_positive = torch.arange(120) % 2 == 0
        noise = torch.randn(2, 120, generator=generator)
        values.append(delong_test(*(noise + is_positive), is_positive).p_value)
    assert np.mean(np.array(values) < 0.05) == pytest.approx(0.05, abs=0.04)


def test_delong_of_a_score_with_itself_finds_nothing():
    first, _, is_positive = draw()
    found = delong_test(first, first, is_positive)
    assert (found.difference, found.standard_error, found.p_value) == (0.0, 0.0, 1.0)


def test_delong_needs_two_of_each_kind(unchecked):
    first, second, _ = draw(n=5)
    one = torch.arange(5) == 0
    with pytest.raises(ValueError, match=r">= 2 positive and >= 2 negative samples, got 1 and 4"):
        delong_test(first, second, one)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 1.0"):
        delong_test(*draw(), level=1.0)
    with pytest.raises(ValueError, match="second must hold 5 samples, got 4"):
        delong_test(first, second[:4], torch.arange(5) < 2)


def flags(both, ahead, behind, neither):
    first = [True] * both + [True] * ahead + [False] * behind + [False] * neither
    second = [True] * both + [False] * ahead + [True] * behind + [False] * neither
    return torch.tensor(first), torch.tensor(second)


@pytest.mark.parametrize(("ahead", "behind"), [(9, 3), (3, 9), (5, 5), (1, 0), (40, 61)])
def test_mcnemar_equals_the_binomial_test(ahead, behind):
    expected = stats.binomtest(ahead, ahead + behind).pvalue
    assert mcnemar_test(*flags(7, ahead, behind, 4)) == pytest.approx(expected, abs=1e-12)


def test_mid_p_counts_the_observed_split_by_half():
    exact, mid = (mcnemar_test(*flags(7, 9, 3, 4), mid_p=each) for each in (False, True))
    assert mid == pytest.approx(exact - stats.binom.pmf(3, 12, 0.5), abs=1e-12)


def test_mcnemar_of_models_that_are_right_together_is_one():
    assert mcnemar_test(*flags(5, 0, 0, 5)) == 1.0


def test_holm_equals_statsmodels():
    values = [0.01, 0.04, 0.03, 0.005, 0.5, 0.03]
    # statsmodels 0.14, multipletests(values, method="holm")[1]
    expected = [0.05, 0.12, 0.12, 0.03, 0.5, 0.12]
    assert holm_adjusted(values) == pytest.approx(expected, abs=1e-15)


def test_holm_leaves_out_tests_that_could_not_be_made():
    adjusted = holm_adjusted([0.02, math.nan, 0.6])
    assert math.isnan(adjusted[1])
    assert [adjusted[0], adjusted[2]] == holm_adjusted([0.02, 0.6]) == [0.04, 0.6]
    assert holm_adjusted([]) == []


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\], got 1.5"):
        holm_adjusted([0.5, 1.5])


@pytest.mark.parametrize("freedom", [3.7, 12.0, 1000.0, math.inf])
@pytest.mark.parametrize(("level", "power"), [(0.05, 0.8), (0.05 / 30, 0.8), (0.1, 0.5)])
def test_least_detectable_difference_has_its_power_where_errors_are_estimated_twice(
    freedom, level, power
):
    """Once for the statement and once for the test; the true error is 1."""
    random = np.random.default_rng(0)
    told, own = (
        np.sqrt(random.chisquare(freedom, 200_000) / freedom) if math.isfinite(freedom) else 1.0
        for _ in range(2)
    )
    differences = told * least_detectable(1.0, freedom, level=level, power=power)
    scores = (random.normal(size=200_000) + differences) / own
    found = stats.t if math.isfinite(freedom) else stats.norm
    quantile = found.isf(level / 2, *([freedom] if math.isfinite(freedom) else []))
    assert (scores > quantile).mean() == pytest.approx(power, abs=0.006)


@pytest.mark.parametrize(
    ("replicates", "trials"),
    [(5, 150), *(pytest.param(r, 700, marks=pytest.mark.slow) for r in (3, 5, 10))],
)
@pytest.mark.parametrize("level", [0.05, 0.05 / 10])
def test_a_difference_as_large_as_is_said_is_found_in_four_of_five_experiments(
    replicates, trials, level
):
    """Say it from one set of experiments without a difference, and look for it in another."""
    generator = torch.Generator().manual_seed(replicates)

    def experiments(differences):
        for trial, difference in enumerate(differences):
            images = torch.randn(200, generator=generator).double()
            suits = 0.5 * torch.randn(2, 1, 200, generator=generator).double()
            nets = torch.randn(2, replicates, 200, generator=generator).double() * 0.5
            main = 0.05 * torch.randn(2, replicates, 1, generator=generator).double()
            values = (
                images + suits + nets + main + difference * torch.tensor([1.0, 0.0])[:, None, None]
            )
            ours, theirs = (
                bootstrap_draws(
                    [lambda w, v=v: {"m": w.double() @ v / 200} for v in method],
                    sizes=[200],
                    draws=100,
                    seed=trial,
                )
                for method in values
            )
            yield paired_intervals(ours, theirs)["m"]

    least = [
        least_detectable(each.error, each.freedom, level=level)
        for each in experiments(np.zeros(trials))
    ]
    found = np.mean([each.p_value <= level for each in experiments(least)])
    chance = 0.1 if trials < 500 else 0.03
    assert 0.8 - 0.05 * (replicates == 3) - chance <= found <= 0.82 + chance


def test_nothing_is_detected_without_an_error_and_bad_arguments_are_refused():
    assert math.isnan(least_detectable(math.nan))
    assert least_detectable(0.0) == 0.0
    for options, message in (
        ({"level": 0.0}, r"level must lie in \(0, 1\), got 0"),
        ({"power": 1.0}, r"power must lie in \(0, 1\), got 1"),
        ({"freedom": 0.0}, "freedom must be > 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            least_detectable(0.1, **options)
