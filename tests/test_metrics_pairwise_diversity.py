"""Measures of member pairs against counting by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from deepens.metrics import (
    DoubleFault,
    ErrorCorrelation,
    QStatistic,
    cosine_similarity,
    double_fault,
    ensemble_improvement_rate,
    error_correlation,
    member_log_probs,
    normalized_disagreement,
    q_statistic,
)
from scipy import stats

SHELLS = {
    QStatistic: q_statistic,
    ErrorCorrelation: error_correlation,
    DoubleFault: double_fault,
}


def draw(members=4, n=200, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(members, n, classes, generator=generator)
    logits += torch.randn(n, classes, generator=generator)
    targets = torch.randint(classes, (n,), generator=generator)
    logits[:, torch.arange(n), targets] += 1.0
    return logits, targets


def by_hand(logits, targets, function):
    right = (logits.argmax(-1) == targets).tolist()
    values = []
    for one, other in itertools.combinations(right, 2):
        joint = [(p, q) for p, q in zip(one, other, strict=True)]
        kinds = ((True, True), (True, False), (False, True), (False, False))
        values.append(function(*(joint.count(kind) / len(joint) for kind in kinds)))
    return sum(values) / len(values)


def test_q_statistic_equals_counting():
    logits, targets = draw()
    expected = by_hand(logits, targets, lambda a, b, c, d: (a * d - b * c) / (a * d + b * c))
    assert q_statistic(logits, targets).item() == pytest.approx(expected, abs=1e-14)


def test_double_fault_equals_counting():
    logits, targets = draw()
    expected = by_hand(logits, targets, lambda a, b, c, d: d)
    assert double_fault(logits, targets).item() == pytest.approx(expected, abs=1e-14)


def test_error_correlation_equals_pearson():
    logits, targets = draw()
    right = (logits.argmax(-1) == targets).double().numpy()
    pairs = itertools.combinations(right, 2)
    expected = [stats.pearsonr(one, other).statistic for one, other in pairs]
    value = error_correlation(logits, targets).item()
    assert value == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_normalized_disagreement_equals_counting():
    logits, targets = draw()
    votes = logits.argmax(-1)
    differing = [(a != b).double().mean().item() for a, b in itertools.combinations(votes, 2)]
    errors = [(vote != targets).double().mean().item() for vote in votes]
    expected = (sum(differing) / len(differing)) / (sum(errors) / len(errors))
    value = normalized_disagreement(logits, targets).item()
    assert value == pytest.approx(expected, abs=1e-14)


def test_improvement_rate_equals_the_mode_of_votes_where_there_are_no_ties():
    logits, targets = draw()
    votes = logits.argmax(-1).numpy()
    counted = np.stack([np.bincount(column, minlength=3) for column in votes.T])
    sole = (counted == counted.max(1, keepdims=True)).sum(1) == 1
    logits, targets = logits[:, torch.from_numpy(sole)], targets[torch.from_numpy(sole)]
    majority = stats.mode(votes[:, sole], axis=0).mode
    errors = (votes[:, sole] != targets.numpy()).mean()
    expected = (errors - (majority != targets.numpy()).mean()) / errors
    assert ensemble_improvement_rate(logits, targets).item() == pytest.approx(expected, abs=1e-14)


def test_improvement_rate_of_two_members_is_that_of_their_mixture():
    logits, targets = draw(members=2)
    wrong = (logits.argmax(-1) != targets).double().mean().item()
    mixture = (logits.double().softmax(-1).mean(0).argmax(-1) != targets).double().mean().item()
    value = ensemble_improvement_rate(logits, targets).item()
    assert value == pytest.approx(1 - mixture / wrong, abs=1e-14)


def test_improvement_rate_lies_within_the_bounds_of_the_authors():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(3, (400,), generator=generator)
        logits = torch.randn(7, 400, 3, generator=generator)
        logits += 1.5 * torch.nn.functional.one_hot(targets, 3)
        ratio = normalized_disagreement(logits, targets).item() * 6 / 7  # a member with itself too
        rate = ensemble_improvement_rate(logits, targets).item()
        assert 4 / 3 * ratio - 5 / 3 <= rate <= ratio


def test_improvement_rate_of_equal_members_is_zero():
    logits, targets = draw(members=1)
    assert ensemble_improvement_rate(logits, targets).item() == 0.0
    assert ensemble_improvement_rate(logits.expand(3, -1, -1), targets).item() == 0.0


def test_improvement_rate_is_nan_with_a_warning_where_no_member_errs():
    with pytest.warns(RuntimeWarning, match="improvement rate is undefined for members without"):
        assert math.isnan(
            ensemble_improvement_rate(torch.eye(3).expand(2, 3, 3), torch.arange(3)).item()
        )


def test_cosine_similarity_equals_torch_pair_by_pair():
    probs = member_log_probs(draw()[0].double()).exp()
    pairs = itertools.combinations(probs, 2)
    expected = torch.stack([torch.cosine_similarity(a, b, dim=-1) for a, b in pairs]).mean(0)
    torch.testing.assert_close(cosine_similarity(probs.log()), expected, rtol=0, atol=1e-14)


def test_equal_members_are_as_alike_as_can_be():
    logits, targets = draw(members=1)
    logits = logits.expand(3, -1, -1)
    assert q_statistic(logits, targets).item() == 1.0
    assert error_correlation(logits, targets).item() == pytest.approx(1.0, abs=1e-14)
    wrong = (logits[0].argmax(-1) != targets).double().mean().item()
    assert double_fault(logits, targets).item() == pytest.approx(wrong, abs=1e-15)
    similarity = cosine_similarity(member_log_probs(logits))
    torch.testing.assert_close(similarity, torch.ones_like(similarity), rtol=0, atol=1e-14)
    assert normalized_disagreement(logits, targets).item() == 0.0


@pytest.mark.parametrize("shell", SHELLS)
def test_batches_give_the_value_of_the_whole(shell):
    logits, targets = draw()
    metric = shell(num_members=4)
    for batch, labels in zip(logits.split(70, 1), targets.split(70), strict=True):
        metric.update(batch, labels)
    expected = SHELLS[shell](logits, targets).item()
    assert metric.compute().item() == pytest.approx(expected, abs=1e-14)


def test_measures_of_one_member_are_nan_with_a_warning():
    logits, targets = draw(members=1)
    for function in (q_statistic, error_correlation, double_fault, normalized_disagreement):
        with pytest.warns(RuntimeWarning, match="is undefined for one member: NaN is returned"):
            assert math.isnan(function(logits, targets).item())
    with pytest.warns(RuntimeWarning, match="cosine similarity is undefined for one member"):
        assert cosine_similarity(member_log_probs(logits)).isnan().all()


def test_measures_of_members_without_errors_are_nan_with_a_warning():
    targets = torch.tensor([0, 1, 2])
    logits = torch.eye(3).expand(2, 3, 3)
    with pytest.warns(RuntimeWarning, match="Q-statistic is undefined for a pair without errors"):
        assert math.isnan(q_statistic(logits, targets).item())
    with pytest.warns(RuntimeWarning, match="error correlation is undefined for a member that is"):
        assert math.isnan(error_correlation(logits, targets).item())
    with pytest.warns(RuntimeWarning, match="undefined for members without errors"):
        assert math.isnan(normalized_disagreement(logits, targets).item())


def test_other_numbers_of_members_are_refused():
    with pytest.raises(ValueError, match="num_members must be >= 2, got 1"):
        QStatistic(num_members=1)
    with pytest.raises(ValueError, match="logits must have 3 members, got 4"):
        QStatistic(num_members=3).update(*draw())
