"""Member cross-entropy against float64 arithmetic by hand."""

import numpy as np
import pytest
import torch
from contract import ObjectiveContract
from deepens.ensembles import CrossEntropy, DeepEnsemble
from deepens.ensembles.objectives.cross_entropy import member_cross_entropy
from torch import nn


class TestCrossEntropyObjective(ObjectiveContract):
    def make(self):
        return CrossEntropy()


class TestCrossEntropyMeanOfMembers(ObjectiveContract):
    def make(self):
        return CrossEntropy(reduction="mean_members")


def _by_hand(logits, probabilities):
    logits = logits.numpy()
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -(probabilities * log_probs).sum(-1).mean(-1)


@pytest.mark.parametrize("leading", [(6,), (3, 6)])
def test_hard_targets_agree_with_the_equation(leading):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, leading, generator=generator)
    expected = _by_hand(logits, np.eye(5)[targets.numpy()])
    result = member_cross_entropy(logits, targets)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("leading", [(6,), (3, 6)])
def test_soft_targets_agree_with_the_equation(leading):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    soft = torch.rand(*leading, 5, generator=generator, dtype=torch.float64)
    soft = soft / soft.sum(-1, keepdim=True)
    result = member_cross_entropy(logits, soft)
    np.testing.assert_allclose(result.numpy(), _by_hand(logits, soft.numpy()), rtol=0, atol=1e-12)


def test_gradient_of_a_member_does_not_depend_on_how_many_others_there_are():
    images = torch.randn(6, 1, 2, 2, dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    gradients = []
    for seeds in ([3], [3, 4, 5]):
        ensemble = DeepEnsemble(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seeds=seeds
        ).double()
        CrossEntropy()(ensemble, images, targets).loss.backward()
        gradients.append(ensemble.member_parameters(0)[0][0].grad)
    assert torch.equal(*gradients)


def test_mean_over_members_divides_the_gradient_by_their_number():
    images, targets = torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    ensemble = DeepEnsemble(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seeds=[1, 2])
    total = CrossEntropy()(ensemble, images, targets).loss
    mean = CrossEntropy(reduction="mean_members")(ensemble, images, targets).loss
    torch.testing.assert_close(mean, total / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_widened_first(dtype):
    logits = torch.randn(2, 6, 5).to(dtype)
    targets = torch.zeros(6, dtype=torch.long)
    result = member_cross_entropy(logits, targets)
    assert result.dtype == torch.float32
    assert torch.equal(result, member_cross_entropy(logits.float(), targets))


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        (torch.tensor([0, -100]), r"targets must be in \[0, 3\), got -100"),
        (torch.tensor([0, 1, 2]), r"targets must have shape \[2\] or \[4, 2\]"),
        (torch.zeros(2, 2), r"targets must have shape \[2, 3\] or \[4, 2, 3\]"),
    ],
)
def test_targets_that_do_not_fit_are_refused(unchecked, targets, line):
    with pytest.raises(ValueError, match=line):
        member_cross_entropy(torch.zeros(4, 2, 3), targets)


def test_unknown_reduction_is_refused(unchecked):
    with pytest.raises(ValueError, match="reduction must be 'sum' or 'mean_members', got 'max'"):
        CrossEntropy(reduction="max")
