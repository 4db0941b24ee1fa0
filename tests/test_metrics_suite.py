import math

import pytest
import torch
from deepens import metrics
from deepens.metrics import (
    METRICS,
    SCORES,
    MeanEvaluation,
    OODEvaluation,
    SampleValues,
    SplitEvaluation,
    area_under_risk_coverage,
    brier_ambiguity,
    brier_score,
    coverage_at_risk,
    disagreement,
    evaluate,
    evaluate_ood,
    evaluate_ood_values,
    evaluate_values,
    expected_calibration_error,
    jensen_gap,
    member_log_probs,
    negative_log_likelihood,
    paired_bootstrap,
    pairwise_kl,
    sample_values,
)
from deepens.metrics.core.catalogue import (
    DETECTION_MEASURES,
    DETECTORS,
    metrics_with,
)
from deepens.metrics.samples import join_values
from sklearn.metrics import log_loss, roc_auc_score, top_k_accuracy_score

SPLIT_KEYS = {"n", "accuracy", "nll", "brier", "ece", "aurc", "augrc", "coverage_at_5_risk"}
SPLIT_KEYS |= {"confidence", "disagreement", "mutual_information"}
DECOMPOSED = {"mean_member_nll", "jensen_gap", "mean_member_brier", "brier_ambiguity"}
PAIRS = {"double_fault", "normalized_disagreement", "q_statistic", "error_correlation"}
PAIRS |= {"ensemble_improvement_rate"}
SECONDARY = {*metrics_with(scope="split", role="secondary")}
SECONDARY -= {"top_5_accuracy"}  # of more than five classes
DIVERSITY = metrics_with(role="diversity")
SPLIT_KEYS |= DECOMPOSED | PAIRS | SECONDARY | {"pairwise_kl", "cosine_similarity"}
GRADIENT_KEYS = {"input_gradient_similarity", "n_gradients"}  # these need the network
OOD_KEYS = {f"{measure}_{score}" for measure in DETECTION_MEASURES for score in SCORES}
OOD_KEYS |= {"n_id", "n_ood", "confidence", "disagreement", "mutual_information", "pairwise_kl"}
OOD_KEYS |= {"cosine_similarity"}
DETECTOR_KEYS = {  # these need features
    f"{measure}_{name}{end}"
    for measure in DETECTION_MEASURES
    for name in DETECTORS
    for end in ("", "_member")
}


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
    known = SPLIT_KEYS | {"top_5_accuracy"} | OOD_KEYS | GRADIENT_KEYS | DETECTOR_KEYS
    known |= {*metrics_with(scope="temperature"), *metrics_with(scope="conformal")}
    assert set(METRICS) == known
    logits, targets = draw()
    results = evaluate(logits, targets) | evaluate_ood(logits, draw(seed=1)[0])
    for key, value in results.items():
        low, high = METRICS[key].bounds
        assert METRICS[key].name == key
        assert low <= value <= high


def test_directions_are_those_of_the_field():
    better = {key for key, info in METRICS.items() if info.higher_is_better}
    none = {key for key, info in METRICS.items() if info.higher_is_better is None}
    detection = {*metrics_with(scope="detection")} - {*metrics_with(measure="fpr95")}
    detection -= {"n_id", "n_ood"}
    more = {"top_5_accuracy", "auroc_of_failures"}
    worst = {"worst_size_coverage", "worst_class_coverage"}
    sets = {name: METRICS[name].measure in worst for name in metrics_with(scope="conformal")}
    more |= {name for name, is_worst in sets.items() if is_worst}
    assert better == {"accuracy", "coverage_at_5_risk"} | more | detection
    counts = {"n", "n_id", "n_ood", "n_gradients"}
    neither = {"confidence", "disagreement", "mutual_information", "confidence_gap"}
    for measure in ("confidence", "temperature"):
        neither |= {*metrics_with(scope="temperature", measure=measure)}
    neither |= {name for name, is_worst in sets.items() if not is_worst}
    assert none == {*counts, *neither, *DIVERSITY}
    alike = {"pairwise_kl", "cosine_similarity", "input_gradient_similarity"}
    assert set(DIVERSITY) == DECOMPOSED | PAIRS | alike


