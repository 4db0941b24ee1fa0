import numpy as np
import pytest
import torch
from deepens.metrics import brier_score, correctness, mixture_log_probs, negative_log_likelihood
from sklearn.metrics import accuracy_score, log_loss


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(4, 300, 6, dtype=torch.float64, generator=generator)
    return mixture_log_probs(logits), torch.randint(6, (300,), generator=generator)


def test_negative_log_likelihood_equals_scikit_learn(data):
    log_probs, targets = data
    reference = log_loss(targets, log_probs.exp(), labels=range(6))
    value = negative_log_likelihood(log_probs, targets).mean().item()
    assert value == pytest.approx(reference, abs=1e-12)


def test_brier_score_is_the_squared_distance_from_the_one_hot_label(data):
    log_probs, targets = data
    reference = ((log_probs.exp().numpy() - np.eye(6)[targets.numpy()]) ** 2).sum(-1)
    np.testing.assert_allclose(brier_score(log_probs, targets).numpy(), reference, atol=1e-12)


def test_accuracy_equals_scikit_learn(data):
    log_probs, targets = data
    value = correctness(log_probs, targets).double().mean().item()
    assert value == pytest.approx(accuracy_score(targets, log_probs.argmax(-1)), abs=1e-15)


def test_certain_and_wrong_is_the_worst_brier_score():
    log_probs = torch.tensor([[0.0, -800.0], [0.0, -800.0]], dtype=torch.float64)
    assert brier_score(log_probs, torch.tensor([0, 1])).tolist() == [0.0, 2.0]
    assert negative_log_likelihood(log_probs, torch.tensor([0, 1])).tolist() == [0.0, 800.0]


def test_the_first_of_equally_probable_classes_is_the_prediction():
    log_probs = torch.full((2, 3), 1 / 3).log()
    assert correctness(log_probs, torch.tensor([0, 1])).tolist() == [True, False]


@pytest.mark.parametrize("function", [negative_log_likelihood, brier_score, correctness])
def test_ignored_labels_are_refused_not_scored(function):
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 2\), got -100"):
        function(torch.zeros(2, 2).log_softmax(-1), torch.tensor([0, -100]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_dtype_of_labels_gives_the_same_scores(data, dtype):
    log_probs, targets = data
    for function in (negative_log_likelihood, brier_score, correctness):
        assert torch.equal(function(log_probs, targets.to(dtype)), function(log_probs, targets))
