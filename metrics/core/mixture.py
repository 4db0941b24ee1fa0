"""Combining members: the one place where an ensemble's logits become one distribution.

Everything downstream (accuracy, calibration, detection scores) reads the log-probabilities made
here, so that no two numbers of a report rest on different ways of averaging.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional

from .shapes import Logits, LogProbs, MemberProbs, Scores

ROW = 512
"""Samples: a multiple of what vector instructions take at once, for any usual number of threads."""

_SMALL = 1e-290  # a mean probability below it may have lost digits of its smallest terms
_NANO = 2.0**30  # parts of a nat
_INTEGER_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def member_log_probs(logits: Logits) -> Float[Tensor, "members samples classes"]:
    """Return every member's log-probabilities, ``log softmax(z_m)``, at least in float32.

    Half precision is raised to float32 *before* the softmax (bfloat16 leaves about 300 distinct
    confidences, hence ties); float32 and float64 are kept. Logits are refused as by
    `validate_logits`.

    Example:
        >>> import torch
        >>> from deepens.metrics import member_log_probs
        >>> member_log_probs(torch.zeros(2, 3, 4)).exp().unique().item()
        0.25
    """
    validate_logits(logits)
    return normalized(logits)


def normalized(logits: Logits) -> Float[Tensor, "members samples classes"]:
    """Return `member_log_probs` of logits that are known to be sound."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if logits.device.type != "cpu":
        return logits.log_softmax(-1)
    # Samples innermost in memory: reductions over few classes are several times faster then, here
    # and in all that is computed from the result, whose axes are the same.
    return logits.mT.contiguous().log_softmax(-2).mT


def pool_log_probs(
    member_log_probs: MemberProbs,
    *,
    member_probs: Float64[Tensor, "members samples classes"] | None = None,
) -> LogProbs:
    """Return the log of the members' mean probability, in the dtype of the input.

    ``log p̄ = logsumexp_m(log p_m) - log M``. With one member it is that member, bit for bit. Of
    ``member_probs``, the members' probabilities in float64 if they are at hand already, the
    logarithm of the mean is taken, wherever none of them is too small for that.

    Example:
        >>> import torch
        >>> from deepens.metrics import pool_log_probs
        >>> members = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]).log()
        >>> [round(p, 3) for p in pool_log_probs(members).exp()[0].tolist()]
        [0.7, 0.3]
    """
    members = member_log_probs.shape[0]
    if member_probs is not None and members > 1:
        mean = mean_of_members(member_probs)
        if mean.amin() >= _SMALL:
            return mean.log_()
        # Chosen value by value: a sample's result must not depend on the samples beside it.
        return torch.where(mean < _SMALL, _pooled(member_log_probs), mean.log())
    return _pooled(member_log_probs)


def _pooled(member_log_probs: Tensor) -> Tensor:
    return member_log_probs.logsumexp(0) - math.log(len(member_log_probs))


def mean_of_members(values: Float[Tensor, "members *rest"]) -> Float[Tensor, "*rest"]:
    """Return the mean over the first axis, in the values' order of memory.

    torch's own mean is laid out anew, and all that then joins it with the members walks through
    memory in two orders at once: ten times slower.
    """
    total = values[0] + values[1] if len(values) > 1 else values[0].clone()
    for member in values[2:]:
        total += member
    return total.div_(len(values))


def first_largest(
    values: Float[Tensor, "*rest classes"],
) -> tuple[Float[Tensor, "*rest"], Int64[Tensor, "*rest"]]:
    """Return the largest value along the classes, and the first class that has it.

    torch's own ``max`` finds the place by one comparison after the other; this one compares many at
    a time.
    """
    classes = values.shape[-1]
    best = values.amax(-1)
    dtype = torch.uint8 if classes < 256 else torch.int32
    places = torch.arange(classes, 0, -1, dtype=dtype, device=values.device)
    is_best = _equal(values, best.unsqueeze(-1)).view(torch.uint8)  # the same bytes, not a copy
    first = (is_best * places).amax(-1)
    return best, classes - first.long()


def _equal(values: Tensor, others: Tensor) -> Tensor:
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values == others
    # NumPy compares by vector instructions, torch value by value: half of the time.
    found = torch.empty_like(values, dtype=torch.bool)
    np.equal(values.detach().numpy(), others.detach().numpy(), out=found.numpy())
    return found


