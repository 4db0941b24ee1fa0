"""Adaptive calibration error: bins of equal mass, whatever the order of equal confidences."""

import numpy as np
import pytest
import torch
from deepens.metrics import (
    AdaptiveCalibrationError,
    adaptive_calibration_error,
    expected_calibration_error,
    mixture_log_probs,
    reliability_bins,
)
from netcal.metrics import ACE, ECE


def draw(n, seed=0, levels=None):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, dtype=torch.float64, generator=generator)
    if levels is not None:
        confidence = ((confidence * levels).floor() + 0.5) / levels
    return confidence, torch.rand(n, generator=generator) < confidence**2


def skewed(n):
    """Confidences near 1, so that equal width and equal mass differ; over- and under-confident."""
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(n, dtype=torch.float64, generator=generator) ** 0.25
    return confidence, torch.rand(n, generator=generator) < 0.3 + 0.6 * (confidence > 0.8)


@pytest.mark.parametrize(("n", "levels"), [(100, None), (100, 4), (7, None), (1, None)])
def test_equals_the_mean_over_orders_of_ties(n, levels):
    confidence, correct = draw(n, levels=levels)
    order = np.argsort(confidence.numpy(), kind="stable")
    sorted_confidence, hits = confidence.numpy()[order], correct.numpy()[order].astype(float)
    for value in np.unique(sorted_confidence):
        tied = sorted_confidence == value
        hits[tied] = hits[tied].mean()
    parts = np.array_split(np.arange(n), 15)
    expected = sum(
        len(part) / n * abs(hits[part].mean() - sorted_confidence[part].mean())
        for part in parts
        if len(part)
    )
    value = adaptive_calibration_error(confidence, correct).item()
    assert value == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("n", "tolerance"), [(300, 1e-12), (15_000, 1e-12), (10_007, 3e-4)])
def test_equals_netcal_over_quantiles(n, tolerance):
    # netcal cuts at quantiles, we by rank: where 15 does not divide n, edges differ by a sample.
    confidence, correct = skewed(n)
    reference = ECE(15, equal_intervals=False).measure(confidence.numpy(), correct.numpy())
    value = adaptive_calibration_error(confidence, correct).item()
    assert value == pytest.approx(float(reference), abs=tolerance)


def test_is_not_what_netcal_calls_ace():
    # Its default is the mean over bins of equal width, however many samples each holds.
    confidence, correct = skewed(300)
    reference = float(ACE(15).measure(confidence.numpy(), correct.numpy()))
    bins = reliability_bins(confidence, correct)
    gaps = (bins.accuracy - bins.confidence).abs()[bins.counts > 0]
    assert gaps.mean().item() == pytest.approx(reference, abs=1e-12)
    assert adaptive_calibration_error(confidence, correct).item() < reference - 0.03


def test_order_does_not_matter():
    confidence, correct = draw(500, levels=3)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    value = adaptive_calibration_error(confidence, correct)
    shuffled = adaptive_calibration_error(confidence[order], correct[order])
    assert shuffled.item() == pytest.approx(value.item(), abs=1e-14)


def test_one_bin_is_the_gap_of_the_means():
    confidence, correct = draw(500)
    gap = (confidence.mean() - correct.double().mean()).abs().item()
    assert adaptive_calibration_error(confidence, correct, bins=1).item() == pytest.approx(gap)


def test_equal_width_and_equal_mass_agree_on_confidences_that_are_spread_evenly():
    confidence = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    correct = torch.arange(1500) % 3 == 0
    value = adaptive_calibration_error(confidence, correct)
    same = expected_calibration_error(confidence, correct)
    assert value.item() == pytest.approx(same.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("confidence", "bins", "message"),
    [
        (torch.tensor([1.5]), 15, r"confidence must lie in \[0, 1\], got 1.5"),
        (torch.tensor([0.5]), 0, "bins must be >= 1, got 0"),
        (torch.tensor([0.5, 0.5]), 15, "correct must hold 2 samples, got 1"),
    ],
)
def test_bad_inputs_are_refused(confidence, bins, message, unchecked):
    with pytest.raises(ValueError, match=message):
        adaptive_calibration_error(confidence, torch.tensor([True]), bins=bins)


def test_batches_give_the_value_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 300, 4, generator=generator).round(decimals=1)
    targets = torch.randint(4, (300,), generator=generator)
    metric = AdaptiveCalibrationError()
    for batch, labels in zip(logits.split(70, 1), targets.split(70), strict=True):
        metric.update(batch, labels)
    log_probs, predicted = mixture_log_probs(logits.double()).max(-1)
    expected = adaptive_calibration_error(log_probs.exp(), predicted == targets).item()
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)
