"""How the report names splits and metrics, and averages splits that belong together."""

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...datasets import SplitName
from ...metrics.core.catalogue import METRICS, metric_info
from ..comparison.headlines import KIND_TITLES
from ..comparison.verdicts import SHIFT, Comparison, MethodSummary


@dataclass(frozen=True)
class SplitGroup:
    """Splits that share a row of results: one alone, or several that are averaged.

    Args:
        title: What the reader sees.
        splits: The splits' names; a metric's value is their unweighted mean.
    """

    title: str
    splits: tuple[str, ...]

    @property
    def name(self) -> SplitName:
        """The name of its first split: all are of one kind and encoding."""
        return SplitName.parse(self.splits[0])

    @property
    def kind(self) -> str:
        """The kind of its splits, such as ``near_ood``."""
        return self.name.kind


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
    """
    splits = comparison.splits
    groups = [SplitGroup(split_title(split), (split,)) for split in splits if split == "test"]
    if shifted := tuple(split for split, name in splits.items() if name.is_shift):
        groups.append(_mean_group(SHIFT, shifted))
    for kind in ("near_ood", "far_ood"):
        for encoded in (False, True):
            here = tuple(s for s, n in splits.items() if (n.kind, n.encoded) == (kind, encoded))
            groups += [SplitGroup(split_title(split), (split,)) for split in here]
            if len(here) > 1:
                groups.append(_mean_group(kind, here, note=", encoded" if encoded else ""))
    return groups


def severity_groups(comparison: Comparison) -> list[SplitGroup]:
    """List the shifted splits by severity, from slight to strong, each a mean over corruptions."""
    found: dict[int, list[str]] = {}
    for split, name in comparison.splits.items():
        if name.severity is not None:
            found.setdefault(name.severity, []).append(split)
    return [
        SplitGroup(f"Shift, severity {severity} (mean of {len(members)})", tuple(members))
        for severity, members in sorted(found.items())
    ]


def labelled_groups(comparison: Comparison) -> list[SplitGroup]:
    """List the test images, and the mean over their shifted copies."""
    return [group for group in split_groups(comparison) if group.kind in ("test", SHIFT)]


def groups_by_kind(comparison: Comparison) -> list[SplitGroup]:
    """List one group per kind and encoding: the mean over its splits where there are several."""
    # The means follow the sets that they are taken over, so the last group of a kind stays.
    groups = {(g.kind, g.name.encoded): g for g in split_groups(comparison)}
    return list(groups.values())


def _mean_group(kind: str, splits: tuple[str, ...], note: str = "") -> SplitGroup:
    return SplitGroup(f"{KIND_TITLES[kind]} (mean of {len(splits)}{note})", splits)


def metrics_of(comparison: Comparison, group: SplitGroup) -> list[str]:
    """List the metrics found on a group, in the suite's order but those with a direction first."""
    found = {
        metric
        for replicate in comparison.replicates
        for split in group.splits
        for metric in replicate.metrics.get(split, ())
        if metric_info(metric).role != "count"
    }
    known = [metric for metric in METRICS if metric in found]
    known.sort(key=lambda metric: higher_is_better(metric) is None)
    return known + sorted(found.difference(known))


def image_counts(comparison: Comparison, group: SplitGroup, key: str) -> set[int]:
    """Return the numbers of images on a group, under a key that counts them."""
    return {
        int(replicate.metrics[split][key])
        for replicate in comparison.replicates
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
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan
