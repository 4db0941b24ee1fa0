"""Temperature scaling of an ensemble, in the three places where a temperature can stand.

- ``pooled``, pool then calibrate: ``softmax(log p̄ / T)``. It keeps the ensemble's predictions.
- ``joint``, one temperature for all members before pooling: ``(1/M) sum_m softmax(z_m / T)``.
- ``member``, calibrate then pool: ``(1/M) sum_m softmax(z_m / T_m)``, each T_m fitted to its member
  alone. The pool of calibrated members is usually under-confident, since ``max p̄`` is at most the
  mean of the members' ``max p_m``.

Under ``joint`` and ``member`` the most probable class of the mixture, and so the accuracy, may
change. With one member the three are one. A temperature is fitted on validation data that nothing
else was chosen on, and stays as it is under shift.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.mixture import (
    first_largest,
    mixture_log_probs,
    validate_batch,
    validate_choice,
    validate_logits,
)
from ..io.arrays import read_logits, read_targets
from ..io.logit_source import Kind, Layout

Way = Literal["pooled", "joint", "member"]
WAYS: tuple[Way, ...] = get_args(Way)

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the search; a temperature at one of them is cut off, not a minimum."""

_GRID = 25  # coarse points at which the joint likelihood, which need not be convex, is looked at
_CHUNK = 2**18  # logits worked on at a time
_SURE = -20.0  # log(1 - p) below which the NLL is 1 - p, to nine digits
_UNDERFLOW = 600.0  # nats: what is smaller than exp of less them is shifted before it is added up


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature, one value or one per member; others are a ``ValueError``.

    ``unidentified`` says why the data do not determine it, such as that all predictions are right,
    where any smaller temperature is better: it should then not be used. Empty if they do.
    """

    way: Way
    values: tuple[float, ...]
    unidentified: str = ""

    def __post_init__(self) -> None:
        validate_choice(self.way, "way", WAYS)
        if not self.values or (self.way != "member" and len(self.values) != 1):
            raise ValueError(
                f"values must hold one temperature for {self.way!r}, got {len(self.values)}"
            )
        for value in self.values:
            if not 0 < value < math.inf:
                raise ValueError(f"values must be > 0 and finite, got {value}")

    def scale(
        self, logits: Any, *, layout: Layout = "MNC", kind: Kind = "logits"
    ) -> Float[Tensor, "scaled_members samples classes"]:
        """Return logits whose mixture is the scaled ensemble's, for every metric of the suite.

        ``z_m / T`` in float64; for ``pooled``, ``log p̄ / T`` as the logits of one member. Logits
        that are not finite or empty, or of another number of members than there are temperatures,
        are a ``ValueError``.

        Example:
            >>> import torch
            >>> from deepens.metrics import Temperature
            >>> Temperature("joint", (2.0,)).scale(torch.tensor([[[4.0, 0.0]]]))
            tensor([[[2., 0.]]], dtype=torch.float64)
        """
        logits = read_logits(logits, layout=layout, kind=kind)
        validate_logits(logits)
        if self.way == "pooled":
            return mixture_log_probs(logits.double())[None] / self.values[0]
        if self.way == "member" and len(self.values) != len(logits):
            raise ValueError(
                f"logits must have {len(self.values)} members, one for each temperature, "
                f"got {len(logits)}"
            )
        values = torch.tensor(self.values, dtype=torch.float64, device=logits.device)
        return logits.double() / values.reshape(-1, 1, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it."""
        held = {"way": self.way, "values": list(self.values)}
        return held | ({"unidentified": self.unidentified} if self.unidentified else {})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Temperature":
        """The inverse of ``to_dict``; something else is a ``ValueError``.

        Of what was written without a reason, a temperature at a bound of the search gets one.
        """
        try:
            values = tuple(float(value) for value in content["values"])
            why = content.get("unidentified") or next(filter(None, map(_at_bound, values)), "")
            return cls(content["way"], values, str(why))
        except (KeyError, TypeError):
            raise ValueError(
                f"a temperature must hold way and values, got {dict(content)}"
            ) from None


