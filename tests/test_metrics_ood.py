import numpy as np
import pytest
import torch
from deepens.metrics import area_under_roc, average_precision, false_positive_rate
from pytorch_ood.metrics import OODMetrics
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

METRICS = {
    "auroc": area_under_roc,
    "aupr_out": average_precision,
    "aupr_trapezoids": lambda scores, is_ood, weights=None: average_precision(
        scores, is_ood, area="trapezoids", weights=weights
    ),
    "aupr_in_trapezoids": lambda scores, is_ood, weights=None: average_precision(
        scores, is_ood, positive="id", area="trapezoids", weights=weights
    ),
    "aupr_in": lambda scores, is_ood, weights=None: average_precision(
        scores, is_ood, positive="id", weights=weights
    ),
    "fpr95": lambda scores, is_ood, weights=None: false_positive_rate(
        scores, is_ood, weights=weights
    ),
}


def draw(n=300, levels=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    is_ood = torch.rand(n, generator=generator) < 0.4
    scores = 5 * torch.randn(n, dtype=torch.float64, generator=generator) + 4 * is_ood
    return (scores if levels is None else (scores * levels / 20).round()), is_ood


def slow_false_positive_rate(scores, is_ood, rate=0.95):
    for threshold in np.unique(scores)[::-1]:
        flagged = scores >= threshold
        if flagged[is_ood].mean() >= rate:
            return flagged[~is_ood].mean()
    raise AssertionError


@pytest.mark.parametrize("levels", [None, 2, 10])
@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn_pytorch_ood_and_brute_force(levels, seed):
    scores, is_ood = draw(levels=levels, seed=seed)
    values = {name: metric(scores, is_ood).item() for name, metric in METRICS.items()}
    s, y = scores.numpy(), is_ood.numpy()
    assert values["auroc"] == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert values["aupr_out"] == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert values["aupr_in"] == pytest.approx(average_precision_score(~y, -s), abs=1e-12)
    for name, flags, signed in (("", y, s), ("_in", ~y, -s)):
        precision, recall, _ = precision_recall_curve(flags, signed)
        reference = auc(recall, precision)
        assert values[f"aupr{name}_trapezoids"] == pytest.approx(reference, abs=1e-12)
    assert values["fpr95"] == pytest.approx(slow_false_positive_rate(s, y), abs=1e-12)
    peer = OODMetrics().update(scores, torch.where(is_ood, -1, 0)).compute()
    assert values["auroc"] == pytest.approx(float(peer["AUROC"]), abs=1e-6)
    assert values["fpr95"] == pytest.approx(float(peer["FPR95TPR"]), abs=1e-6)


@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("name", METRICS)
def test_weights_equal_repeated_data(name, levels):
    scores, is_ood = draw(n=120, levels=levels)
    weights = torch.randint(0, 4, (6, 120), generator=torch.Generator().manual_seed(5))
    weights[0, scores > 4] = 0
    weights[1, scores < 0] = 0
    values = METRICS[name](scores, is_ood, weights=weights)
    for row, value in zip(weights, values, strict=True):
        repeated = METRICS[name](scores.repeat_interleave(row), is_ood.repeat_interleave(row))
        assert value.item() == pytest.approx(repeated.item(), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_does_not_depend_on_the_order_of_samples(name):
    scores, is_ood = draw(levels=5)
    order = torch.randperm(300)
    permuted = METRICS[name](scores[order], is_ood[order]).item()
    assert permuted == METRICS[name](scores, is_ood).item()


def test_unbounded_scores_are_not_squashed():
    scores, is_ood = draw()
    value = area_under_roc(scores, is_ood).item()
    assert value == pytest.approx(area_under_roc(100 * scores - 7000, is_ood).item(), abs=1e-15)
    assert value > 0.6


def test_equal_scores_are_no_detection():
    scores, is_ood = torch.zeros(10), torch.arange(10) < 3
    values = {name: metric(scores, is_ood).item() for name, metric in METRICS.items()}
    expected = {"auroc": 0.5, "aupr_out": 0.3, "aupr_in": 0.7, "fpr95": 1.0}
    # One point (1, share), joined to (0, 1): trapezoids make something of nothing.
    expected |= {"aupr_trapezoids": 0.65, "aupr_in_trapezoids": 0.85}
    assert values == pytest.approx(expected, abs=1e-15)


def test_reversed_scores_reverse_the_area():
    scores, is_ood = draw(levels=8)
    total = area_under_roc(scores, is_ood) + area_under_roc(-scores, is_ood)
    assert total.item() == pytest.approx(1.0, abs=1e-14)


def test_false_positive_rate_depends_on_the_positive_class():
    scores = torch.cat([torch.arange(40.0), torch.arange(40.0) + 5.5])
    is_ood = torch.arange(80) >= 40
    ood_positive = false_positive_rate(scores, is_ood).item()
    id_positive = false_positive_rate(-scores, ~is_ood).item()
    assert ood_positive == id_positive == 0.8
    lopsided = torch.cat([scores[:40] ** 2, scores[40:]])
    assert false_positive_rate(lopsided, is_ood) != false_positive_rate(-lopsided, ~is_ood)


def test_a_true_positive_rate_of_exactly_the_bound_is_enough():
    scores = torch.cat([torch.arange(20.0), torch.tensor([0.5, 1.5])])
    is_ood = torch.arange(22) < 20
    assert false_positive_rate(scores, is_ood).item() == 0.5  # 19 of 20 lie at or above 1


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("auroc", "AUROC"),
        ("aupr_out", "ood positive"),
        ("aupr_in", "id positive"),
        ("fpr95", "FPR at 95% TPR"),
    ],
)
@pytest.mark.parametrize("ood", [True, False])
def test_one_class_alone_is_nan_with_a_warning_that_names_the_metric(name, label, ood):
    with pytest.warns(RuntimeWarning, match=label):
        value = METRICS[name](torch.rand(5), torch.full((5,), ood))
    assert value.isnan()


def test_only_draws_without_a_class_are_nan():
    weights = torch.tensor([[1, 1], [2, 0]])
    with pytest.warns(RuntimeWarning, match="AUROC"):
        values = area_under_roc(torch.tensor([0.1, 0.9]), torch.tensor([False, True]), weights)
    assert values[0] == 1.0
    assert values[1].isnan()


def test_bad_inputs_are_refused():
    scores, is_ood = draw()
    with pytest.raises(ValueError, match=r"true_positive_rate must lie in \(0, 1\], got 0"):
        false_positive_rate(scores, is_ood, true_positive_rate=0.0)
    with pytest.raises(ValueError, match=r"scores must be finite, got nan at \[0\]"):
        area_under_roc(torch.tensor([torch.nan, 0.0]), torch.tensor([True, False]))


def test_false_positive_rate_depends_on_which_class_is_positive():
    scores, is_ood = draw(n=200, seed=2)
    ours = false_positive_rate(scores, is_ood).item()
    theirs = false_positive_rate(-scores, ~is_ood).item()  # the share of OOD images let through
    assert ours == pytest.approx(slow_false_positive_rate(scores.numpy(), is_ood.numpy()))
    assert theirs == pytest.approx(slow_false_positive_rate(-scores.numpy(), ~is_ood.numpy()))
    assert abs(ours - theirs) > 0.02


def test_unknown_area_is_refused(unchecked):
    with pytest.raises(ValueError, match="area must be one of steps, trapezoids, got 'spline'"):
        average_precision(*draw(), area="spline")
