"""Charts of curves, one line per method: ROC, risk-coverage, severity of a shift, training."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...datasets import SplitName
from ...metrics.core.ranking import rank
from ...metrics.selective.risk_coverage import risk_coverage_curve
from ..comparison.formatting import number
from ..comparison.verdicts import Comparison
from .chart_specs import GREY, SHOWN, axis, diagonal, line_chart
from .charts import Graded, graded
from .model import Chart
from .splits import split_title

_COVERAGES = np.concatenate([np.arange(1, 10) / 200, np.arange(5, 101) / 100])
# False positive rates at which ROC curves are averaged, denser where they rise.
_RATES = np.concatenate([np.arange(10) / 200, np.arange(5, 20) / 100, np.arange(10, 51) / 50])
Rows = Float[np.ndarray, "replicates points"]


def line_of(
    name: str, x: Sequence[int | float] | np.ndarray, rows: Rows, **more: Any
) -> dict[str, Any]:
    """Return a line's mean over replicates and, where there are several, their range."""
    line = {"m": name, "x": _short(x), "y": _short(rows.mean(0)), **more}
    if len(rows) > 1:
        return line | {"l": _short(rows.min(0)), "h": _short(rows.max(0))}
    return line | {"l": line["y"], "h": line["y"]}


def _short(values: Sequence[int | float] | np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in np.asarray(values, dtype=float)]


def roc_curve(
    scores_id: Float[Tensor, " id"], scores_ood: Float[Tensor, " ood"]
) -> Float[np.ndarray, "points 2"]:
    """Return the ROC curve of telling OOD images from ID ones, OOD being the positive class.

    ``(N_b / N, P_b / P)`` for every block b of equal scores, from the highest down: the ID and OOD
    images that score at least as high. Blocks are joined by straight lines, so that a tie counts
    half and the area below is the AUROC exactly.

    Returns:
        False and true positive rate, ``[points 2]``: the origin, and one point per block.

    Raises:
        ValueError: If a score is not finite, or either side is empty.

    Example:
        >>> import torch
        >>> from deepens.experiments.report.curve_charts import roc_curve
        >>> roc_curve(torch.tensor([0.1, 0.5]), torch.tensor([0.5, 0.8])).tolist()
        [[0.0, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 1.0]]
    """
    for name, scores in (("scores_id", scores_id), ("scores_ood", scores_ood)):
        if not len(scores):
            raise ValueError(f"{name} must have >= 1 score, got 0")
    is_ood = torch.cat([torch.zeros(len(scores_id)), torch.ones(len(scores_ood))]).bool()
    counts = rank(torch.cat([scores_id, scores_ood])).cumulate(is_ood)
    rates = torch.stack([counts.unflagged / len(scores_id), counts.flagged / len(scores_ood)], -1)
    return np.concatenate([np.zeros((1, 2)), rates.numpy()])


def rates_at(
    curve: Float[np.ndarray, "points 2"], rates: Float[np.ndarray, " rates"]
) -> Float[np.ndarray, " rates"]:
    """Return the true positive rate of a ROC curve at false positive rates, after any rise there.

    Example:
        >>> import numpy as np
        >>> from deepens.experiments.report.curve_charts import rates_at
        >>> curve = np.array([[0.0, 0.0], [0.0, 0.5], [0.5, 1.0], [1.0, 1.0]])
        >>> rates_at(curve, np.array([0.0, 0.25, 1.0])).tolist()
        [0.5, 0.75, 1.0]
    """
    return np.interp(rates, *curve.T)


def roc_charts(comparison: Comparison) -> Iterator[Chart]:
    """Draw, for each OOD set, the ROC curves of all methods by predictive entropy."""
    splits = {s: SplitName.parse(s) for each in comparison.replicates for s in each.values}
    ordered = sorted(splits, key=lambda split: splits[split].kind != "near_ood")
    x = axis("x", "False positive rate (test images)", scale={"domain": [0, 1]})
    y = axis("y", "True positive rate (OOD images)", scale={"domain": [0, 1]})
    for index, split in enumerate(split for split in ordered if splits[split].is_ood):
        lines, areas = [], []
        for method in comparison.methods:
            held = [r for r in method.replicates if {"test", split} <= r.values.keys()]
            if held:
                curves = [
                    roc_curve(r.values["test"].entropy, r.values[split].entropy) for r in held
                ]
                rates = np.stack([rates_at(curve, _RATES) for curve in curves])
                lines.append(line_of(method.name, _RATES, rates))
                area = statistics.fmean(r.metric(split, "auroc_entropy") for r in held)
                areas.append(f"{method.name} {number(area)}")
        yield Chart(
            f"roc-{index + 1:02d}",
            split_title(split),
            line_chart(comparison.names, lines, x=x, y=y, below=[diagonal()], size=(300, 300)),
            f"ROC curves of test images against {split_title(split)} by predictive entropy. Mean "
            f"area under the curve: {'; '.join(areas)}.",
        )


def risk_at(coverage: Float[np.ndarray, " _"], replicate: Graded) -> Float[np.ndarray, " _"]:
    """Return the selective risk at given coverages, so that replicates can be averaged.

    Coverages are shares of images accepted, in (0, 1], rising.
    """
    held = replicate.certainty
    certainty = replicate.confidence if held is None else held
    curve = risk_coverage_curve(certainty, replicate.correct)
    return np.interp(coverage, curve.coverage.numpy(), curve.risk.numpy())


def risk_coverage_chart(comparison: Comparison) -> Iterator[Chart]:
    """Draw the risk-coverage curves of all methods together, and dotted those of the oracle."""
    lines, oracles, texts = [], [], []
    for method in comparison.methods:
        replicates = graded(method)
        if not replicates:
            continue
        risks = np.stack([risk_at(_COVERAGES, each) for each in replicates])
        error = np.mean([1 - each.correct.double().mean().item() for each in replicates])
        lines.append(line_of(method.name, _COVERAGES, risks))
        oracle = np.maximum(0, 1 - (1 - error) / _COVERAGES)
        oracles.append({"m": method.name, "x": _short(_COVERAGES), "y": _short(oracle)})
        half = np.mean([risk_at(np.array([0.5, 1.0]), each) for each in replicates], axis=0)
        texts.append(f"{method.name} {number(float(half[0]))} and {number(float(half[1]))}")
    if not lines:
        return
    x = axis("x", "Coverage: share of images accepted", scale={"domain": [0, 1]})
    y = axis("y", "Risk: error rate among accepted")
    below = {
        "data": {"values": oracles},
        "transform": [SHOWN, {"flatten": ["x", "y"]}],
        "mark": {"type": "line", "strokeDash": [1, 3], "strokeWidth": 1, "color": GREY},
        "encoding": {"x": x, "y": y, "detail": {"field": "m"}},
    }
    yield Chart(
        "risk-coverage-01",
        "Risk-coverage curves, test images",
        line_chart(comparison.names, lines, x=x, y=y, below=[below], size=(460, 280)),
        "Risk-coverage curves on the test images. Error rate among the most confident half and "
        f"among all images: {'; '.join(texts)}.",
    )