def mixture_log_probs(logits: Logits) -> LogProbs:
    """Return the ensemble's log-probabilities: the mean of the members' softmaxes, in log space.

    ``log p̄ = logsumexp_m(log softmax(z_m)) - log M``

    The mean of probabilities is taken, never of logits. Half precision is raised to float32.

    Args:
        logits: Raw outputs ``[members, samples, classes]``; a single model is one member.

    Returns:
        Natural logarithms of the mixture's probabilities, float32 or float64.

    Raises:
        ValueError: If ``logits`` are empty, of a wrong shape or dtype, or not finite.

    Example:
        >>> import torch
        >>> from deepens.metrics import mixture_log_probs
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])
        >>> mixture_log_probs(logits).exp()
        tensor([[0.5000, 0.5000]])

    Reference: Lakshminarayanan et al. (2017), arXiv:1612.01474
    """
    validate_logits(logits)
    number = logits.shape[1]
    members = member_log_probs(pad_samples(logits))
    # Of float64 the mean's logarithm, as the suite has it: no two numbers may differ in a digit.
    probs = members.exp() if members.dtype == torch.float64 else None
    return pool_log_probs(members, member_probs=probs)[:number]


def confidence_of(log_probs: LogProbs) -> tuple[Scores, Int64[Tensor, "samples"]]:
    """Return each sample's largest probability, and the first class that has it."""
    best, predicted = first_largest(log_probs)
    return _padded(best).exp()[: len(best)].clamp(
        max=1.0
    ), predicted  # rounding may leave 1 + 1e-16


def log_doubt(
    log_probs: LogProbs, *, largest: tuple[Scores, Int64[Tensor, "samples"]] | None = None
) -> Scores:
    """Return each sample's ``log(1 - max_c p_c)``, by which samples are ranked; lower is surer.

    Of a probability next to 1 too little of ``1 - p`` is left: from gaps of about 37 nats on, all
    samples would tie. There the other classes' probabilities are added up instead, in logarithms;
    elsewhere equal confidences are equal here. It is finite, also where nothing else is possible.
    ``largest`` is what `confidence_of` gives, if it is at hand already.

    Example:
        >>> import torch
        >>> from deepens.metrics.core.mixture import log_doubt
        >>> log_doubt(torch.tensor([[0.0, -50.0], [0.0, -60.0]]))
        tensor([-50., -60.])
    """
    confidence, predicted = confidence_of(log_probs) if largest is None else largest
    numbers = torch.finfo(log_probs.dtype)
    least = math.sqrt(numbers.eps)
    doubt = _padded(-confidence.clamp(max=1.0 - least)).log1p()[: len(confidence)]
    sure = (confidence > 1.0 - least).nonzero().squeeze(-1)
    if len(sure):
        others = log_probs.mT[:, sure].scatter(0, predicted[sure][None], -torch.inf)
        rest = _padded(others).logsumexp(0)[: len(sure)]
        if rest.dtype == torch.float64:  # the order of classes must not untie equal samples
            rest = (rest * _NANO).round() / _NANO
        doubt = doubt.index_copy(0, sure, rest.clamp(min=numbers.min, max=math.log(least)))
    return doubt


def _padded(values: Tensor) -> Tensor:
    """Fill up samples, innermost, to a multiple of `ROW`, as `pad_samples` does."""
    missing = -values.shape[-1] % ROW
    return functional.pad(values, (0, missing)) if missing else values


def pad_samples(logits: Logits) -> Float[Tensor, "members padded classes"]:
    """Fill up with zeros to a multiple of `ROW` samples.

    The last samples of a row are computed by other instructions than those before them: equal
    samples would differ in the last digit by where they stand, and not tie.
    """
    missing = -logits.shape[1] % ROW
    return functional.pad(logits, (0, 0, 0, missing)) if missing else logits


def samples_innermost(logits: Logits) -> Logits:
    """Return the logits with the samples innermost in memory, as all is computed."""
    return logits.mT.contiguous().mT


