from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from deepens.metrics import (
    brier_ambiguity,
    disagreement,
    input_gradient_similarity,
    jensen_gap,
    member_log_probs,
    mutual_information,
    pairwise_kl,
    pool_log_probs,
)
from scipy.stats import entropy


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


def test_pairwise_kl_is_the_mean_over_ordered_pairs(data):
    probs = data[0].softmax(-1).numpy()
    reference = np.mean([entropy(p, q, axis=-1) for p, q in permutations(probs, 2)], axis=0)
    ours = pairwise_kl(member_log_probs(data[0]))
    np.testing.assert_allclose(ours.numpy(), reference, rtol=1e-11, atol=1e-13)
    at_hand = pairwise_kl(member_log_probs(data[0]), member_probs=data[0].softmax(-1))
    np.testing.assert_allclose(at_hand.numpy(), reference, rtol=1e-11, atol=1e-13)


def test_pairwise_kl_is_mutual_and_reverse_mutual_information_together(data):
    members = member_log_probs(data[0])
    mixture = pool_log_probs(members)
    reverse = (mixture.exp() * (mixture - members)).sum(-1).mean(0)
    expected = (mutual_information(members) + reverse) * 5 / 4
    torch.testing.assert_close(pairwise_kl(members), expected, rtol=1e-12, atol=1e-13)


def test_pairwise_kl_of_one_member_is_exactly_zero_and_of_equal_ones_up_to_rounding(data):
    members = member_log_probs(data[0])
    assert not pairwise_kl(members[:1]).any()
    alike = pairwise_kl(members[:1].expand(7, -1, -1))
    assert (alike >= 0).all()
    assert alike.max() < 1e-14


def test_pairwise_kl_does_not_depend_on_the_order_of_members_or_of_classes(data):
    members = member_log_probs(data[0])
    expected = pairwise_kl(members)
    for other in (members.flip(0), members.flip(-1), members[[2, 4, 0, 3, 1]]):
        torch.testing.assert_close(pairwise_kl(other), expected, rtol=1e-12, atol=1e-14)


def test_pairwise_kl_counts_nothing_where_both_rule_out_and_infinity_where_one_does():
    certain = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    other = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    assert pairwise_kl(torch.stack([certain, certain]).log()).tolist() == [0.0]
    assert pairwise_kl(torch.stack([certain, other]).log()).tolist() == [torch.inf]


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 800.0, 1e5])
def test_pairwise_kl_of_nearly_equal_and_of_extreme_members_is_exact(data, scale):
    logits = data[0][:, :20] * scale
    if scale < 1:
        logits = logits + data[0][0, :20]
    members = member_log_probs(logits)
    pairs = [p.exp() * (p - q) for p, q in permutations(members, 2)]
    reference = torch.stack(pairs).sum((0, -1)) / len(pairs)
    ours = pairwise_kl(members)
    assert ours.min() >= 0
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-15)


def test_pairwise_kl_is_computed_in_float64_from_float32(data):
    members = member_log_probs(data[0].float())
    assert pairwise_kl(members).dtype == torch.float64
    assert torch.equal(pairwise_kl(members), pairwise_kl(members.double()))


def cosines(gradients):
    """The mean over unordered pairs, each by numpy."""

    def cosine(a, b):
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return (a * b).sum(-1) / np.where(norms > 0, norms, 1.0)

    return np.mean([cosine(a, b) for a, b in combinations(gradients, 2)], axis=0)


@pytest.fixture
def gradients():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 40, 30, dtype=torch.float64, generator=generator)


def test_gradient_similarity_is_the_mean_cosine_over_pairs(gradients):
    reference = cosines(gradients.numpy())
    np.testing.assert_allclose(input_gradient_similarity(gradients).numpy(), reference, atol=1e-14)
    parts = [input_gradient_similarity(part) for part in gradients.split(17, dim=1)]
    np.testing.assert_allclose(torch.cat(parts).numpy(), reference, atol=1e-14)


def test_gradient_similarity_depends_on_directions_alone(gradients):
    expected = input_gradient_similarity(gradients)
    lengths = torch.tensor([1e-300, 1e-30, 1.0, 1e30, 1e300], dtype=torch.float64)
    stretched = gradients * lengths[:, None, None]
    torch.testing.assert_close(input_gradient_similarity(stretched), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        input_gradient_similarity(gradients.flip(0)), expected, rtol=0, atol=1e-14
    )


def test_equal_gradients_are_alike_and_opposed_ones_opposed(gradients):
    first = gradients[:1]
    alike = input_gradient_similarity(first.expand(4, -1, -1))
    torch.testing.assert_close(alike, torch.ones_like(alike), rtol=0, atol=1e-14)
    opposed = input_gradient_similarity(torch.cat([first, -2 * first]))
    torch.testing.assert_close(opposed, -torch.ones_like(opposed), rtol=0, atol=1e-14)
    assert alike.max() <= 1
    assert opposed.min() >= -1


def test_a_zero_gradient_is_unlike_every_other(gradients):
    gradients = gradients.clone()
    gradients[1, :20] = 0.0
    gradients[:, 39] = 0.0
    reference = cosines(gradients.numpy())
    np.testing.assert_allclose(input_gradient_similarity(gradients).numpy(), reference, atol=1e-14)
    assert input_gradient_similarity(gradients)[39] == 0.0
    least = torch.full((2, 1, 3), 5e-324, dtype=torch.float64)
    assert input_gradient_similarity(least).item() == pytest.approx(1, abs=1e-14)


def test_gradient_similarity_of_half_precision_is_that_of_the_numbers_it_holds(gradients):
    half = gradients.half()
    assert torch.equal(input_gradient_similarity(half), input_gradient_similarity(half.double()))


def test_gradient_similarity_of_one_member_is_undefined_with_a_warning(gradients):
    with pytest.warns(RuntimeWarning, match="undefined for one member"):
        found = input_gradient_similarity(gradients[:1])
    assert found.shape == (40,)
    assert found.isnan().all()


def test_gradients_that_are_none_are_refused(gradients, unchecked):
    for wrong in (gradients[0], gradients[:, :0], gradients[..., :0], gradients[:0]):
        with pytest.raises(ValueError, match="gradients must be .members, samples, features."):
            input_gradient_similarity(wrong)
    with pytest.raises(ValueError, match=r"gradients must be floating point, got torch\.int64"):
        input_gradient_similarity(gradients.long())
    gradients[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"gradients must be finite, got nan at \[1, 2, 3\]"):
        input_gradient_similarity(gradients)
