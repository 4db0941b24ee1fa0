"""Our selective measures beside those of the authors of window cascades, Xia & Bouganis (2023).

Ours never split a tie and keep a bound ("at most 5 % risk"); theirs cut between single samples and
take the nearest point, from above or below. The functions below are their definitions (arXiv:
2303.08010, and the code published with it); the tests check them by loops and libraries, and pin
where ours differ. What they give on a real run is in ``experiments/results/README.md``.
"""

import math

import numpy as np
import pytest
import torch
from deepens.ensembles.policies import threshold_at_coverage, window_around
from deepens.metrics import area_under_risk_coverage, coverage_at_risk, risk_at_coverage
from scipy.stats import percentileofscore
from sklearn.metrics import precision_recall_curve


def single_sample_risks(confidence, correct):
    """``R_0 ... R_N``: errors among the k most confident, over k; ties in the order given."""
    errors = (~correct)[confidence.argsort(descending=True, stable=True)].double().cumsum(0)
    accepted = torch.arange(1, len(errors) + 1, dtype=torch.float64)
    return torch.cat([errors.new_zeros(1), errors / accepted])


def first_least(distance):
    return int((distance == distance.min()).nonzero()[0])


def nearest_risk(confidence, correct, risk, skipped):
    """``argmin_{k >= skipped} |R_k - risk|``; the authors skip the 500 noisy first points."""
    risks = single_sample_risks(confidence, correct)[skipped:]
    return skipped + first_least((risks - risk).abs())


def coverage_at_nearest_risk(confidence, correct, risk, *, skipped):
    nearest = nearest_risk(confidence, correct, risk, skipped)
    return min(nearest, len(confidence) - 1) / len(confidence)


def threshold_at_nearest_risk(confidence, correct, risk, *, skipped):
    """The next confidence: one sample more is accepted."""
    ordered = confidence.sort(descending=True).values
    return ordered[nearest_risk(confidence, correct, risk, skipped)].item()


def nearest_number(samples, coverage):
    return first_least((torch.arange(samples + 1).double() / samples - coverage).abs())


def risk_at_nearest_coverage(confidence, correct, coverage):
    risks = single_sample_risks(confidence, correct)
    return risks[nearest_number(len(confidence), coverage)].item()


def threshold_at_nearest_coverage(confidence, coverage):
    ordered = confidence.sort(descending=True).values
    return ordered[nearest_number(len(confidence), coverage)].item()


def trapezoidal_aurc(confidence, correct):
    return torch.trapezoid(single_sample_risks(confidence, correct)).item() / len(confidence)


def false_positive_rate_at_nearest_recall(confidence, ood_confidence, recall=0.95):
    """ID is the positive class; of several nearest thresholds, the lowest."""
    thresholds = torch.cat([confidence, ood_confidence]).unique()
    below = torch.searchsorted(confidence.sort().values, thresholds)
    accepted = 1.0 - below.double() / len(confidence)
    threshold = thresholds[first_least((accepted - recall).abs())]
    return (ood_confidence >= threshold).double().mean().item()


def threshold_at_nearest_rate(confidence, rate):
    values, numbers = confidence.unique(return_counts=True)
    accepted = numbers.flip(0).cumsum(0).double() / len(confidence)
    return values.flip(0)[first_least((accepted - rate).abs())].item()


def clamped_window(confidence, threshold, width=0.1):
    """Quantiles around the percentile rank of tau: half a sample above ours, and never infinite."""
    values = confidence.double()
    lower, upper = int((values < threshold).sum()), int((values <= threshold).sum())
    place = (lower + upper + (lower < upper)) / (2 * len(values))
    low, high = max(place - width, 0.0), min(place + width, 1.0)
    return values.quantile(low).item(), values.quantile(high).item()


CONFIDENCE = torch.tensor([0.7, 0.9, 0.7, 0.4, 0.8, 0.7, 0.4, 0.1])
CORRECT = torch.tensor([False, True, True, True, True, False, False, True])
# from the most confident down, ties as they come: 1 1 | 0 1 0 | 1 0 | 1
RISKS = [0, 0, 0, 1 / 3, 1 / 4, 2 / 5, 2 / 6, 3 / 7, 3 / 8]


