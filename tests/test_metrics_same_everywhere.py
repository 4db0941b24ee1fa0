"""One number whatever computes it: the suite, a shell, one batch or many; and flags are flags."""

import gc
import warnings

import pytest
import torch
from deepens import metrics
from deepens.metrics import (
    SCORES,
    Accuracy,
    AreaUnderGeneralizedRiskCoverage,
    AreaUnderRiskCoverage,
    ExpectedCalibrationError,
    OODAreaUnderROC,
    TopKAccuracy,
    evaluate,
    evaluate_ood,
    sample_values,
    top_k_correctness,
)

# Labels are drawn for themselves.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(are of class|in any other order):RuntimeWarning",
)


def tied(n=700, members=4, classes=3, seed=0):
    """Whole-number logits, of which many samples are equal, or equal but for the classes' order."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 3, (members, n, classes), generator=generator).float()
    return logits, torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("size", [1, 7, 700])
@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("accuracy", Accuracy),
        ("aurc", AreaUnderRiskCoverage),
        ("augrc", AreaUnderGeneralizedRiskCoverage),
        ("ece", ExpectedCalibrationError),
    ],
)
def test_shells_have_the_suite_s_ties_in_batches_of_any_size(key, kind, size):
    logits, targets = tied()
    metric = kind()
    for part in zip(logits.split(size, 1), targets.split(size), strict=True):
        metric.update(*part)
    assert metric.compute().item() == pytest.approx(evaluate(logits, targets)[key], abs=1e-14)


@pytest.mark.parametrize("size", [1, 13])
@pytest.mark.parametrize("score", SCORES)
def test_scores_of_single_samples_are_the_suite_s_bit_for_bit(score, size):
    logits, _ = tied(n=60)
    whole = SCORES[score](logits)
    parts = torch.cat([SCORES[score](part) for part in logits.split(size, 1)])
    assert torch.equal(parts, whole)
    values = sample_values(logits)
    held = {
        "msp": 1.0 - values.confidence,
        "entropy": values.entropy,
        "mutual_information": values.mutual_information,
        **values.detectors,
    }
    assert torch.equal(held[score], whole)


@pytest.mark.parametrize("score", ["msp", "entropy", "energy"])
def test_detection_of_ties_is_the_suite_s_in_batches_of_any_size(score):
    logits, _ = tied()
    is_ood = torch.arange(700) % 3 == 0
    metric = OODAreaUnderROC(score)
    for part in zip(logits.split(11, 1), is_ood.split(11), strict=True):
        metric.update(*part)
    expected = evaluate_ood(logits[:, ~is_ood], logits[:, is_ood])[f"auroc_{score}"]
    assert metric.compute().item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("n", "times"), [(400, 8), pytest.param(3000, 15, marks=pytest.mark.slow)])
def test_metrics_freed_while_another_computes_take_no_result_along(n, times):
    logits, targets = tied(n=n)
    for _ in range(times):
        metric = AreaUnderRiskCoverage()  # the one before is freed whenever memory is collected
        for part in zip(logits.split(10, 1), targets.split(10), strict=True):
            metric.update(*part)
        assert 0 < metric.compute().item() < 1
        metric.cycle = metric
    gc.collect()


def test_top_5_never_leaves_out_the_predicted_class():
    equal = torch.full((1, 4, 10), 2.0)
    results = evaluate(equal, torch.tensor([0, 0, 4, 5]))
    assert results["accuracy"] == 0.5
    assert results["top_5_accuracy"] == 0.75
    logits, targets = tied(n=500, classes=8)
    log_probs = metrics.mixture_log_probs(logits.double())
    for k in (1, 2, 5, 8):
        ranked = [
            sorted(range(8), key=lambda c, row=row: (-row[c], c)).index(int(label)) < k
            for row, label in zip(log_probs.tolist(), targets, strict=True)
        ]
        assert top_k_correctness(log_probs, targets, k=k).tolist() == ranked
        metric = TopKAccuracy(k)
        metric.update(logits, targets)
        assert metric.compute().item() == pytest.approx(sum(ranked) / 500, abs=1e-14)
    assert top_k_correctness(log_probs, targets, k=1).tolist() == (
        metrics.correctness(log_probs, targets).tolist()
    )
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        TopKAccuracy(0)


SCORE = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
FLAGGED = {
    "expected_calibration_error": lambda c: metrics.expected_calibration_error(SCORE, c),
    "maximum_calibration_error": lambda c: metrics.maximum_calibration_error(SCORE, c),
    "adaptive_calibration_error": lambda c: metrics.adaptive_calibration_error(SCORE, c),
    "smooth_calibration_error": lambda c: metrics.smooth_calibration_error(SCORE, c),
    "top_label_calibration_error": lambda c: metrics.top_label_calibration_error(
        SCORE, c, torch.zeros(5, dtype=torch.long)
    ),
    "area_under_risk_coverage": lambda c: metrics.area_under_risk_coverage(SCORE, c),
    "coverage_at_risk": lambda c: metrics.coverage_at_risk(SCORE, c, risk=0.05),
    "auroc_of_failures": lambda c: metrics.auroc_of_failures(SCORE, c),
    "scod_risk": lambda c: metrics.scod_risk(SCORE, c, SCORE),
    "area_under_roc": lambda c: metrics.area_under_roc(SCORE, c),
    "false_positive_rate": lambda c: metrics.false_positive_rate(SCORE, c),
    "delong_test": lambda c: metrics.delong_test(SCORE, SCORE.flip(0), c),
    "mcnemar_test": lambda c: metrics.mcnemar_test(c, c),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
@pytest.mark.parametrize("name", FLAGGED)
def test_flags_of_another_type_are_refused_not_computed_with(name, dtype):
    flags = torch.tensor([1, 1, 0, 1, 0])
    FLAGGED[name](flags == 1)
    with pytest.raises(ValueError, match=r"must be boolean, got torch\.\w+; of 0 and 1, take"):
        FLAGGED[name](flags.to(dtype))


@pytest.mark.usefixtures("unchecked")
def test_labels_in_place_of_ood_flags_are_refused():
    with pytest.raises(ValueError, match="is_ood must be boolean, got torch.int64"):
        OODAreaUnderROC().update(torch.randn(2, 5, 3), torch.arange(5))


@pytest.mark.parametrize("decimals", [2, 3])
def test_rounded_probabilities_are_named_whichever_way_they_are_given(decimals):
    probs = torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).softmax(-1)
    rounded, targets = probs.round(decimals=decimals), torch.zeros(40, dtype=torch.long)
    with pytest.raises(ValueError, match="must be raw outputs, got rows that lie in"):
        evaluate(rounded, targets, layout="NC")
    rounded[3] = 0.9  # one bad row does not hide the others
    with pytest.raises(ValueError, match="must be raw outputs, got rows that lie in"):
        evaluate(rounded, targets, layout="NC")


def test_probabilities_of_too_few_digits_are_not_called_raw_outputs():
    probs = torch.tensor([[0.66, 0.32]] * 3)
    with pytest.raises(ValueError, match=r"got 0.98 in row 0.*; write them with more digits, or d"):
        evaluate(probs, torch.zeros(3, dtype=torch.long), layout="NC", kind="probs")


def test_sums_of_probabilities_are_checked_to_a_thousandth():
    targets = torch.zeros(3, dtype=torch.long)
    fine = torch.tensor([[0.7, 0.3005]] * 3)
    assert evaluate(fine, targets, layout="NC", kind="probs")["accuracy"] == 1.0
    with pytest.raises(ValueError, match="must sum to 1 over classes, got 1.002"):
        evaluate(torch.tensor([[0.7, 0.302]] * 3), targets, layout="NC", kind="probs")


def test_log_probabilities_given_as_logits_are_named():
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(20, dtype=torch.long)
    with pytest.raises(ValueError, match="exponentials sum to 1; .* kind='log_probs'"):
        evaluate(logits.log_softmax(-1), targets, layout="NC")
    assert evaluate(logits - 9, targets, layout="NC")["n"] == 20  # low logits are logits


@pytest.mark.parametrize("name", ["label", "ID", " Index "])
def test_a_column_that_is_no_class_is_refused_by_its_name(tmp_path, name):
    file = tmp_path / "logits.csv"
    file.write_text(f"a,b,{name}\n" + "1.5,0.2,1\n" * 4)
    with pytest.raises(ValueError, match=f"has a column {name.strip()!r}, number 3, which is no"):
        evaluate(file, torch.zeros(4, dtype=torch.long), layout="NC")


def test_nan_log_probabilities_are_refused():
    log_probs = torch.tensor([[0.0, torch.nan]])
    with pytest.raises(ValueError, match="log_probs must not be NaN"):
        metrics.negative_log_likelihood(log_probs, torch.tensor([0]))
    with pytest.raises(ValueError, match="log_probs must not be NaN"):
        metrics.predictive_entropy(log_probs)


@pytest.mark.usefixtures("unchecked")
def test_another_number_of_axes_is_named():
    with pytest.raises(ValueError, match=r"log_probs must have 2 dimensions .*, got shape \[1, 2"):
        metrics.brier_score(torch.zeros(1, 2, 3), torch.zeros(2, dtype=torch.long))


def test_undefined_replicates_have_an_undefined_spread():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = metrics.summarize_replicates([1.0, float("nan")])
    assert summary.count == 2
    assert summary.standard_deviation != summary.standard_deviation
    assert summary.mean != summary.mean


def test_votes_are_by_logits_also_where_probabilities_cannot_tell_them_apart():
    logits = torch.tensor([[[1e17, 1e17 + 64.0]], [[0.0, 1.0]]], dtype=torch.float64)
    targets = torch.tensor([1])
    metric = metrics.Disagreement()
    metric.update(logits, targets)
    assert evaluate(logits, targets)["disagreement"] == metric.compute().item() == 0.0
