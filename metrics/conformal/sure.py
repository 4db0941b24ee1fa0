"""Nonconformity where networks are so sure that scores round to 0 or 1."""

import math

import torch
from torch import Tensor

from ..core.mixture import first_largest, log_doubt

_NANO = 2.0**30  # parts of a nat
_ROUNDED = 1e-8
"""What is left of 1 above which the rounding of a score does not matter."""


def log_odds(probs: Tensor, log_probs: Tensor) -> Tensor:
    """Return ``log(1 - p_c) - log p_c`` of each class, equal for equal p and never rounded to 0."""
    logs = log_probs.double()
    least = math.sqrt(torch.finfo(probs.dtype).eps)
    place = first_largest(logs)[1][:, None]
    doubt = (-probs.clamp(max=1.0 - least)).log1p()
    doubt = doubt.scatter(1, place, log_doubt(logs)[:, None])
    odds = doubt - torch.where(probs < least, logs, probs.log())
    return (odds * _NANO).round() / _NANO  # equal p tie, wherever they stand


def log_rest(ordered: Tensor, u: Tensor) -> Tensor:
    """Return ``log(1 - s)``, s the score of aps, where that loses digits, and 0 elsewhere.

    ``1 - s = (1 - u) p_(r) + p_(r+1) + p_(r+2) + ...`` of each rank r, from log-probabilities in
    descending order: classes whose scores are 1 to all digits have an order, the higher the more
    plausible.
    """
    tails = ordered.flip(1).logcumsumexp(1).flip(1)
    after = torch.cat([tails[:, 1:], tails.new_full((len(tails), 1), -torch.inf)], dim=1)
    rest = torch.logaddexp(after, ordered + (-u[:, None]).log1p())
    return rest.masked_fill(rest > math.log(_ROUNDED), 0.0)
