"""Shifted copies of a test split, made when they are asked for."""

import functools
from collections.abc import Callable, Sequence

from .corruptions import CORRUPTIONS, corrupt
from .splits import Split


def shifted_splits(test: Split, corruptions: Sequence[str]) -> dict[str, Callable[[], Split]]:
    """Offer a test split under each corruption at severities 1 to 5.

    Args:
        test: Images in memory, with targets.
        corruptions: Keys of :data:`CORRUPTIONS`.

    Returns:
        Callables that make ``shift/<corruption>/<severity>``, by that name.

    Raises:
        ValueError: If a corruption is unknown.

    Example:
        >>> import torch
        >>> from deepens.datasets import Split
        >>> from deepens.datasets.shift import shifted_splits
        >>> test = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
        >>> len(shifted_splits(test, ["contrast"])["shift/contrast/3"]())
        2
    """
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise ValueError(
                f"corruptions must be among {', '.join(sorted(CORRUPTIONS))}, or none, got {name!r}"
            )
    return {
        f"shift/{name}/{severity}": functools.partial(_shift, test, name, severity)
        for name in corruptions
        for severity in range(1, 6)
    }


def _shift(test: Split, corruption: str, severity: int) -> Split:
    return Split(corrupt(test.tensor, corruption, severity=severity, seed=0), test.targets)
