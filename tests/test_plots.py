"""Figures: they draw the numbers they are given, on the axes they are given."""

import io
import re
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import numpy as np
import pytest
import torch
from deepens.experiments import curves, drawing, plots
from deepens.metrics.ood import area_under_roc


@pytest.fixture
def axes():
    return drawing.new_figure().add_subplot()


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


def test_cost_is_drawn_in_its_own_unit(axes):
    points = [plots.MethodPoint("deep", 0.004, (0.9,)), plots.MethodPoint("wide", 0.001, (0.8,))]
    plots.quality_against_cost(axes, points, label="Accuracy", cost="Latency", unit="s")
    assert axes.get_xlabel() == "Latency (log)"
    axes.figure.draw_without_rendering()
    shown = [tick.get_text() for tick in (*axes.get_xticklabels(), *axes.get_xmajorticklabels())]
    assert "1 ms" in shown


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), 0])
def test_methods_of_unknown_cost_are_left_out(axes, cost):
    points = [plots.MethodPoint("deep", cost, (0.9,)), plots.MethodPoint("wide", 9, (0.5,))]
    plots.quality_against_cost(axes, points, label="Accuracy")
    assert texts(axes) == ["wide"]


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
    alone = drawing.new_figure().add_subplot()
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
        figure = drawing.new_figure()
        plots.risk_coverage(figure.add_subplot(), {"deep": [graded()]})
        return drawing.svg_text(figure)

    text = draw()
    assert text == draw()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "font-family" not in text
    assert "<image" not in text


