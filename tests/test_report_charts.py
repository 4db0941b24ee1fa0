"""What charts draw: curves, bins and bars are those of the runs, and the specifications compile."""

import json

import numpy as np
import pytest
import torch
from deepens.experiments.report.charts import (
    Graded,
    entropy_charts,
    gain_charts,
    quality_charts,
    reliability_charts,
    wilson,
)
from deepens.experiments.report.curve_charts import (
    rates_at,
    risk_at,
    risk_coverage_chart,
    roc_charts,
    roc_curve,
)
from deepens.experiments.report.render import svg
from deepens.experiments.report.trend_charts import (
    corruption_charts,
    severity_charts,
    training_charts,
)
from report_data import METHODS, SHIFTS, make_comparison
from sklearn.metrics import roc_auc_score


@pytest.fixture(scope="module")
def comparison():
    return make_comparison()


def values_of(chart) -> list[dict]:
    return chart.spec["data"]["values"]


def test_quality_is_drawn_at_cost_mean_and_every_replicate(comparison):
    chart = quality_charts(comparison)["MACs per image"][0]
    for (name, macs, _), row, method in zip(
        METHODS, values_of(chart), comparison.methods, strict=True
    ):
        values = [replicate.metrics["test"]["accuracy"] for replicate in method.replicates]
        assert (row["m"], row["x"], row["v"]) == (name, macs, pytest.approx(values))
        assert row["y"] == pytest.approx(np.mean(values))
        assert row["h"] - row["y"] == pytest.approx(min(np.std(values, ddof=1), 1 - row["y"]))


def test_methods_of_unknown_cost_are_left_out_and_keep_their_colours(comparison):
    charts = quality_charts(make_comparison(20, 1))
    scale = charts["MACs per image"][0].spec["layer"][-1]["encoding"]["color"]["scale"]
    assert scale["domain"] == [name for name, *_ in METHODS]
    assert len(set(scale["range"])) == len(METHODS)
    assert "Training compute" not in charts


def test_methods_differ_in_shape_or_dash_as_well_as_in_colour(comparison):
    shape = quality_charts(comparison)["Parameters"][0].spec["layer"][-1]["encoding"]["shape"]
    assert len(set(shape["scale"]["range"])) == len(METHODS)
    (risk,) = risk_coverage_chart(comparison)
    (dash,) = (layer["encoding"]["strokeDash"] for layer in risk.spec["layer"] if "params" in layer)
    assert len(set(map(tuple, dash["scale"]["range"]))) == len(METHODS)


@pytest.mark.parametrize("seed", range(3))
def test_area_under_the_roc_is_the_metric_where_scores_tie(seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 8, (50,), generator=generator).double()
    high = torch.randint(2, 10, (40,), generator=generator).double()
    x, y = roc_curve(low, high).T
    area = float(np.diff(x) @ (y[1:] + y[:-1]) / 2)
    assert area == pytest.approx(roc_auc_score([0] * 50 + [1] * 40, torch.cat([low, high])))


def test_roc_without_one_of_the_sides_is_refused():
    with pytest.raises(ValueError, match="scores_ood must have >= 1 score"):
        roc_curve(torch.ones(3), torch.ones(0))


