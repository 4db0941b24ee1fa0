import numpy as np
import pytest
import torch
from deepens.metrics import expected_calibration_error, reliability_bins
from netcal.metrics import ECE


def draw(n, seed=0, levels=None):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, dtype=torch.float64, generator=generator)
    if levels is not None:  # heavy ties, away from the edges of the bins
        confidence = ((confidence * levels).floor() + 0.5) / levels
    return confidence, torch.rand(n, generator=generator) < confidence**2


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("bins", [5, 15])
def test_equals_netcal(bins, levels):
    confidence, correct = draw(2000, levels=levels)
    reference = ECE(bins).measure(confidence.numpy(), correct.numpy().astype(int))
    value = expected_calibration_error(confidence, correct, bins=bins).item()
    assert value == pytest.approx(float(reference), abs=1e-12)


def test_bins_are_open_below_and_closed_above_with_zero_in_the_first():
    confidence = torch.tensor([0.0, 0.2, 0.2000001, 0.6, 1.0], dtype=torch.float64)
    bins = reliability_bins(confidence, torch.ones(5, dtype=torch.bool), bins=5)
    assert bins.counts.tolist() == [2, 1, 1, 0, 1]


@pytest.mark.parametrize("edge", range(1, 16))
def test_every_exact_edge_belongs_to_the_bin_below_it(edge):
    confidence = torch.tensor([edge / 15], dtype=torch.float64)
    bins = reliability_bins(confidence, torch.tensor([True]))
    assert bins.counts.argmax().item() == edge - 1


def test_empty_bins_hold_zero_and_add_nothing():
    bins = reliability_bins(torch.tensor([0.95, 0.85]), torch.tensor([True, False]), bins=10)
    assert bins.counts.tolist() == [0] * 8 + [1, 1]
    assert bins.confidence[:8].tolist() == bins.accuracy[:8].tolist() == [0.0] * 8
    ece = expected_calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
    assert ece.item() == 0.25


def test_reliability_bins_make_up_the_error():
    confidence, correct = draw(1000)
    bins = reliability_bins(confidence, correct)
    gaps = (bins.counts * (bins.accuracy - bins.confidence).abs()).sum() / 1000
    value = expected_calibration_error(confidence, correct)
    assert value.item() == pytest.approx(gaps.item(), abs=1e-14)
    assert bins.counts.sum() == 1000
    assert bins.edges[[0, -1]].tolist() == [0.0, 1.0]


def test_weights_equal_repeated_data():
    confidence, correct = draw(200, levels=20)
    weights = torch.randint(0, 4, (5, 200), generator=torch.Generator().manual_seed(2))
    values = expected_calibration_error(confidence, correct, weights=weights)
    for row, value in zip(weights, values, strict=True):
        repeated = expected_calibration_error(
            confidence.repeat_interleave(row), correct.repeat_interleave(row)
        )
        assert value.item() == pytest.approx(repeated.item(), abs=1e-12)


def test_float64_sums_keep_small_errors_of_float32_confidences():
    confidence = torch.full((3_000_000,), 0.9)
    correct = torch.arange(3_000_000) % 100 < 84
    reference = float(np.float32(0.9)) - 0.84
    value = expected_calibration_error(confidence, correct).item()
    assert value == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        (torch.tensor([0.5]), torch.tensor([True]), 0, "bins must be >= 1, got 0"),
        (torch.tensor([1.5]), torch.tensor([True]), 15, r"must lie in \[0, 1\], got 1.5"),
        (torch.tensor([-0.5]), torch.tensor([True]), 15, r"must lie in \[0, 1\], got -0.5"),
        (torch.tensor([torch.nan]), torch.tensor([True]), 15, "confidence must be finite, got nan"),
        (torch.zeros(0), torch.zeros(0).bool(), 15, "confidence must hold >= 1 sample, got 0"),
    ],
)
def test_bad_inputs_are_refused(confidence, correct, bins, message):
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(confidence, correct, bins=bins)