def draw(n=60, levels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, generator=generator, dtype=torch.float64)
    if levels is not None:
        confidence = (confidence * levels).floor() / levels
    return confidence, torch.rand(n, generator=generator) < 0.4 + 0.5 * confidence


def walk(confidence, correct):
    """Pairs of the number of accepted samples and their risk, one sample after the other."""
    order = sorted(range(len(confidence)), key=lambda i: -confidence[i].item())
    yield 0, 0.0
    errors = 0
    for number, place in enumerate(order, start=1):
        errors += not correct[place]
        yield number, errors / number


def test_risks_are_those_of_single_samples_ties_in_the_order_given():
    assert single_sample_risks(CONFIDENCE, CORRECT).tolist() == pytest.approx(RISKS, abs=1e-15)
    # another order within the tie is another curve, and ours does not see it
    swapped = torch.tensor([2, 1, 0, 3, 4, 5, 6, 7])
    assert single_sample_risks(CONFIDENCE[swapped], CORRECT[swapped])[3] == 0.0
    for risk in (0.1, 0.3, 0.4):
        one = coverage_at_risk(CONFIDENCE, CORRECT, risk)
        assert one == coverage_at_risk(CONFIDENCE[swapped], CORRECT[swapped], risk)


def test_the_nearest_risk_may_exceed_the_target_where_ours_never_does():
    assert coverage_at_nearest_risk(CONFIDENCE, CORRECT, 0.3, skipped=0) == 3 / 8  # a risk of 1/3
    assert threshold_at_nearest_risk(CONFIDENCE, CORRECT, 0.3, skipped=0) == pytest.approx(0.7)
    assert coverage_at_risk(CONFIDENCE, CORRECT, 0.3) == 2 / 8


def test_of_equally_near_risks_the_first_counts():
    assert coverage_at_nearest_risk(CONFIDENCE, CORRECT, 1 / 3, skipped=0) == 3 / 8
    assert coverage_at_nearest_risk(CONFIDENCE, CORRECT, 1 / 3, skipped=4) == 6 / 8
    assert coverage_at_nearest_risk(CONFIDENCE, CORRECT, 0.0, skipped=0) == 0.0


def test_the_nearest_risk_of_all_samples_is_a_coverage_of_one_less():
    assert coverage_at_nearest_risk(CONFIDENCE, CORRECT, 0.375, skipped=0) == 7 / 8


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("skipped", [0, 10])
@pytest.mark.parametrize("risk", [0.0, 0.05, 0.2, 0.5])
def test_nearest_risks_are_those_of_a_walk(levels, skipped, risk):
    confidence, correct = draw(levels=levels)
    points = [point for point in walk(confidence, correct) if point[0] >= skipped]
    number, _ = min(points, key=lambda point: abs(point[1] - risk))  # the first of equal ones
    found = coverage_at_nearest_risk(confidence, correct, risk, skipped=skipped)
    assert found == min(number, 59) / 60
    if number < 60:
        expected = sorted(confidence.tolist(), reverse=True)[number]
        tau = threshold_at_nearest_risk(confidence, correct, risk, skipped=skipped)
        assert tau == expected
        if levels is None:  # the sample at tau is accepted too
            assert (confidence >= tau).sum() == number + 1


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("coverage", [0.01, 0.33, 0.8, 0.907])
def test_nearest_coverages_are_those_of_a_walk(levels, coverage):
    confidence, correct = draw(levels=levels)
    number, risk = min(walk(confidence, correct), key=lambda point: abs(point[0] / 60 - coverage))
    assert risk_at_nearest_coverage(confidence, correct, coverage) == pytest.approx(risk, abs=1e-15)
    expected = sorted(confidence.tolist(), reverse=True)[number]
    assert threshold_at_nearest_coverage(confidence, coverage) == expected


