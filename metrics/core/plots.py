"""Figures of single metrics, each drawn on the ``Axes`` that it is given.

``Metric.plot()`` calls these. Figures that compare methods are in ``deepens.experiments``.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from .ranking import CumulativeCounts
from .reliability_bands import ReliabilityBands
from .shapes import Flags, Scores

if TYPE_CHECKING:
    import matplotlib.axes

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#707070"


def plot_reliability(axes: "matplotlib.axes.Axes", bands: ReliabilityBands) -> None:
    """Draw accuracy against confidence in bins, with intervals, above the share of samples."""
    used = bands.counts > 0
    share = bands.counts.double() / bands.counts.sum()
    middles = (torch.arange(len(share)).double() + 0.5) / len(share)
    axes.bar(
        middles.cpu().numpy(),
        share.cpu().numpy(),
        width=0.9 / len(share),
        color=_GREY,
        alpha=0.3,
        label="share of samples",
    )
    accuracy = bands.accuracy[used]
    bars = torch.stack([accuracy - bands.low[used], bands.high[used] - accuracy]).clamp(min=0)
    axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls="--", label="calibrated")
    axes.errorbar(
        bands.confidence[used].cpu().numpy(),
        accuracy.cpu().numpy(),
        bars.cpu().numpy(),
        color=_BLUE,
        marker="o",
        markersize=4,
        capsize=2,
        lw=1.2,
        label=f"accuracy, n = {int(bands.counts.sum()):,}",
    )
    axes.set(xlabel="Confidence", ylabel="Accuracy", xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left", frameon=False, fontsize="small")


def plot_risk_coverage(axes: "matplotlib.axes.Axes", counts: CumulativeCounts) -> None:
    """Draw the error rate among the accepted against coverage, beside that of an oracle.

    The oracle ranks every error last: ``max(0, k - N + n) / k`` with n errors.
    """
    number, errors = counts.total[-1], counts.flagged[-1]
    coverage = counts.total / number
    oracle = torch.linspace(0, 1, 201, dtype=torch.float64)[1:].to(number.device) * number
    best = (oracle - number + errors).clamp(min=0) / oracle
    axes.plot(
        coverage.cpu().numpy(),
        (counts.flagged / counts.total).cpu().numpy(),
        color=_BLUE,
        lw=1.5,
        label=f"by confidence, n = {int(number):,}",
    )
    axes.plot(
        (oracle / number).cpu().numpy(),
        best.cpu().numpy(),
        color=_GREY,
        lw=1,
        ls="--",
        label="oracle",
    )
    axes.set(xlabel="Coverage", ylabel="Error rate among the accepted", xlim=(0, 1.01))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", frameon=False, fontsize="small")


def plot_rejection(axes: "matplotlib.axes.Axes", counts: CumulativeCounts) -> None:
    """Draw the accuracy on what is kept against the share that is rejected, least certain first.

    The risk-coverage curve read the other way, beside an oracle that rejects every error first and
    a rejection at random, which changes nothing.
    """
    number, errors = counts.total[-1], counts.flagged[-1]
    kept = torch.linspace(0, 1, 201, dtype=torch.float64)[1:].to(number.device) * number
    best = 1 - (kept - number + errors).clamp(min=0) / kept
    axes.plot(
        (1 - counts.total / number).cpu().numpy(),
        (1 - counts.flagged / counts.total).cpu().numpy(),
        color=_BLUE,
        lw=1.5,
        label=f"by confidence, n = {int(number):,}",
    )
    rejected = (1 - kept / number).cpu().numpy()
    axes.plot(rejected, best.cpu().numpy(), color=_GREY, lw=1, ls="--", label="oracle")
    axes.axhline(1 - (errors / number).item(), color=_GREY, lw=1, ls=":", label="at random")
    axes.set(xlabel="Share rejected", ylabel="Accuracy on what is kept", xlim=(0, 1.01))
    axes.legend(loc="lower right", frameon=False, fontsize="small")


def plot_roc(axes: "matplotlib.axes.Axes", counts: CumulativeCounts) -> None:
    """Draw the ROC curve of OOD detection, OOD being the positive class."""
    found, wrong = counts.flagged, counts.unflagged
    known = f"{int(wrong[-1]):,} ID and {int(found[-1]):,} OOD"
    axes.plot(
        np.append(0.0, (wrong / wrong[-1]).cpu().numpy()),
        np.append(0.0, (found / found[-1]).cpu().numpy()),
        color=_BLUE,
        lw=1.5,
        label=known,
    )
    axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls="--", label="chance")
    axes.set(xlabel="False positives (ID)", ylabel="True positives (OOD)")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.legend(loc="lower right", frameon=False, fontsize="small")


def plot_scores(
    axes: "matplotlib.axes.Axes",
    scores: Scores,
    is_ood: Flags,
    *,
    label: str = "Score (higher is more uncertain)",
) -> None:
    """Draw histograms of a score on ID and on OOD samples, over the same bins, as shares.

    Args:
        axes: Where to draw.
        scores: Uncertainties.
        is_ood: Which samples are OOD.
        label: Name of the score.
    """
    edges = np.histogram_bin_edges(scores.double().cpu().numpy(), bins=40)
    for flag, colour, name in ((False, _BLUE, "ID"), (True, _ORANGE, "OOD")):
        chosen = scores[is_ood == flag].double().cpu().numpy()
        weights = np.full(len(chosen), 1 / max(len(chosen), 1))
        axes.hist(
            chosen,
            bins=list(edges),
            weights=weights,
            color=colour,
            alpha=0.5,
            label=f"{name}, n = {len(chosen):,}",
        )
    axes.set(xlabel=label, ylabel="Share of samples")
    axes.legend(frameon=False, fontsize="small")
