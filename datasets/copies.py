"""Copies of images, and groups such as patients: kept together in cuts, counted between parts."""

from collections.abc import Iterator

import scipy
import torch
from jaxtyping import Int64
from torch import Tensor

from .splits import Split

_MANY = 0.01
"""Share of copies within a part from which on results are in doubt."""


def kept_together(split: Split) -> Int64[Tensor, " samples"] | None:
    """Number what must stay on one side of a cut: copies of one image, and images of one group.

    Returns:
        Numbers that are equal for such images, joined over chains; None where all are alone.

    Example:
        >>> import torch
        >>> from deepens.datasets import Split
        >>> from deepens.datasets.copies import kept_together
        >>> images = torch.tensor([0, 7, 7, 9], dtype=torch.uint8).view(4, 1, 1, 1)
        >>> groups = torch.tensor([0, 1, 2, 2])
        >>> len(kept_together(Split(images, None, groups=groups)).unique())
        2
    """
    _, together = split.contents().unique(return_inverse=True)
    if split.groups is not None:
        _, group = split.groups.unique(return_inverse=True)
        first, size = int(together.max()) + 1, int(together.max() + group.max()) + 2
        edges = (torch.ones(len(split)).numpy(), (together.numpy(), (first + group).numpy()))
        _, joined = scipy.sparse.csgraph.connected_components(
            scipy.sparse.coo_array(edges, shape=(size, size)), directed=False
        )
        _, together = torch.from_numpy(joined)[together].long().unique(return_inverse=True)
    return None if int(together.max()) + 1 == len(split) else together


def copies_within(name: str, split: Split) -> Iterator[tuple[bool, str]]:
    """Say how many images of a part are copies of others in it, and whether that is a caution."""
    _, numbers, counts = split.contents().unique(return_inverse=True, return_counts=True)
    if name == "training" and (alike := int(split.repeated().sum())):
        said = (
            f"{alike:,} of {len(split):,} training images look the same as other training images: "
            "what is cut from them may hold what is trained on, unless --group-by joins them."
        )
        yield alike >= _MANY * len(split), said
    copies = len(split) - len(counts)
    if not copies:
        return
    said = f"{copies:,} of {len(split):,} {name} images are copies of other {name} images"
    independent = "" if name == "training" else ": they count as if they were independent"
    yield name != "training" and copies >= _MANY * len(split), f"{said}{independent}."
    if split.targets is not None:
        pairs = torch.stack([numbers, split.targets], 1).unique(dim=0)
        labels = pairs[:, 0].bincount()
        if several := int((labels > 1).sum()):
            yield True, f"{several:,} {name} images occur under several classes."


def copies_between(first: str, ours: Split, second: str, theirs: Split) -> Iterator[str]:
    """Say how many images, and images of how many groups, of a part are in an earlier one too."""
    if copies := int(theirs.copied_from(ours).sum()):
        yield (
            f"{copies:,} of {len(theirs):,} {second} images are copies of {first} images, by their "
            f"pixels: {_consequence(first, second)}."
        )
    if alike := int(theirs.alike(ours).sum()):
        yield (
            f"{alike:,} of {len(theirs):,} {second} images look the same as {first} images, but "
            f"for pixels changed a little: {_consequence(first, second)}."
        )
    if ours.groups is not None and theirs.groups is not None:
        shared = torch.isin(theirs.groups, ours.groups)
        if images := int(shared.sum()):
            groups = len(theirs.groups[shared].unique())
            yield (
                f"{images:,} of {len(theirs):,} {second} images belong to {groups:,} groups of "
                f"--group-by that have {first} images too: {_consequence(first, second)}."
            )


def _consequence(first: str, second: str) -> str:
    if second == "validation" and first == "training":
        return "temperatures, thresholds and conformal sets fitted on them hold for no new image"
    if second == "validation" and first == "test":
        return "what is fitted on them has seen test images"
    return "results on them say nothing about new images"