def fit_temperature(
    logits: Any,
    targets: Any,
    way: Way = "pooled",
    *,
    layout: Layout = "MNC",
    kind: Kind = "logits",
) -> Temperature:
    """Return the temperature of the least negative log-likelihood, of ``way`` in `WAYS`.

    ``T* = argmin_T -(1/N) sum_n log p_T(y_n | x_n)`` for T in ``[0.05, 20]``, where the slope by
    ``b = 1 / T`` is zero:

    ``(1/N) sum_n sum_m w_nm (E_{c ~ softmax(b z_nm)}[z_nmc] - z_nm,y)`` with ``w_nm = p_nm,y /
    sum_m p_nm,y``.

    With one member the likelihood is convex in b. The joint one need not be: it is looked at on a
    grid first, and the slope's zero is found beside the best point. In float64, to 1e-9 in log T;
    at a bound of the search, with a warning. There, and where all predictions are right or all
    logits of a sample are equal, the data do not determine it, and its ``unidentified`` says so.
    Logits and labels are whatever `evaluate` takes, with ``layout`` and ``kind`` as there. Logits,
    raw outputs on validation data, that are not finite or empty, or targets that do not fit them,
    are a ``ValueError``.

    Example:
        >>> import torch
        >>> from deepens.metrics import fit_temperature
        >>> logits = torch.tensor([[[3.0, 0.0]]]).expand(1, 4, 2)
        >>> found = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
        >>> round(found.values[0], 4)  # 3 / log 3
        2.7307

    Reference: Guo et al. (2017), arXiv:1706.04599; Rahaman & Thiery (2021), arXiv:2007.08792; Wu &
    Gales (2021), arXiv:2101.05397
    """
    given, logits = logits, read_logits(logits, layout=layout, kind=kind)
    targets = read_targets(targets, logits, like=given)
    validate_batch(logits, targets)
    validate_choice(way, "way", WAYS)
    if way == "pooled" and len(logits) > 1:
        logits = mixture_log_probs(logits.double())[None]
    parts = logits.split(1) if way == "member" else [logits]
    values = tuple(_fit(part, targets) for part in parts)
    return Temperature(way, values, _unidentified(parts, targets, values))


def _unidentified(parts: Sequence[Tensor], targets: Tensor, values: Sequence[float]) -> str:
    """Why a temperature is not determined, with a warning where it is at a bound; or nothing."""
    reasons = []
    for number, (part, value) in enumerate(zip(parts, values, strict=True)):
        whose = f", of member {number}" if len(parts) > 1 else ""
        at_bound = _at_bound(value)
        if bool((part.double() == part[..., :1].double()).all()):
            reasons.append(f"the same logit for every class{whose}")
            continue
        predicted = first_largest(mixture_log_probs(part.double()))[1]
        if bool((predicted == targets).all()):
            reasons.append(f"all {len(targets)} calibration images right{whose}")
        elif at_bound:
            reasons.append(at_bound + whose)
        if at_bound:
            message = (
                f"temperature{whose.lstrip(',')} is at the bound of its search, {value:.3g}: the "
                f"likelihood of "
                f"these {len(targets)} samples would go on improving beyond it"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)
    return reasons[0] if reasons else ""


def _at_bound(value: float) -> str:
    inside = LOWEST * 1.001 < value < HIGHEST / 1.001
    return "" if inside else f"at {value:.3g}, the bound of its search"


def _fit(logits: Tensor, targets: Tensor) -> float:
    """Return the best temperature that all the members share."""

    def log_likelihood(log_inverse: float) -> float:
        return _log_nll_and_slope(logits, targets, math.exp(log_inverse))[0]

    def slope(log_inverse: float) -> float:
        return _log_nll_and_slope(logits, targets, math.exp(log_inverse))[1]

    if bool((logits == logits[..., :1]).all()):
        return 1.0  # every temperature is as good
    low, high = -math.log(HIGHEST), -math.log(LOWEST)
    if len(logits) > 1:
        grid = torch.linspace(low, high, _GRID, dtype=torch.float64).tolist()
        values = [log_likelihood(point) for point in grid]
        best = values.index(min(values))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    if slope(low) >= 0:
        found = low
    elif slope(high) <= 0:
        found = high
    else:
        found = float(scipy.optimize.brentq(slope, low, high, xtol=1e-9))
    return math.exp(-found)


def _log_nll_and_slope(logits: Tensor, targets: Tensor, inverse: float) -> tuple[float, float]:
    """Return the logarithm of the mean NLL at ``b = 1 / T``, and its derivative's sign and size.

    Where all samples are right, the NLL itself underflows. The slope, where it would, is that of
    the NLL times a positive number.
    """
    members, samples, classes = logits.shape
    size = max(1, _CHUNK // (members * classes))
    logs: list[Tensor] = []
    slopes: list[tuple[float, float]] = []  # each times exp of the second
    for start in range(0, samples, size):
        chunk = logits[:, start : start + size].double()
        labels = targets[start : start + size].long().expand(members, -1).unsqueeze(-1)
        log_probs = (inverse * chunk).log_softmax(-1)
        of_label = log_probs.gather(-1, labels).squeeze(-1)
        nll = math.log(members) - of_label.logsumexp(0)
        # of others: log(1 - p), of which more is left than of 1 - p
        others = log_probs.scatter(-1, labels, -torch.inf).logsumexp(-1)
        doubt = others.logsumexp(0) - math.log(members)
        logs.append(torch.where(doubt < _SURE, doubt, nll.log()))
        gaps = chunk - chunk.gather(-1, labels)  # that of the label is 0
        weights = log_probs + of_label.log_softmax(0).unsqueeze(-1)
        weights = weights.masked_fill(gaps == 0, -torch.inf)
        shift = weights.amax().item()
        shift = shift if math.isfinite(shift) and shift < -_UNDERFLOW else 0.0
        slopes.append((((weights - shift).exp() * gaps).sum().item(), shift))
    total = torch.cat(logs).logsumexp(0).item() - math.log(samples)
    largest = max((shift for part, shift in slopes if part), default=0.0)
    return total, sum(part * math.exp(shift - largest) for part, shift in slopes) / samples