def test_figures_stay_out_of_the_global_list_of_pyplot():
    drawing.svg_text(drawing.new_figure())
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def scores_with_ties(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ID and OOD scores of few distinct values."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(0, 40, (images,), generator=generator) / 40
    unknown = torch.randint(10, 50, (images // 2,), generator=generator) / 40
    return known, unknown


def auroc(known: torch.Tensor, unknown: torch.Tensor) -> float:
    is_ood = torch.cat([torch.zeros(len(known)), torch.ones(len(unknown))]).bool()
    return area_under_roc(torch.cat([known, unknown]), is_ood).item()


@pytest.mark.parametrize("seed", range(5))
def test_area_under_the_drawn_roc_is_the_metric_where_scores_tie(axes, seed):
    known, unknown = scores_with_ties(300, seed)
    curves.roc_curves(axes, {"deep": [curves.roc_curve(known, unknown)]})
    drawn = np.asarray(axes.lines[1].get_xydata())
    x, y = drawn.T
    area = sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))
    assert area == pytest.approx(auroc(known, unknown), abs=1e-12)


def test_roc_of_scores_that_all_tie_is_the_diagonal():
    curve = curves.roc_curve(torch.ones(5), torch.ones(3))
    assert curve.tolist() == [[0, 0], [1, 1]]


def test_roc_runs_through_the_rates_at_every_threshold():
    known, unknown = scores_with_ties(100, 0)
    curve = curves.roc_curve(known, unknown)
    expected = [[0.0, 0.0]]
    for threshold in sorted({*known.tolist(), *unknown.tolist()}, reverse=True):
        rates = [(each >= threshold).double().mean().item() for each in (known, unknown)]
        expected.append(rates)
    assert curve == pytest.approx(np.array(expected))


def test_roc_without_one_of_the_sides_is_refused():
    with pytest.raises(ValueError, match="scores_ood must hold >= 1 score, got 0"):
        curves.roc_curve(torch.ones(3), torch.ones(0))


def test_area_under_the_mean_roc_is_the_mean_auroc():
    pairs = [scores_with_ties(80, seed) for seed in range(4)]
    generator = torch.Generator().manual_seed(7)
    pairs.append((torch.rand(53, generator=generator), torch.rand(31, generator=generator) + 0.2))
    pairs.append((torch.zeros(3), torch.ones(2)))  # told apart: straight up, then across
    mean = curves.mean_curve([curves.roc_curve(*pair) for pair in pairs])
    assert curves.area_under(mean) == pytest.approx(np.mean([auroc(*p) for p in pairs]), abs=1e-12)
    assert mean[0].tolist() == [0, 0]
    assert mean[-1].tolist() == [1, 1]
    assert np.diff(mean, axis=0).min() >= -1e-12


def test_mean_of_one_roc_is_that_curve():
    curve = curves.roc_curve(*scores_with_ties(80, 1))
    grid = curves.mean_curve([curve])
    assert drawing.distance_to_line(grid[:1], curve[0], curve[1])[0] == pytest.approx(0)
    for point in grid:
        pieces = pairwise(curve)
        assert min(drawing.distance_to_line(point[None], *p)[0] for p in pieces) < 1e-12


def test_roc_names_the_methods_by_falling_area(axes):
    worse, better = (
        [curves.roc_curve(torch.rand(50), torch.rand(50) + shift)] for shift in (0.1, 0.6)
    )
    curves.roc_curves(axes, {"single": worse, "none": [], "deep": better})
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [line.split()[0] for line in told] == ["deep", "single"]
    assert told[0] == f"deep {curves.area_under(better[0]):.3f}"


def furthest(curve: np.ndarray, kept: np.ndarray) -> float:
    """Largest distance from a point of the curve to the polygon that is left, by brute force."""
    pieces = pairwise(kept)
    distances = np.stack([drawing.distance_to_line(curve, *piece) for piece in pieces])
    return float(distances.min(0).max())


@pytest.mark.parametrize("at_most", [100, 200])
@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_thinned_roc_of_many_images_looks_the_same(shift, at_most):
    generator = torch.Generator().manual_seed(3)
    known = torch.randn(10_000, generator=generator)
    unknown = torch.randn(10_000, generator=generator) + shift
    curve = curves.roc_curve(known, unknown)
    kept = drawing.thinned(curve, at_most=at_most)
    assert len(kept) <= at_most < len(curve)
    assert furthest(curve, kept) < 0.005
    assert curves.area_under(kept) == pytest.approx(auroc(known, unknown), abs=0.002)


def test_thinned_curve_keeps_its_ends_its_order_and_a_lone_spike():
    x = np.arange(5000.0)
    curve = np.stack([x, np.sin(x / 800)], -1)
    curve[2345, 1] = 1.9
    kept = drawing.thinned(curve)
    assert len(kept) <= drawing.POINTS
    assert kept[0].tolist() == curve[0].tolist()
    assert kept[-1].tolist() == curve[-1].tolist()
    assert np.diff(kept[:, 0]).min() > 0
    assert 1.9 in kept[:, 1]


def test_short_and_straight_curves_are_left_alone_or_become_two_points():
    short = np.array([[0.0, 0], [1, 5], [2, 0]])
    assert drawing.thinned(short) is short
    straight = np.stack([np.arange(999.0), np.arange(999.0)], -1)
    assert len(drawing.thinned(straight)) == 2
    still = np.zeros((999, 2))
    assert len(drawing.thinned(still)) == 2
    with pytest.raises(ValueError, match="at_most must be >= 2, got 1"):
        drawing.thinned(short, at_most=1)


def test_risk_curve_of_many_images_has_few_points_and_looks_the_same(axes):
    replicate = graded(10_000)
    plots.risk_coverage(axes, {"deep": [replicate]})
    drawn = np.asarray(axes.lines[0].get_xydata())
    assert len(drawn) <= drawing.POINTS
    risk = np.cumsum(~replicate.correct.numpy()[np.argsort(-replicate.confidence.numpy())])
    coverage = np.arange(1, 10_001) / 10_000
    exact = risk / np.arange(1, 10_001)
    beyond = coverage > 0.05  # below, a single image moves the risk by more than this
    assert np.abs(np.interp(coverage, *drawn.T) - exact)[beyond].max() < 0.005


def test_severity_curve_is_the_mean_and_the_band_the_range(axes):
    values = np.array([[0.9, 0.7, 0.5], [0.8, 0.7, 0.1]])
    curves.severity_curves(
        axes, {"deep": values, "none": values[:0]}, severities=[0, 1, 5], label="Accuracy"
    )
    (line,) = axes.lines
    assert line.get_xydata() == pytest.approx(np.array([[0, 0.85], [1, 0.7], [5, 0.3]]))
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(0.1)
    assert corners[:, 1].max() == pytest.approx(0.9)
    assert texts(axes) == ["deep"]


def test_training_mean_ends_where_the_first_replicate_does(axes):
    first = np.array([[1.0, 4], [2, 2], [3, 1]])
    second = np.array([[1.0, 6], [2, 4]])
    curves.training_curves(axes, {"deep": [first, second], "none": []}, label="NLL")
    thin, other, mean = axes.lines
    assert thin.get_xydata().tolist() == first.tolist()
    assert other.get_xydata().tolist() == second.tolist()
    assert mean.get_xydata().tolist() == [[1, 5], [2, 3]]
    assert mean.get_linewidth() > 2 * thin.get_linewidth()


@pytest.mark.parametrize(("least", "scale"), [(0.01, "log"), (0.9, "linear"), (0.0, "linear")])
def test_losses_that_fall_to_a_tenth_are_drawn_on_a_log_axis(axes, least, scale):
    curve = np.array([[1.0, 1.0], [2, least]])
    curves.training_curves(axes, {"deep": [curve]}, label="NLL", falling=True)
    assert axes.get_yscale() == scale


def test_svg_is_smaller_and_draws_the_same_places():
    def paths(text: str) -> list[np.ndarray]:
        found = [re.findall(r"-?\d+\.?\d*", path) for path in re.findall(r' d="([^"]*)"', text)]
        return [np.array(numbers, dtype=float) for numbers in found if numbers]

    def figure():
        made = drawing.new_figure()
        plots.risk_coverage(made.add_subplot(), {"deep": [graded()]})
        return made

    plain = io.StringIO()
    figure().savefig(plain, format="svg")
    ours = drawing.svg_text(figure())
    assert len(ours) < 0.9 * len(plain.getvalue())
    before = sorted(paths(plain.getvalue()), key=len)[-3:]
    after = sorted(paths(ours), key=len)[-3:]
    assert len(after[-1]) > 300
    for ours_is, was in zip(after, before, strict=True):
        assert ours_is == pytest.approx(was, abs=0.0051)
