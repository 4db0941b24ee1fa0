from itertools import combinations

import numpy as np
import pytest
import torch
from deepens.metrics import (
    brier_ambiguity,
    disagreement,
    jensen_gap,
    member_log_probs,
)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(5, 120, 4, dtype=torch.float64, generator=generator)
    return logits, torch.randint(4, (120,), generator=generator)


def test_disagreement_is_the_mean_over_unordered_pairs(data):
    votes = data[0].argmax(-1).numpy()
    reference = np.mean([votes[i] != votes[j] for i, j in combinations(range(5), 2)], axis=0)
    np.testing.assert_allclose(disagreement(data[0]).numpy(), reference, atol=1e-15)


def test_one_member_and_agreeing_members_have_no_disagreement(data):
    assert not disagreement(data[0][:1]).any()
    assert not disagreement(data[0][:1].expand(6, -1, -1)).any()


def test_members_that_all_differ_disagree_wholly():
    assert disagreement(torch.eye(4).reshape(4, 1, 4)).tolist() == [1.0]


def test_disagreement_does_not_depend_on_the_order_of_members(data):
    assert torch.equal(disagreement(data[0].flip(0)), disagreement(data[0]))


def test_jensen_gap_is_the_log_of_arithmetic_over_geometric_mean(data):
    logits, targets = data
    true = logits.softmax(-1)[:, torch.arange(120), targets].numpy()
    reference = np.log(true.mean(0)) - np.log(true).mean(0)
    gap = jensen_gap(member_log_probs(logits), targets)
    np.testing.assert_allclose(gap.numpy(), reference, atol=1e-12)
    assert gap.min() >= 0


def test_brier_ambiguity_is_the_biased_variance_of_members_whatever_the_label(data):
    logits, targets = data
    reference = logits.softmax(-1).numpy().var(axis=0, ddof=0).sum(-1)
    members = member_log_probs(logits)
    for labels in (targets, (targets + 1) % 4):
        np.testing.assert_allclose(brier_ambiguity(members, labels), reference, atol=1e-12)


@pytest.mark.parametrize("function", [jensen_gap, brier_ambiguity])
def test_one_member_gains_nothing(data, function):
    logits, targets = data
    assert not function(member_log_probs(logits[:1]), targets).any()


@pytest.mark.parametrize("function", [jensen_gap, brier_ambiguity])
def test_labels_outside_the_classes_are_refused(data, function):
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 4\), got 4"):
        function(member_log_probs(data[0][:, :2]), torch.tensor([0, 4]))