def validate_logits(logits: Tensor) -> None:
    """Refuse logits that are not finite 3-D floats of >= 1 member, >= 1 sample and >= 2 classes."""
    shape = list(logits.shape)
    if logits.ndim != 3:
        raise ValueError(
            f"logits must have 3 dimensions [members, samples, classes], got shape {shape}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    if shape[0] < 1 or shape[1] < 1 or shape[2] < 2:
        hint = "; of a sigmoid's output p, give two columns, 1 - p beside p"
        raise ValueError(
            f"logits must hold >= 1 member, >= 1 sample and >= 2 classes, got shape {shape}"
            f"{hint if shape[2] == 1 else ''}"
        )
    validate_finite(logits, "logits")


def validate_log_probs(log_probs: Tensor, name: str = "log_probs") -> None:
    """Refuse what cannot be logarithms of probabilities, such as logits: NaN, or above 0.

    Logits that are all below 0 pass.
    """
    highest = log_probs.amax().item() if log_probs.numel() else 0.0
    if math.isnan(highest):
        raise ValueError(f"{name} must not be NaN, got NaN")
    if highest > 1e-5:
        taken = "member_log_probs" if name == "member_log_probs" else "mixture_log_probs"
        raise ValueError(f"{name} must be <= 0, got {highest:.4g}; of logits, take {taken} first")


def validate_targets(targets: Tensor, *, num_samples: int, num_classes: int) -> None:
    """Refuse labels that are not integers, not one per sample, or outside ``[0, num_classes)``.

    ``-100``, the ignored label of many losses, is outside it too.
    """
    if targets.dtype not in _INTEGER_TYPES:
        raise ValueError(f"targets must be integers, got {targets.dtype}")
    if list(targets.shape) != [num_samples]:
        raise ValueError(f"targets must have shape [{num_samples}], got {list(targets.shape)}")
    if not num_samples:
        return
    low, high = targets.aminmax()
    if int(low) < 0 or int(high) >= num_classes:
        labels = targets.long()  # in a narrow type, num_classes itself would wrap around
        first = int(((labels < 0) | (labels >= num_classes)).nonzero()[0])
        raise ValueError(
            f"targets must lie in [0, {num_classes}), got {int(targets[first])} at position {first}"
        )


def validate_batch(logits: Tensor, targets: Tensor) -> None:
    """Refuse logits and labels that do not belong together."""
    validate_logits(logits)
    validate_targets(targets, num_samples=logits.shape[1], num_classes=logits.shape[2])


def validate_values(values: Tensor, *, name: str, num_samples: int | None = None) -> None:
    """Refuse per-sample values that are not a finite, non-empty vector, of the given length."""
    if values.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension [samples], got shape {list(values.shape)}")
    if values.shape[0] < 1:
        raise ValueError(f"{name} must hold >= 1 sample, got 0")
    if num_samples is not None and values.shape[0] != num_samples:
        raise ValueError(f"{name} must hold {num_samples} samples, got {values.shape[0]}")
    if values.is_floating_point():
        validate_finite(values, name)


def validate_flags(flags: Tensor, *, name: str, num_samples: int | None = None) -> None:
    """Refuse what is not one truth value per sample: of 0 and 1, ``~`` would make -1 and -2."""
    if flags.dtype != torch.bool:
        raise ValueError(f"{name} must be boolean, got {flags.dtype}; of 0 and 1, take {name} == 1")
    validate_values(flags, name=name, num_samples=num_samples)


def validate_weights(weights: Tensor, *, num_samples: int) -> None:
    """Refuse weights that do not stand for repetitions, or leave a draw without any sample."""
    if weights.dtype not in _INTEGER_TYPES:
        raise ValueError(f"weights must be integers, got {weights.dtype}")
    if weights.ndim < 1 or weights.shape[-1] != num_samples:
        raise ValueError(f"weights must have shape [..., {num_samples}], got {list(weights.shape)}")
    if weights.numel() < 1:
        raise ValueError(f"weights must hold >= 1 draw, got shape {list(weights.shape)}")
    if weights.min() < 0:
        raise ValueError(f"weights must be >= 0, got {int(weights.min())}")
    if not weights.sum(-1).all():
        raise ValueError("weights must sum to >= 1 in every draw, got 0")


def validate_share(share: float, name: str, interval: str = "(0, 1]") -> None:
    """Refuse a number outside an interval from 0 to 1, open or closed at its ends."""
    closed = {0.0: interval[0] == "[", 1.0: interval[-1] == "]"}
    if not (0 < share < 1 or closed.get(share)):
        raise ValueError(f"{name} must lie in {interval}, got {share}")


def validate_choice(choice: str, name: str, known: Iterable[str]) -> None:
    """Refuse what is none of the known names."""
    if choice not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {choice!r}")


def validate_finite(values: Tensor, name: str) -> None:
    """Refuse values that are NaN or infinite anywhere; the first is named with its position."""
    if math.isfinite(values.sum().item()):  # a fast pass; an infinite sum may be of finite values
        return
    low, high = values.aminmax()  # NaN comes through both
    if low.isfinite() and high.isfinite():
        return
    first = (~values.isfinite()).nonzero()[0].tolist()
    raise ValueError(f"{name} must be finite, got {values[tuple(first)].item()} at {first}")
