"""Figures of single metrics, each drawn on the ``Axes`` that it is given.

``Metric.plot()`` calls these. Figures that compare methods are in ``deepens.experiments``.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .ranking import CumulativeCounts
from .reliability_bands import ReliabilityBands
from .shapes import Flags, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:  # loaded by whoever plots
    Axes = Any

Array = NDArray[np.float64]
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#707070"


def plot_reliability(axes: Axes, bands: ReliabilityBands) -> None:
    """Draw accuracy against confidence in bins, with intervals, above the share of samples."""
    used = bands.counts > 0
    share = bands.counts.double() / bands.counts.sum()
    middles = (torch.arange(len(share)).double() + 0.5) / len(share)
    bar: Any = {
        "width": 0.9 / len(share),
        "color": _GREY,
        "alpha": 0.3,
        "label": "share of samples",
    }
    axes.bar(_array(middles), _array(share), **bar)
    accuracy = bands.accuracy[used]
    bars = torch.stack([accuracy - bands.low[used], bands.high[used] - accuracy]).clamp(min=0)
    axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls="--", label="calibrated")
    points = _array(bands.confidence[used]), _array(accuracy), _array(bars)
    label = f"accuracy, n = {int(bands.counts.sum()):,}"
    axes.errorbar(*points, color=_BLUE, marker="o", markersize=4, capsize=2, lw=1.2, label=label)
    axes.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left", frameon=False, fontsize="small")


def plot_risk_coverage(axes: Axes, counts: CumulativeCounts) -> None:
    """Draw the error rate among the accepted against coverage, beside that of an oracle.

    The oracle ranks every error last: ``max(0, k - N + n) / k`` with n errors.
    """
    coverage, risk, kept, best = _with_oracle(counts)
    _draw(axes, coverage, risk, f"by confidence, n = {int(counts.total[-1]):,}")
    axes.plot(kept, best, color=_GREY, lw=1, ls="--", label="oracle")
    axes.set(xlabel="Coverage", ylabel="Error rate among the accepted", xlim=(0, 1.01))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", frameon=False, fontsize="small")


def plot_rejection(axes: Axes, counts: CumulativeCounts) -> None:
    """Draw the accuracy on what is kept against the share that is rejected, least certain first.

    The risk-coverage curve read the other way, beside an oracle that rejects every error first and
    a rejection at random, which changes nothing.
    """
    coverage, risk, kept, best = _with_oracle(counts)
    _draw(axes, 1 - coverage, 1 - risk, f"by confidence, n = {int(counts.total[-1]):,}")
    axes.plot(1 - kept, 1 - best, color=_GREY, lw=1, ls="--", label="oracle")
    axes.axhline(1 - risk[-1], color=_GREY, lw=1, ls=":", label="at random")
    axes.set(xlabel="Share rejected", ylabel="Accuracy on what is kept", xlim=(0, 1.01))
    axes.legend(loc="lower right", frameon=False, fontsize="small")


def plot_roc(axes: Axes, counts: CumulativeCounts) -> None:
    """Draw the ROC curve of OOD detection, OOD being the positive class."""
    found, wrong = counts.flagged, counts.unflagged
    false, true = (np.append(0.0, _array(each / each[-1])) for each in (wrong, found))
    _draw(axes, false, true, f"{int(wrong[-1]):,} ID and {int(found[-1]):,} OOD")
    axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls="--", label="chance")
    axes.set(xlabel="False positives (ID)", ylabel="True positives (OOD)")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.legend(loc="lower right", frameon=False, fontsize="small")


def plot_scores(
    axes: Axes, scores: Scores, is_ood: Flags, *, label: str = "Score (higher is more uncertain)"
) -> None:
    """Draw histograms of a score on ID and on OOD samples, over the same bins, as shares."""
    edges = np.histogram_bin_edges(scores.double().cpu().numpy(), bins=40)
    for flag, colour, name in ((False, _BLUE, "ID"), (True, _ORANGE, "OOD")):
        chosen = scores[is_ood == flag].double().cpu().numpy()
        weights = np.full(len(chosen), 1 / max(len(chosen), 1))
        look: Any = {"color": colour, "alpha": 0.5, "label": f"{name}, n = {len(chosen):,}"}
        axes.hist(chosen, bins=list(edges), weights=weights, **look)
    axes.set(xlabel=label, ylabel="Share of samples")
    axes.legend(frameon=False, fontsize="small")


def _draw(axes: Axes, x: Array, y: Array, label: str) -> None:
    axes.plot(x, y, color=_BLUE, lw=1.5, label=label)


def _with_oracle(counts: CumulativeCounts) -> list[Array]:
    """Return coverage and risk of a ranking, and of one with every error last."""
    number, errors = counts.total[-1], counts.flagged[-1]
    kept = torch.linspace(0, 1, 201, dtype=torch.float64)[1:].to(number.device) * number
    best = (kept - number + errors).clamp(min=0) / kept
    points = counts.total / number, counts.flagged / counts.total, kept / number, best
    return [_array(each) for each in points]


def _array(values: Tensor) -> Array:
    return values.cpu().numpy()
