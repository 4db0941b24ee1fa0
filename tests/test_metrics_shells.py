"""Shells whose batches are not plain: conformal sets, and risk with OOD samples among the batch."""

import pytest
import torch
from deepens.metrics import (
    ConformalCoverage,
    ConformalSets,
    ConformalSetSize,
    NormalizedDisagreement,
    SCODRisk,
    evaluate_sets,
    fit_conformal,
    mixture_log_probs,
    normalized_disagreement,
    scod_risk,
)
from torchmetrics import MetricCollection

SIZES = (1, 50, 7, 64, 28)


def draw(n=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, (n,), generator=generator)
    logits = torch.randn(3, n, 4, generator=generator).round(decimals=1)
    logits[:, torch.arange(n), targets] += 1.5
    return logits, targets, torch.rand(n, generator=generator) < 0.3


def scod_by_hand(logits, targets, is_ood, coverage, cost):
    confidence, predicted = logits.double().softmax(-1).mean(0).max(-1)
    ranked = sorted(confidence[~is_ood].tolist(), reverse=True)
    threshold = ranked[-int(-coverage * len(ranked) // 1) - 1]
    accepted = confidence >= threshold - 1e-12
    errors = int((accepted & ~is_ood & (predicted != targets)).sum())
    wrongly = int((accepted & is_ood).sum())
    return (errors + cost * wrongly) / int(accepted.sum())


@pytest.mark.parametrize(("coverage", "cost"), [(1.0, 1.0), (0.7, 0.5), (0.2, 3.0)])
@pytest.mark.parametrize("sizes", [(150,), SIZES])
def test_scod_risk_of_batches_is_that_of_a_loop(sizes, coverage, cost):
    logits, targets, is_ood = draw()
    metric = SCODRisk(coverage, cost)
    parts = zip(logits.split(sizes, 1), targets.split(sizes), is_ood.split(sizes), strict=True)
    for part in parts:
        metric.update(*part)
    expected = scod_by_hand(logits, targets, is_ood, coverage, cost)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-12)


def test_scod_risk_of_two_processes_adds_up_and_reads_no_label_of_ood_samples():
    logits, targets, is_ood = draw()
    one, other = SCODRisk(0.8), SCODRisk(0.8)
    unlabelled = targets.masked_fill(is_ood, -1)
    one.update(logits[:, :40], unlabelled[:40], is_ood[:40])
    other.update(logits[:, 40:], unlabelled[40:], is_ood[40:])
    one.merge_state(other)
    expected = scod_by_hand(logits, targets, is_ood, 0.8, 1.0)
    assert one.compute().item() == pytest.approx(expected, abs=1e-12)


def test_scod_metrics_of_two_costs_share_their_states_and_not_their_values():
    logits, targets, is_ood = draw()
    collection = MetricCollection({"cheap": SCODRisk(ood_cost=0.1), "dear": SCODRisk(ood_cost=9.0)})
    collection.update(logits, targets, is_ood)
    collection.update(logits, targets, is_ood)
    found = collection.compute()
    for name, cost in (("cheap", 0.1), ("dear", 9.0)):
        expected = scod_by_hand(logits, targets, is_ood, 1.0, cost)
        assert found[name].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_scod_risk_needs_both_kinds_of_samples():
    logits, targets, is_ood = draw()
    with pytest.raises(ValueError, match="needs >= 1 ID and >= 1 OOD sample, got 0 and 0"):
        SCODRisk().compute()
    metric = SCODRisk()
    metric.update(logits, targets, is_ood & False)
    with pytest.raises(ValueError, match="got 150 and 0"):
        metric.compute()
    with pytest.raises(ValueError, match="is_ood must hold 150 samples, got 149"):
        metric.update(logits, targets, is_ood[:-1])
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 4\), got -1"):
        metric.update(logits, targets * 0 - 1, is_ood)
    with pytest.raises(ValueError, match=r"coverage must lie in \(0, 1\], got 0"):
        SCODRisk(coverage=0.0)
    with pytest.raises(ValueError, match="ood_cost must be >= 0 and finite, got -1"):
        SCODRisk(ood_cost=-1.0)


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
@pytest.mark.parametrize("sizes", [(150,), SIZES])
def test_conformal_shells_give_the_quality_of_all_sets(score, sizes):
    logits, targets, _ = draw()
    log_probs = mixture_log_probs(draw(seed=1)[0].double())
    fitted = fit_conformal(log_probs, draw(seed=1)[1], score=score, randomized=False)
    quality = evaluate_sets(fitted.sets(mixture_log_probs(logits.double())), targets)
    for kind, expected in (
        (ConformalCoverage, quality.coverage),
        (ConformalSetSize, quality.mean_size),
    ):
        metric = kind(fitted)
        for part in zip(logits.split(sizes, 1), targets.split(sizes), strict=True):
            metric.update(*part)
        assert metric.compute().item() == pytest.approx(expected, abs=1e-12)
        one, other = kind(fitted), kind(fitted)
        one.update(logits[:, :40], targets[:40])
        other.update(logits[:, 40:], targets[40:])
        one.merge_state(other)
        assert one.compute().item() == pytest.approx(expected, abs=1e-12)


def test_thresholds_alike_on_the_first_batch_stay_apart_in_a_collection():
    sets = {name: ConformalSets("lac", t, 0.1) for name, t in (("low", 0.3), ("high", 0.9))}
    collection = MetricCollection({name: ConformalCoverage(each) for name, each in sets.items()})
    logits, targets, _ = draw()
    collection.update(torch.full((1, 2, 4), 9.0) * torch.eye(4)[0], torch.zeros(2).long())
    collection.update(logits, targets)
    found = collection.compute()
    assert found["low"] < found["high"]


def test_sets_that_draw_by_place_are_refused():
    with pytest.raises(ValueError, match="got aps sets that are; fit them with randomized=False"):
        ConformalCoverage(ConformalSets("aps", 0.9, 0.1))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_normalized_disagreement_is_that_of_the_function_where_undefined_too():
    logits, targets, _ = draw()
    for members, labels in ((logits, targets), (logits[:1], targets), (logits * 0, targets * 0)):
        metric = NormalizedDisagreement()
        metric.update(members, labels)
        expected = normalized_disagreement(members, labels).item()
        assert metric.compute().item() == pytest.approx(expected, abs=1e-14, nan_ok=True)


def test_scod_function_and_shell_agree_on_full_coverage():
    logits, targets, is_ood = draw()
    confidence, predicted = mixture_log_probs(logits.double()).max(-1)
    value = scod_risk(confidence[~is_ood], (predicted == targets)[~is_ood], confidence[is_ood])
    metric = SCODRisk()
    metric.update(logits, targets, is_ood)
    assert metric.compute().item() == pytest.approx(value.item(), abs=1e-12)
