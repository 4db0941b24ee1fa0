"""Tables of quality and of cost, a row a method."""

import math
from html import escape

from ..comparison import Comparison, MethodSummary
from .splits import (
    SplitGroup,
    directed_label,
    higher_is_better,
    image_counts,
    mean_and_spread,
    method_values,
    metrics_of,
    number,
    split_groups,
    spread_beside,
)


def quality_tables(comparison: Comparison) -> str:
    """Write one table a group of splits: mean ± sd over replicates, the best mean marked.

    Args:
        comparison: What was measured.

    Returns:
        HTML.
    """
    return "\n".join(_quality_table(comparison, group) for group in split_groups(comparison))


def _quality_table(comparison: Comparison, group: SplitGroup) -> str:
    metrics = metrics_of(comparison, group)
    best = {metric: _best_mean(comparison, group, metric) for metric in metrics}
    rows = []
    for method in comparison.methods:
        cells = [_quality_cell(method, group, metric, best[metric]) for metric in metrics]
        rows.append([_method_cell(method), *cells])
    heads = [escape(directed_label(metric)) for metric in metrics]
    basis = f"{_images(comparison, group)}, {_replicates(comparison)}"
    return _table(escape(group.title), basis, ["Method", *heads], rows)


def _best_mean(comparison: Comparison, group: SplitGroup, metric: str) -> float:
    direction = higher_is_better(metric)
    means = [
        mean_and_spread(method_values(method, group, metric))[0]
        for method in comparison.methods
        if not _says_nothing(method, metric)
    ]
    finite = [mean for mean in means if math.isfinite(mean)]
    if direction is None or len(set(finite)) < 2:  # none, one, or all alike: there is no best
        return math.nan
    return max(finite) if direction else min(finite)


def _quality_cell(method: MethodSummary, group: SplitGroup, metric: str, best: float) -> str:
    if _says_nothing(method, metric):
        return '<td class="none" title="one network has no mutual information">none</td>'
    values = method_values(method, group, metric)
    mean, spread = mean_and_spread(values)
    if not values:
        return '<td class="none">undefined</td>'
    text = number(mean)
    if math.isfinite(spread):
        text += f" <small>± {spread_beside(mean, spread)}</small>"
    missing = len(method.replicates) - len(values)
    if missing:
        text += f" <small>({missing} undefined)</small>"
    if mean == best:
        return f'<td class="best"><span title="best mean">★</span> {text}</td>'
    return f"<td>{text}</td>"


def _says_nothing(method: MethodSummary, metric: str) -> bool:
    """Tell whether a method's OOD score is a constant: one network has no mutual information."""
    return metric.endswith("_mutual_information") and all(
        replicate.metrics.get("test", {}).get("mutual_information") == 0
        for replicate in method.replicates
    )


def _images(comparison: Comparison, group: SplitGroup) -> str:
    """State how many images each replicate's values rest on."""
    kinds = (("n", "images"), ("n_id", "test images"), ("n_ood", "OOD images"))
    found = {kind: image_counts(comparison, group, key) for key, kind in kinds}
    told = " and ".join(f"{_range(counts)} {kind}" for kind, counts in found.items() if counts)
    each = " in each" if len(group.splits) > 1 else ""
    return f"n = {told}{each}" if told else "number of images unknown"


def _replicates(comparison: Comparison) -> str:
    counts = {len(method.replicates) for method in comparison.methods}
    return f"{_range(counts)} replicate{'' if counts == {1} else 's'}"


def _range(counts: set[int]) -> str:
    if min(counts) == max(counts):
        return f"{min(counts):,}"
    return f"{min(counts):,} to {max(counts):,}"


def cost_table(comparison: Comparison) -> str:
    """Write what each method costs, and how much that is relative to the reference.

    The reference is the method called ``single``, or else the one with the fewest MACs.

    Args:
        comparison: What was measured.

    Returns:
        HTML.
    """
    if not comparison.methods:
        return ""
    named = [method for method in comparison.methods if method.name == "single"]
    reference = named[0] if named else min(comparison.methods, key=lambda m: m.cost.macs)
    base = _costs(reference)
    rows = []
    for method in comparison.methods:
        cells = []
        for name, (amount, text) in _costs(method).items():
            if not math.isfinite(amount):
                cells.append('<td class="none">not measured</td>')
                continue
            reference_amount = base[name][0]
            relative = f" <small>&times; {amount / reference_amount:.2f}</small>"
            known = math.isfinite(reference_amount) and reference_amount > 0
            cells.append(f"<td>{text}{relative if known else ''}</td>")
        rows.append([_method_cell(method), *cells])
    basis = f"&times; relative to {escape(reference.name)}"
    return _table("Cost of each method", basis, ["Method", *base], rows)


def _costs(method: MethodSummary) -> dict[str, tuple[float, str]]:
    """Return each cost by its column: the amount to compare, and how it is written."""
    cost = method.cost
    seconds = math.nan if cost.training_seconds is None else cost.training_seconds
    return {
        "MACs per image": (float(cost.macs), _scaled(float(cost.macs))),
        "Parameters": (float(cost.parameters), _scaled(float(cost.parameters))),
        "Latency, batch 1": (cost.latency_ms_batch1, f"{cost.latency_ms_batch1:.3g} ms"),
        "Latency per image, batch 256": (
            cost.latency_ms_batch256,
            f"{cost.latency_ms_batch256:.3g} ms",
        ),
        "Peak memory": (
            float(cost.peak_memory_bytes),
            f"{cost.peak_memory_bytes / 2**20:,.1f} MiB",
        ),
        "Training time": (seconds, _duration(seconds)),
    }


def _scaled(amount: float) -> str:
    """Write a count with three digits and a unit: 12.3 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(amount) >= size:
            return f"{amount / size:.3g}{unit}"
    return f"{amount:g}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _method_cell(method: MethodSummary) -> str:
    return f'<th scope="row" title="{escape(method.description)}">{escape(method.name)}</th>'


def _table(title: str, basis: str, heads: list[str], rows: list[list[str]]) -> str:
    """Write a table that scrolls sideways in its own frame, where keyboards reach it too."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f"<h3>{title} <span>{basis}</span></h3>\n"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n</div>"
    )
