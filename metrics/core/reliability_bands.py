"""How sure is a bin's accuracy? Confidence bands of a reliability diagram."""

from dataclasses import dataclass

import scipy
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from .binning import DEFAULT_BINS, BinSums, bin_sums
from .mixture import validate_share
from .shapes import Flags, Scores


@dataclass(frozen=True)
class ReliabilityBands:
    """A reliability diagram with an interval, from low to high, of the accuracy of each bin.

    Where a bin is empty, its mean confidence and accuracy are NaN, and the interval is ``[0, 1]``.
    """

    counts: Int64[Tensor, "*rows bins"]
    confidence: Float64[Tensor, "*rows bins"]
    accuracy: Float64[Tensor, "*rows bins"]
    low: Float64[Tensor, "*rows bins"]
    high: Float64[Tensor, "*rows bins"]


def reliability_bands(
    confidence: Scores, correct: Flags, *, bins: int = DEFAULT_BINS, level: float = 0.95
) -> ReliabilityBands:
    """Return count, mean confidence and accuracy of each bin, with an interval of the accuracy.

    The intervals are Wilson's (`wilson_interval`), each for its own bin, of samples taken to be
    independent: of 15 bins of calibrated data about one in two diagrams has a bin whose 95 %
    interval leaves the diagonal. An empty bin has no accuracy (NaN), and its interval is
    ``[0, 1]``. A ``level`` outside ``(0, 1)`` is a ``ValueError``; other arguments and errors as
    `expected_calibration_error`.

    Example:
        >>> import torch
        >>> from deepens.metrics.core.reliability_bands import reliability_bands
        >>> correct = torch.arange(10) < 8
        >>> bands = reliability_bands(torch.full((10,), 0.75), correct, bins=2)
        >>> bands.counts.tolist(), bands.accuracy.tolist()
        ([0, 10], [nan, 0.8])
        >>> [round(end[1].item(), 3) for end in (bands.low, bands.high)]
        [0.49, 0.943]

    Reference: Bröcker & Smith (2007), Weather and Forecasting 22; Wilson (1927), JASA 22
    """
    return bands_of_sums(bin_sums(confidence, correct, bins=bins), level=level)


def bands_of_sums(sums: BinSums, *, level: float = 0.95) -> ReliabilityBands:
    """Return the bands of the sums over the samples of each bin, as `reliability_bands`."""
    share = sums.correct.double() / sums.counts  # of an empty bin: 0 / 0, which is NaN
    low, high = wilson_interval(share.nan_to_num(0.0), sums.counts.double(), level=level)
    mean = sums.confidence / sums.counts
    return ReliabilityBands(sums.counts, mean, share, low, high)


def wilson_interval(
    share: Float64[Tensor, "*shape"], counts: Float64[Tensor, "*shape"], *, level: float = 0.95
) -> tuple[Float64[Tensor, "*shape"], Float64[Tensor, "*shape"]]:
    """Return the ends of Wilson's interval of the probability behind a share of successes.

    ``(n p + z² / 2 ± z sqrt(n p (1 - p) + z² / 4)) / (n + z²)``, p being the ``share`` in ``[0,
    1]``, n the number of trials, which need not be whole, and z the normal quantile of
    ``(1 + level) / 2``. It stays inside ``[0, 1]`` and has a width also at a share of 0 or 1; with
    no trial nothing is known, and it is ``[0, 1]``. A level outside ``(0, 1)``, a share outside
    ``[0, 1]`` or a count below 0 is a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics.core.reliability_bands import wilson_interval
        >>> low, high = wilson_interval(torch.ones(1).double(), torch.full((1,), 4.0).double())
        >>> round(low.item(), 3), high.item()
        (0.51, 1.0)

    Reference: Wilson (1927), JASA 22; Brown, Cai & DasGupta (2001), Statistical Science 16
    """
    validate_share(level, "level", "(0, 1)")
    outside = ~((share >= 0) & (share <= 1))
    if outside.any():
        raise ValueError(f"share must lie in [0, 1], got {share[outside][0].item()}")
    if not (counts >= 0).all():
        raise ValueError(f"counts must be >= 0, got {counts[~(counts >= 0)][0].item()}")
    z = float(scipy.special.ndtri((1 + level) / 2))
    centre = counts * share + z**2 / 2
    half = z * (counts * share * (1 - share) + z**2 / 4).sqrt()
    total = counts + z**2
    low, high = ((centre - half) / total).clamp(min=0.0), ((centre + half) / total).clamp(max=1.0)
    # Rounding must not shut out the share itself, where it is an end of the interval.
    held = counts > 0
    low = torch.where(held, torch.minimum(low, share), low)
    return low, torch.where(held, torch.maximum(high, share), high)
