"""Which images of an OOD set are used where it has more than are needed: a draw by content."""

from collections.abc import Sequence
from typing import Literal

OOD_MOST = 10_000
"""OOD images that are used by default, at most."""

OOD_PER_TEST_IMAGE = 4
"""OOD images that are used by default for each test image, at most."""


def ood_count(limit: int | Literal["auto", "none"], test_images: int) -> int | None:
    """How many images of an OOD set are used at most; None for all.

    Example:
        >>> from deepens.datasets.sources.drawing import ood_count
        >>> ood_count("auto", 500), ood_count("auto", 8_000), ood_count(300, 500), ood_count(0, 500)
        (2000, 10000, 300, None)
    """
    if limit == "auto":
        return min(OOD_MOST, OOD_PER_TEST_IMAGE * test_images)
    if limit == "none" or limit == 0:
        return None
    return limit


def draw_by_content(hashes: Sequence[str] | Sequence[int], count: int) -> list[int]:
    """Positions of the images of the smallest hashes, in their order.

    A hash is as good as a random number that every machine draws alike for the same image, so that
    neither the names of files nor their order matter. Of copies some may be left out.

    Example:
        >>> from deepens.datasets.sources.drawing import draw_by_content
        >>> draw_by_content(["c", "a", "d", "b"], 2)
        [1, 3]
    """
    return sorted(sorted(range(len(hashes)), key=hashes.__getitem__)[:count])
