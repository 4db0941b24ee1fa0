"""What nothing refuses, and yet puts results in doubt: it is said.

Members that give one output or are identical, labels of one class or of other samples, and OOD
samples that are the in-distribution ones.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from .values import SampleValues

_FEW = 10
"""Samples up to which members may agree, and labels be one class, by chance or as an example."""

_ENOUGH = 100
"""Samples from which on predictions that do not depend on the labels are remarked."""

_OVERLAP = 0.1
"""Share of OOD samples with the values of in-distribution ones from which on this is remarked."""


class MemberWatch:
    """Sees the logits of all samples, some at a time, and knows which members are alike.

    Example:
        >>> import torch
        >>> from deepens.metrics.core.doubts import MemberWatch
        >>> watch = MemberWatch()
        >>> watch.see(torch.stack([torch.arange(24.0).view(12, 2), torch.ones(12, 2)]))
        >>> list(watch.doubts())
        ['member 1 gives the same output for all 12 samples']
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._samples = 0
        self._constant: list[int] = []
        self._same: list[tuple[int, int]] = []

    def see(self, logits: Tensor) -> None:
        """Look at the next samples, ``[members, samples, classes]``."""
        if self._first is None:
            self._first = logits[:, 0].clone()
            _, groups = self._first.unique(dim=0, return_inverse=True)
            pairs = itertools.combinations(range(len(logits)), 2)
            self._same = [(one, two) for one, two in pairs if groups[one] == groups[two]]
            self._constant = list(range(len(logits)))
        first = self._first
        self._samples += logits.shape[1]
        self._constant = [
            member
            for member in self._constant
            if torch.equal(logits[member, -1], first[member])
            and bool((logits[member] == first[member]).all())
        ]
        self._same = [
            (one, two) for one, two in self._same if torch.equal(logits[one], logits[two])
        ]

    def doubts(self) -> Iterator[str]:
        """Say which members give one output for all samples, and which are the same."""
        if self._samples <= _FEW:
            return
        if self._constant:
            alone = self._first is not None and len(self._first) == 1
            who = "the model" if alone else _members(self._constant)
            gives = "give" if len(self._constant) > 1 else "gives"
            yield f"{who} {gives} the same output for all {self._samples:,} samples"
        alike: dict[int, list[int]] = {}
        seen = set(self._constant)
        for one, two in self._same:
            if one not in seen:
                alike.setdefault(one, [one]).append(two)
                seen.add(two)
        for members in alike.values():
            yield f"{_members(members)} are identical: is one file given twice?"


def label_doubts(values: SampleValues) -> Iterator[str]:
    """Say if labels are all of one class, or predictions do not depend on them."""
    targets, predicted = values.targets, values.predicted
    if targets is None or predicted is None or values.correct is None:
        return
    samples = len(targets)
    if samples > _FEW and bool((targets == targets[0]).all()):
        yield f"all {samples:,} labels are of class {int(targets[0])}"
    elif samples >= _ENOUGH and bool((predicted == predicted[0]).all()):
        yield f"all {samples:,} predictions are of class {int(predicted[0])}"
    elif samples >= _ENOUGH:
        classes = int(torch.maximum(targets.max(), predicted.max())) + 1
        shares = [each.bincount(minlength=classes) / samples for each in (targets, predicted)]
        chance = float((shares[0] * shares[1]).sum())
        accuracy = values.correct.double().mean().item()
        if accuracy <= chance + 2 * (chance * (1 - chance) / samples) ** 0.5:
            yield (
                f"accuracy {accuracy:.3f} is what labels in any other order would give "
                f"({chance:.3f}): do the labels belong to these samples, in this order?"
            )


def overlap_doubts(id_values: SampleValues, ood_values: SampleValues) -> Iterator[str]:
    """Say if OOD samples have the outputs of in-distribution ones, and so may be the same."""
    rows, others = _rows(id_values), _rows(ood_values)
    kinds, number = torch.cat([rows, others]).unique(dim=0, return_inverse=True)
    ours, theirs = number[: len(rows)], number[len(rows) :]
    if len(ours.unique()) < 0.9 * len(ours) and len(kinds) > 1:
        return  # outputs with so few digits say little of what they are of
    shared = int(torch.isin(theirs, ours).sum())
    if shared > max(_FEW, _OVERLAP * len(theirs)):
        yield (
            f"{shared:,} of {len(theirs):,} OOD samples have exactly the outputs of "
            "in-distribution samples: are they the same images?"
        )


def _rows(values: SampleValues) -> Tensor:
    """What tells the outputs of one sample from those of another."""
    columns = [values.ranked, values.entropy, values.mutual_information]
    columns += [values.detectors[name] for name in ("max_logit",) if name in values.detectors]
    return torch.stack(columns, dim=1)


def _members(which: list[int]) -> str:
    shown = ", ".join(map(str, which[:5])) + (", …" if len(which) > 5 else "")
    return f"member {shown}" if len(which) == 1 else f"members {shown}"
