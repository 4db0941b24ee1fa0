import numpy as np
import pytest
import torch
from deepens.metrics import (
    ExpectedCalibrationError,
    debiased_squared_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
    root_mean_square_calibration_error,
)
from deepens.metrics.core.binning import bin_index
from netcal.metrics import ECE, MCE
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error


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


@pytest.mark.parametrize("bins", [1, 2, 15, 32, 33, 100])
def test_few_bins_are_found_as_by_a_search(bins):
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    confidence = torch.cat([draw(1000)[0], edges, edges.nextafter(torch.ones(()).double())])
    searched = torch.bucketize(confidence, edges[1:-1])
    assert torch.equal(bin_index(confidence, bins=bins), searched)


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


FUNCTIONS = {
    "mce": maximum_calibration_error,
    "rms": root_mean_square_calibration_error,
    "debiased": debiased_squared_calibration_error,
}


def by_hand(name, confidence, correct, bins):
    """Bin by bin, in Python."""
    found = []
    for number in range(bins):
        inside = [
            (float(p), bool(hit))
            for p, hit in zip(confidence, correct, strict=True)
            if number / bins < p <= (number + 1) / bins or (number == 0 and p == 0)
        ]
        if inside:
            accuracy = sum(hit for _, hit in inside) / len(inside)
            gap = abs(sum(p for p, _ in inside) / len(inside) - accuracy)
            noise = accuracy * (1 - accuracy) / (len(inside) - 1) if len(inside) > 1 else 0.0
            debiased = gap**2 - noise if len(inside) > 1 else 0.0
            found.append((len(inside) / len(confidence), gap, debiased))
    return {
        "mce": max(gap for _, gap, _ in found),
        "rms": sum(share * gap**2 for share, gap, _ in found) ** 0.5,
        "debiased": sum(share * debiased for share, _, debiased in found),
    }[name]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("n", "levels"), [(300, None), (300, 6), (3, None), (1, None)])
def test_equals_the_definition_bin_by_bin(name, n, levels):
    confidence, correct = draw(n, levels=levels)
    expected = by_hand(name, confidence, correct, 10)
    value = FUNCTIONS[name](confidence, correct, bins=10)
    assert value.item() == pytest.approx(expected, abs=1e-13)


def test_maximum_equals_netcal():
    confidence, correct = draw(2000)
    reference = MCE(15).measure(confidence.numpy(), correct.numpy().astype(int))
    value = maximum_calibration_error(confidence, correct)
    assert value.item() == pytest.approx(float(reference), abs=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_weights_equal_repeated_data_for_the_other_errors(name):
    confidence, correct = draw(200, levels=20)
    weights = torch.randint(0, 4, (5, 200), generator=torch.Generator().manual_seed(2))
    values = FUNCTIONS[name](confidence, correct, weights=weights)
    for row, value in zip(weights, values, strict=True):
        repeated = FUNCTIONS[name](
            confidence.repeat_interleave(row), correct.repeat_interleave(row)
        )
        assert value.item() == pytest.approx(repeated.item(), abs=1e-12)


def test_errors_are_ordered():
    confidence, correct = draw(1000)
    ece = expected_calibration_error(confidence, correct)
    rms = root_mean_square_calibration_error(confidence, correct)
    assert ece < rms < maximum_calibration_error(confidence, correct)


@pytest.mark.parametrize(("n", "bias"), [(500, 0.05), (20, 0.24)])
def test_debiased_error_of_calibrated_data_is_zero_on_average_where_the_ece_is_not(n, bias):
    generator = torch.Generator().manual_seed(3)
    ece, debiased = [], []
    for _ in range(400):
        confidence = torch.rand(n, dtype=torch.float64, generator=generator)
        correct = torch.rand(n, generator=generator) < confidence
        ece.append(expected_calibration_error(confidence, correct).item())
        debiased.append(debiased_squared_calibration_error(confidence, correct).item())
    # Within bins of width 1/15 the confidences differ, so that a bias of below 1e-4 remains.
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / 20 + 1e-4
    assert np.mean(ece) == pytest.approx(bias, abs=0.02)


def test_debiased_error_equals_the_published_code():
    # uncertainty-calibration 0.1.4, unbiased_square_ce over get_equal_prob_bins; the last has bins
    # of one sample, which add 0.
    recorded = {2000: 0.036465762477798855, 300: 0.03444709402067428, 30: 0.041110743930032834}
    for n, expected in recorded.items():
        value = debiased_squared_calibration_error(*draw(n)).item()
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("norm", "function"), [("l1", "ece"), ("l2", "rms"), ("max", "mce")])
def test_equals_torchmetrics_away_from_the_edges_of_bins(norm, function):
    # On an edge torchmetrics takes the bin above; it sums in the dtype of its input.
    confidence, correct = draw(2000, levels=40)
    expected = binary_calibration_error(
        confidence, correct.long(), n_bins=15, norm=norm, validate_args=False
    )
    functions = FUNCTIONS | {"ece": expected_calibration_error}
    value = functions[function](confidence, correct)
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)


def test_reliability_bins_equal_those_of_sklearn():
    confidence, correct = draw(2000)
    accuracy, mean = calibration_curve(correct.numpy(), confidence.numpy(), n_bins=15)
    bins = reliability_bins(confidence, correct)
    np.testing.assert_allclose(bins.accuracy.numpy(), accuracy, atol=1e-12)
    np.testing.assert_allclose(bins.confidence.numpy(), mean, atol=1e-12)


def test_error_is_exact_at_forty_million_samples():
    # The state after 40 M samples, as sums that add up; float32 sums would stand still at 2^24.
    metric = ExpectedCalibrationError(bins=1)
    logits = torch.tensor([[[0.9, 0.1]]], dtype=torch.float64).log().expand(1, 100, 2)
    metric.update(logits, (torch.arange(100) >= 84).long())
    for _ in range(5):
        metric.counts *= 10
        metric.correct *= 10
        metric.confidence *= 10
    metric.counts, metric.correct = metric.counts * 4, metric.correct * 4
    metric.confidence = metric.confidence * 4
    metric.update(logits, (torch.arange(100) >= 84).long())
    assert metric.counts.item() == 40_000_100
    # What a float32 accumulator makes of one sample more:
    assert metric.counts.float() + 1 == metric.counts.float()
    assert metric.compute().item() == pytest.approx(0.06, abs=1e-12)
