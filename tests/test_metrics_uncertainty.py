import math

import numpy as np
import pytest
import torch
from deepens import metrics
from deepens.metrics import (
    SCORES,
    brier_ambiguity,
    disagreement,
    energy_score,
    expected_entropy,
    maximum_logit_score,
    maximum_probability,
    maximum_softmax_score,
    member_log_probs,
    mixture_log_probs,
    mutual_information,
    pairwise_kl,
    pool_log_probs,
    predictive_entropy,
    probability_variance,
    reverse_mutual_information,
    variation_ratio,
)
from scipy.stats import entropy


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(4, 80, 6, dtype=torch.float64, generator=generator)


def test_scores_equal_scipy(logits):
    probs = logits.softmax(-1).numpy()
    mean = probs.mean(0)
    divergence = np.mean([entropy(p, mean, axis=-1) for p in probs], axis=0)
    members = member_log_probs(logits)
    for value, reference in (
        (predictive_entropy(mixture_log_probs(logits)), entropy(mean, axis=-1)),
        (expected_entropy(members), entropy(probs, axis=-1).mean(0)),
        (mutual_information(members), divergence),
        (maximum_softmax_score(mixture_log_probs(logits)), 1 - mean.max(-1)),
        (maximum_probability(mixture_log_probs(logits)), mean.max(-1)),
    ):
        np.testing.assert_allclose(value.numpy(), reference, atol=1e-12)


def test_entropy_of_the_mean_is_mean_entropy_plus_mutual_information(logits):
    members = member_log_probs(logits)
    whole = predictive_entropy(pool_log_probs(members))
    parts = expected_entropy(members) + mutual_information(members)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)


def test_mutual_information_of_one_member_is_exactly_zero(logits):
    assert torch.equal(mutual_information(member_log_probs(logits[:1])), torch.zeros(80).double())


def test_mutual_information_is_zero_when_members_agree(logits):
    same = member_log_probs(logits[:1].expand(7, -1, -1))
    information = mutual_information(same)
    assert information.min() >= 0
    assert information.max() < 1e-14


def test_mutual_information_of_certain_opposed_members_is_log_of_their_number():
    members = torch.eye(5, dtype=torch.float64).reshape(5, 1, 5).log()  # holds -inf
    assert mutual_information(members).item() == pytest.approx(math.log(5), abs=1e-14)


def test_mutual_information_of_nearby_members_is_half_the_variance_of_their_logits():
    logits = torch.randn(1, 100, 10, generator=torch.Generator().manual_seed(1)).double()
    step = 1e-5 * torch.randn(2, 100, 10, generator=torch.Generator().manual_seed(2)).double()
    step[1] = -step[0]
    probs = logits[0].softmax(-1)
    variance = (probs * step[0] ** 2).sum(-1) - (probs * step[0]).sum(-1) ** 2
    information = mutual_information(member_log_probs(logits + step))
    torch.testing.assert_close(information, variance / 2, rtol=1e-3, atol=1e-15)


def test_mixture_at_hand_gives_the_same_mutual_information(logits):
    members = member_log_probs(logits)
    pooled = pool_log_probs(members, member_probs=members.exp())
    given = mutual_information(members, pooled)
    assert torch.equal(given, mutual_information(members))


