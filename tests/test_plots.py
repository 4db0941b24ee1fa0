"""Figures: they draw the numbers they are given, on the axes they are given."""

import io
import re
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from deepens.experiments.comparison.examples import choose_examples
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.report import curves, decomposition, drawing, render_page
from deepens.experiments.report import method_plots as plots
from deepens.experiments.report.panel import Panel
from deepens.metrics.core.catalogue import METRICS
from deepens.metrics.detection.ood import area_under_roc
from deepens.metrics.suite import SampleValues
from matplotlib.transforms import Bbox


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


def corners(path: str) -> np.ndarray:
    """Every point of a path in absolute or relative commands, each of which may be repeated."""
    found, here, start = [], np.zeros(2), np.zeros(2)
    for command, values in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        if command in "zZ":
            here = start
            continue
        numbers = [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", values)]
        size = {"m": 2, "l": 2, "q": 4, "c": 6}[command.lower()]
        for first in range(0, len(numbers), size):
            points = np.array(numbers[first : first + size]).reshape(-1, 2)
            points += here * command.islower()
            found.extend(points)
            here = points[-1]
        start = here if command in "mM" else start
    return np.array(found)


def two_svgs() -> tuple[str, str]:
    """One figure as matplotlib writes it and as we do."""

    def figure():
        made = drawing.new_figure()
        plots.risk_coverage(made.add_subplot(), {"deep": [graded()]})
        return made

    plain = io.StringIO()
    figure().savefig(plain, format="svg")
    return plain.getvalue(), drawing.svg_text(figure())


def test_svg_is_smaller_and_draws_the_same_places():
    def paths(text: str) -> list[np.ndarray]:
        glyphs_left_out = re.sub(r'<path [^>]* transform="scale[^>]*>', "", text)
        found = [corners(path) for path in re.findall(r' d="([^"]*)"', glyphs_left_out)]
        return [points for points in found if len(points)]

    plain, ours = two_svgs()
    assert len(ours) < 0.6 * len(plain)
    after, before = paths(ours), paths(plain)
    assert max(map(len, after)) > 300
    for ours_is, was in zip(after, before, strict=True):
        assert ours_is == pytest.approx(was, abs=0.0051)


def test_letters_of_an_svg_keep_their_outlines_and_places():
    def letters(text: str, name: str) -> tuple[list[np.ndarray], list[tuple[int, float]]]:
        outline = rf'<path id="({name}[^"]*)"(?: d="([^"]*)")? transform="scale\(([\d.]+)\)"/>'
        found = re.findall(outline, text)
        order = {glyph: index for index, (glyph, *_) in enumerate(found)}
        places = [
            (order[glyph], float(place or 0))
            for glyph, place in re.findall(
                rf'href="#({name}[^"]*)"(?: (?:x="|transform="translate\()([\d.]+))?', text
            )
        ]
        return [float(scale) * corners(path) for _, path, scale in found], places

    plain, ours = two_svgs()
    outlines, places = letters(ours, "g")
    were, places_were = letters(plain, "DejaVuSans")
    assert len(outlines) > 20
    for outline, was in zip(outlines, were, strict=True):
        assert outline == pytest.approx(was, abs=0.126)  # of 100 an em
    assert [glyph for glyph, _ in places] == [glyph for glyph, _ in places_were]
    assert [x for _, x in places] == pytest.approx([x for _, x in places_were], abs=0.051)


def test_bin_of_one_image_of_one_replicate_has_a_bar(axes):
    many, alone = torch.full((5,), 0.95), torch.tensor([0.95] * 4 + [0.1])
    right = torch.ones(5, dtype=torch.bool)
    plots.confidence_histogram(axes, [plots.Graded(c, right) for c in (many, many, alone)])
    least = min(patch.get_height() for patch in axes.patches if patch.get_height())
    assert least == pytest.approx(1 / 3)
    assert axes.get_ylim()[0] < least


def test_points_at_the_ends_of_a_reliability_diagram_are_inside_the_axes(axes):
    replicate = plots.Graded(torch.tensor([0.0, 1.0]), torch.tensor([False, True]))
    plots.reliability_diagram(axes, [replicate])
    assert axes.get_ylim()[0] < 0
    assert axes.get_ylim()[1] > 1
    assert axes.get_xlim() == axes.get_ylim()


def box_of(legend) -> Bbox:
    legend.figure.draw_without_rendering()
    return legend.get_window_extent()


@pytest.mark.parametrize("shifts", [(0.3,), (-0.3,), (0.6, -0.6), (0.9, 0.1, -0.8)])
def test_legend_of_the_roc_covers_no_curve(axes, shifts):
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(2, 200, generator=generator)
    held = {f"by {s}": [curves.roc_curve(scores[0], scores[1] + s)] for s in shifts}
    curves.roc_curves(axes, held)
    figure = axes.figure
    (legend,) = [held for held in (axes.get_legend(), *figure.legends) if held]
    box = box_of(legend)
    for line in axes.lines[1:]:
        assert not line.get_path().transformed(axes.transData).intersects_bbox(box, filled=False)


def test_bars_of_quality_stay_within_the_range_of_the_metric(axes):
    point = plots.MethodPoint("deep", 10, (0.0, 0.9, 1.0, 1.0))
    plots.quality_against_cost(axes, [point], label="AUROC", bounds=(0.0, 1.0))
    (bar,) = axes.containers[0].lines[2][0].get_segments()
    assert bar[:, 1].min() >= 0
    assert bar[:, 1].max() <= 1
    assert axes.get_ylim()[0] > -0.15


def test_replicates_stand_left_of_their_mean(axes):
    plots.quality_against_cost(axes, [plots.MethodPoint("a", 10, (0.2, 0.4))], label="AUROC")
    axes.figure.draw_without_rendering()
    dots = axes.collections[0]
    seen = dots.get_offset_transform().transform(np.asarray(dots.get_offsets()))
    mean = axes.transData.transform((10, 0.3))
    assert seen[:, 0] == pytest.approx(mean[0] - 7 / 72 * axes.figure.dpi)


COSTS = [(35e6, 40e6), (1e6, 4e6), (1e6, 1.01e6), (1e3, 1e12), (3e-4, 6e-3), (7e7, 7e7)]


@pytest.mark.parametrize("costs", COSTS)
def test_labels_of_the_cost_are_few_and_do_not_overlap(axes, costs):
    points = [plots.MethodPoint(str(cost), cost, (0.5,)) for cost in costs]
    plots.quality_against_cost(axes, points, label="Accuracy", unit="s")
    axes.figure.draw_without_rendering()
    labels = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
    low, high = axes.get_xlim()
    assert 1 <= len(labels) <= 5
    boxes = sorted(label.get_window_extent().intervalx.tolist() for label in labels)
    assert all(first[1] + 2 < second[0] for first, second in pairwise(boxes))
    assert all(low <= label.get_position()[0] <= high for label in labels)


DETECTION = ("auroc", "aupr", "fpr95")


def large_comparison() -> Comparison:
    """Eight methods, six OOD sets that are also encoded, nineteen corruptions, large pictures."""
    generator = torch.Generator().manual_seed(0)
    images = 5000
    sets = [f"{kind}/set {i}" for kind in ("near_ood", "far_ood") for i in range(3)]
    ood = [name + end for name in sets for end in ("", ".encoded")]
    shifts = [f"shift/corruption {c}/{s}" for c in range(19) for s in range(1, 6)]

    def values(doubt: float) -> SampleValues:
        unsure = torch.rand(images, generator=generator, dtype=torch.float64)
        confidence = 1 - 0.9 * unsure ** (1 / doubt)
        right = torch.rand(images, generator=generator) < confidence
        scores = {
            name: -confidence.log()
            for name in ("nll", "brier", "entropy", "mutual_information", "disagreement")
        }
        return SampleValues(correct=right, confidence=confidence, **scores)

    def replicate(name: str) -> Replicate:
        def numbers(metrics: list[str]) -> dict[str, float]:
            drawn = torch.rand(len(metrics), generator=generator).tolist()
            return {"n": 5000.0, **dict(zip(metrics, drawn, strict=True))}

        found = [key for key in METRICS if key.split("_")[0] in DETECTION and "failures" not in key]
        told = [key for key in METRICS if key not in (*found, "n", "n_id", "n_ood")]
        metrics = {split: numbers(told) for split in ("test", *shifts)}
        metrics |= {split: numbers(found) for split in ood}
        here = {"test": values(0.2), **{split: values(0.9) for split in ood}}
        log = tuple({"epoch": e, "train/loss": 1 / e, "val/nll": 1 / e} for e in range(1, 201))
        return Replicate(name, metrics, here, log=log)

    names = [f"method-{i}" for i in range(8)]
    methods = tuple(
        MethodSummary(
            name, name, Cost(10**6 + i * 10**6, 10**5, 1.0, 1.0, 10**6),
            tuple(replicate(f"{name}-{r}") for r in range(3)),
        )
        for i, name in enumerate(names)
    )  # fmt: skip
    rough = torch.rand(200, 3, 12, 12, generator=generator) * 255
    examples = choose_examples(
        torch.nn.functional.interpolate(rough, (96, 96), mode="bilinear").byte(),
        torch.zeros(200).long(),
        classes=("cat", "dog"),
        runs=names,
        predictions=[(name, [torch.randn(1, 200, 2, generator=generator)]) for name in names],
    )
    return Comparison("large", "", methods, (), 9, (), "", {}, "", examples)


@pytest.mark.slow
def test_page_of_many_methods_and_sets_is_smaller_than_five_megabytes():
    assert len(render_page(large_comparison()).encode()) < 5_000_000


def test_drawing_in_the_page_is_the_svg_and_ends_nothing_before_its_end():
    text = two_svgs()[1]
    html = Panel("a", text, "b").html()
    (address,) = re.findall(r'src="data:image/svg\+xml;charset=utf-8,([^"]*)"', html)
    assert not set('<>"#&') & set(address)
    shown, was = ElementTree.fromstring(unquote(address)), ElementTree.fromstring(text)
    assert [(e.tag, e.attrib) for e in shown.iter()] == [(e.tag, e.attrib) for e in was.iter()]


def test_arrows_lead_from_the_members_loss_to_the_pooled_one(axes):
    methods = [
        decomposition.Decomposition("deep", 1, (0.5, 0.7), (0.2, 0.4)),
        decomposition.Decomposition("a-name-that-is-longer-than-the-figure", 0, (0.9,), (0.0,)),
    ]
    decomposition.decomposition_arrows(axes, methods, label="NLL", ends=("members", "ensemble"))
    assert axes.get_xlabel() == "NLL"
    (arrow,) = (text for text in axes.texts if text.arrow_patch is not None)
    assert (*arrow.xyann, *arrow.xy) == pytest.approx((0.9, 0, 0.6, 0))
    assert [text for text in texts(axes) if text] == ["0.900 → 0.600", "0.900"]
    lines = [line.get_xdata() for line in axes.lines]
    assert any(line == pytest.approx([1.1, 0.7]) for line in lines if len(line) == 2)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["deep", "a-name-that-is-longer…"]
