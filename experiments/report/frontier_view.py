"""The section that compares ensembles with the frontier of single models."""

import math
from collections.abc import Iterator, Sequence

from ...datasets import SplitName
from ...metrics.statistics.effective_robustness import FEWEST_FOR_INTERVALS
from ...metrics.statistics.ensemble_size import Equivalent
from ...metrics.statistics.gain_correlation import CorrelationInterval
from ..comparison.ensemble_sizes import EnsembleSizes, ensemble_sizes
from ..comparison.formatting import counted_text, listed, number, plus_minus, signed
from ..comparison.frontier import (
    FRONTIER_METRICS,
    ConditionalDiversity,
    Gap,
    conditional_diversity,
    frontier_gaps,
    splits_of,
)
from ..comparison.gains import GainTable, gain_table
from ..comparison.headlines import KIND_TITLES
from ..comparison.robustness import Robustness, robustness
from ..comparison.single_models import ensembles_of, single_models
from ..comparison.verdicts import FEWEST_REPLICATES, Comparison
from .model import Cell, Heading, Notes, Row, Table, Text
from .splits import directed_label, mean_and_spread, metric_label, replicate_range, split_title
from .tables import spread_cell

EQUAL = "At equal cost"
GAPS = (
    "Is an ensemble better than a single model of equal cost, where no method is one? The gap is "
    "how much better it is (positive) or worse (negative), by its metric, than what single "
    "models reach at the same MACs, interpolated linearly in log MACs between the next cheaper "
    "and the next more expensive one (single models of equal cost count by their mean). In "
    "brackets is the 95 % interval, from the paired bootstrap over images and the spread of "
    "replicates. ✓ the ensemble is better and ✗ worse, at 5 % after Holm's correction for all its "
    f"gaps, from at least {FEWEST_REPLICATES} replicates; ○ neither is shown."
)
GAINS = (
    "Does an ensemble improve the same images as a larger network of equal cost? A gain is the "
    "loss on one test image minus that of a base network. Ensemble and large is the correlation of "
    "the two gains over images; beside it stands the correlation between two ensembles, and "
    "between two large networks, trained independently: a correlation as high means the same "
    "images, one near 0 means different ones. 95 % intervals are from the bootstrap over images."
)
ROBUSTNESS = (
    "Effective robustness at matched in-distribution accuracy: accuracy under shift minus that of "
    "the line through the single models, in logits; above 0 is more robust than the accuracy on "
    "test images predicts. The 95 % interval is that of a prediction: a further single model would "
    "have 0 in its own in 95 % of cases. ± is the spread of replicates."
)
FEW_SINGLES = (
    f"An interval needs at least {FEWEST_FOR_INTERVALS} single models of different size or "
    "training: how far fewer scatter about their line is hardly known."
)
CONDITIONAL = (
    "Do members differ where it helps? Their disagreement and mutual information on the test "
    "images that the ensemble classifies correctly, and on those that it gets wrong: the further "
    "apart the two, the better diversity reveals errors."
)
SIZES = (
    "How many independent members is each method worth? The deep-ensemble equivalent is the size "
    "at which a deep ensemble of the same networks reaches the method's NLL at the pooled "
    "temperature on the test images, straight between the sizes that were trained; 1 stands for no "
    "better than a single network. The 95 % interval holds the sizes from which the method is not "
    "shown to differ; it is open where the largest ensemble is one of them."
)
Blocks = Iterator[Heading | Text | Table | Notes]


def frontier_blocks(comparison: Comparison) -> Blocks:
    """Yield gaps at equal cost, worth in members, gains, robustness, and where members differ."""
    if not ensembles_of(comparison.methods) or not single_models(comparison.methods):
        return
    members = _conditional(conditional_diversity(comparison))
    for title, introduction, blocks in (
        (EQUAL, GAPS, _gaps(comparison)),
        ("Worth in independent members", SIZES, _sizes(ensemble_sizes(comparison))),
        ("Gains on the same images", GAINS, _gains(gain_table(comparison))),
        ("Effective robustness", ROBUSTNESS, _robustness(robustness(comparison))),
        ("Members on correct and wrong answers", CONDITIONAL, members),
    ):
        held = list(blocks)
        if held:
            yield Heading(title)
            if title != EQUAL or any(isinstance(each, Table) for each in held):
                yield Text(introduction)
            yield from held


def _gaps(comparison: Comparison) -> Blocks:
    between = {pair: verdicts[0].between for pair, verdicts in comparison.pairs.items()}
    matched = {ensemble for (ensemble, _), ends in between.items() if not ends}
    # One difference has one verdict: what the verdicts decide is not told again.
    judged = {
        (v.challenger, SplitName.parse(v.split).kind) for v in comparison.judgements if v.mark
    }
    ensembles = frontier_gaps(comparison, leave_out=matched)
    where = replicate_range(comparison.methods)
    for kind, metrics in FRONTIER_METRICS.items():
        gaps = {
            each.method.name: {gap.metric: gap for gap in each.gaps if gap.kind == kind}
            for each in ensembles
            if (each.method.name, kind) not in judged
        }
        here = {name: each for name, each in gaps.items() if each}
        rows = tuple(
            Row(directed_label(metric), tuple(_gap(each.get(metric)) for each in here.values()))
            for metric in metrics
            if any(metric in each for each in here.values())
        )
        if rows:
            splits = splits_of(comparison, kind)
            title = f"{KIND_TITLES[kind]} (mean of {len(splits)})"
            title = split_title(splits[0]) if len(splits) == 1 else title
            yield Table(f"{title}, gap at equal MACs", where, ("Metric", *here), rows)
    notes = [f"{e.method.name} is {e.beyond}." for e in ensembles if e.beyond]
    alike: dict[tuple[str, bool], list[str]] = {}
    for (name, partner), ends in between.items():
        alike.setdefault((partner, bool(ends)), []).append(name)
    notes += [
        f"{listed(names)}, against {partner} at equal cost: see Verdicts."
        if interpolated
        else f"{partner} is a single model of the cost of {listed(names)}: see Verdicts."
        for (partner, interpolated), names in alike.items()
    ]
    if notes:
        yield Notes(tuple(notes))