def test_values_do_not_depend_on_how_samples_are_chunked(monkeypatch):
    logits, targets = draw(n=1500)
    whole = sample_values(logits, targets)
    monkeypatch.setattr("deepens.metrics.samples.CHUNK", 3 * 5 * 7)
    parts = sample_values(logits, targets)
    for name in ("confidence", "entropy", "mutual_information", "disagreement", "nll", "brier"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-14)
    assert torch.equal(parts.correct, whole.correct)
    assert evaluate_values(parts) == pytest.approx(evaluate_values(whole), abs=1e-13)
    found = evaluate_ood_values(parts, sample_values(logits * 0.5))
    expected = evaluate_ood_values(whole, sample_values(logits * 0.5))
    assert found == pytest.approx(expected, abs=1e-13)


def test_detection_by_every_score_equals_scikit_learn():
    id_logits, ood_logits = draw(n=200)[0], draw(n=90, signal=0.5, seed=1)[0]
    results = evaluate_ood(id_logits, ood_logits)
    for name, score in SCORES.items():
        values = torch.cat([score(id_logits), score(ood_logits)])
        reference = roc_auc_score(torch.arange(290) >= 200, values)
        # Scores of members tie up to rounding, in which chunks may differ.
        assert results[f"auroc_{name}"] == pytest.approx(reference, abs=1e-4)


def test_what_is_told_of_a_split_equals_the_pure_functions():
    logits, targets = draw()
    probs = logits.double().softmax(-1).mean(0)
    confidence, predicted = probs.max(-1)
    correct = predicted == targets
    expected = {
        "confidence_gap": confidence.mean() - correct.double().mean(),
        "mce": metrics.maximum_calibration_error(confidence, correct),
        "rms_calibration_error": metrics.root_mean_square_calibration_error(confidence, correct),
        "debiased_calibration_error": metrics.debiased_squared_calibration_error(
            confidence, correct
        ),
        "adaptive_calibration_error": metrics.adaptive_calibration_error(confidence, correct),
        "smooth_calibration_error": metrics.smooth_calibration_error(confidence, correct),
        "top_label_calibration_error": metrics.top_label_calibration_error(
            confidence, correct, predicted
        ),
        "classwise_calibration_error": metrics.classwise_calibration_error(probs.log(), targets),
        "e_aurc": metrics.excess_area_under_risk_coverage(confidence, correct),
        "risk_at_80_coverage": metrics.risk_at_coverage(confidence, correct, 0.8),
        "auroc_of_failures": metrics.auroc_of_failures(confidence, correct),
        "double_fault": metrics.double_fault(logits, targets),
        "q_statistic": metrics.q_statistic(logits, targets),
        "error_correlation": metrics.error_correlation(logits, targets),
        "normalized_disagreement": metrics.normalized_disagreement(logits, targets),
        "ensemble_improvement_rate": metrics.ensemble_improvement_rate(logits, targets),
        "cosine_similarity": metrics.cosine_similarity(logits.double().log_softmax(-1)).mean(),
    }
    found = evaluate(logits, targets)
    values = {name: value.item() for name, value in expected.items()}
    assert {name: found[name] for name in expected} == pytest.approx(values, abs=1e-9)


@pytest.mark.filterwarnings("ignore:.*in any other order:RuntimeWarning")
def test_top_5_accuracy_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 300, 12, generator=generator)
    targets = torch.randint(12, (300,), generator=generator)
    expected = top_k_accuracy_score(targets, logits[0], k=5, labels=range(12))
    assert evaluate(logits, targets)["top_5_accuracy"] == pytest.approx(expected, abs=1e-12)


def test_joining_no_values_is_refused():
    with pytest.raises(ValueError, match="parts must hold >= 1 set of values, got 0"):
        join_values([])


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
        repeated = {name: repeated[name] for name in values}
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
        repeated = {name: repeated[name] for name in values}
        ours = {name: value[index].item() for name, value in values.items()}
        assert ours == pytest.approx(repeated, abs=1e-12)


