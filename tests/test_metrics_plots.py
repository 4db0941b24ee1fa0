"""Figures of single metrics show the numbers of the metrics."""

import matplotlib
import numpy as np
import pytest
import torch
from deepens import metrics
from matplotlib.figure import Figure

matplotlib.use("Agg")


def draw(n=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, (n,), generator=generator)
    logits = 2 * torch.randn(3, n, 4, generator=generator)
    logits[:, torch.arange(n), targets] += 1.5
    return logits, targets


@pytest.fixture
def axes():
    return Figure().add_subplot()


def line(axes, number=0):
    return np.stack(axes.lines[number].get_data(), -1)


def test_reliability_diagram_shows_bins_and_their_intervals(axes):
    logits, targets = draw()
    metric = metrics.ExpectedCalibrationError()
    metric.update(logits, targets)
    figure, drawn = metric.plot(ax=axes)
    assert (figure, drawn) == (axes.get_figure(), axes)
    probs = logits.double().softmax(-1).mean(0)
    bands = metrics.reliability_bands(probs.amax(-1), probs.argmax(-1) == targets)
    used = bands.counts > 0
    bars = axes.containers[1]
    points = np.stack(bars.lines[0].get_data(), -1)
    np.testing.assert_allclose(points[:, 0], bands.confidence[used], atol=1e-12)
    np.testing.assert_allclose(points[:, 1], bands.accuracy[used], atol=1e-12)
    segments = np.array(bars.lines[2][0].get_segments())
    np.testing.assert_allclose(segments[:, 0, 1], bands.low[used], atol=1e-12)
    np.testing.assert_allclose(segments[:, 1, 1], bands.high[used], atol=1e-12)
    heights = [patch.get_height() for patch in axes.patches]
    np.testing.assert_allclose(heights, bands.counts / 300, atol=1e-12)


def test_risk_coverage_curve_ends_at_the_error_rate_and_has_the_area_of_the_metric(axes):
    logits, targets = draw()
    metric = metrics.AreaUnderRiskCoverage()
    metric.update(logits, targets)
    metric.plot(ax=axes)
    curve, oracle = line(axes), line(axes, 1)
    assert curve[:, 1].mean() == pytest.approx(metric.compute().item(), abs=1e-12)  # without ties
    accuracy = metrics.evaluate(logits, targets)["accuracy"]
    assert curve[-1] == pytest.approx([1.0, 1 - accuracy])
    assert oracle[-1] == pytest.approx([1.0, 1 - accuracy])
    assert (oracle[oracle[:, 0] <= accuracy, 1] == 0).all()


def test_roc_curve_has_the_area_of_the_metric(axes):
    logits, targets = draw()
    metric = metrics.OODAreaUnderROC("entropy")
    metric.update(logits, targets == 0)
    metric.plot(ax=axes)
    x, y = line(axes).T
    area = float(np.diff(x) @ (y[1:] + y[:-1]) / 2)
    assert area == pytest.approx(metric.compute().item(), abs=1e-12)


def test_histograms_are_shares_of_each_kind(axes):
    scores, is_ood = torch.randn(200), torch.arange(200) < 50
    metrics.plot_scores(axes, scores, is_ood, label="entropy")
    heights = np.array([patch.get_height() for patch in axes.patches]).reshape(2, 40)
    np.testing.assert_allclose(heights.sum(1), 1.0)
    assert axes.get_xlabel() == "entropy"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "ID, n = 150",
        "OOD, n = 50",
    ]


@pytest.mark.parametrize("kind", [metrics.Accuracy, metrics.SmoothCalibrationError])
def test_metrics_without_a_curve_draw_their_value(kind, axes):
    metric = kind()
    metric.update(*draw())
    metric.plot(ax=axes)
    shown = axes.lines[0].get_ydata()
    assert float(np.ravel(shown)[0]) == pytest.approx(metric.compute().item())


def test_values_of_batches_are_drawn_as_torchmetrics_does(axes):
    metric = metrics.ExpectedCalibrationError()
    logits, targets = draw()
    values = [metric(logits[:, i : i + 100], targets[i : i + 100]) for i in (0, 100, 200)]
    metric.plot(values, ax=axes)
    shown = np.concatenate([np.ravel(each.get_ydata()) for each in axes.lines])
    np.testing.assert_allclose(shown[:3], [value.item() for value in values], atol=1e-6)


def test_classwise_errors_have_no_single_diagram(axes):
    metric = metrics.ClasswiseCalibrationError(4)
    metric.update(*draw())
    metric.plot(ax=axes)
    assert not axes.containers


def test_rejection_curve_reads_risk_and_coverage_the_other_way(axes):
    logits, targets = draw()
    probs = logits.double().softmax(-1).mean(0)
    confidence, correct = probs.amax(-1), probs.argmax(-1) == targets
    counts = metrics.rank(confidence).cumulate(~correct)
    metrics.plot_rejection(axes, counts)
    for rejected, accuracy in line(axes)[::37]:
        kept = confidence.sort(descending=True, stable=True).indices[: round(300 * (1 - rejected))]
        assert accuracy == pytest.approx(correct[kept].double().mean().item(), abs=1e-12)
    overall = correct.double().mean().item()
    rejected, accuracy = line(axes, 1)[::-1].T
    errors = 1 - overall
    np.testing.assert_allclose(accuracy, np.minimum(1, overall / (1 - rejected)), atol=1e-12)
    assert (accuracy[rejected >= errors + 1e-9] == 1).all()  # the oracle rejects every error first
    assert axes.lines[2].get_ydata()[0] == pytest.approx(overall, abs=1e-12)