def test_the_nearest_coverage_may_be_less_than_asked_for_and_ours_never_is():
    assert risk_at_nearest_coverage(CONFIDENCE, CORRECT, 0.55) == 0.25  # of four
    assert risk_at_coverage(CONFIDENCE, CORRECT, 0.55) == 0.4  # of five, the end of the tie


@pytest.mark.parametrize("levels", [None, 7])
def test_area_is_that_of_numpy_s_trapezoids(levels):
    confidence, correct = draw(levels=levels)
    risks = [risk for _, risk in walk(confidence, correct)]
    expected = np.trapezoid(risks, np.arange(61) / 60)
    assert trapezoidal_aurc(confidence, correct) == pytest.approx(expected, abs=1e-14)


def test_without_ties_the_area_is_less_than_ours_by_the_errors_over_2n():
    confidence, correct = draw()
    errors = (~correct).double().mean().item()
    ours = area_under_risk_coverage(confidence, correct).item()
    assert trapezoidal_aurc(confidence, correct) == pytest.approx(ours - errors / 120, abs=1e-14)


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("recall", [0.5, 0.8, 0.95])
def test_false_positives_are_those_at_the_library_s_nearest_recall(levels, recall):
    confidence, _ = draw(n=45, levels=levels)
    ood = draw(n=30, levels=levels, seed=1)[0] * 0.75
    scores = torch.cat([confidence, ood]).numpy()
    _, recalls, thresholds = precision_recall_curve(np.arange(75) < 45, scores)
    threshold = thresholds[np.argmin(np.abs(recalls - recall))]
    expected = (ood.numpy() >= threshold).mean()
    found = false_positive_rate_at_nearest_recall(confidence, ood, recall)
    assert found == pytest.approx(expected, abs=1e-15)


def test_of_thresholds_of_one_recall_the_lowest_counts():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.2])
    ood = torch.tensor([0.65, 0.5, 0.3, 0.1])
    # three of four ID samples are accepted from 0.7 down to 0.3, and three OOD ones at 0.3
    assert false_positive_rate_at_nearest_recall(confidence, ood, 0.75) == 0.75
    threshold = threshold_at_coverage(confidence, 0.75)
    assert (ood >= threshold).sum() == 0  # ours accepts none


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("rate", [0.1, 0.34, 0.8, 0.95])
def test_nearest_rates_are_those_of_a_walk_over_distinct_confidences(levels, rate):
    confidence, _ = draw(levels=levels)
    values = sorted(set(confidence.tolist()), reverse=True)
    shares = [sum(c >= value for c in confidence.tolist()) / 60 for value in values]
    nearest = min(range(len(values)), key=lambda i: abs(shares[i] - rate))
    assert threshold_at_nearest_rate(confidence, rate) == values[nearest]


@pytest.mark.parametrize("levels", [None, 7])
@pytest.mark.parametrize("threshold", [0.0, 3 / 7, 0.5, 0.95, 1.5])
def test_windows_lie_around_the_library_s_percentile_and_end_with_the_confidences(
    levels, threshold
):
    confidence, _ = draw(levels=levels)
    place = percentileofscore(confidence.numpy(), threshold) / 100
    ends = np.quantile(confidence.numpy(), np.clip([place - 0.1, place + 0.1], 0, 1))
    assert clamped_window(confidence, threshold) == pytest.approx(tuple(ends), abs=1e-12)


def test_percentile_of_one_of_the_confidences_is_half_a_sample_above_ours():
    confidence = torch.arange(101.0)
    assert window_around(confidence, 50.0, below=0.1, above=0.1) == pytest.approx((40.0, 60.0))
    gap = 0.5 / 101 * 100
    assert clamped_window(confidence, 50.0) == pytest.approx((40.0 + gap, 60.0 + gap), abs=1e-9)
    assert clamped_window(confidence, 2.0)[0] == 0.0
    assert window_around(confidence, 2.0, below=0.1, above=0.1)[0] == -math.inf