def test_a_single_model_has_no_diversity_and_its_mutual_information_detects_nothing():
    logits, targets = draw(members=1)
    results = evaluate(logits, targets)
    assert results["disagreement"] == results["mutual_information"] == 0.0
    assert results["pairwise_kl"] == results["jensen_gap"] == results["brier_ambiguity"] == 0.0
    assert results["mean_member_nll"] == results["nll"]
    assert results["mean_member_brier"] == results["brier"]
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


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_ambiguity_decomposition_holds_and_its_terms_are_those_of_the_pure_functions(
    members, scale
):
    logits, targets = draw(members=members)
    logits = logits * scale
    results = evaluate(logits, targets)
    gained = results["mean_member_nll"] - results["jensen_gap"]
    assert results["nll"] == pytest.approx(gained, rel=1e-12, abs=1e-12)
    gained = results["mean_member_brier"] - results["brier_ambiguity"]
    assert results["brier"] == pytest.approx(gained, abs=1e-12)
    own = member_log_probs(logits.double())
    nll = torch.stack([negative_log_likelihood(each, targets) for each in own])
    brier = torch.stack([brier_score(each, targets) for each in own])
    expected = {
        "mean_member_nll": nll.mean().item(),
        "jensen_gap": jensen_gap(own, targets).mean().item(),
        "mean_member_brier": brier.mean().item(),
        "brier_ambiguity": brier_ambiguity(own, targets).mean().item(),
        "pairwise_kl": pairwise_kl(own).mean().item(),
    }
    found = {name: results[name] for name in expected}
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_ood_images_have_a_pairwise_kl_and_no_decomposition():
    id_logits, ood_logits = draw()[0], draw(n=90, signal=0.5, seed=1)[0]
    results = evaluate_ood(id_logits, ood_logits)
    expected = pairwise_kl(member_log_probs(ood_logits.double())).mean().item()
    assert results["pairwise_kl"] == pytest.approx(expected, abs=1e-12)
    assert not DECOMPOSED & set(results)


def test_what_says_how_members_differ_is_never_resampled():
    logits, targets = draw(n=50)
    evaluation = SplitEvaluation(sample_values(logits, targets))
    detection = OODEvaluation(sample_values(logits), sample_values(logits))
    intervals = paired_bootstrap([evaluation], [evaluation], sizes=[50], draws=20)
    assert not set(DIVERSITY) & (set(intervals) | set(evaluation()) | set(detection()))


def test_values_without_more_still_give_what_is_resampled():
    logits, targets = draw()
    bare = sample_values(logits, targets, more=False)
    whole = evaluate(logits, targets)
    told = {*DIVERSITY, *SECONDARY}
    assert evaluate_values(bare) == {k: v for k, v in whole.items() if k not in told}
    found = evaluate_ood_values(bare, bare)
    assert "pairwise_kl" not in found
    assert "auroc_energy" not in found


def test_mean_over_copies_is_the_mean_of_each_metric():
    generator = torch.Generator().manual_seed(5)
    targets = torch.randint(4, (60,), generator=generator)
    copies = [sample_values(torch.randn(2, 60, 4, generator=generator), targets) for _ in range(3)]
    weights = torch.randint(3, (7, 60), generator=generator)
    found = MeanEvaluation(copies)(weights)
    for name, values in found.items():
        each = [SplitEvaluation(copy)(weights)[name] for copy in copies]
        torch.testing.assert_close(values, sum(each) / 3, equal_nan=True)
    assert found.keys() >= {"accuracy", "nll", "brier", "ece"}
    whole = MeanEvaluation(copies)()
    assert float(whole["ece"]) == pytest.approx(
        float(sum(SplitEvaluation(copy)()["ece"] for copy in copies)) / 3
    )
    with pytest.raises(ValueError, match=r"copies must be of one length, .* got \[1, 60\]"):
        MeanEvaluation([*copies, sample_values(torch.zeros(2, 1, 4), torch.tensor([0]))])
    with pytest.raises(ValueError, match=r"at least one, got \[\]"):
        MeanEvaluation([])


def test_what_these_samples_do_not_define_is_nan_with_a_warning_that_says_why():
    logits, targets = torch.eye(3)[None].expand(2, 3, 3) * 4, torch.arange(3)
    with pytest.warns(RuntimeWarning) as warned:
        results = evaluate(logits, targets)
    told = [str(each.message) for each in warned]
    for name in ("auroc_of_failures", "q_statistic", "normalized_disagreement"):
        assert math.isnan(results[name])
        assert any(text.startswith(f"{name} is undefined, since ") for text in told)