def test_rates_are_those_after_a_rise_and_straight_between_points():
    curve = np.array([[0, 0], [0, 0.4], [0.5, 0.4], [0.5, 0.8], [1, 1]], dtype=float)
    rates = rates_at(curve, np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert rates.tolist() == pytest.approx([0.4, 0.4, 0.8, 0.9, 1.0])


def test_roc_chart_names_the_area_of_the_metric_and_bands_are_the_range(comparison):
    near, far = roc_charts(comparison)
    assert "Near" in near.title
    assert "Far" in far.title
    for row in values_of(near):
        assert np.all(np.array(row["l"]) <= row["y"])
        assert np.all(np.array(row["y"]) <= row["h"])
        assert row["y"] == sorted(row["y"])
        assert row["y"][-1] == 1.0
    replicates = comparison.methods[1].replicates
    area = np.mean([r.metrics["near_ood/letters"]["auroc_entropy"] for r in replicates])
    assert f"deep {area:.4f}" in near.description


def test_risk_at_full_coverage_is_the_error_and_ties_do_not_depend_on_order():
    confidence = torch.tensor([0.9, 0.8, 0.8, 0.5]).double()
    correct = torch.tensor([True, False, True, False])
    full = risk_at(np.array([1.0]), Graded(confidence, correct))
    assert full.tolist() == [0.5]
    other = torch.tensor([0, 2, 1, 3])
    coverage = np.array([0.25, 0.5, 0.75])
    swapped = Graded(confidence[other], correct[other])
    assert risk_at(coverage, Graded(confidence, correct)).tolist() == pytest.approx(
        risk_at(coverage, swapped).tolist()
    )


def test_reliability_points_are_accuracy_and_confidence_of_the_bins(comparison):
    chart = next(iter(reliability_charts(comparison)))
    values = [replicate.values["test"] for replicate in comparison.methods[0].replicates]
    confidence = torch.cat([each.confidence for each in values])
    correct = torch.cat([each.correct for each in values])
    rows = values_of(chart)
    assert sum(row["n"] for row in rows) == pytest.approx(len(confidence) / 3)
    for row in rows:
        inside = (confidence > row["a"]) & (confidence <= row["b"])
        if row["n"]:
            assert row["x"] == pytest.approx(confidence[inside].mean().item(), abs=2e-5)
            assert row["y"] == pytest.approx(correct[inside].double().mean().item(), abs=2e-5)
            assert 0 <= row["l"] <= row["y"] <= row["h"] <= 1


def test_interval_of_a_share_stays_inside_its_range():
    assert wilson(1.0, 3.0)[1] == pytest.approx(1.0)
    assert wilson(0.0, 3.0)[0] == pytest.approx(0.0)


def test_shares_of_a_histogram_sum_to_one_for_every_kind_of_image(comparison):
    for chart in entropy_charts(comparison):
        assert [row["m"] for row in values_of(chart)] == ["test images", "near OOD", "far OOD"]
        for row in values_of(chart):
            assert sum(row["y"]) == pytest.approx(1.0, abs=1e-3)


def test_severity_curve_is_the_mean_over_corruptions_that_have_that_severity(comparison):
    chart = next(chart for chart in severity_charts(comparison) if "Accuracy" in chart.title)
    row = next(row for row in values_of(chart) if row["m"] == "deep")
    assert row["x"] == [0, 3]  # of blur there is no severity 1
    replicates = comparison.methods[1].replicates
    splits = [split for split in SHIFTS if split.endswith("3")]
    means = [np.mean([r.metrics[s]["accuracy"] for s in splits]) for r in replicates]
    assert row["y"][1] == pytest.approx(np.mean(means), rel=1e-3)
    assert (row["l"][1], row["h"][1]) == pytest.approx((min(means), max(means)), rel=1e-3)
    (each,) = corruption_charts(comparison)
    assert {row["f"] for row in values_of(each)} == {"gaussian noise", "blur"}


def test_gain_leads_from_the_members_loss_to_the_ensembles(comparison):
    for chart in gain_charts(comparison):
        for row in values_of(chart):
            gap = 0.11 if row["m"] == "deep" else 0.0
            assert row["x"] - row["y"] == pytest.approx(gap)


def test_training_curves_end_where_the_first_replicate_does(comparison):
    charts = list(training_charts(comparison))
    assert len(charts) == 3
    row = values_of(charts[1])[0]
    assert row["x"] == [1, 2, 3, 4, 5]
    assert row["y"] == pytest.approx([1.5 / epoch for epoch in range(1, 6)], rel=1e-3)


def test_every_specification_compiles_to_repeatable_svg_without_links(comparison):
    charts = [
        quality_charts(comparison)["MACs per image"][0],
        next(iter(reliability_charts(comparison))),
        *risk_coverage_chart(comparison),
        next(iter(entropy_charts(comparison))),
        next(iter(severity_charts(comparison))),
        *corruption_charts(comparison),
        next(iter(gain_charts(comparison))),
    ]
    for chart in charts:
        drawn = svg(chart.spec)
        assert json.dumps(chart.spec, allow_nan=False)
        assert drawn == svg(chart.spec)
        assert "currentColor" not in drawn
        assert "NaN" not in drawn
        assert "href" not in drawn.replace("xlink=", "")