def _gap(gap: Gap | None) -> Cell:
    if gap is None:
        return Cell("not measured", mark="missing")
    if gap.found is None:
        return Cell("undefined", mark="missing")
    estimate, low, high = gap.advantage
    if not math.isfinite(low):
        return Cell(signed([estimate])[0], "interval unknown", "not shown")
    shown, *ends = signed([estimate, low, high])
    return Cell(shown, f"[{', '.join(ends)}]", gap.outcome, estimate)


def _sizes(found: EnsembleSizes | None) -> Blocks:
    if found is None:
        return
    rows = tuple(
        Row(name, (_equivalent(each, found.largest),)) for name, each in found.equivalents.items()
    )
    sizes = ", ".join(f"{number(loss)} with {size}" for size, loss in found.sizes.items())
    if rows:
        heads = ("Method", "Deep-ensemble equivalent")
        yield Table("Independent members by NLL", f"deep ensembles: NLL {sizes}", heads, rows)
    if found.law is not None:
        law = found.law
        shown, *ends = signed([law.predicted - law.observed, law.low, law.high])
        yield Text(
            f"The smaller deep ensembles follow {number(law.law.limit)} + {number(law.law.gain)} "
            f"M^{law.law.exponent:.2f}, which predicts {number(law.predicted)} for {found.largest} "
            f"members; they reach {number(law.observed)} (difference {shown} [{', '.join(ends)}])."
        )
    if found.left_out:
        yield Text(f"Without a temperature, and so left out: {listed(found.left_out)}.")


def _equivalent(found: Equivalent, largest: int) -> Cell:
    """Write a number of members; beyond the largest ensemble it is not known."""
    if math.isnan(found.estimate):
        return Cell("undefined", mark="missing")
    shown, low, high = (
        f"over {largest}" if math.isinf(each) else f"{each:.2g}" if each < 10 else f"{each:.0f}"
        for each in (found.estimate, found.low, found.high)
    )
    return Cell(shown, f"[{low}, {high}]", value=found.estimate)


def _gains(table: GainTable) -> Blocks:
    if table.reason:
        yield Text(table.reason)
        return
    rows = []
    for row in table.rows:
        cells = [Cell(row.big.name), Cell(metric_label(row.loss))]
        if row.found is None:
            cells += [Cell(row.reason, mark="missing"), Cell(""), Cell(""), Cell("")]
        else:
            results = (row.found.ensemble_big, row.found.ensemble_ensemble, row.found.big_big)
            cells += map(_correlation, results)
            cells.append(Cell(f"{row.replicates[0]} and {row.replicates[1]}"))
        rows.append(Row(row.ensemble.name, tuple(cells), row.ensemble.description))
    heads = ("Method", "Large network", "Loss", "Ensemble and large", "Two ensembles", "Two large")
    yield Table("Correlation of gains", "test images", (*heads, "Replicates"), tuple(rows))
    if table.note:
        yield Text(table.note)


def _correlation(found: CorrelationInterval) -> Cell:
    values = (found.estimate, found.low, found.high)
    if not all(map(math.isfinite, values)):
        return Cell("undefined", mark="missing")
    return Cell(number(found.estimate), f"[{number(found.low)}, {number(found.high)}]")


def _robustness(found: Robustness | None) -> Blocks:
    if found is None:
        return
    if found.reason:
        yield Text(found.reason)
        return
    rows = []
    for each in found.ensembles:
        cells = (Cell(each.reason, mark="missing"), Cell(""))
        if not each.reason:
            values = [v for v in (each.estimate, each.low, each.high) if math.isfinite(v)]
            shown, *ends = signed(values)
            spread = plus_minus(each.estimate, mean_and_spread(each.replicates)[1])
            note = f"{spread} [{', '.join(ends)}]".strip() if ends else spread
            cells = Cell(shown, note, value=each.estimate), Cell(str(len(each.replicates)))
        rows.append(Row(each.method.name, cells, each.method.description))
    shifts = counted_text(found.splits, "shifted split")
    where = f"line of {found.singles} single models, mean of {shifts}"
    heads = ("Method", "Effective robustness", "Replicates")
    yield Table("Accuracy above the line", where, heads, tuple(rows))
    if found.singles < FEWEST_FOR_INTERVALS:
        yield Text(FEW_SINGLES)
    elif found.note:
        yield Text(found.note)


def _conditional(found: Sequence[ConditionalDiversity]) -> Blocks:
    if not found:
        return
    rows = []
    for each in found:
        cells = tuple(map(spread_cell, (*each.disagreement, *each.mutual_information)))
        rows.append(Row(each.method.name, cells, each.method.description))
    heads = (
        f"{metric_label(metric)}, {answer}"
        for metric in ("disagreement", "mutual_information")
        for answer in ("correct", "wrong")
    )
    where = f"test images, {replicate_range([each.method for each in found])}"
    yield Table("Diversity by the pooled answer", where, ("Method", *heads), tuple(rows))