def test_confidence_never_exceeds_one():
    logits = torch.randn(7, 5000, 3, dtype=torch.float64)
    logits[..., 0] += 30
    assert maximum_probability(mixture_log_probs(logits)).max() <= 1.0
    assert maximum_softmax_score(mixture_log_probs(logits)).min() >= 0.0
    assert predictive_entropy(mixture_log_probs(logits)).min() >= 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_higher_for_the_uncertain_and_computed_in_float64(name, dtype):
    certain = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    unsure = torch.tensor([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    scores = SCORES[name](torch.stack([certain, unsure], dim=1).to(dtype))
    assert scores.dtype == torch.float64
    assert scores[1] > scores[0] + 0.1


def test_reverse_mutual_information_equals_scipy(logits):
    probs = logits.softmax(-1).numpy()
    reference = np.mean([entropy(probs.mean(0), p, axis=-1) for p in probs], axis=0)
    value = reverse_mutual_information(member_log_probs(logits))
    np.testing.assert_allclose(value.numpy(), reference, atol=1e-12)


def test_pairwise_kl_is_both_mutual_informations_times_m_over_m_less_one(logits):
    members = member_log_probs(logits)
    both = mutual_information(members) + reverse_mutual_information(members)
    torch.testing.assert_close(pairwise_kl(members), both * 4 / 3, rtol=0, atol=1e-12)


def test_logit_scores_equal_numpy(logits):
    z = logits.numpy()
    energy = -np.log(np.exp(z).sum(-1)).mean(0)
    np.testing.assert_allclose(energy_score(logits).numpy(), energy, atol=1e-12)
    np.testing.assert_allclose(maximum_logit_score(logits).numpy(), -z.max(-1).mean(0), atol=1e-15)


def test_energy_of_log_probabilities_would_be_zero_everywhere(logits):
    values = energy_score(member_log_probs(logits))
    torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    assert energy_score(logits).std() > 0.5


def test_variance_is_the_ambiguity_of_the_brier_score(logits):
    members = member_log_probs(logits)
    ambiguity = brier_ambiguity(members, torch.zeros(80, dtype=torch.int64))
    torch.testing.assert_close(probability_variance(members), ambiguity, rtol=0, atol=1e-12)


def test_variation_ratio_equals_counting_votes(logits):
    logits = logits + 3 * torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
    votes = logits.argmax(-1).T.tolist()
    expected = [1 - max(vote.count(c) for c in vote) / 4 for vote in votes]
    assert variation_ratio(logits).tolist() == pytest.approx(expected, abs=1e-15)
    agreeing = variation_ratio(logits) == 0
    assert torch.equal(agreeing, disagreement(logits) == 0)


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_float64_finite_and_the_same_for_members_in_another_order(name, logits):
    value = SCORES[name](logits.float())
    assert value.dtype == torch.float64
    assert value.shape == (80,)
    assert value.isfinite().all()
    torch.testing.assert_close(SCORES[name](logits.float().flip(0)), value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_scores_that_compare_members_are_exactly_zero_for_one(name, logits):
    value = SCORES[name](logits[:1])
    compares = name not in ("msp", "entropy", "max_logit", "energy", "expected_entropy")
    assert (value == 0).all() == compares


@pytest.mark.parametrize("name", SCORES)
def test_an_undecided_image_scores_higher_than_one_on_which_all_members_are_sure(name):
    sure = torch.tensor([[9.0, 0.0, 0.0]] * 3)
    split = 4 * torch.eye(3)
    score = SCORES[name](torch.stack([sure, split], dim=1))
    assert score[1] > score[0]


@pytest.mark.parametrize(
    "function",
    [
        metrics.maximum_probability,
        metrics.maximum_softmax_score,
        metrics.predictive_entropy,
        lambda logits: metrics.negative_log_likelihood(logits, torch.zeros(5, dtype=torch.long)),
        lambda logits: metrics.brier_score(logits, torch.zeros(5, dtype=torch.long)),
        lambda logits: metrics.correctness(logits, torch.zeros(5, dtype=torch.long)),
        lambda logits: metrics.expected_entropy(logits[None]),
        lambda logits: metrics.mutual_information(logits[None]),
        lambda logits: metrics.reverse_mutual_information(logits[None]),
        lambda logits: metrics.probability_variance(logits[None]),
        lambda logits: metrics.pairwise_kl(logits[None]),
        lambda logits: metrics.cosine_similarity(logits[None]),
    ],
)
def test_logits_in_place_of_log_probabilities_are_refused(function):
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"log_probs must be <= 0, got .*; of logits, take m"):
        function(logits)


def test_only_what_is_impossible_is_left_out_of_an_expectation():
    log_probs = torch.tensor([[0.0, -torch.inf], [0.5, 0.5]]).double()
    log_probs[1] = log_probs[1].log()
    assert predictive_entropy(log_probs).tolist() == pytest.approx([0.0, math.log(2)], abs=1e-15)
    members = torch.stack([log_probs, log_probs.flip(0)])
    expected = [entropy([0.75, 0.25]) - math.log(2) / 2] * 2
    assert mutual_information(members).tolist() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="member_log_probs must not be NaN"):
        mutual_information(torch.full((2, 1, 2), torch.nan))
