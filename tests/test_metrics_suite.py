import math

import pytest
import torch
from deepens.metrics import (
    METRICS,
    OODEvaluation,
    SampleValues,
    SplitEvaluation,
    area_under_risk_coverage,
    coverage_at_risk,
    disagreement,
    evaluate,
    evaluate_ood,
    evaluate_ood_values,
    evaluate_values,
    expected_calibration_error,
    sample_values,
)
from sklearn.metrics import log_loss, roc_auc_score

SPLIT_KEYS = {"n", "accuracy", "nll", "brier", "ece", "aurc", "augrc", "coverage_at_5_risk"}
SPLIT_KEYS |= {"confidence", "disagreement", "mutual_information"}
MEASURES, SCORE_NAMES = (
    ("auroc", "aupr_out", "aupr_in", "fpr95"),
    ("msp", "entropy", "mutual_information"),
)
OOD_KEYS = {f"{measure}_{score}" for measure in MEASURES for score in SCORE_NAMES}
OOD_KEYS |= {"n_id", "n_ood", "confidence", "disagreement", "mutual_information"}


def draw(n=200, members=3, signal=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(5, (n,), generator=generator)
    logits = torch.randn(members, n, 5, generator=generator)
    logits[:, torch.arange(n), targets] += signal
    return logits, targets


def test_split_results_equal_references_and_the_single_metrics():
    logits, targets = draw()
    results = evaluate(logits, targets)
    probs = logits.double().softmax(-1).mean(0)
    confidence, correct = probs.amax(-1), probs.argmax(-1) == targets
    expected = {
        "n": 200,
        "accuracy": correct.double().mean().item(),
        "nll": log_loss(targets, probs, labels=range(5)),
        "ece": expected_calibration_error(confidence, correct).item(),
        "aurc": area_under_risk_coverage(confidence, correct).item(),
        "coverage_at_5_risk": coverage_at_risk(confidence, correct, 0.05).item(),
        "confidence": confidence.mean().item(),
        "disagreement": disagreement(logits).mean().item(),
    }
    assert {key: results[key] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert set(results) == SPLIT_KEYS


def test_ood_results_equal_scikit_learn():
    id_logits, ood_logits = draw(n=200)[0], draw(n=90, signal=0.5, seed=1)[0]
    results = evaluate_ood(id_logits, ood_logits)
    probs = torch.cat([id_logits, ood_logits], dim=1).double().softmax(-1).mean(0)
    scores = {"msp": 1 - probs.amax(-1), "entropy": -(probs * probs.log()).sum(-1)}
    for name, score in scores.items():
        reference = roc_auc_score(torch.arange(290) >= 200, score)
        assert results[f"auroc_{name}"] == pytest.approx(reference, abs=1e-12)
    assert results["confidence"] == pytest.approx(probs[200:].amax(-1).mean().item(), abs=1e-12)
    assert (results["n_id"], results["n_ood"]) == (200, 90)
    assert set(results) == OOD_KEYS


def test_every_key_is_explained_and_every_value_within_its_bounds():
    assert set(METRICS) == SPLIT_KEYS | OOD_KEYS
    logits, targets = draw()
    results = evaluate(logits, targets) | evaluate_ood(logits, draw(seed=1)[0])
    for key, value in results.items():
        low, high = METRICS[key].bounds
        assert METRICS[key].name == key
        assert low <= value <= high


def test_directions_are_those_of_the_field():
    better = {key for key, info in METRICS.items() if info.higher_is_better}
    none = {key for key, info in METRICS.items() if info.higher_is_better is None}
    detection = {key for key in OOD_KEYS if key.startswith("au")}
    assert better == {"accuracy", "coverage_at_5_risk"} | detection
    assert none == {"n", "n_id", "n_ood", "confidence", "disagreement", "mutual_information"}


def test_values_do_not_depend_on_how_samples_are_chunked(monkeypatch):
    logits, targets = draw()
    whole = sample_values(logits, targets)
    monkeypatch.setattr("deepens.metrics.samples._CHUNK", 3 * 5 * 7)
    for name, values in vars(sample_values(logits, targets)).items():
        torch.testing.assert_close(values, getattr(whole, name), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_evaluated_as_the_numbers_they_hold(dtype):
    logits, targets = draw()
    half = logits.to(dtype)
    assert evaluate(half, targets) == evaluate(half.double(), targets)


def test_results_do_not_depend_on_the_order_of_samples():
    logits, targets = draw()
    logits = logits.round()  # heavy ties
    order = torch.randperm(200)
    permuted = evaluate(logits[:, order], targets[order])
    assert permuted == pytest.approx(evaluate(logits, targets), abs=1e-12)


def test_weights_equal_repeated_data_for_every_metric_of_a_split():
    logits, targets = draw(n=80)
    logits = logits.round()
    weights = torch.randint(0, 4, (4, 80), generator=torch.Generator().manual_seed(1))
    values = SplitEvaluation(sample_values(logits, targets))(weights)
    for draw_index, row in enumerate(weights):
        repeated = evaluate(logits.repeat_interleave(row, 1), targets.repeat_interleave(row))
        assert repeated.pop("n") == row.sum()
        ours = {name: value[draw_index].item() for name, value in values.items()}
        assert ours == pytest.approx(repeated, abs=1e-12)


def test_weights_equal_repeated_data_for_every_metric_of_ood_detection():
    id_logits, ood_logits = draw(n=60)[0].round(), draw(n=40, signal=0.0, seed=1)[0].round()
    generator = torch.Generator().manual_seed(1)
    id_weights = torch.randint(0, 4, (4, 60), generator=generator)
    ood_weights = torch.randint(0, 4, (4, 40), generator=generator)
    evaluation = OODEvaluation(sample_values(id_logits), sample_values(ood_logits))
    values = evaluation(id_weights, ood_weights)
    for index, (id_row, ood_row) in enumerate(zip(id_weights, ood_weights, strict=True)):
        repeated = evaluate_ood(
            id_logits.repeat_interleave(id_row, 1), ood_logits.repeat_interleave(ood_row, 1)
        )
        assert (repeated.pop("n_id"), repeated.pop("n_ood")) == (id_row.sum(), ood_row.sum())
        ours = {name: value[index].item() for name, value in values.items()}
        assert ours == pytest.approx(repeated, abs=1e-12)


def test_a_single_model_has_no_diversity_and_its_mutual_information_detects_nothing():
    logits, targets = draw(members=1)
    results = evaluate(logits, targets)
    assert results["disagreement"] == results["mutual_information"] == 0.0
    detection = evaluate_ood(logits, draw(members=1, n=50, seed=1)[0])
    assert detection["auroc_mutual_information"] == 0.5
    assert detection["aupr_out_mutual_information"] == pytest.approx(0.2, abs=1e-15)
    assert detection["fpr95_mutual_information"] == 1.0


def test_forms_with_sample_values_give_the_same_results():
    logits, targets = draw()
    other = draw(seed=1)[0]
    values = sample_values(logits, targets)
    assert evaluate_values(values) == evaluate(logits, targets)
    assert evaluate_ood_values(values, sample_values(other)) == evaluate_ood(logits, other)


def test_values_without_labels_cannot_be_scored_against_labels():
    values = sample_values(draw()[0])
    assert values.nll is values.brier is values.correct is None
    with pytest.raises(ValueError, match="values must come from labelled samples"):
        SplitEvaluation(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_logit_anywhere_is_refused(bad):
    logits, targets = draw()
    logits[1, 7, 2] = bad
    with pytest.raises(ValueError, match=r"logits must be finite, got (nan|inf) at \[1, 7, 2\]"):
        evaluate(logits, targets)
    with pytest.raises(ValueError, match="logits must be finite"):
        evaluate_ood(draw()[0], logits)


def test_a_bad_label_and_half_given_weights_are_refused():
    logits, targets = draw()
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 5\), got -100 at position 3"):
        evaluate(logits, targets.index_fill(0, torch.tensor([3]), -100))
    values = sample_values(logits)
    with pytest.raises(ValueError, match="must be given together"):
        OODEvaluation(values, values)(torch.ones(1, 200, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"weights must have shape \[..., 200\], got \[1, 7\]"):
        SplitEvaluation(sample_values(logits, targets))(torch.ones(1, 7, dtype=torch.int64))


def test_sample_values_refuse_numbers_that_are_none():
    one = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="entropy must be finite, got nan"):
        SampleValues(one, one * torch.nan, one, one)
