"""From logits to the few numbers per sample that every metric of the suite is made of."""

import functools
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration.classwise import class_sums
from .core import mixture
from .core.doubts import MemberWatch, label_doubts
from .core.shapes import Targets
from .core.values import LabelledSums, MoreValues, SampleValues
from .diversity.member_diversity import disagreement_of_votes, pairwise_kl
from .diversity.pairwise import cosine_similarity, joint_counts_of, majority_counts
from .io.arrays import OF_LOGITS, open_logits, read_labels, read_targets
from .io.logit_source import Kind, Layout, LogitSource
from .scoring import uncertainty
from .scoring.proper_scores import brier_score, negative_log_likelihood, top_k_correctness

CHUNK = 2**19  # logits worked on at a time: 4 MB in float64, so that they stay in the cache


def sample_values(
    logits: Any,
    targets: Any = None,
    *,
    more: bool = True,
    layout: Layout = "MNC",
    kind: Kind = "logits",
    precision: torch.dtype | None = None,
) -> SampleValues:
    """Return the per-sample values of an ensemble's logits, in float64 and in bounded memory.

    Args:
        logits: Raw outputs, members first, in any floating dtype: a tensor, or whatever `evaluate`
            takes.
        targets: Class indices; None for OOD images, which have no label among the classes.
        more: Whether also what is never resampled, `MoreValues` and further OOD scores.
        layout: As for `evaluate`.
        kind: As for `evaluate`.
        precision: Of probabilities whose logarithms these are, the type in which they were given.

    Raises:
        ValueError: If ``logits`` are not finite or empty, or ``targets`` do not fit them.

    Example:
        >>> import torch
        >>> from deepens.metrics import sample_values
        >>> values = sample_values(torch.zeros(3, 2, 4), torch.tensor([0, 1]))
        >>> values.confidence.tolist(), values.correct.tolist()
        ([0.25, 0.25], [True, False])
    """
    if not isinstance(logits, Tensor) or (logits.ndim, layout, kind) != (3, "MNC", "logits"):
        with open_logits(logits, layout=layout, kind=kind) as source:
            if targets is not None:
                targets = labels_of(source, targets, like=logits)
            logits, precision = source.read(0, source.shape[1]), precision or source.precision
    precision = precision or torch.float64
    if targets is not None:
        targets = read_targets(targets, logits)
    if targets is None:
        mixture.validate_logits(logits)
    else:
        mixture.validate_batch(logits, targets)
    members, samples, classes = logits.shape
    size = max(1, CHUNK // (members * classes * mixture.ROW)) * mixture.ROW
    starts = range(0, samples, size)
    parts = logits.split(size, dim=1)
    labels = [None] * len(starts) if targets is None else targets.split(size)
    return join_values(
        _chunk_values(part, label, more, precision)
        for part, label in zip(parts, labels, strict=True)
    )


def score_split(
    source: LogitSource,
    targets: Targets | None = None,
    *,
    rows: int | None = None,
    advance: Callable[[], None] | None = None,
) -> SampleValues:
    """Return the per-sample values of logits that are read some samples at a time.

    A few copies of a chunk are kept, and a few numbers per sample. Of probabilities the scores
    `OF_LOGITS` are left out. A warning names what puts the values in doubt, such as identical
    members.

    Args:
        source: What `open_logits` gives.
        targets: Class indices, as `read_labels` gives them; None for OOD samples.
        rows: Samples read at a time; about a million logits by default.
        advance: Is called after every chunk, of which there are ``len(source.bounds(rows))``.

    Raises:
        ValueError: If logits are not finite, or not probabilities where these were announced, or
            ``targets`` do not fit them.

    Example:
        >>> import numpy as np
        >>> from deepens.metrics import open_logits, score_split
        >>> with open_logits(np.eye(3) * 4, layout="NC") as source:
        ...     values = score_split(source, rows=2)
        >>> len(values), round(values.confidence[2].item(), 3)
        (3, 0.965)
    """
    if targets is not None and len(targets) != source.shape[1]:
        raise ValueError(f"targets must have shape [{source.shape[1]}], got [{len(targets)}]")
    held: Any = None
    start, stop, samples = 0, 0, source.shape[1]

    def placed(values: list[Tensor]) -> Tensor:
        # Many small tensors, kept between large ones, would break the heap into pieces and let
        # memory grow with the number of chunks.
        whole = values[0] if held else values[0].new_empty(samples)
        whole[start:stop] = values[-1]
        return whole

    raised, watch = source.raised, MemberWatch()
    for start, stop in source.bounds(rows):
        labels = None if targets is None else targets[start:stop]
        logits = source.read(start, stop)
        watch.see(logits)
        part = sample_values(logits, labels, precision=source.precision)
        held = SimpleNamespace(**combined([held, part] if held else [part], placed))
        if advance is not None:
            advance()
    if raised := source.raised - raised:
        warnings.warn(
            f"{source.name}: {raised} probabilities are 0 and were raised to {source.smallest:.3g}:"
            f" NLL counts a label among them as {-math.log(source.smallest):.1f} nats, not as "
            "infinite",
            RuntimeWarning,
            stacklevel=2,
        )
    if source.kind != "logits":
        for name in OF_LOGITS:
            del held.detectors[name]
    values = SampleValues(**vars(held))
    for line in (*watch.doubts(), *label_doubts(values)):
        warnings.warn(f"{source.name}: {line}", RuntimeWarning, stacklevel=2)
    return values


def score_arrays(
    logits: Any,
    targets: Any = None,
    *,
    layout: Layout = "MNC",
    kind: Kind = "logits",
    name: str = "logits",
) -> SampleValues:
    """Open logits and labels, and return their per-sample values, as `score_split`."""
    with open_logits(logits, layout=layout, kind=kind, name=name) as source:
        if targets is not None:
            targets = labels_of(source, targets, like=logits)
        return score_split(source, targets)


def labels_of(
    source: LogitSource, targets: Any, *, like: Any = None, key: str | None = None
) -> Targets:
    """Read the labels of logits, as `read_labels`; ``like`` are the logits as they were given."""
    _, samples, classes = source.shape
    return read_labels(
        targets,
        num_samples=samples,
        num_classes=classes,
        key=key,
        classes=source.classes,
        like=like,
    )


def join_values(parts: Iterable[SampleValues]) -> SampleValues:
    """Put the values of consecutive samples together; none is a ``ValueError``."""
    held = list(parts)
    if not held:
        raise ValueError("parts must hold >= 1 set of values, got 0")
    return SampleValues(**combined(held, torch.cat))


def combined(parts: list[Any], combine: Callable[[list[Tensor]], Tensor]) -> dict[str, Any]:
    """Combine the values of each sample; sums are added up."""
    found: dict[str, Any] = {}
    for name, first in vars(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        if isinstance(first, Tensor):
            found[name] = combine(values)
        elif isinstance(first, MoreValues):
            found[name] = MoreValues(**combined(values, combine))
        elif isinstance(first, LabelledSums):
            found[name] = functools.reduce(operator.add, values)
        elif isinstance(first, Mapping):
            found[name] = {key: combine([each[key] for each in values]) for key in first}
        elif isinstance(first, torch.dtype):
            found[name] = first
    return found


def _chunk_values(
    logits: Tensor, targets: Tensor | None, more: bool, precision: torch.dtype
) -> SampleValues:
    number = logits.shape[1]
    missing = -number % mixture.ROW
    if not missing:
        return _padded_values(logits, targets, more, number, precision)
    labels = None if targets is None else F.pad(targets, (0, missing))
    padded = _padded_values(mixture.pad_samples(logits), labels, more, number, precision)
    # Sums are of the first samples already.
    return SampleValues(**combined([padded], lambda values: values[0][:number].clone()))


def _padded_values(
    logits: Tensor, targets: Tensor | None, more: bool, number: int, precision: torch.dtype
) -> SampleValues:
    logits = mixture.samples_innermost(logits)
    _, votes = mixture.first_largest(logits)  # before they are twice as long
    logits = logits.double()
    members = mixture.normalized(logits)
    probs = members.exp()
    log_probs = mixture.pool_log_probs(members, member_probs=probs)
    pooled = log_probs.exp()
    confidence, predicted = largest = mixture.confidence_of(log_probs)
    information = uncertainty.mutual_information(members, log_probs, member_probs=probs)
    found: dict[str, Any] = {
        "confidence": confidence,
        "log_doubt": mixture.log_doubt(log_probs, largest=largest),
        "entropy": uncertainty.predictive_entropy(log_probs, probs=pooled),
        "mutual_information": information,
        "disagreement": disagreement_of_votes(votes),
        "predicted": predicted,
        "precision": precision,
    }
    if targets is not None:
        found["nll"] = negative_log_likelihood(log_probs, targets)
        found["brier"] = brier_score(log_probs, targets, probs=pooled)
        found["correct"] = predicted == targets
        found["targets"] = targets.long()
    del pooled, largest  # the peak of memory is yet to come
    if more:
        kl = pairwise_kl(members, member_probs=probs)
        rest: dict[str, Any] = {"pairwise_kl": kl}
        ambiguity = (probs - mixture.mean_of_members(probs)).square_().sum(-1).mean(0)
        del probs
        found["detectors"] = {
            "max_logit": uncertainty.maximum_logit_score(logits),
            "energy": uncertainty.energy_score(logits),
            "expected_entropy": uncertainty.expected_entropy(members),
            "reverse_mutual_information": uncertainty.reverse_mutual_information(
                members, log_probs
            ),
            "pairwise_kl": kl,
            "variance": ambiguity,
            "variation_ratio": uncertainty.variation_of_votes(votes),
        }
        del logits
        if len(members) > 1:
            rest["cosine"] = cosine_similarity(members)
        if targets is not None:
            rest |= dict(_labelled(votes, members, log_probs, targets, number, precision))
            # The ambiguity decomposition: cheaper than a Brier score for each member.
            rest["member_brier"] = found["brier"] + ambiguity
        found["more"] = MoreValues(**rest)
    return SampleValues(**found)


def _labelled(
    votes: Tensor,
    members: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    number: int,
    precision: torch.dtype,
) -> Iterator[tuple[str, object]]:
    of_label = targets.long().expand(len(members), -1).unsqueeze(-1)
    yield "member_nll", -members.gather(-1, of_label).squeeze(-1).mean(0)
    labels = targets[:number]
    pairs = joint_counts_of(votes[:, :number] == labels)
    by_class = class_sums(log_probs[:number], labels, precision=precision)
    majority = majority_counts(votes[:, :number], log_probs[:number], labels)
    yield "sums", LabelledSums(by_class, pairs, majority)
    if log_probs.shape[1] > 5:
        yield "among_five", top_k_correctness(log_probs, targets, k=5)
