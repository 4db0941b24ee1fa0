"""A comparison as the view model of its report: the first screen, then section by section."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ...datasets.corruptions.shift import FROST_NOTE
from ...metrics.core.catalogue import METRICS
from ..comparison.formatting import counted_text, number, plus_minus
from ..comparison.headlines import merged
from ..comparison.sentences import difference_text
from ..comparison.summary import Cell as SummaryCell
from ..comparison.summary import MethodRow, Summary, summarize
from ..comparison.verdicts import Comparison
from ..cost.axes import multiple_text, prefixed
from .budget import budget_blocks
from .charts import entropy_charts, gain_charts, quality_charts, reliability_charts
from .curve_charts import risk_coverage_chart, roc_charts
from .frontier_view import frontier_blocks
from .model import (
    Cell,
    Chart,
    Charts,
    Code,
    Definitions,
    Folded,
    Heading,
    Notes,
    Report,
    Row,
    Section,
    Table,
    Text,
)
from .pictures import picture_blocks
from .results import results_table
from .secondary import (
    DIVERSITY,
    SETS,
    TEMPERATURES,
    calibration_tables,
    cost_table,
    diversity_tables,
    selection_tables,
    set_tables,
)
from .splits import directed_label, metrics_of, split_groups
from .tables import OOD_SCORES, detection_tables, quality_tables, shift_tables
from .trend_charts import corruption_charts, severity_charts, training_charts
from .verdict_view import verdict_blocks

CAPTIONS = {
    "quality": (
        "Large marks are means over replicates, short lines the replicates; bars are one standard "
        "deviation (ddof 1) up and down from the mean."
    ),
    "reliability": (
        "On the dashed diagonal, confidence equals accuracy. All replicates together; bars are "
        "95 % Wilson intervals for the images of one replicate. Below: images in each bin, mean "
        "over replicates, on a log axis."
    ),
    "risk": (
        "Risk-coverage curves: the error rate if the model answers only the images on which it is "
        "most confident. Lines are means over replicates, bands their range. The thin dotted lines "
        "are the oracle's, which makes the same errors but rejects all of them first."
    ),
    "ood": (
        "The further the OOD images lie to the right of the test images, the easier they are to "
        "detect. All replicates together."
    ),
    "roc": (
        "By predictive entropy, OOD being the positive class. Lines are vertical means over "
        "replicates, bands their range."
    ),
    "severity": (
        "Lines are means over replicates, bands their range. Severity 0 is the test images."
    ),
    "diversity": (
        "Each line leads from the mean NLL of a method's members (hollow) to the NLL of their "
        "ensemble (filled); its length is the Jensen gap. Marks are means over replicates, short "
        "lines the replicates."
    ),
    "training": "Lines are means over replicates, as far as all were trained, bands their range.",
}
"""Kind of chart -> what its lines, bars and bands are."""

_KEY = (
    "Mean ± standard deviation over replicates; ★ the best mean. Against the compute-matched "
    "single model (where there is none, single models interpolated at equal cost), after Holm's "
    "correction for all metrics and splits of the two: ✓ better, ✗ worse, each with the 95 % "
    "interval of its advantage (positive is better), ○ no difference shown; a mean over several "
    "OOD sets is marked ✓ or ✗ only if all of them agree. Methods without a mark have no single "
    "model of equal cost to compare with, nor two to interpolate between."
)
_NOTHING = (
    "There is nothing to compare: no ensemble has a single model of equal cost, nor two to "
    "interpolate between."
)
MEASURES_ALL = (
    "The same command with `--evaluate full` measures what is missing, and trains nothing again."
)


def build_report(comparison: Comparison) -> Report:
    """Build the view model of a comparison's report, which both templates render.

    Text, numbers and charts are in reading order; sections without content are left out.
    """
    summary = summarize(comparison)
    sections = (
        Section(anchor, short, title, tuple(filter(None, blocks(comparison))))
        for anchor, short, title, blocks in _SECTIONS
    )
    answers = tuple((f"{each.answer}.", each.sentence) for each in merged(summary.headlines))
    return Report(
        data=comparison.data,
        answers=answers or ((_NOTHING, ""),),
        overview=_overview(summary),
        overview_key=_KEY,
        deploy=summary.deploy,
        cautions=summary.cautions,
        sections=tuple(section for section in sections if section.blocks),
    )


def _overview(summary: Summary) -> Table | None:
    """Make the first table: a row per method with its cost and the main metrics."""
    if not summary.rows:
        return None
    heads = (
        f"{c.label}\N{NO-BREAK SPACE}{'↑' if c.higher_is_better else '↓'}" for c in summary.columns
    )
    rows = []
    for row in summary.rows:
        multiple = multiple_text(row.multiple) if math.isfinite(row.multiple) else ""
        cost = Cell(multiple, f"{prefixed(row.cost)} MACs", value=row.cost)
        cells = (cost, *(_cell(row, row.cells[column.key]) for column in summary.columns))
        note = f"against {row.partner}" if row.partner else ""
        rows.append(Row(row.name, cells, row.family, note=note))
    return Table("", "", ("Method", "Cost", *heads), tuple(rows), label="Methods")


def _cell(row: MethodRow, cell: SummaryCell) -> Cell:
    if not cell.replicates:
        return Cell("", mark="missing", value=math.nan)
    title = f"{cell.mark}, against {row.partner}" if cell.mark else ""
    if cell.verdict is not None and cell.mark:
        title += f": advantage {' '.join(difference_text(cell.verdict))}"
    text, note = number(cell.mean), plus_minus(cell.mean, cell.sd)
    return Cell(text, note, cell.mark, cell.mean, title, cell.best, cell.interval)


Blocks = Iterator[Any]


def _charts(charts: Iterable[Chart], caption: str, heading: str = "") -> Blocks:
    if held := tuple(charts):
        if heading:
            yield Heading(heading)
        yield Text(CAPTIONS[caption])
        yield Charts(held)


def _introduced(text: str, blocks: Iterable[Any]) -> Blocks:
    if held := list(blocks):
        yield Text(text)
        yield from held


def _results(comparison: Comparison) -> Blocks:
    table = results_table(comparison)
    if table is None:
        return
    counts = {m.name: counted_text(len(m.replicates), "replicate") for m in comparison.methods}
    yield Definitions({m.name: f"{m.description}; {counts[m.name]}" for m in comparison.methods})
    yield Text(
        "Mean ± standard deviation (ddof 1) over replicates. ↑ higher is better, ↓ lower is "
        "better, ★ the best mean, which need not be a significant difference."
    )
    yield from quality_tables(comparison)
    yield Heading("Every method, split and metric that is compared")
    yield Text(
        "Differences and outcomes are given for ensembles with a single model of equal cost, or "
        "two to interpolate between. Every single value, also of each corruption by itself, is in "
        "results.csv."
    )
    yield table


def _quality(comparison: Comparison) -> Blocks:
    for index, (cost, charts) in enumerate(quality_charts(comparison).items()):
        if not index:
            yield Text(CAPTIONS["quality"])
            yield Heading(cost)
            yield Charts(tuple(charts))
        else:
            yield Folded(cost, counted_text(len(charts), "chart"), (Charts(tuple(charts)),))


def _calibration(comparison: Comparison) -> Blocks:
    yield from _charts(reliability_charts(comparison), "reliability")
    yield from _introduced(TEMPERATURES, calibration_tables(comparison))


def _selective(comparison: Comparison) -> Blocks:
    yield from _charts(risk_coverage_chart(comparison), "risk")
    yield from selection_tables(comparison)


def _detection(comparison: Comparison) -> Blocks:
    if tables := list(detection_tables(comparison)):
        yield from tables
        yield Text(OOD_SCORES)
    yield from _charts(entropy_charts(comparison), "ood", "Predictive entropy")
    yield from _charts(roc_charts(comparison), "roc", "ROC curves")


def _unmeasured(comparison: Comparison, kind: str, what: str) -> Blocks:
    if kind in comparison.unmeasured:
        yield Text(f"{what} not measured (--evaluate quick). {MEASURES_ALL}", "caution")


def _shift(comparison: Comparison) -> Blocks:
    yield from _unmeasured(comparison, "shift", "Corrupted copies of the test images were")
    yield from shift_tables(comparison)
    if FROST_NOTE in comparison.data_notes:
        yield Notes((FROST_NOTE,))
    yield from _charts(severity_charts(comparison), "severity", "Mean over corruptions")
    if held := tuple(corruption_charts(comparison)):
        yield Folded("Each corruption", "accuracy", (Charts(held),))


def _diversity(comparison: Comparison) -> Blocks:
    if tables := list(diversity_tables(comparison)):
        yield Text(DIVERSITY)
        yield from _charts(gain_charts(comparison), "diversity")
        yield from tables
        yield from _unmeasured(comparison, "gradients", "The similarity of input gradients was")


def _cost(comparison: Comparison) -> Blocks:
    yield from cost_table(comparison)
    if comparison.notes:
        yield Notes(tuple(comparison.notes))


def _reproduction(comparison: Comparison) -> Blocks:
    if comparison.data_notes:
        yield Notes(tuple(comparison.data_notes))
    yield Code(comparison.command, "bash")
    yield Folded("Configuration", "", (Code(comparison.configuration.rstrip(), "yaml"),))
    environment = json.dumps(_plain(comparison.environment), indent=2, ensure_ascii=False)
    yield Folded("Environment", "", (Code(environment, "json"),))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _glossary(comparison: Comparison) -> Blocks:
    used = {metric for g in split_groups(comparison) for metric in metrics_of(comparison, g)}
    used |= {verdict.metric for verdict in comparison.judgements}
    if entries := {directed_label(m): info.description for m, info in METRICS.items() if m in used}:
        yield Definitions(entries)


def _sets(comparison: Comparison) -> Blocks:
    return _introduced(SETS, set_tables(comparison))


_SECTIONS: tuple[tuple[str, str, str, Callable[[Comparison], Blocks]], ...] = (
    ("verdict", "Verdicts", "Verdicts, metric by metric", verdict_blocks),
    ("budget", "Budget", "What to deploy within a budget", budget_blocks),
    ("results", "Results", "All results", _results),
    ("quality", "Quality and cost", "Quality against cost", _quality),
    ("calibration", "Calibration", "Calibration", _calibration),
    ("selective", "Selection", "Selective prediction", _selective),
    ("sets", "Prediction sets", "Conformal prediction sets", _sets),
    ("ood", "OOD detection", "Out-of-distribution detection", _detection),
    ("shift", "Shift", "Distribution shift", _shift),
    ("diversity", "Diversity", "Diversity", _diversity),
    ("frontier", "Frontier", "Against the frontier of single models", frontier_blocks),
    ("images", "Images", "Example images", picture_blocks),
    ("training", "Training", "Training", lambda c: _charts(training_charts(c), "training")),
    ("cost", "Cost", "Cost", _cost),
    ("reproduce", "Reproduce", "Data and how to reproduce", _reproduction),
    ("metrics", "Metrics", "What the metrics mean", _glossary),
)
