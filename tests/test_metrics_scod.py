"""SCOD risk: thresholds on ID samples, failures of both kinds."""

import pytest
import torch
from deepens.metrics import risk_at_coverage, scod_curve, scod_risk


def draw(seed=0, levels=8, n=60, m=40):
    generator = torch.Generator().manual_seed(seed)
    confidence = (torch.rand(n, generator=generator) * levels).floor() / levels
    ood = (torch.rand(m, generator=generator) * levels).floor() / levels - 0.05 * (seed % 2)
    return confidence, torch.rand(n, generator=generator) < 0.7, ood


@pytest.mark.parametrize(("cost", "risk"), [(1.0, 0.4), (0.5, 0.3), (0.0, 0.2)])
def test_golden_values(cost, risk):
    correct = torch.tensor([True, True, True, False])
    confidence, ood = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0.75])
    value = scod_risk(confidence, correct, ood, ood_cost=cost)
    assert value.item() == pytest.approx(risk, abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cost", [0.0, 0.5, 2.0])
def test_curve_equals_counting_by_hand_with_ties_between_id_and_ood(seed, cost):
    confidence, correct, ood = draw(seed)
    curve = scod_curve(confidence, correct, ood, ood_cost=cost)
    thresholds = sorted(set(confidence.tolist()), reverse=True)
    assert curve.threshold.tolist() == pytest.approx(thresholds)
    for number, threshold in enumerate(thresholds):
        taken = confidence >= threshold
        wrong = (taken & ~correct).sum().item()
        strange = (ood >= threshold).sum().item()
        expected = (wrong + cost * strange) / (taken.sum().item() + strange)
        assert curve.risk[number].item() == pytest.approx(expected, abs=1e-14)
        assert curve.coverage[number].item() == pytest.approx(taken.double().mean().item())


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.9, 1.0])
def test_ood_samples_below_every_threshold_leave_the_selective_risk(coverage):
    confidence, correct, ood = draw()
    value = scod_risk(confidence, correct, ood * 0 - 1, coverage=coverage)
    expected = risk_at_coverage(confidence, correct, coverage)
    assert value.item() == pytest.approx(expected.item(), abs=1e-15)


def test_order_does_not_matter():
    confidence, correct, ood = draw()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    curve = scod_curve(confidence, correct, ood)
    again = scod_curve(confidence[order], correct[order], ood.flip(0))
    torch.testing.assert_close(curve.risk, again.risk, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ood_cost": -1.0}, "ood_cost must be >= 0 and finite, got -1"),
        ({"coverage": 0.0}, r"coverage must lie in \(0, 1\], got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scod_risk(*draw(), **options)


def test_no_ood_sample_is_refused():
    confidence, correct, _ = draw()
    with pytest.raises(ValueError, match="ood_confidence must hold >= 1 sample, got 0"):
        scod_risk(confidence, correct, torch.zeros(0))
