"""Adaptive calibration error: bins of equal mass, whatever the order of equal confidences."""

import numpy as np
import pytest
import torch
from deepens.metrics import adaptive_calibration_error, expected_calibration_error
from netcal.metrics import ACE


def draw(n, seed=0, levels=None):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, dtype=torch.float64, generator=generator)
    if levels is not None:
        confidence = ((confidence * levels).floor() + 0.5) / levels
    return confidence, torch.rand(n, generator=generator) < confidence**2


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


def test_equals_netcal_up_to_where_quantiles_are_cut():
    # netcal cuts at quantiles, we by rank: edges differ by a sample.
    confidence, correct = draw(15_000)
    reference = ACE(15).measure(confidence.numpy(), correct.numpy().astype(int))
    value = adaptive_calibration_error(confidence, correct).item()
    assert value == pytest.approx(float(reference), abs=2e-4)


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
