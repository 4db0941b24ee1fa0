"""What floating point would hide: gaps beyond 37 nats, edges of bins, tiny likelihoods."""

import math
import warnings

import numpy as np
import pytest
import torch
from deepens import metrics
from deepens.ensembles import policies
from deepens.metrics import evaluate, evaluate_ood, fit_conformal, fit_temperature, sample_values
from deepens.metrics.core.mixture import log_doubt, mixture_log_probs

GAPS = (20.0, 40.0, 60.0, 300.0, 2000.0)


def of_gaps(*gaps, members=1, dtype=torch.float64):
    """Logits of three classes, of which the first leads by the gaps."""
    return torch.tensor([[[gap, 0.0, 0.0] for gap in gaps]], dtype=dtype).repeat(members, 1, 1)


def spread(n=400, low=40.0, high=90.0):
    """Logits that are all surer than float64 probabilities can say; the less sure are wrong."""
    gaps = torch.linspace(low, high, n, dtype=torch.float64)
    logits = of_gaps(*gaps.tolist())
    targets = (torch.arange(n) < n // 4).long()  # 1 is wrong
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return logits[:, order], targets[order]


def test_doubts_are_those_of_exact_arithmetic():
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 1000
    logits = torch.tensor([[[gap, 1.0, 0.0] for gap in (0.5, 5.0, 17.0, 19.0, *GAPS)]]).double()
    found = log_doubt(mixture_log_probs(logits))
    for row, value in zip(logits[0].tolist(), found.tolist(), strict=True):
        powers = [mpmath.exp(z) for z in row]
        exact = mpmath.log(1 - max(powers) / sum(powers))
        assert value == pytest.approx(float(exact), rel=1e-9, abs=2e-9)


def test_doubts_of_equal_samples_tie_whatever_the_order_of_classes():
    logits = torch.tensor([[[50.0, 7.0, 3.0, 1.0], [3.0, 50.0, 1.0, 7.0], [1.0, 3.0, 7.0, 50.0]]])
    assert len(log_doubt(mixture_log_probs(logits.double())).unique()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("members", [1, 3])
def test_ood_is_detected_where_networks_are_sure(members, dtype):
    inside = of_gaps(50.0, 55.0, 60.0, members=members, dtype=dtype)
    outside = of_gaps(40.0, 42.0, 44.0, members=members, dtype=dtype)
    found = evaluate_ood(inside, outside)
    shell = metrics.OODAreaUnderROC("msp")
    shell.update(inside, torch.zeros(3, dtype=torch.bool))
    shell.update(outside, torch.ones(3, dtype=torch.bool))
    assert found["auroc_msp"] == found["auroc_entropy"] == shell.compute().item() == 1.0


@pytest.mark.filterwarnings("ignore:.*predictions are of class:RuntimeWarning")
@pytest.mark.parametrize("low", [20.0, 40.0, 800.0])
def test_selective_prediction_ranks_sure_predictions(low):
    logits, targets = spread(low=low, high=2 * low)
    found = evaluate(logits, targets)
    shells = {
        "aurc": metrics.AreaUnderRiskCoverage(),
        "augrc": metrics.AreaUnderGeneralizedRiskCoverage(),
        "e_aurc": metrics.ExcessAreaUnderRiskCoverage(),
        "coverage_at_5_risk": metrics.CoverageAtRisk(risk=0.05),
        "risk_at_80_coverage": metrics.RiskAtCoverage(coverage=0.8),
        "auroc_of_failures": metrics.AUROCOfFailures(),
    }
    for name, shell in shells.items():
        for part in zip(logits.split(150, 1), targets.split(150), strict=True):
            shell.update(*part)
        assert shell.compute().item() == pytest.approx(found[name], abs=1e-12), name
    assert found["auroc_of_failures"] == 1.0  # all errors are the least sure
    assert found["e_aurc"] == pytest.approx(0.0, abs=1e-12)
    assert found["coverage_at_5_risk"] == pytest.approx(0.75 / 0.95, abs=0.003)


def test_scod_tells_sure_ood_images_apart():
    logits, targets = spread(n=40)
    far = of_gaps(38.0, 38.5, 39.0)
    shell = metrics.SCODRisk(coverage=0.75)
    is_ood = torch.arange(43) >= 40
    shell.update(torch.cat([logits, far], 1), torch.cat([targets, torch.zeros(3).long()]), is_ood)
    assert shell.compute().item() == 0.0


def test_the_score_itself_keeps_what_is_left_of_one_less_a_probability():
    score = metrics.maximum_softmax_score(mixture_log_probs(of_gaps(*GAPS[:4])))
    expected = [2 * math.exp(-gap) for gap in GAPS[:4]]
    assert score.tolist() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_lac_sets_are_as_large_as_asked_where_networks_are_sure(sign):
    # Sure of the label, or of another class: probabilities of the label are all 1, or all 0.
    gaps = torch.linspace(40.0, 90.0, 200, dtype=torch.float64)
    logits = of_gaps(*(sign * gaps).tolist())
    log_probs = mixture_log_probs(logits)
    fitted = fit_conformal(log_probs[::2], torch.zeros(100).long(), alpha=0.3)
    covered = fitted.sets(log_probs[1::2])[:, 0].double().mean().item()
    assert covered == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("task", [{"target_risk": 0.05}, {"target_coverage": 0.75}])
def test_cascades_of_sure_members_pass_on_the_share_that_was_asked_for(task):
    logits, targets = spread()
    found = policies.calibrate([logits, 1.1 * logits], targets, policies.Task(**task), width=0.1)
    assert found.policy.confidence == "log_msp"
    assert found.reached[1] == pytest.approx(0.2, abs=0.01)
    assert found.coverage == pytest.approx(0.75 / 0.95 if "target_risk" in task else 0.75, abs=0.01)
    again = policies.WindowPolicy.from_dict(found.policy.to_dict())
    assert policies.assess(again, [logits, 1.1 * logits], targets).reached == found.reached


def test_thresholds_stay_probabilities_where_these_will_do():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 300, 3, generator=generator).double()
    targets = logits.mean(0).argmax(-1)
    task = policies.Task(target_coverage=0.8)
    found = policies.calibrate(list(logits.split(1)), targets, task)
    assert found.policy.confidence == "msp"
    assert 0.0 < found.policy.threshold < 1.0
    logged = policies.calibrate(list(logits.split(1)), targets, task, confidence="log_msp")
    assert logged.coverage == found.coverage
    assert logged.policy.threshold == pytest.approx(-math.log1p(-found.policy.threshold))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("edge", range(8, 15))
def test_probabilities_on_the_edge_of_a_bin_are_in_the_bin_below(edge, dtype):
    first, second = [edge, 15 - edge, 0], [edge + 0.5, 14.5 - edge, 0]
    probs = (np.array([first] * 10 + [second] * 10) / 15).astype(dtype)
    labels = np.array([0] * 10 + [1] * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # zeros are raised
        found = evaluate(probs, labels, layout="NC", kind="probs")
    apart = abs(10 - 10 * edge / 15) / 20 + (edge + 0.5) / 30  # in one bin they would cancel out
    assert found["ece"] == pytest.approx(apart, abs=1e-3)
    assert found["top_label_calibration_error"] == pytest.approx(apart, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_edges_of_bins_are_of_the_type_of_the_confidences(dtype):
    confidence = torch.tensor([9 / 15, 10 / 15], dtype=dtype)
    bins = metrics.reliability_bins(confidence, torch.tensor([True, True]))
    assert bins.counts.nonzero().flatten().tolist() == [8, 9]


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("way", metrics.WAYS)
def test_likelihoods_that_underflow_end_at_the_bound_with_its_warning(way, gap):
    targets = torch.arange(30) % 3
    logits = torch.zeros(2, 30, 3).scatter_(2, targets.expand(2, -1)[..., None], gap)
    with pytest.warns(RuntimeWarning, match=r"bound of its search, 0\.05: .* these 30 samples"):
        found = fit_temperature(logits, targets, way)
    assert found.values == pytest.approx([0.05] * len(found.values))
    assert found.unidentified.startswith("all 30 calibration images right")


def test_one_wrong_prediction_among_sure_ones_identifies_a_joint_temperature():
    targets = torch.arange(30) % 3
    logits = torch.zeros(2, 30, 3).scatter_(2, targets.expand(2, -1)[..., None], 40.0)
    targets[0] = 1
    found = fit_temperature(logits, targets, "joint")
    assert not found.unidentified
    assert found.values[0] == pytest.approx(fit_temperature(logits[:1], targets).values[0])


def test_values_that_were_made_without_doubts_are_ranked_by_their_confidence():
    values = sample_values(torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(1)))
    held = {k: v for k, v in vars(values).items() if k != "log_doubt"}
    bare = metrics.SampleValues(**held)
    assert torch.equal(bare.ranked.argsort(), values.ranked.argsort())
