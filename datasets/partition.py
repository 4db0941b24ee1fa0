"""Cuts of an image set that are stratified by class and the same on every machine."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

VALIDATION_PARTS = ("val/select", "val/calibrate", "val/conform")


def stratified_parts(
    targets: Int64[Tensor, " samples"], sizes: Sequence[int], *, seed: int = 0
) -> tuple[Int64[Tensor, " _"], ...]:
    """Cut samples into parts of given sizes with the class proportions of the whole.

    A part of size s takes floor or ceil(s n_c / n) of class c, n_c of the n samples still left
    being of it; the largest remainders are rounded up. Within a class, samples come in the order
    of SHA-256 of (seed, index), the same on every platform.

    Returns:
        Ascending indices of each part, and last those of the samples left over.

    Raises:
        ValueError: If a size is below 1, or the sizes are more than there is.

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
    waiting: dict[int, list[int]] = {label: [] for label in sorted(set(targets.tolist()))}
    for index, label in enumerate(targets.tolist()):
        waiting[label].append(index)
    for members in waiting.values():
        members.sort(key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    parts = []
    for size in sizes:
        left = sum(len(members) for members in waiting.values())
        quota = {label: size * len(members) // left for label, members in waiting.items()}
        # sorted() is stable: equal remainders go to the lower class.
        by_remainder = sorted(waiting, key=lambda label: -(size * len(waiting[label]) % left))
        for label in by_remainder[: size - sum(quota.values())]:
            quota[label] += 1
        parts.append([index for label in waiting for index in waiting[label][: quota[label]]])
        waiting = {label: members[quota[label] :] for label, members in waiting.items()}
    parts.append([index for members in waiting.values() for index in members])
    return tuple(torch.tensor(sorted(part), dtype=torch.int64) for part in parts)


def cut_validation(
    targets: Int64[Tensor, " samples"], *, part_size: int, seed: int = 0
) -> dict[str, Int64[Tensor, " _"]]:
    """Cut the three validation parts out of the training samples, stratified by class.

    Nothing is reported on what it was chosen on: ``val/select`` serves early stopping and model
    choice, ``val/calibrate`` temperatures and thresholds, ``val/conform`` conformal sets.

    Another seed gives another cut; keep it fixed over the runs that are compared.

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
    *validation, train = stratified_parts(targets, [part_size] * len(VALIDATION_PARTS), seed=seed)
    return {"train": train, **dict(zip(VALIDATION_PARTS, validation, strict=True))}
