"""Conformal sets: coverage as promised, sets as by hand and as mapie's."""

import math

import numpy as np
import pytest
import torch
from deepens.metrics import evaluate_sets, fit_conformal
from deepens.metrics.conformal.prediction_sets import uniform
from scipy import stats

SCORES = ("lac", "aps", "raps")


def draw(n=1500, classes=6, seed=3):
    """Probabilities, and labels drawn from them."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(n, classes))
    probs = np.exp(logits)
    probs /= probs.sum(1, keepdims=True)
    labels = [random.choice(classes, p=each) for each in probs]
    return torch.from_numpy(probs).log(), torch.tensor(labels)


MAPIE = {  # mapie 1.6.0, SplitConformalClassifier(conformity_score="lac"): sizes of 1000 sets
    0.05: (0.965, [0, 66, 173, 304, 275, 153, 29], 4211994),
    0.1: (0.896, [0, 189, 416, 275, 107, 12, 1], 2868809),
    0.3: (0.702, [5, 711, 280, 4, 0, 0, 0], 1582972),
}


@pytest.mark.parametrize("alpha", MAPIE)
def test_lac_sets_are_those_of_mapie(alpha):
    log_probs, targets = draw()
    fitted = fit_conformal(log_probs[:500], targets[:500], alpha=alpha)
    sets = fitted.sets(log_probs[500:])
    found = evaluate_sets(sets, targets[500:])
    places = (sets * torch.arange(6) * torch.arange(1000)[:, None]).sum().item()
    assert (found.coverage, found.size_counts.tolist(), places) == MAPIE[alpha]


def by_hand(score, probs, label, u, penalty, free):
    order = sorted(range(len(probs)), key=lambda c: (-probs[c], c))
    rank = order.index(label) + 1
    if score == "lac":
        return 1 - probs[label]
    mass = sum(probs[c] for c in order[: rank - 1]) + u * probs[label]
    return mass + (penalty * max(0, rank - free) if score == "raps" else 0)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("randomized", [True, False])
def test_scores_and_threshold_equal_the_definition_also_with_ties(score, randomized):
    log_probs, targets = draw(n=60)
    probs = (log_probs.exp() * 4).round().clamp(min=1)
    probs = probs / probs.sum(1, keepdim=True)  # heavy ties
    options = {"score": score, "randomized": randomized, "raps": (0.1, 2), "seed": 5}
    fitted = fit_conformal(probs.log(), targets, alpha=0.2, **options)
    u = uniform(torch.arange(60), seed=5) if randomized else torch.ones(60)
    expected = [
        [by_hand(score, row, c, u[i].item(), 0.1, 2) for c in range(6)]
        for i, row in enumerate(probs.tolist())
    ]
    torch.testing.assert_close(
        fitted.scores(probs.log()), torch.tensor(expected).double(), rtol=0, atol=1e-6
    )
    own = sorted(expected[i][label] for i, label in enumerate(targets.tolist()))
    assert fitted.threshold == pytest.approx(own[math.ceil(61 * 0.8) - 1], abs=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_coverage_is_what_was_asked_for(score):
    # Coverage of new samples is beta-distributed over calibration sets of n: mean within 4 se.
    log_probs, targets = draw(n=20_000)
    covered = []
    for start in range(0, 20_000, 1000):
        part = slice(start, start + 200)
        rest = slice(start + 200, start + 1000)
        fitted = fit_conformal(log_probs[part], targets[part], alpha=0.1, score=score)
        sets = fitted.sets(log_probs[rest], first=start + 200)
        covered.append(evaluate_sets(sets, targets[rest]).coverage)
    law = stats.betabinom(800, 181, 20)  # ceil(201 * 0.9) = 181
    mean, error = law.mean() / 800, law.std() / 800 / math.sqrt(20)
    assert np.mean(covered) == pytest.approx(mean, abs=4 * error)


def test_fewer_samples_than_the_promise_needs_give_all_classes():
    log_probs, targets = draw(n=8)
    fitted = fit_conformal(log_probs, targets, alpha=0.1)
    assert math.isinf(fitted.threshold)
    assert fitted.sets(log_probs).all()
    log_probs, targets = draw(n=9)
    assert math.isfinite(fit_conformal(log_probs, targets, alpha=0.1).threshold)


@pytest.mark.parametrize("score", SCORES)
def test_sets_do_not_depend_on_batches(score):
    log_probs, targets = draw(n=100)
    fitted = fit_conformal(log_probs, targets, score=score)
    whole = fitted.sets(log_probs)
    parts = [fitted.sets(log_probs[i : i + 30], first=i) for i in range(0, 100, 30)]
    assert torch.equal(torch.cat(parts), whole)


def test_sets_grow_as_alpha_falls():
    log_probs, targets = draw(n=500)
    small, large = (
        fit_conformal(log_probs, targets, alpha=alpha).sets(log_probs) for alpha in (0.3, 0.05)
    )
    assert (large | ~small).all()
    assert large.sum() > small.sum()


def test_draws_are_uniform_and_independent_of_their_neighbours():
    draws = uniform(torch.arange(20_000), seed=1).numpy()
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.03
    other = uniform(torch.arange(20_000), seed=2).numpy()
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03


def test_quality_equals_counting():
    log_probs, targets = draw(n=300)
    sets = fit_conformal(log_probs, targets, alpha=0.3).sets(log_probs)
    found = evaluate_sets(sets, targets)
    rows = [set(row.nonzero().flatten().tolist()) for row in sets]
    pairs = list(zip(rows, targets.tolist(), strict=True))
    assert found.coverage == pytest.approx(np.mean([y in row for row, y in pairs]))
    assert found.mean_size == pytest.approx(np.mean([len(row) for row in rows]))
    assert found.empty == pytest.approx(np.mean([not row for row in rows]))
    for size in range(7):
        of_size = [y in row for row, y in pairs if len(row) == size]
        assert found.size_counts[size] == len(of_size)
        if of_size:
            assert found.size_coverage[size].item() == pytest.approx(np.mean(of_size))
        else:
            assert found.size_coverage[size].isnan()
    for label in range(6):
        expected = np.mean([y in row for row, y in pairs if y == label])
        assert found.class_coverage[label].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, r"alpha must lie in \(0, 1\), got 0"),
        ({"score": "hps"}, "score must be one of lac, aps, raps, got 'hps'"),
        ({"raps": (-1.0, 5)}, "raps must hold a penalty and a number of ranks >= 0"),
        ({"seed": -1}, r"seed must be in \[0, 2..31\), got -1"),
    ],
)
def test_bad_options_are_refused(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        fit_conformal(*draw(n=20), **options)


def test_logits_are_refused():
    with pytest.raises(ValueError, match="log-probabilities that sum to 1, got .* in row 1"):
        fit_conformal(torch.tensor([[0.5, 0.5], [0.9, 0.9]]).log(), torch.tensor([0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", ["aps", "raps"])
@pytest.mark.parametrize("randomized", [True, False])
def test_sure_networks_that_are_wrong_have_sets_as_small_as_their_doubts_allow(
    dtype, score, randomized
):
    """A third of labels are second, by gaps of 40 to 90 nats: there all scores round to 1."""
    generator = torch.Generator().manual_seed(0)
    n = 900
    gaps = 40 + 50 * torch.rand(n, generator=generator, dtype=torch.float64)
    logits = torch.stack([gaps * 0, -gaps, -2 * gaps, -3 * gaps], dim=1)
    log_probs = logits.log_softmax(-1).to(dtype)
    targets = (torch.rand(n, generator=generator) < 1 / 3).long()
    options = {"alpha": 0.1, "score": score, "randomized": randomized, "raps": (0.1, 2)}
    fitted = fit_conformal(log_probs[:600], targets[:600], **options)
    found = evaluate_sets(fitted.sets(log_probs[600:], first=600), targets[600:])
    assert 0.85 < found.coverage < 0.95
    assert found.mean_size < (2 if randomized else 2.5)
    assert fitted.sets(log_probs)[:, 3].double().mean() < 0.1
