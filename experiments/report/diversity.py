"""What differing buys: how much members differ, and how much of their loss pooling takes off."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from ...metrics.core.catalogue import metrics_with
from ..comparison.verdicts import Comparison, MethodSummary
from ..evaluation.predictions import is_encoded
from . import drawing
from .decomposition import Decomposition, decomposition_arrows
from .panel import Panel, drawn_once
from .splits import (
    SplitGroup,
    count_range,
    directed_label,
    image_counts,
    is_single,
    kind_of,
    mean_and_spread,
    number,
    replicate_value,
    replicates_told,
    split_groups,
)
from .tables import method_cell, quality_cell, table_html

INTRODUCTION = (
    "How much the members of an ensemble differ: in what they answer (disagreement, pairwise KL, "
    "cosine), in where they err (double fault, Q, correlation) and in what they look at (the "
    "cosine between their input gradients: 1 is the same direction, 0 an unrelated one). "
    "Differing is not good by itself: an ensemble's NLL is its members' mean NLL minus the Jensen "
    "gap, its Brier score theirs minus the ambiguity, so diversity pays only where the gap grows "
    "by more than the members get worse. A single model has no diversity and is not in the tables."
)
LACKING = (
    "Some of these numbers were not measured when the runs were evaluated: `deepens evaluate RUN "
    "--predict` on each run, then `deepens report`, fills them in."
)
_DIFFER = (
    *("disagreement", "normalized_disagreement", "pairwise_kl", "cosine_similarity"),
    *("double_fault", "q_statistic", "error_correlation", "input_gradient_similarity"),
)
_NLL = ("mean_member_nll", "jensen_gap", "nll")
_BRIER = ("mean_member_brier", "brier_ambiguity", "brier")
_UNLABELLED = ("pairwise_kl", "cosine_similarity", "input_gradient_similarity")


@dataclass(frozen=True)
class DiversityTable:
    """How much the members of each ensemble differ on one kind of images.

    Attributes:
        group: On which images.
        basis: How many images and replicates that rests on.
        metrics: What was measured of some method.
        methods: The ensembles.
    """

    group: SplitGroup
    basis: str
    metrics: tuple[str, ...]
    methods: tuple[MethodSummary, ...]


def diversity_tables(comparison: Comparison) -> list[DiversityTable]:
    """List the tables: in distribution, then means over the shifted, the near and the far splits.

    Args:
        comparison: What was measured.

    Returns:
        One a kind of splits on which it was measured how members differ; OOD images that were
        encoded a second time are a kind of their own.
    """
    ensembles = tuple(method for method in comparison.methods if not is_single(method))
    # The means follow the sets that they are taken over, so the last group of a kind stays.
    groups = {
        (kind_of(group.splits[0]), is_encoded(group.splits[0])): group
        for group in split_groups(comparison)
    }
    tables = []
    for group in groups.values():
        metrics = tuple(
            metric
            for part in (_DIFFER, _NLL, _BRIER)
            for metric in part
            if _measured(ensembles, group, metric) and _measured(ensembles, group, part[0])
        )
        if metrics:
            tables.append(
                DiversityTable(group, _basis(comparison, group, ensembles), metrics, ensembles)
            )
    return tables


def diversity_html(comparison: Comparison) -> str:
    """Write the tables, and what is missing in them.

    Args:
        comparison: What was measured.

    Returns:
        HTML, or nothing where there is no ensemble.
    """
    tables = diversity_tables(comparison)
    parts = [_table_html(table) for table in tables]
    if any(lacks(table) for table in tables):
        parts.append(f"<p>{escape(LACKING)}</p>")
    return "\n".join(parts)


def lacks(table: DiversityTable) -> bool:
    """Tell whether some run was evaluated without some of the numbers.

    Args:
        table: Which of the tables.

    Returns:
        Whether one is missing, which is not the same as undefined.
    """
    ood = kind_of(table.group.splits[0]) in ("near_ood", "far_ood")
    wanted = _UNLABELLED if ood else metrics_with(role="diversity")
    return not all(
        metric in replicate.metrics.get(split, {})
        for method in table.methods
        for replicate in method.replicates
        for split in table.group.splits
        for metric in wanted
    )


def cell_text(method: MethodSummary, group: SplitGroup, metric: str) -> str | None:
    """Say why there is no number, where there is none.

    Args:
        method: Whose.
        group: On which images.
        metric: Which.

    Returns:
        Not measured, or None where it was.
    """
    return None if _measured((method,), group, metric) else "not measured"


@drawn_once
def decomposition_panels(comparison: Comparison) -> Iterator[Panel]:
    """Draw how pooling leads from the mean NLL of each method's members to that of the ensemble.

    A single model is its own only member, and a point.

    Args:
        comparison: What was measured.

    Yields:
        One panel for the test images and one for the mean over shifted splits, where the terms
        were measured of some ensemble.
    """
    for group in split_groups(comparison):
        if kind_of(group.splits[0]) not in ("test", "shift"):
            continue
        drawn = [_decomposition(*placed, group) for placed in enumerate(comparison.methods)]
        found = [each for each in drawn if each is not None]
        if not any(any(each.gain) for each in found):
            continue
        figure = drawing.new_figure(width=5.2, height=1.0 + 0.4 * len(found))
        decomposition_arrows(
            figure.add_subplot(),
            found,
            label="NLL (nats)\N{NO-BREAK SPACE}↓",
            ends=("mean of the members", "ensemble, or single model"),
        )
        yield Panel(
            f"What pooling takes off the members' NLL · {group.title}",
            drawing.svg_text(figure),
            f"NLL, {group.title}, means over replicates. {'; '.join(map(_told, found))}.",
        )


def _decomposition(place: int, method: MethodSummary, group: SplitGroup) -> Decomposition | None:
    terms = [
        (
            replicate_value(replicate, group, "nll"),
            0.0 if is_single(method) else replicate_value(replicate, group, "jensen_gap"),
        )
        for replicate in method.replicates
    ]
    known = [pair for pair in terms if all(map(math.isfinite, pair))]
    if not known:
        return None
    pooled, gain = zip(*known, strict=True)
    return Decomposition(method.name, place, pooled, gain)


def _told(method: Decomposition) -> str:
    pooled, gain = (mean_and_spread(values)[0] for values in (method.pooled, method.gain))
    if not any(method.gain):
        return f"{method.name}, a single model: {number(pooled)}"
    return (
        f"{method.name}: members {number(pooled + gain)}, less a Jensen gap of {number(gain)}, is "
        f"{number(pooled)}"
    )


def _measured(methods: tuple[MethodSummary, ...], group: SplitGroup, metric: str) -> bool:
    return any(
        all(metric in replicate.metrics.get(split, {}) for split in group.splits)
        for method in methods
        for replicate in method.replicates
    )


def _basis(comparison: Comparison, group: SplitGroup, methods: tuple[MethodSummary, ...]) -> str:
    """State how many images each value rests on, gradients by themselves, and the replicates."""
    ood = kind_of(group.splits[0]).endswith("_ood")
    images = image_counts(comparison, group, "n_ood" if ood else "n")
    gradients = image_counts(comparison, group, "n_gradients")
    each = " in each" if len(group.splits) > 1 else ""
    told = f"n = {count_range(images)} {'OOD ' if ood else ''}images{each}" if images else ""
    apart = f"input gradients on {count_range(gradients)}{each}" if gradients else ""
    return ", ".join(filter(None, (told, apart, replicates_told(methods))))


def _table_html(table: DiversityTable) -> str:
    rows = []
    for method in table.methods:
        cells = []
        for metric in table.metrics:
            lacking = cell_text(method, table.group, metric)
            cells.append(
                f'<td class="none">{lacking}</td>'
                if lacking
                else quality_cell(method, table.group, metric, math.nan)
            )
        rows.append([method_cell(method), *cells])
    heads = ["Method", *(directed_label(metric) for metric in table.metrics)]
    return table_html(f"{table.group.title}, diversity", table.basis, heads, rows)
