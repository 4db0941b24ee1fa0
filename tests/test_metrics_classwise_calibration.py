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
from deepens.metrics.calibration import classwise as module


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
    monkeypatch.setattr(module, "CHUNK", 35)
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


@pytest.mark.parametrize(
    ("predicted", "got"), [(torch.tensor([-1]), "got -1"), (torch.tensor([0.5]), "got torch.float")]
)
def test_predictions_that_are_no_classes_are_refused(predicted, got, unchecked):
    confidence, correct = torch.tensor([0.5]), torch.tensor([True])
    with pytest.raises(ValueError, match=f"predicted must hold class indices >= 0, {got}"):
        top_label_calibration_error(confidence, correct, predicted)


@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (torch.tensor([[2.0, -1.0]]), r"log_probs must be <= 0, got 2.0: are they logarithms\?"),
        (torch.tensor([[0.75, 0.25]]), "log_probs must be <= 0, got 0.75"),
        (torch.tensor([[torch.nan, -1.0]]), "must be finite, got nan"),
        (torch.zeros(0, 2), r"log_probs must hold >= 1 sample, got shape \[0, 2\]"),
    ],
)
def test_logits_probabilities_and_nothing_are_refused(log_probs, message):
    with pytest.raises(ValueError, match=message):
        classwise_calibration_error(log_probs, torch.zeros(len(log_probs), dtype=torch.long))


def test_impossible_and_certain_classes_are_calibrated_where_they_come_true():
    log_probs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).log()
    assert classwise_calibration_error(log_probs, torch.tensor([0, 2])).item() == 0.0
    expected = (0.5 + 0.5 + 0.0) / 3  # half of class 0's and of class 1's samples are off by 1
    value = classwise_calibration_error(log_probs, torch.tensor([1, 2])).item()
    assert value == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("levels", [2, 5])
def test_classwise_and_top_label_equal_loops_on_ties(levels):
    generator = torch.Generator().manual_seed(levels)
    shares = torch.randint(1, levels + 1, (60, 4), generator=generator).double()
    log_probs = (shares / shares.sum(-1, keepdim=True)).log()
    targets = torch.randint(4, (60,), generator=generator)
    probs = log_probs.exp()

    def gap(members):  # |sum of p - number of hits| over N, members being (p, hit) pairs
        return abs(sum(p for p, _ in members) - sum(hit for _, hit in members)) / 60

    edges = [(b / 15, (b + 1) / 15) for b in range(15)]
    confidence, correct, predicted = top(log_probs, targets)
    classwise, by_label = 0.0, 0.0
    for c in range(4):
        pairs = [(p[c].item(), y.item() == c) for p, y in zip(probs, targets, strict=True)]
        told = [
            (p.item(), hit.item())
            for p, hit, label in zip(confidence, correct, predicted, strict=True)
            if label == c
        ]
        for low, high in edges:
            classwise += gap([(p, hit) for p, hit in pairs if low < p <= high]) / 4
            by_label += gap([(p, hit) for p, hit in told if low < p <= high])
    value = classwise_calibration_error(log_probs, targets).item()
    assert value == pytest.approx(classwise, abs=1e-13)
    value = top_label_calibration_error(confidence, correct, predicted).item()
    assert value == pytest.approx(by_label, abs=1e-13)
