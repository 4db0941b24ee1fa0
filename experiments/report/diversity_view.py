"""How much the members of an ensemble differ, and the gain from pooling them, as tables."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...metrics.core.catalogue import metrics_with
from ..comparison.single_models import ensembles_of
from ..comparison.verdicts import Comparison, MethodSummary
from .model import Cell, Table, Text
from .splits import SplitGroup, count_range, groups_by_kind, image_counts, replicate_range
from .tables import metrics_table

INTRODUCTION = (
    "How much the members of an ensemble differ: in their answers (disagreement, pairwise KL, "
    "cosine), in their errors (double fault, Q, correlation) and in the features that they use "
    "(the cosine between their input gradients: 1 is the same direction, 0 an unrelated one). "
    "Diversity is not good by itself: an ensemble's NLL is its members' mean NLL minus the Jensen "
    "gap, and its Brier score theirs minus the ambiguity, so diversity helps only where the gap "
    "grows by more than the members get worse. A single model has no diversity and is not in the "
    "tables."
)
LACKING = (
    "Some of these numbers were not measured when the runs were evaluated: `deepens evaluate RUN "
    "--predict` on each run, then `deepens report`, adds them."
)
_DIFFER = (
    *("disagreement", "normalized_disagreement", "pairwise_kl", "cosine_similarity"),
    *("double_fault", "q_statistic", "error_correlation", "input_gradient_similarity"),
)
_NLL = ("mean_member_nll", "jensen_gap", "nll")
_BRIER = ("mean_member_brier", "brier_ambiguity", "brier")
_UNLABELLED = ("pairwise_kl", "cosine_similarity", "input_gradient_similarity")


def diversity_tables(comparison: Comparison) -> Iterator[Table | Text]:
    """Yield the tables: in distribution, then means over the shifted, the near and the far splits.

    OOD images that were encoded a second time are a kind of their own.
    """
    ensembles = ensembles_of(comparison.methods)
    lacking = False
    for group in groups_by_kind(comparison):
        metrics = [
            metric
            for part in (_DIFFER, _NLL, _BRIER)
            for metric in part
            if _measured(ensembles, group, metric) and _measured(ensembles, group, part[0])
        ]
        if metrics:
            yield _table(comparison, group, metrics, ensembles)
            lacking = lacking or _lacks(group, ensembles)
    if lacking:
        yield Text(LACKING)


def _table(
    comparison: Comparison,
    group: SplitGroup,
    metrics: Sequence[str],
    ensembles: Sequence[MethodSummary],
) -> Table:
    table = metrics_table(comparison, group, metrics, ", diversity", ensembles)
    rows = []
    for row, method in zip(table.rows, ensembles, strict=True):
        cells = []
        for metric, cell in zip(metrics, row.cells, strict=True):
            known = _measured((method,), group, metric)
            shown = replace(cell, best=False)  # no diversity is the best one
            cells.append(shown if known else Cell("not measured", mark="missing"))
        rows.append(replace(row, cells=tuple(cells)))
    return replace(table, rows=tuple(rows), basis=_basis(comparison, group, ensembles))


def _lacks(group: SplitGroup, ensembles: Sequence[MethodSummary]) -> bool:
    """Tell whether some run was evaluated without some of the numbers."""
    wanted = _UNLABELLED if group.name.is_ood else metrics_with(role="diversity")
    return not all(
        metric in replicate.metrics.get(split, {})
        for method in ensembles
        for replicate in method.replicates
        for split in group.splits
        for metric in wanted
    )


def _measured(methods: Sequence[MethodSummary], group: SplitGroup, metric: str) -> bool:
    return any(
        all(metric in replicate.metrics.get(split, {}) for split in group.splits)
        for method in methods
        for replicate in method.replicates
    )


def _basis(comparison: Comparison, group: SplitGroup, methods: Sequence[MethodSummary]) -> str:
    """State how many images each value rests on, gradients by themselves, and the replicates."""
    key, word = ("n_ood", "OOD images") if group.name.is_ood else ("n", "images")
    each, parts = " in each" if len(group.splits) > 1 else "", []
    if images := image_counts(comparison, group, key):
        parts.append(f"n = {count_range(images)} {word}{each}")
    if gradients := image_counts(comparison, group, "n_gradients"):
        parts.append(f"input gradients on {count_range(gradients)}{each}")
    return ", ".join([*parts, replicate_range(methods)])
