"""Cuts of an image set that are stratified by class and the same on every machine."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

VALIDATION_PARTS = ("val/select", "val/calibrate", "val/conform")


def stratified_parts(
    targets: Int64[Tensor, " samples"],
    sizes: Sequence[int],
    *,
    seed: int = 0,
    groups: Int64[Tensor, " samples"] | None = None,
) -> tuple[Int64[Tensor, " _"], ...]:
    """Cut samples into parts of given sizes with the class proportions of the whole.

    A part of size s takes floor or ceil(s n_c / n) of class c, n_c of the n samples still left
    being of it; the largest remainders are rounded up. Within a class, samples come in the order
    of SHA-256 of (seed, index), the same on every platform.

    Samples with one number in ``groups`` stay together. A group is taken, in the same order, if it
    brings the numbers per class nearer to those above, so that sizes are met up to half a group a
    class; a part that would stay empty takes the group that comes nearest.

    Returns:
        Ascending indices of each part, and last those of the samples left over.

    Raises:
        ValueError: If a size is below 1, the sizes are more than there is, or there are fewer
            groups than parts.

    Example:
        >>> import torch
        >>> from deepens.datasets import stratified_parts
        >>> targets = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> part, rest = stratified_parts(targets, [4])
        >>> targets[part].tolist(), targets[rest].tolist()
        ([0, 0, 1, 1], [0, 0, 1, 1])
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be >= 1 each, got {list(sizes)}")
    if sum(sizes) > len(targets):
        raise ValueError(f"sizes must sum to <= {len(targets)} samples, got {sum(sizes)}")
    labels = targets.tolist()
    waiting = _units(labels, groups, seed)
    # A rest that is asked for gets a group too.
    needed = len(sizes) + (sum(sizes) < len(labels))
    if (count := sum(map(len, waiting.values()))) < needed:
        raise ValueError(
            f"samples must be in >= {needed} groups, one per part, since what belongs together "
            f"stays so, got {count}"
        )
    there, parts = Counter(labels), []
    for number, size in enumerate(sizes, start=1):
        part = _take(waiting, labels, there, size, leaving=needed - number)
        there -= Counter(labels[index] for index in part)
        parts.append(part)
    parts.append([index for units in waiting.values() for unit in units for index in unit])
    return tuple(torch.tensor(sorted(part), dtype=torch.int64) for part in parts)


_Units = dict[int, list[list[int]]]
"""Samples that stay together, by the class of most of them, in the order they are taken in."""


def _units(labels: Sequence[int], groups: Tensor | None, seed: int) -> _Units:
    together: dict[int, list[int]] = {}
    for index, group in enumerate(range(len(labels)) if groups is None else groups.tolist()):
        together.setdefault(group, []).append(index)
    waiting: _Units = {label: [] for label in sorted(set(labels))}
    for unit in together.values():
        label = labels[unit[0]]
        if len(unit) > 1:
            counts = Counter(labels[index] for index in unit)
            label = min(counts, key=lambda label: (-counts[label], label))
        waiting[label].append(unit)

    def first(unit: Sequence[int]) -> bytes:
        return min(hashlib.sha256(f"{seed}:{index}".encode()).digest() for index in unit)

    for units in waiting.values():
        units.sort(key=first)
    return waiting


def _take(
    waiting: _Units, labels: Sequence[int], there: Counter[int], size: int, *, leaving: int
) -> list[int]:
    """Take a part out of what is waiting, ``there`` of each class, but for so many units."""
    left, free = there.total(), sum(map(len, waiting.values())) - leaving
    size = min(size, left)
    quota = {label: size * there[label] // left for label in waiting}
    # sorted() is stable: equal remainders go to the lower class.
    by_remainder = sorted(waiting, key=lambda label: -(size * there[label] % left))
    for label in by_remainder[: size - sum(quota.values())]:
        quota[label] += 1

    def nearer(unit: Sequence[int]) -> int:
        counts = Counter(labels[index] for index in unit)
        return sum(abs(quota[c]) - abs(quota[c] - count) for c, count in counts.items())

    taken: list[list[int]] = []
    for label, units in waiting.items():
        kept = []
        for position, unit in enumerate(units):
            if quota[label] <= 0 or len(taken) == free:
                kept += units[position:]
                break
            if nearer(unit) > 0:
                taken.append(unit)
                for index in unit:
                    quota[labels[index]] -= 1
            else:
                kept.append(unit)
        waiting[label] = kept
    if not taken:
        # Rather none that is all there is of a class.
        best = max(
            ((label, unit) for label, units in waiting.items() for unit in units),
            key=lambda each: (len(waiting[each[0]]) > 1, nearer(each[1])),
        )
        waiting[best[0]].remove(best[1])
        taken.append(best[1])
    return [index for unit in taken for index in unit]


def cut_validation(
    targets: Int64[Tensor, " samples"],
    *,
    part_size: int,
    seed: int = 0,
    groups: Int64[Tensor, " samples"] | None = None,
) -> dict[str, Int64[Tensor, " _"]]:
    """Cut the three validation parts out of the training samples, stratified by class.

    Nothing is reported on what it was chosen on: ``val/select`` serves early stopping and model
    choice, ``val/calibrate`` temperatures and thresholds, ``val/conform`` conformal sets.

    Another seed gives another cut; keep it fixed over the runs that are compared. Samples with one
    number in ``groups`` stay together (see :func:`stratified_parts`).

    Returns:
        Ascending indices into ``targets`` of ``train`` and of each validation part.

    Raises:
        ValueError: If ``part_size`` is below 1, or leaves no sample to train on.

    Example:
        >>> import torch
        >>> from deepens.datasets import cut_validation
        >>> parts = cut_validation(torch.arange(2).repeat(10), part_size=4)
        >>> {name: len(indices) for name, indices in parts.items()}
        {'train': 8, 'val/select': 4, 'val/calibrate': 4, 'val/conform': 4}
    """
    largest = (len(targets) - 1) // len(VALIDATION_PARTS)
    if not 1 <= part_size <= largest:
        bound = f"[1, {largest}] for {len(targets)} training samples"
        raise ValueError(f"part_size must be in {bound}, got {part_size}")
    sizes = [part_size] * len(VALIDATION_PARTS)
    *validation, train = stratified_parts(targets, sizes, seed=seed, groups=groups)
    return {"train": train, **dict(zip(VALIDATION_PARTS, validation, strict=True))}
