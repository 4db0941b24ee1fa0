"""Correlation of per-sample gains, against scipy, and what a shared base network does to it."""

import dataclasses
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from deepens.metrics import resampling_weights
from deepens.metrics.statistics.gain_correlation import Gains, gain_correlation, gain_correlations
from scipy import stats

NAMES = ("ensemble_big", "ensemble_ensemble", "big_big")


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def draw(n=300, ensembles=3, bigs=2, seed=0, shared=1.0):
    """Gains that go with a sample's hardness, the same for both methods, beside chance."""
    hardness = shared * normal(n, seed=seed)
    return tuple(
        Gains(normal(count, n, seed=seed + 1 + i), hardness + normal(count, n, seed=seed + 11 + i))
        for i, count in enumerate((ensembles, bigs))
    )


def pairs(ensembles, bigs):
    """Name of each correlation -> the pairs of gains that it is the mean of."""
    ours, theirs = ((gains.losses - gains.base_losses).numpy() for gains in (ensembles, bigs))
    return {
        "ensemble_big": list(itertools.product(ours, theirs)),
        "ensemble_ensemble": list(itertools.combinations(ours, 2)),
        "big_big": list(itertools.combinations(theirs, 2)),
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_correlation_is_scipys(seed, shift):
    first, second = normal(50, seed=seed), normal(50, seed=seed + 10)
    second = second + first + shift
    expected = stats.pearsonr(first, second).statistic
    assert gain_correlation(first, second).item() == pytest.approx(expected, abs=1e-11)


def test_correlations_are_the_means_over_pairs_of_replicates():
    data = draw(ensembles=4, bigs=3)
    found = gain_correlations(*data, draws=10)
    for name, each in pairs(*data).items():
        expected = np.mean([stats.pearsonr(a, b).statistic for a, b in each])
        assert getattr(found, name).estimate == pytest.approx(expected, abs=1e-12)


def test_a_shared_base_network_alone_gives_one_half_and_disjoint_ones_nothing():
    number = 40_000
    ensemble, big, base, other = normal(4, number, seed=0)  # errors of networks independent of all
    shared = gain_correlation(ensemble - base, big - base).item()
    disjoint = gain_correlation(ensemble - base, big - other).item()
    # Four standard errors of R over normal samples, (1 - R²) / sqrt(N).
    assert shared == pytest.approx(0.5, abs=4 * 0.75 / math.sqrt(number))
    assert disjoint == pytest.approx(0.0, abs=4 / math.sqrt(number))


def test_the_same_gains_give_nulls_as_large_as_the_correlation_and_unrelated_ones_zero():
    found = gain_correlations(*draw(n=20_000), draws=10)
    for name in NAMES:  # variance of hardness 1 of 3
        assert getattr(found, name).estimate == pytest.approx(1 / 3, abs=4 / math.sqrt(20_000))
    found = gain_correlations(*draw(n=20_000, shared=0.0), draws=10)
    for name in NAMES:
        assert getattr(found, name).estimate == pytest.approx(0.0, abs=4 / math.sqrt(20_000))


def test_swapping_the_methods_swaps_the_nulls():
    ensembles, bigs = draw()
    forth = gain_correlations(ensembles, bigs, draws=20)
    back = gain_correlations(bigs, ensembles, draws=20)
    for ours, theirs in zip(NAMES, (NAMES[0], NAMES[2], NAMES[1]), strict=True):
        assert dataclasses.astuple(getattr(forth, ours)) == pytest.approx(
            dataclasses.astuple(getattr(back, theirs)), abs=1e-12
        )


def test_interval_is_made_of_quantiles_over_resamples_by_brute_force():
    data = draw(n=40)
    found = gain_correlations(*data, draws=60, level=0.8, seed=5)
    weights = resampling_weights(40, 60, torch.Generator().manual_seed(5)).numpy()
    for name, each in pairs(*data).items():
        drawn = [
            np.mean([np.corrcoef(np.repeat(a, w), np.repeat(b, w))[0, 1] for a, b in each])
            for w in weights
        ]
        interval = getattr(found, name)
        assert (interval.low, interval.high) == pytest.approx(
            tuple(np.quantile(drawn, [0.1, 0.9])), abs=1e-12
        )


def test_intervals_cover_the_truth_as_often_as_they_say():
    trials, covered = 300, 0
    for seed in range(trials):
        interval = gain_correlations(
            *draw(n=200, ensembles=2, seed=100 * seed), draws=200, seed=seed
        ).ensemble_big
        covered += interval.low <= 1 / 3 <= interval.high
    assert 0.89 <= covered / trials <= 0.98


def test_results_depend_on_the_seed_alone_not_on_chunks(monkeypatch):
    data = draw(n=40)
    whole = gain_correlations(*data, draws=50, seed=3)
    assert gain_correlations(*data, draws=50, seed=4) != whole
    # The package's attribute of this name is the function, not the module.
    monkeypatch.setattr(sys.modules[gain_correlations.__module__], "CHUNK", 40 * 7)
    chunked = gain_correlations(*data, draws=50, seed=3)
    for name in NAMES:
        assert dataclasses.astuple(getattr(chunked, name)) == pytest.approx(
            dataclasses.astuple(getattr(whole, name)), abs=1e-12
        )


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_a_constant_gain_gives_nan_and_a_warning_that_says_why(offset):
    ensembles, bigs = draw()
    losses = ensembles.losses.clone()
    losses[1] = ensembles.base_losses[1] + offset  # the differences vary by rounding
    with pytest.warns(
        RuntimeWarning,
        match=r"gain correlation of nll is undefined, since the gain of ensembles\[1\] is the same",
    ):
        found = gain_correlations(
            Gains(losses, ensembles.base_losses), bigs, metric="nll", draws=10
        )
    assert all(map(math.isnan, dataclasses.astuple(found.ensemble_big)))
    assert all(map(math.isnan, dataclasses.astuple(found.ensemble_ensemble)))
    assert found.big_big == gain_correlations(ensembles, bigs, draws=10).big_big
    with pytest.warns(RuntimeWarning, match="of brier is undefined, since the second gain is"):
        value = gain_correlation(bigs.losses[0], losses[1] * 0 + 0.1, metric="brier")
    assert value.isnan()


def test_a_gain_of_one_sample_alone_leaves_no_interval():
    """A third of the draws lack the sample, and the gain is constant in them."""
    ensembles, bigs = draw(n=30)
    losses = ensembles.base_losses.clone()
    losses[:, 4] += torch.tensor([1.0, 2.0, 3.0])
    interval = gain_correlations(Gains(losses, ensembles.base_losses), bigs).ensemble_big
    assert math.isfinite(interval.estimate)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_shared_networks_are_refused():
    ensembles, bigs = draw()
    bases = bigs.base_losses.clone()
    bases[1] = ensembles.base_losses[2]
    with pytest.raises(
        ValueError, match=r"base_losses of ensembles\[2\] and base_losses of bigs\[1\] must differ"
    ):
        gain_correlations(ensembles, Gains(bigs.losses, bases), draws=10)
    twice = Gains(ensembles.losses[[0, 0]], ensembles.base_losses[:2])
    with pytest.raises(
        ValueError, match=r"losses of ensembles\[0\] and losses of ensembles\[1\] must differ"
    ):
        gain_correlations(twice, bigs, draws=10)
    # Bases that are right everywhere lose nothing, and share nothing by chance.
    perfect = [Gains(gains.losses, torch.zeros_like(gains.losses)) for gains in (ensembles, bigs)]
    assert math.isfinite(gain_correlations(*perfect, draws=10).ensemble_big.estimate)


def test_bad_input_is_refused(unchecked):
    ensembles, bigs = draw(n=20)
    with pytest.raises(ValueError, match=r"must hold >= 2 replicates each, .* got 1 and 2"):
        gain_correlations(Gains(ensembles.losses[:1], ensembles.base_losses[:1]), bigs)
    with pytest.raises(ValueError, match="bigs must hold 20 samples, got 19"):
        gain_correlations(ensembles, Gains(bigs.losses[:, 1:], bigs.base_losses[:, 1:]))
    with pytest.raises(ValueError, match="draws must be >= 2, got 1"):
        gain_correlations(ensembles, bigs, draws=1)
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got 0.0"):
        gain_correlations(ensembles, bigs, level=0.0)
    with pytest.raises(ValueError, match=r"base_losses must have the shape of losses, \[3, 20\]"):
        Gains(ensembles.losses, bigs.base_losses)
    with pytest.raises(ValueError, match=r"losses must have shape \[replicates, samples\]"):
        Gains(ensembles.losses[0], ensembles.base_losses[0])
    with pytest.raises(ValueError, match=r"losses must be finite, got inf at \[0, 0\]"):
        Gains(torch.full((2, 3), math.inf), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="second must hold 20 samples, got 19"):
        gain_correlation(bigs.losses[0], bigs.losses[1, 1:])
    with pytest.raises(ValueError, match="first must be finite, got nan"):
        gain_correlation(bigs.losses[0] * math.nan, bigs.losses[1])
