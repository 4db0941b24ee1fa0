"""Tests of differences between two models on the same samples: DeLong, McNemar, Holm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from jaxtyping import Float64
from torch import Tensor

from ..core.mixture import validate_flags, validate_share, validate_values
from ..core.ranking import rank
from ..core.shapes import Flags, Scores

_PARTS = 100


@dataclass(frozen=True)
class DeLong:
    """A comparison of two AUROCs on the same samples.

    Attributes:
        difference: First AUROC minus second, with its standard error and the ends of its interval.
        p_value: Two-sided; 1 where the difference is exactly 0, and 0 where it is not but has no
            spread.
    """

    first: float
    second: float
    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float


def delong_test(
    first: Scores, second: Scores, is_positive: Flags, *, level: float = 0.95
) -> DeLong:
    """Compare two scores' AUROCs on the same samples, of which some are positive, by DeLong's test.

    With ``V_i`` the share of negatives that positive i scores above (ties half) and ``W_j`` the
    share of positives that negative j scores below, each for both scores, the covariance of the two
    AUROCs is ``cov(V) / P + cov(W) / N`` (ddof 1); their difference is taken as normal. By
    mid-ranks, in O(n log n). Scores are higher for positive samples, e.g. OOD or rightly classified
    ones.

    Raises:
        ValueError: If an input is empty, not finite or of another length, there are fewer than 2
            positive or 2 negative samples, or ``level`` leaves ``(0, 1)``.

    Example:
        >>> import torch
        >>> from deepens.metrics import delong_test
        >>> is_positive = torch.tensor([False, False, False, True, True, True])
        >>> good = torch.tensor([0.1, 0.2, 0.6, 0.5, 0.8, 0.9])
        >>> poor = torch.tensor([0.3, 0.7, 0.4, 0.2, 0.9, 0.5])
        >>> found = delong_test(good, poor, is_positive)
        >>> round(found.first, 4), round(found.second, 4), round(found.p_value, 4)
        (0.8889, 0.5556, 0.2207)

    Reference: DeLong et al. (1988), Biometrics 44; Sun & Xu (2014), IEEE SPL 21
    """
    validate_share(level, "level", "(0, 1)")
    number = first.shape[0]
    validate_values(second, name="second", num_samples=number)
    validate_flags(is_positive, name="is_positive", num_samples=number)
    positives = int(is_positive.sum())
    if positives < 2 or number - positives < 2:
        raise ValueError(
            f"is_positive must hold >= 2 positive and >= 2 negative samples, got {positives} and "
            f"{number - positives}"
        )
    placed = [_placements(score, is_positive) for score in (first, second)]
    above = torch.stack([v for v, _ in placed])
    below = torch.stack([w for _, w in placed])
    areas = above.mean(-1)
    covariance = torch.cov(above) / positives + torch.cov(below) / (number - positives)
    spread = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    error = math.sqrt(max(spread.item(), 0.0))
    difference = (areas[0] - areas[1]).item()
    reach = -float(scipy.special.ndtri((1 - level) / 2)) * error
    if error > 0:
        p_value = 2 * float(scipy.special.ndtr(-abs(difference) / error))
    else:
        p_value = float(difference == 0)
    (one, other), ends = areas.tolist(), (difference - reach, difference + reach)
    return DeLong(one, other, difference, error, *ends, p_value)


def mcnemar_test(first: Flags, second: Flags, *, mid_p: bool = False) -> float:
    """Compare two models' accuracies on the same samples by McNemar's exact test.

    Of the ``b + c`` samples that one of the two alone gets right, b are the first's. Where neither
    is better, b is binomial with probability 1/2; the two-sided p-value is
    ``min(1, 2 P(B <= min(b, c)))``, 1 where the models are right on the same samples. ``mid_p``
    counts the observed split by half: less conservative, and no longer exact. Flags that are empty
    or of another length are a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics import mcnemar_test
        >>> first = torch.tensor([True] * 9 + [False])
        >>> second = torch.tensor([True] * 3 + [False] * 6 + [True])
        >>> mcnemar_test(first, second)
        0.125

    Reference: McNemar (1947), Psychometrika 12; Fagerland et al. (2013), BMC MRM 13 (mid-p)
    """
    validate_flags(first, name="first")
    validate_flags(second, name="second", num_samples=first.shape[0])
    ahead, behind = int((first & ~second).sum()), int((second & ~first).sum())
    discordant, fewer = ahead + behind, min(ahead, behind)
    if discordant == 0:
        return 1.0
    value = 2 * float(scipy.stats.binom.cdf(fewer, discordant, 0.5))
    if mid_p:
        value -= float(scipy.stats.binom.pmf(fewer, discordant, 0.5))
    return min(value, 1.0)


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for there being several, by Holm's step-down procedure.

    Of m values ``p_(1) <= p_(2) <= ...`` the k-th becomes
    ``max_{j <= k} min(1, (m - j + 1) p_(j))``. Rejecting all that are at most alpha then errs
    anywhere with probability at most alpha, however they depend on each other. NaN, of a test that
    could not be made, counts for nothing and stays NaN; other values outside ``[0, 1]`` are a
    ``ValueError``.

    Example:
        >>> from deepens.metrics import holm_adjusted
        >>> holm_adjusted([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Reference: Holm (1979), Scandinavian Journal of Statistics 6
    """
    for value in p_values:
        if not (math.isnan(value) or 0 <= value <= 1):
            raise ValueError(f"p_values must lie in [0, 1], got {value}")
    made = [index for index, value in enumerate(p_values) if not math.isnan(value)]
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for step, index in enumerate(sorted(made, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(made) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def least_detectable(
    error: float, freedom: float = math.inf, *, level: float = 0.05, power: float = 0.8
) -> float:
    """Return the least difference that a two-sided test finds with some probability, its power.

    Use it beside a difference that is not shown: what is smaller may be there all the same. For an
    estimate with standard error e and Student's ν degrees of freedom it is d in

    ``power = P(Z + S' d / e > S t_{1 - level / 2})``,

    Z being standard normal and S² and S'² being chi squared over ν, all independent: S is the
    scatter of the error in the test, S' that of e itself about the true one. For many degrees of
    freedom ``d = e (z_{1 - level / 2} + z_power)``.

    Args:
        error: Standard error of the estimate; 0 detects anything.
        freedom: Its degrees of freedom, such as Welch's.
        level: What the p-value has to reach. Under Holm's method, with k of m hypotheses rejected,
            ``0.05 / (m - k)``.
        power: Probability of finding the difference.

    Raises:
        ValueError: If ``level`` or ``power`` leave ``(0, 1)``, or ``freedom`` is not > 0.

    Example:
        >>> from deepens.metrics import least_detectable
        >>> [round(least_detectable(0.01, freedom), 4) for freedom in (float("inf"), 10, 4)]
        [0.028, 0.0339, 0.0468]
        >>> round(least_detectable(0.01, 10, level=0.05 / 20), 4)
        0.0557

    Reference: Cohen (1988), Statistical Power Analysis for the Behavioral Sciences
    """
    validate_share(level, "level", "(0, 1)")
    validate_share(power, "power", "(0, 1)")
    if freedom <= 0:
        raise ValueError(f"freedom must be > 0, got {freedom}")
    if not error > 0:
        return error
    critical = -float(scipy.special.stdtrit(freedom, level / 2))
    if math.isinf(freedom):
        return error * (critical - float(scipy.special.ndtri(1 - power)))
    # S by the middles of equally probable parts: in the test, and in what is known of the error.
    shares = (np.arange(_PARTS) + 0.5) / _PARTS
    ratios = np.sqrt(2 / freedom * scipy.special.gammaincinv(freedom / 2, shares))

    def excess(differences: float) -> float:
        scores = differences * ratios[:, None] - critical * ratios
        return float(scipy.special.ndtr(scores).mean()) - power

    highest = (critical * ratios[-1] + 40) / ratios[0]
    return error * float(scipy.optimize.brentq(excess, 0.0, highest))


def _placements(
    score: Tensor, is_positive: Tensor
) -> tuple[Float64[Tensor, "positives"], Float64[Tensor, "negatives"]]:
    """Return each positive's share of negatives below, and each negative's of positives above."""
    ranking = rank(score)
    counts = ranking.cumulate(is_positive)
    sizes = counts.block_total.long()
    positives, negatives = counts.flagged[-1], counts.unflagged[-1]
    negatives_below = negatives - counts.unflagged + counts.block_unflagged / 2
    positives_above = counts.flagged - counts.block_flagged / 2
    below, above = torch.empty_like(ranking.order.double().expand(2, -1))
    below[ranking.order] = (negatives_below / negatives).repeat_interleave(sizes)
    above[ranking.order] = (positives_above / positives).repeat_interleave(sizes)
    return below[is_positive], above[~is_positive]
