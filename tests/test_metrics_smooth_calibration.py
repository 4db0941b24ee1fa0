"""Smooth calibration error against its integral by quadrature, and against relplot's values."""

import numpy as np
import pytest
import torch
from deepens.metrics import SmoothCalibrationError, smooth_calibration_error
from deepens.metrics.calibration import smooth as module
from scipy import optimize


def draw(kind, n, seed=7):
    """The data behind RELPLOT, by NumPy's generator."""
    random = np.random.default_rng(seed)
    if kind == "over":
        confidence = 0.5 + 0.5 * random.random(n)
        correct = random.random(n) < confidence**2
    elif kind == "calibrated":
        confidence = random.random(n)
        correct = random.random(n) < confidence
    elif kind == "near one":
        confidence = 0.97 + 0.03 * random.beta(5, 1, n)
        correct = random.random(n) < 0.94
    elif kind == "tied":
        confidence = np.round(random.random(n), 1)
        correct = random.random(n) < 0.3 + 0.4 * confidence
    return torch.from_numpy(confidence), torch.from_numpy(correct)


RELPLOT = {  # relplot 1.0.3, smECE(f, y)
    ("over", 200): 0.1461372312428605,
    ("over", 5000): 0.17937717687361104,
    ("calibrated", 200): 0.04824022416629593,
    ("calibrated", 5000): 0.01879793852217524,
}


@pytest.mark.parametrize(("kind", "n"), RELPLOT)
def test_equals_relplot_to_a_thousandth(kind, n):
    value = smooth_calibration_error(*draw(kind, n)).item()
    assert value == pytest.approx(RELPLOT[kind, n], abs=1e-3)


@pytest.mark.parametrize("n", [100, 3000])
@pytest.mark.parametrize("kind", ["over", "calibrated"])
def test_equals_relplot_where_it_is_installed(kind, n):
    relplot = pytest.importorskip("relplot")
    confidence, correct = draw(kind, n, seed=11)
    expected = relplot.smECE(confidence.numpy(), correct.numpy().astype(float))
    value = smooth_calibration_error(confidence, correct).item()
    assert value == pytest.approx(float(expected), abs=1e-3)


def by_quadrature(confidence, correct, points=10_001):
    """The reflected kernel as a sum over mirror images, integrated by trapezoids."""
    where = np.linspace(0, 1, points)
    levels, place = np.unique(confidence.numpy(), return_inverse=True)
    residuals = np.bincount(place, weights=correct.numpy() - confidence.numpy()) / len(confidence)

    def error(bandwidth):
        total = np.zeros(points)
        for level, residual in zip(levels, residuals, strict=True):
            for turn in range(-3, 4):
                for image in (level + 2 * turn, -level + 2 * turn):
                    total += residual * np.exp(-0.5 * ((where - image) / bandwidth) ** 2)
        return np.trapezoid(abs(total), where) / bandwidth / np.sqrt(2 * np.pi)

    return optimize.brentq(lambda bandwidth: error(bandwidth) - bandwidth, 1e-3, 1)


@pytest.mark.parametrize(
    ("kind", "n"), [("over", 60), ("tied", 200), ("tied", 5000), ("near one", 100)]
)
def test_equals_the_integral_also_with_mass_at_the_ends(kind, n):
    # relplot counts what it rounds to 0 or 1 by half: for the tied ones it gives 0.1316 and 0.1403
    # where the integral is 0.1374 and 0.1466, for those near one 0.0617 and 0.0648.
    confidence, correct = draw(kind, n)
    value = smooth_calibration_error(confidence, correct).item()
    assert value == pytest.approx(by_quadrature(confidence, correct), abs=1e-4)


def test_constant_confidence_gives_the_gap():
    # A kernel of width 0.3 around 0.8, reflected at 1, keeps its mass: the integral is the gap.
    correct = torch.arange(1000) % 2 == 0
    value = smooth_calibration_error(torch.full((1000,), 0.8), correct)
    assert value.item() == pytest.approx(0.3, abs=1e-6)


def test_perfect_predictions_have_no_error():
    assert smooth_calibration_error(torch.ones(5), torch.ones(5, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("confident", [0.0, 1.0])
def test_certain_and_always_wrong_is_the_largest_error(n, confident):
    confidence = torch.full((n,), confident)
    value = smooth_calibration_error(confidence, torch.full((n,), confident == 0.0))
    assert value.item() == pytest.approx(1.0, abs=1e-6)


def test_finer_cells_change_nothing(monkeypatch):
    confidence, correct = draw("calibrated", 20_000)
    value = smooth_calibration_error(confidence, correct).item()
    monkeypatch.setattr(module, "CELLS", 2**17)
    fine = smooth_calibration_error(confidence, correct).item()
    assert value == pytest.approx(fine, abs=1e-6)


def test_order_and_duplication_do_not_matter():
    confidence, correct = draw("tied", 300)
    value = smooth_calibration_error(confidence, correct).item()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1)).repeat(3)
    again = smooth_calibration_error(confidence[order], correct[order]).item()
    assert again == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(
    ("confidence", "message"),
    [
        (torch.tensor([1.5]), r"confidence must lie in \[0, 1\], got 1.5"),
        (torch.tensor([torch.nan]), "confidence must be finite, got nan"),
        (torch.tensor([0.5, 0.5]), "correct must hold 2 samples, got 1"),
        (torch.zeros(0), "confidence must hold >= 1 sample, got 0"),
    ],
)
def test_bad_inputs_are_refused(confidence, message, unchecked):
    with pytest.raises(ValueError, match=message):
        smooth_calibration_error(confidence, torch.tensor([True]))


def test_is_continuous_where_a_bin_has_its_edge():
    correct = torch.arange(1000) % 2 == 0
    below, above = (
        smooth_calibration_error(torch.full((1000,), 0.6 + shift).double(), correct).item()
        for shift in (-1e-6, 1e-6)
    )
    assert below == pytest.approx(above, abs=1e-5)


def test_batches_and_processes_give_the_value_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 300, 4, generator=generator)
    targets = torch.randint(4, (300,), generator=generator)
    whole, parts = SmoothCalibrationError(), SmoothCalibrationError()
    whole.update(logits, targets)
    for batch, labels in zip(logits.split(70, 1), targets.split(70), strict=True):
        parts.update(batch, labels)
    assert parts.compute().item() == pytest.approx(whole.compute().item(), abs=1e-12)


def test_an_empty_metric_says_so():
    with pytest.raises(ValueError, match="SmoothCalibrationError needs >= 1 sample, got 0"):
        SmoothCalibrationError().compute()
