"""Deep-ensemble equivalents and power laws, against brute force, scipy and simulation."""

import math

import numpy as np
import pytest
import torch
from deepens.metrics import deep_ensemble_equivalent, extrapolate_power_law, fit_power_law
from deepens.metrics.statistics.bootstrap import contrast_intervals
from deepens.metrics.statistics.draws import Draws
from scipy import optimize

SIZES = (1, 2, 4, 8)


def drawn(mean, replicates=3, spread=0.0, images=0.002, draws=400, seed=0, common=None):
    """Draws of a method: its replicates' values, and the same noise of images for every method."""
    generator = torch.Generator().manual_seed(seed)
    observed = mean + spread * torch.randn(replicates, generator=generator, dtype=torch.float64)
    if common is None:
        shared = torch.Generator().manual_seed(99)
        common = torch.randn(draws, 1, generator=shared, dtype=torch.float64)
    own = torch.randn(draws, replicates, generator=generator, dtype=torch.float64)
    resampled = observed + images * (common + 0.2 * own)
    return Draws({"nll": observed}, {"nll": resampled}, (100,), draws, 0)


def curve(law=lambda size: 0.3 + 0.1 / size, **options):
    return [(size, drawn(law(size), seed=size, **options)) for size in SIZES]


@pytest.mark.parametrize("worth", [1.0, 1.25, 2.0, 3.5, 7.9])
def test_a_method_on_the_curve_is_worth_the_size_that_it_has_there(worth):
    value = np.interp(worth, SIZES, [0.3 + 0.1 / size for size in SIZES])
    found = deep_ensemble_equivalent(drawn(value), curve())["nll"]
    assert found.estimate == pytest.approx(worth, abs=1e-9)
    assert found.low <= worth <= found.high


def test_equivalent_counts_up_where_higher_is_better():
    up = deep_ensemble_equivalent(
        drawn(-0.35), curve(lambda size: -0.3 - 0.1 / size), higher_is_better=True
    )
    down = deep_ensemble_equivalent(drawn(0.35), curve())
    assert up["nll"].estimate == pytest.approx(down["nll"].estimate, abs=1e-9) == 2.0


def test_the_first_size_that_is_as_good_counts_on_a_curve_that_turns():
    values = {1: 0.4, 2: 0.3, 4: 0.5, 8: 0.2}
    found = deep_ensemble_equivalent(drawn(0.35), curve(values.get))["nll"]
    assert found.estimate == pytest.approx(1.5)


def test_interval_ends_where_a_contrast_with_the_curve_becomes_certain():
    sizes, method = curve(spread=0.002), drawn(0.352, spread=0.002, seed=50)
    found = deep_ensemble_equivalent(method, sizes)["nll"]

    def rejected(size):
        place = max(i for i, (count, _) in enumerate(sizes[:-1]) if count <= size)
        (lower, first), (upper, second) = sizes[place : place + 2]
        share = (size - lower) / (upper - lower)
        parts = [(1.0, method), (share - 1.0, first), (-share, second)]
        interval = contrast_intervals(parts)["nll"]
        return not interval.low <= 0 <= interval.high

    assert 1 < found.low < found.estimate < found.high < 8
    assert not rejected(found.low)
    assert not rejected(found.high)
    assert rejected(found.low - 1e-3)
    assert rejected(found.high + 4e-3)


def test_better_than_the_largest_and_worse_than_one_network():
    better = deep_ensemble_equivalent(drawn(0.2), curve())["nll"]
    assert (better.estimate, better.low, better.high) == (math.inf, 8.0, math.inf)
    worse = deep_ensemble_equivalent(drawn(0.6), curve())["nll"]
    assert (worse.estimate, worse.low, worse.high) == (1.0, 1.0, 1.0)


def test_an_undefined_metric_has_no_equivalent():
    assert math.isnan(deep_ensemble_equivalent(drawn(math.nan), curve())["nll"].estimate)


@pytest.mark.parametrize("sizes", [(1,), (2, 4), (1, 2, 2)])
def test_sizes_without_one_network_or_twice_the_same_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes must be different numbers of members from 1 on"):
        deep_ensemble_equivalent(drawn(0.3), [(size, drawn(0.3)) for size in sizes])


def test_power_law_equals_scipys_curve_fit():
    generator = np.random.default_rng(0)
    members = np.arange(1.0, 9.0)
    for _ in range(10):
        limit, gain, exponent = generator.uniform((0.1, 0.05, -2), (0.5, 0.5, -0.3))
        losses = limit + gain * members**exponent + generator.normal(0, 0.001, 8)
        start = (losses[-1], losses[0] - losses[-1], -1.0)
        expected, _ = optimize.curve_fit(
            lambda m, c, b, a: c + b * m**a, members, losses, start, xtol=1e-12, ftol=1e-12
        )
        law = fit_power_law(torch.from_numpy(members), torch.from_numpy(losses))
        found = (law.limit, law.gain, law.exponent)
        assert found == pytest.approx(tuple(expected), rel=1e-4)


def test_three_sizes_are_met_exactly():
    members, losses = (
        torch.tensor([1.0, 2.0, 4.0]).double(),
        torch.tensor([0.5, 0.42, 0.38]).double(),
    )
    law = fit_power_law(members, losses)
    assert [law.predict(m) for m in (1, 2, 4)] == pytest.approx(losses.tolist(), abs=1e-7)


def test_too_few_or_impossible_sizes_are_refused(unchecked):
    three = torch.tensor([1.0, 2.0, 3.0])
    for members in (three[[0, 1, 1]], three - 1):
        with pytest.raises(ValueError, match="members must be >= 3 different sizes of >= 1"):
            fit_power_law(members, three)
    with pytest.raises(ValueError, match="losses must have one value per size"):
        fit_power_law(three, three[:2])
    with pytest.raises(ValueError, match="finite"):
        fit_power_law(three, three * math.nan)


def test_a_law_that_holds_predicts_the_larger_ensemble():
    def law(size):
        return 0.3 + 0.1 * size**-0.9

    sizes = [(size, drawn(law(size))) for size in (1, 2, 3, 4)]
    found = extrapolate_power_law(sizes, (8, drawn(law(8))))["nll"]
    assert found.predicted == pytest.approx(law(8), abs=1e-7)
    assert found.observed == pytest.approx(law(8), abs=1e-12)
    assert found.low < 0 < found.high
    broken = extrapolate_power_law(sizes, (8, drawn(law(8) + 0.05)))["nll"]
    assert broken.predicted - broken.observed == pytest.approx(-0.05, abs=1e-7)
    assert broken.high < 0


@pytest.mark.slow
def test_interval_of_the_prediction_covers_the_truth():
    def law(size):
        return 0.3 + 0.1 * size**-0.9

    trials, covered = 300, 0
    for trial in range(trials):
        runs = {
            size: drawn(law(size), 5, 0.002, 1e-4, 100, 1000 * trial + size)
            for size in (1, 2, 3, 4, 8)
        }
        found = extrapolate_power_law([(size, runs[size]) for size in (1, 2, 3, 4)], (8, runs[8]))[
            "nll"
        ]
        covered += found.low <= 0 <= found.high
    # The binomial standard error of 95 % over 300 trials is 1.3 %; the tangent is an approximation.
    assert 0.91 <= covered / trials <= 0.995
