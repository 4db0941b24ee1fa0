"""Classwise and top-label calibration errors against the ECE of each class by itself."""

import pytest
import torch
from deepens.metrics import (
    ClasswiseCalibrationError,
    TopLabelCalibrationError,
    classwise_calibration_error,
    expected_calibration_error,
    mixture_log_probs,
    top_label_calibration_error,
)
from deepens.metrics import classwise_calibration as module


def draw(n=400, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, n, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (n,), generator=generator)
    logits[:, torch.arange(n), targets] += 1.0
    return logits, mixture_log_probs(logits), targets


def top(log_probs, targets):
    confidence, predicted = log_probs.max(-1)
    return confidence.exp(), predicted == targets, predicted


def test_classwise_is_the_mean_of_the_binary_errors():
    _, log_probs, targets = draw()
    expected = [
        expected_calibration_error(log_probs[:, c].exp(), targets == c).item() for c in range(5)
    ]
    value = classwise_calibration_error(log_probs, targets).item()
    assert value == pytest.approx(sum(expected) / 5, abs=1e-14)


def test_classwise_does_not_depend_on_chunks(monkeypatch):
    _, log_probs, targets = draw()
    whole = classwise_calibration_error(log_probs, targets).item()
    monkeypatch.setattr(module, "_CHUNK", 35)
    assert classwise_calibration_error(log_probs, targets).item() == pytest.approx(whole, abs=1e-14)


def test_top_label_is_the_error_within_each_predicted_class():
    _, log_probs, targets = draw()
    confidence, correct, predicted = top(log_probs, targets)
    expected = sum(
        expected_calibration_error(confidence[predicted == c], correct[predicted == c]).item()
        * (predicted == c).double().mean().item()
        for c in predicted.unique()
    )
    value = top_label_calibration_error(confidence, correct, predicted).item()
    assert value == pytest.approx(expected, abs=1e-14)


def test_top_label_is_at_least_the_error_and_equal_with_one_predicted_class():
    _, log_probs, targets = draw()
    confidence, correct, predicted = top(log_probs, targets)
    ece = expected_calibration_error(confidence, correct).item()
    assert top_label_calibration_error(confidence, correct, predicted).item() > ece
    one = top_label_calibration_error(confidence, correct, torch.zeros_like(predicted))
    assert one.item() == pytest.approx(ece, abs=1e-14)


@pytest.mark.parametrize("kind", [ClasswiseCalibrationError, TopLabelCalibrationError])
def test_batches_give_the_value_of_the_whole(kind):
    logits, log_probs, targets = draw()
    metric = kind(num_classes=5)
    for batch, labels in zip(logits.split(90, 1), targets.split(90), strict=True):
        metric.update(batch, labels)
    expected = {
        ClasswiseCalibrationError: lambda: classwise_calibration_error(log_probs, targets),
        TopLabelCalibrationError: lambda: top_label_calibration_error(*top(log_probs, targets)),
    }[kind]()
    assert metric.compute().item() == pytest.approx(expected.item(), abs=1e-13)


@pytest.mark.parametrize("kind", [ClasswiseCalibrationError, TopLabelCalibrationError])
def test_other_numbers_of_classes_are_refused(kind):
    with pytest.raises(ValueError, match="num_classes must be >= 2, got 1"):
        kind(num_classes=1)
    with pytest.raises(ValueError, match="logits must have 4 classes, got 3"):
        kind(num_classes=4).update(torch.zeros(1, 2, 3), torch.tensor([0, 1]))


def test_predictions_that_are_no_classes_are_refused(unchecked):
    confidence, correct = torch.tensor([0.5]), torch.tensor([True])
    for predicted in (torch.tensor([-1]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match="predicted must hold class indices >= 0"):
            top_label_calibration_error(confidence, correct, predicted)
