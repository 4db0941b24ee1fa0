"""Confidence bands of a reliability diagram against scipy's Wilson intervals, and their cover."""

import math

import pytest
import torch
from deepens.metrics import ExpectedCalibrationError, reliability_bins
from deepens.metrics.core.binning import BinSums
from deepens.metrics.core.reliability_bands import bands_of_sums, reliability_bands, wilson_interval
from scipy import stats


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, dtype=torch.float64, generator=generator)
    return confidence, torch.rand(n, generator=generator) < confidence


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_intervals_equal_those_of_scipy(level):
    for trials in (1, 2, 7, 100, 10_000):
        for successes in {0, 1, trials // 3, trials - 1, trials}:
            share = torch.tensor([successes / trials], dtype=torch.float64)
            counts = torch.tensor([trials], dtype=torch.float64)
            low, high = wilson_interval(share, counts, level=level)
            expected = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
            assert low.item() == pytest.approx(expected.low, abs=1e-12)
            assert high.item() == pytest.approx(expected.high, abs=1e-12)
            assert 0 <= low.item() <= share.item() <= high.item() <= 1


def test_bands_are_the_bins_with_intervals():
    confidence, correct = draw(700)
    bands, bins = reliability_bands(confidence, correct), reliability_bins(confidence, correct)
    assert torch.equal(bands.counts, bins.counts)
    assert torch.equal(bands.accuracy, bins.accuracy)
    assert torch.equal(bands.confidence, bins.confidence)
    for count, share, low, high in zip(
        bands.counts, bands.accuracy, bands.low, bands.high, strict=True
    ):
        hits = round(count.item() * share.item())
        expected = stats.binomtest(hits, count.item()).proportion_ci(0.95, method="wilson")
        assert (low.item(), high.item()) == pytest.approx(tuple(expected), abs=1e-12)


def test_of_an_empty_bin_nothing_is_known():
    bands = reliability_bands(torch.tensor([0.9, 0.9]), torch.tensor([True, False]), bins=2)
    assert bands.counts.tolist() == [0, 2]
    assert math.isnan(bands.accuracy[0])
    assert math.isnan(bands.confidence[0])
    assert (bands.low[0].item(), bands.high[0].item()) == (0.0, 1.0)


def test_bins_that_are_all_right_or_all_wrong_have_a_width():
    bands = reliability_bands(torch.tensor([0.1, 0.9]), torch.tensor([False, True]), bins=2)
    assert bands.low.tolist() == [0.0, pytest.approx(0.2065, abs=1e-4)]
    assert bands.high.tolist() == [pytest.approx(0.7935, abs=1e-4), 1.0]


def test_bands_cover_the_true_accuracy_about_as_often_as_they_say():
    inside = 0
    for seed in range(200):
        confidence, correct = draw(600, seed=seed)
        bands = reliability_bands(confidence, correct)
        # calibrated data: the true accuracy of a bin is its mean confidence
        inside += ((bands.low <= bands.confidence) & (bands.confidence <= bands.high)).sum().item()
    assert inside / 3000 == pytest.approx(0.95, abs=0.015)


def test_a_higher_level_and_fewer_samples_widen_the_band():
    confidence, correct = draw(2000)
    narrow, wide = (reliability_bands(confidence, correct, level=level) for level in (0.8, 0.99))
    assert (wide.low < narrow.low).all()
    assert (wide.high > narrow.high).all()
    few = reliability_bands(confidence[:200], correct[:200], level=0.8)
    assert (few.high - few.low > narrow.high - narrow.low).all()


def test_states_of_a_metric_give_the_bands_of_all_its_batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 300, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (300,), generator=generator)
    metric = ExpectedCalibrationError()
    for batch, labels in zip(logits.split(70, 1), targets.split(70), strict=True):
        metric.update(batch, labels)
    bands = bands_of_sums(BinSums(metric.counts, metric.correct, metric.confidence))
    confidence, predicted = logits.softmax(-1).mean(0).max(-1)
    whole = reliability_bands(confidence, predicted == targets)
    torch.testing.assert_close(bands.low, whole.low, atol=1e-12, rtol=0, equal_nan=True)
    torch.testing.assert_close(
        bands.confidence, whole.confidence, rtol=1e-12, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_levels_outside_the_open_interval_are_refused(level):
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\), got"):
        reliability_bands(*draw(5), level=level)


@pytest.mark.parametrize(
    ("share", "count", "message"),
    [
        (1.5, 1.0, r"share must lie in \[0, 1\], got 1.5"),
        (math.nan, 1.0, r"share must lie in \[0, 1\], got nan"),
        (0.5, -1.0, "counts must be >= 0, got -1.0"),
        (0.5, math.nan, "counts must be >= 0, got nan"),
    ],
)
def test_shares_and_counts_that_are_none_are_refused(share, count, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(torch.tensor([share]).double(), torch.tensor([count]).double())
