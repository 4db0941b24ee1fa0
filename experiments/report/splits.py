"""How the report names splits and metrics, and averages splits that belong together."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS, metric_info
from ..comparison.headlines import KIND_TITLES
from ..comparison.verdicts import Comparison, MethodSummary, Replicate

_COUNTS = ("n", "n_id", "n_ood", "n_gradients")


@dataclass(frozen=True)
class SplitGroup:
    """Splits that share a row of results: one alone, or several that are averaged.

    Args:
        title: What the reader sees.
        splits: The splits' names; a metric's value is their unweighted mean.
    """

    title: str
    splits: tuple[str, ...]


def kind_of(split: str) -> str:
    """Return the kind of a split, such as ``near_ood``."""
    return SplitName.parse(split).kind


def split_title(split: str) -> str:
    """Return a split's name in words, such as ``Near OOD: letters``."""
    name = SplitName.parse(split)
    title = KIND_TITLES.get(name.kind, "Validation")
    words = " ".join(name.name.replace("_", " ").split())
    severity = "" if name.severity is None else f", severity {name.severity}"
    return (f"{title}: {words}" if words else title) + severity + " (encoded)" * name.encoded


def metric_label(metric: str) -> str:
    """Return a metric's printed name, or its key where the suite does not know it."""
    return metric_info(metric).label


def higher_is_better(metric: str) -> bool | None:
    """Return a metric's direction, ``None`` where neither way is better."""
    return metric_info(metric).higher_is_better


def directed_label(metric: str) -> str:
    """Return a metric's name and the arrow that shows which way is better, if either is."""
    return metric_label(metric) + direction_arrow(metric)


def direction_arrow(metric: str) -> str:
    """Return an arrow that shows which way a metric is better, or nothing."""
    arrow = {True: "\N{NO-BREAK SPACE}↑", False: "\N{NO-BREAK SPACE}↓", None: ""}
    return arrow[higher_is_better(metric)]


def split_groups(comparison: Comparison) -> list[SplitGroup]:
    """List what the tables show: test, mean shift, then each near and far set and their means.

    Encoded OOD sets hold images that another set holds already, so they have means of their own.

    Args:
        comparison: What was measured.

    Returns:
        The groups, those of a kind together.
    """
    splits = _splits_of(comparison)
    groups = [SplitGroup(split_title(split), (split,)) for split in splits if split == "test"]
    shifted = tuple(split for split in splits if kind_of(split) == "shift")
    if shifted:
        groups.append(_mean_group("shift", shifted))
    for kind in ("near_ood", "far_ood"):
        for encoded in (False, True):
            members = tuple(
                s for s in splits if kind_of(s) == kind and SplitName.parse(s).encoded == encoded
            )
            groups += [SplitGroup(split_title(split), (split,)) for split in members]
            if len(members) > 1:
                groups.append(_mean_group(kind, members, note=", encoded" if encoded else ""))
    return groups


def severity_groups(comparison: Comparison) -> list[SplitGroup]:
    """List the shifted splits by severity, each a mean over corruptions.

    Args:
        comparison: What was measured.

    Returns:
        Groups from slight to strong; splits whose name ends in no severity are in none.
    """
    found: dict[int, list[str]] = {}
    for split in _splits_of(comparison):
        name = SplitName.parse(split)
        if name.severity is not None:
            found.setdefault(name.severity, []).append(split)
    return [
        SplitGroup(f"Shift, severity {severity} (mean of {len(members)})", tuple(members))
        for severity, members in sorted(found.items())
    ]


def _splits_of(comparison: Comparison) -> list[str]:
    return list(
        dict.fromkeys(
            split
            for method in comparison.methods
            for replicate in method.replicates
            for split in replicate.metrics
        )
    )


def _mean_group(kind: str, splits: tuple[str, ...], note: str = "") -> SplitGroup:
    return SplitGroup(f"{KIND_TITLES[kind]} (mean of {len(splits)}{note})", splits)


def metrics_of(comparison: Comparison, group: SplitGroup) -> list[str]:
    """List the metrics found on a group, in the suite's order but those with a direction first."""
    found = {
        metric
        for method in comparison.methods
        for replicate in method.replicates
        for split in group.splits
        for metric in replicate.metrics.get(split, ())
    }.difference(_COUNTS)
    known = [metric for metric in METRICS if metric in found]
    known.sort(key=lambda metric: higher_is_better(metric) is None)
    return known + sorted(found.difference(known))


def replicate_value(replicate: Replicate, group: SplitGroup, metric: str) -> float:
    """Return the metric's unweighted mean over a group's splits, NaN if any of them lacks it."""
    values = [replicate.metrics.get(split, {}).get(metric, math.nan) for split in group.splits]
    return sum(values) / len(values)


def method_values(method: MethodSummary, group: SplitGroup, metric: str) -> list[float]:
    """Return the metric's value on a group, one per replicate, without undefined ones."""
    values = [replicate_value(replicate, group, metric) for replicate in method.replicates]
    return [value for value in values if math.isfinite(value)]


def image_counts(comparison: Comparison, group: SplitGroup, key: str) -> set[int]:
    """Return the numbers of images on a group, under a key that counts them."""
    return {
        int(replicate.metrics[split][key])
        for method in comparison.methods
        for replicate in method.replicates
        for split in group.splits
        if math.isfinite(replicate.metrics.get(split, {}).get(key, math.nan))
    }


def count_range(counts: Collection[int]) -> str:
    """Write how many, or from how few to how many."""
    if min(counts) == max(counts):
        return f"{min(counts):,}"
    return f"{min(counts):,} to {max(counts):,}"


def replicate_range(methods: Sequence[MethodSummary]) -> str:
    """Write how many replicates the methods, at least one, have."""
    counts = {len(method.replicates) for method in methods}
    return f"{count_range(counts)} replicate{'' if counts == {1} else 's'}"


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation (ddof 1), NaN where there are too few values."""
    if not values:
        return math.nan, math.nan
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
