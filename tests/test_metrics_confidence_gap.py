"""The signed gap between mean confidence and accuracy."""

import pytest
import torch
from deepens.metrics import (
    ConfidenceGap,
    confidence_gap,
    expected_calibration_error,
    mixture_log_probs,
)


def draw(n=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, n, 5, generator=generator)
    return logits, torch.randint(5, (n,), generator=generator)


def top(logits, targets):
    log_probs, predicted = mixture_log_probs(logits.double()).max(-1)
    return log_probs.exp(), predicted == targets


def test_over_confidence_is_above_zero_and_under_confidence_below():
    correct = torch.tensor([True, True, False, False])
    assert confidence_gap(torch.full((4,), 0.75), correct).item() == 0.25
    assert confidence_gap(torch.full((4,), 0.25), correct).item() == -0.25


def test_is_the_signed_error_of_one_bin_and_never_larger_than_the_error():
    confidence, correct = top(*draw())
    gap = confidence_gap(confidence, correct).item()
    assert gap == pytest.approx(
        expected_calibration_error(confidence, correct, bins=1).item(), abs=1e-14
    )
    for bins in (2, 15, 100):
        ece = expected_calibration_error(confidence, correct, bins=bins).item()
        assert abs(gap) <= ece + 1e-14


def test_opposite_gaps_cancel_here_and_not_in_the_error():
    confidence, correct = torch.tensor([0.25, 0.75]), torch.tensor([True, False])
    assert confidence_gap(confidence, correct).item() == 0.0
    assert expected_calibration_error(confidence, correct).item() == 0.75


def test_weights_equal_repeated_data():
    confidence, correct = top(*draw(100))
    weights = torch.randint(0, 4, (5, 100), generator=torch.Generator().manual_seed(2))
    values = confidence_gap(confidence, correct, weights=weights)
    assert values.shape == (5,)
    for row, value in zip(weights, values, strict=True):
        repeated = confidence_gap(confidence.repeat_interleave(row), correct.repeat_interleave(row))
        assert value.item() == pytest.approx(repeated.item(), abs=1e-12)
    one = confidence_gap(confidence, correct, weights=weights[0])
    assert one.item() == pytest.approx(values[0].item(), abs=1e-14)


def test_batches_and_merged_processes_give_the_value_of_the_whole():
    logits, targets = draw()
    expected = pytest.approx(confidence_gap(*top(logits, targets)).item(), abs=1e-13)
    whole, one, other = ConfidenceGap(), ConfidenceGap(), ConfidenceGap()
    whole.update(logits, targets)
    for metric, part in ((one, slice(0, 150)), (other, slice(150, 400))):
        for batch, labels in zip(
            logits[:, part].split(70, 1), targets[part].split(70), strict=True
        ):
            metric.update(batch, labels)
    one.total, one.count = one.total + other.total, one.count + other.count
    assert whole.compute().item() == expected
    assert one.compute().item() == expected


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        (torch.tensor([1.5]), torch.tensor([True]), r"confidence must lie in \[0, 1\], got 1.5"),
        (torch.tensor([torch.inf]), torch.tensor([True]), "confidence must be finite, got inf"),
        (torch.tensor([0.5, 0.5]), torch.tensor([True]), "correct must hold 2 samples, got 1"),
        (torch.zeros(0), torch.zeros(0).bool(), "confidence must hold >= 1 sample, got 0"),
    ],
)
def test_bad_inputs_are_refused(confidence, correct, message, unchecked):
    with pytest.raises(ValueError, match=message):
        confidence_gap(confidence, correct)


def test_an_empty_metric_says_so(recwarn):
    with pytest.raises(ValueError, match="ConfidenceGap needs >= 1 sample, got 0"):
        ConfidenceGap().compute()
