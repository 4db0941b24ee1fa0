"""Figures: they draw the numbers they are given, on the axes they are given."""

import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from deepens.experiments import plots


@pytest.fixture
def axes():
    return plots.new_figure().add_subplot()


def graded(images: int = 300, seed: int = 0) -> plots.Graded:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(images, generator=generator)
    return plots.Graded(confidence, torch.rand(images, generator=generator) < confidence)


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_quality_is_drawn_at_mean_and_every_replicate(axes):
    points = [
        plots.MethodPoint("deep", 400, (0.9, 0.8, 1.0)),
        plots.MethodPoint("single", 100, (0.7,)),
    ]
    plots.quality_against_cost(axes, points, label="Accuracy")
    assert axes.get_xscale() == "log"
    assert axes.collections[0].get_offsets().tolist() == [[400, 0.9], [400, 0.8], [400, 1.0]]
    bars = axes.containers
    assert bars[0].lines[0].get_xydata() == pytest.approx(np.array([[400, 0.9]]))
    assert bars[0].lines[2][0].get_segments()[0] == pytest.approx(np.array([[400, 0.8], [400, 1]]))
    assert texts(axes) == ["deep", "single"]


def test_methods_differ_in_marker_as_well_as_in_colour(axes):
    points = [plots.MethodPoint(str(i), 10 + i, (0.5, 0.6)) for i in range(7)]
    plots.quality_against_cost(axes, points, label="Accuracy")
    lines = [container.lines[0] for container in axes.containers]
    assert len({line.get_marker() for line in lines}) == 7
    assert len({line.get_color() for line in lines}) == 7


def test_names_of_methods_do_not_overlap(axes):
    points = [plots.MethodPoint(str(i), 10, (0.9 + i * 1e-5, 0.2 * i)) for i in range(2)]
    points += [plots.MethodPoint(f"near{i}", 10, (0.9,)) for i in range(6)]
    plots.quality_against_cost(axes, points, label="Accuracy")
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(np.diff(heights)) > 0.07
    assert heights[0] >= -1e-9
    assert heights[-1] <= 1.0 + 1e-9


def test_undefined_qualities_are_left_out(axes):
    points = [plots.MethodPoint("deep", 10, (float("nan"),)), plots.MethodPoint("wide", 9, (0.5,))]
    plots.quality_against_cost(axes, points, label="NLL")
    assert texts(axes) == ["wide"]


def test_confidence_histogram_counts_the_images_of_one_replicate(axes):
    plots.confidence_histogram(axes, [graded(seed=0), graded(seed=1)])
    assert sum(patch.get_height() for patch in axes.patches) == pytest.approx(300)


def test_reliability_points_are_accuracy_and_confidence_of_the_bins(axes):
    replicate = plots.Graded(
        torch.tensor([0.35, 0.36, 0.95, 0.97]), torch.tensor([True, False, True, True])
    )
    plots.reliability_diagram(axes, [replicate])
    drawn = axes.containers[0].lines[0].get_xydata()
    assert drawn == pytest.approx(np.array([[0.355, 0.5], [0.96, 1.0]]))


def test_risk_at_full_coverage_is_the_error():
    replicate = graded()
    assert plots.risk_at([1.0], replicate) == pytest.approx(
        [1 - replicate.correct.double().mean().item()]
    )


def test_risk_does_not_depend_on_the_order_of_ties():
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5])
    correct = torch.tensor([True, True, True, False, False])
    coverage = [0.2, 0.4, 0.6, 0.8, 1.0]
    flipped = plots.Graded(confidence, correct.flip(0)[[4, 0, 1, 2, 3]])
    assert plots.risk_at(coverage, plots.Graded(confidence, correct)) == pytest.approx(
        plots.risk_at(coverage, flipped)
    )


def test_oracle_errs_only_where_errors_are_left(axes):
    plots.risk_coverage(axes, {"deep": [graded()]})
    curve, oracle = axes.lines
    covered = np.asarray(oracle.get_xdata())
    error = curve.get_ydata()[-1]
    assert oracle.get_ydata()[-1] == pytest.approx(error)
    assert all(oracle.get_ydata()[covered <= 1 - error] == 0)
    assert all(np.asarray(oracle.get_ydata()) <= np.asarray(curve.get_ydata()) + 1e-4)


def test_method_without_values_keeps_the_colours_of_the_others(axes):
    plots.risk_coverage(axes, {"empty": [], "deep": [graded()]})
    alone = plots.new_figure().add_subplot()
    plots.risk_coverage(alone, {"other": [graded()], "deep": [graded()]})
    assert axes.lines[0].get_color() == alone.lines[2].get_color()
    assert texts(axes) == ["deep"]


def test_shares_of_a_histogram_sum_to_one(axes):
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(500, generator=generator) for name in ("test", "near OOD")}
    plots.score_histograms(axes, scores, label="Entropy", highest=1.0)
    assert [patch.get_data().values.sum() for patch in axes.patches] == pytest.approx([1.0] * 4)


def test_histogram_of_scores_that_are_all_zero_is_drawn(axes):
    plots.score_histograms(axes, {"test": torch.zeros(5)}, label="Entropy", highest=0.0)
    assert axes.patches


def test_svg_is_repeatable_and_names_no_font_or_link():
    def draw() -> str:
        figure = plots.new_figure()
        plots.risk_coverage(figure.add_subplot(), {"deep": [graded()]})
        return plots.svg_text(figure)

    drawing = draw()
    assert drawing == draw()
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert "font-family" not in drawing
    assert "<image" not in drawing


def test_figures_stay_out_of_the_global_list_of_pyplot():
    plots.svg_text(plots.new_figure())
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
