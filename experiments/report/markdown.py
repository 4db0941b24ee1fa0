"""The report as ``report.md``, in GitHub's Markdown, with its figures as files beside it."""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from ...datasets.files import whole_file
from ...metrics.core.catalogue import METRICS, metric_info
from ..comparison.examples import Examples
from ..comparison.frontier import frontier_gaps
from ..comparison.headlines import headlines
from ..comparison.sentences import verdict_sentence
from ..comparison.verdicts import FEWEST_REPLICATES, Comparison, MethodSummary
from ..store.run import write_whole_text
from . import example_pictures as pictures
from . import figures
from .analysis import GAPS, gap_notes, gap_tables
from .budget import INTRODUCTION as BUDGETS
from .budget import KEY as BUDGET_KEY
from .budget import answered, overview_rows
from .diversity import INTRODUCTION, LACKING, cell_text, diversity_tables, lacks
from .splits import (
    SplitGroup,
    directed_label,
    higher_is_better,
    kind_of,
    mean_and_spread,
    method_values,
    metrics_of,
    number,
    severity_groups,
    split_groups,
    split_title,
    spread_beside,
)
from .tables import OOD_SCORES, says_nothing
from .verdict_list import BADGES, outcome_of, verdicts_by_split

FOLDER = "report_figures"
"""Where the figures lie, beside the report."""

CAPTIONS = {
    "quality": (
        "Small marks are replicates, large ones their mean; bars are one standard deviation "
        "(ddof 1) up and down from it."
    ),
    "reliability": (
        "On the dashed diagonal, confidence equals accuracy. All replicates together; bars are "
        "95 % Wilson intervals for the images of one replicate. Below: images in each bin, mean "
        "over replicates, on a log axis."
    ),
    "risk-coverage": (
        "How often the model errs if it answers only the images it is most confident about. "
        "Lines are means over replicates, bands their range. The thin dotted lines are the "
        "oracle's, which has the same errors but rejects every one of them first."
    ),
    "ood": (
        "The further the OOD images lie to the right of the test images, the easier they are to "
        "tell apart. All replicates together."
    ),
    "roc": (
        "By predictive entropy, OOD being the positive class. Thin lines are replicates, bold ones "
        "their vertical means."
    ),
    "severity": (
        "Lines are means over replicates, bands their range. Severity 0 is the test images."
    ),
    "diversity": (
        "Each arrow leads from the mean NLL of a method's members, each by itself, to the NLL of "
        "the ensemble that they are pooled to; its length is the Jensen gap. Arrows are means over "
        "replicates, the thin lines below them the replicates."
    ),
    "training": "Thin lines are replicates, bold ones their mean as far as all were trained.",
}
"""Kind of figure -> what its lines, bars and bands are, on the page and in Markdown."""

_FIGURES = (
    (
        "quality",
        "Quality against cost",
        figures.quality_panels,
    ),
    (
        "reliability",
        "Calibration",
        figures.reliability_panels,
    ),
    (
        "risk-coverage",
        "Selective prediction",
        figures.risk_coverage_panel,
    ),
    (
        "ood",
        "Predictive entropy in and out of distribution",
        figures.ood_panels,
    ),
    (
        "roc",
        "ROC curves of out-of-distribution detection",
        figures.roc_panels,
    ),
    (
        "severity",
        "Quality as the shift grows",
        figures.severity_panels,
    ),
    (
        "training",
        "Training",
        figures.training_panels,
    ),
)


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write a comparison as Markdown, and its figures to ``report_figures/`` beside it.

    Every file is written whole or not at all, the text last. Figures of an earlier report that
    this one does not have are deleted then.

    Args:
        comparison: What was measured and concluded.
        path: The file to write, replaced if it exists.
    """
    folder = path.parent / FOLDER
    files: dict[str, bytes] = {}
    text = "\n\n".join(_parts(comparison, files)) + "\n"
    for name, content in files.items():
        with whole_file(folder / name) as aside:
            aside.write_bytes(content)
    write_whole_text(path, text)
    for old in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if old.name not in files:
            old.unlink()


def _parts(comparison: Comparison, files: dict[str, bytes]) -> Iterator[str]:
    """Yield the paragraphs, and put the figures that they show into ``files``."""
    yield "# Is this ensemble worth its cost?"
    yield f"On {_text(comparison.data)}, against a single model of the same inference cost."
    yield from _answers(comparison)
    yield from _verdicts(comparison)
    yield from _budgets(comparison)
    yield "## Results"
    yield _table(
        ["Method", "What it is", "Replicates"],
        ([m.name, m.description, str(len(m.replicates))] for m in comparison.methods),
        words=(0, 1),
    )
    yield (
        "Mean ± standard deviation (ddof 1) over replicates. ↑ more is better, ↓ less is better, "
        "★ the best mean, which need not be a significant difference. Every single value is in "
        "[results.csv](results.csv)."
    )
    groups = split_groups(comparison)
    for group in groups:
        severities = severity_groups(comparison) if kind_of(group.splits[0]) == "shift" else []
        for each in (group, *severities):
            yield f"### {_text(each.title)}"
            yield _quality_table(comparison, each)
    if any(kind_of(group.splits[0]) in ("near_ood", "far_ood") for group in groups):
        yield _text(OOD_SCORES)
    *measured, training = _FIGURES
    for name, title, draw in measured:
        yield from _figures(name, title, draw(comparison), files)
    yield from _diversity(comparison, files)
    yield from _frontier(comparison)
    if comparison.examples is not None or comparison.picture_notes:
        yield "## The images themselves"
    if comparison.examples is not None:
        yield from _examples(comparison.examples, files)
    yield from _list(comparison.picture_notes)
    name, title, draw = training
    yield from _figures(name, title, draw(comparison), files)
    yield "## Cost"
    yield _cost_table(comparison.methods)
    yield from _list(comparison.notes)
    yield from _reproduction(comparison)
    yield from _glossary(comparison)


def _answers(comparison: Comparison) -> Iterator[str]:
    found = headlines(comparison)
    for headline in found:
        yield f"**{_text(headline.answer)}.** {_text(headline.sentence)} {_text(headline.tally)}"
    if not found:
        yield "There is nothing to compare: no verdict was reached."
    for caution in (*comparison.cautions, *filter(None, [comparison.caveat])):
        yield f"> **Caution.** {_text(caution)}"
    fewest = min((len(method.replicates) for method in comparison.methods), default=0)
    if fewest < FEWEST_REPLICATES:
        yield (
            f"> **Caution.** Only {fewest} of the {FEWEST_REPLICATES} replicates that a claim "
            "needs at least: how much training itself varies is hardly known."
        )


def _verdicts(comparison: Comparison) -> Iterator[str]:
    if comparison.judgements or comparison.verdict_notes:
        yield "## Verdict, metric by metric"
        yield from _list(comparison.verdict_notes)
    if not comparison.judgements:
        return
    yield (
        "Differences are ensemble minus single model. The 95 % intervals come from a paired "
        f"bootstrap over test images ({comparison.draws} draws) and from the spread of the "
        "replicates, each for itself; p-values are adjusted, by Holm's method, for all verdicts on "
        "the same two methods."
    )
    for split, (here, remark) in verdicts_by_split(comparison.judgements).items():
        yield f"### {_text(split_title(split))}"
        if here:
            yield "\n".join(
                f"- **{BADGES[outcome_of(verdict)]}** {_text(verdict_sentence(verdict))}"
                for verdict in here
            )
        if remark:
            yield _text(remark)


def _budgets(comparison: Comparison) -> Iterator[str]:
    found = answered(comparison)
    if found:
        heads, rows = overview_rows(found)
        yield "## Which to deploy"
        yield f"{BUDGETS} {BUDGET_KEY} Budgets are MACs per image, in multiples of one network's."
        yield _table(heads, rows, words=range(len(heads)))


def _list(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield "\n".join(f"- {_text(note)}" for note in notes)


def _quality_table(comparison: Comparison, group: SplitGroup) -> str:
    rows = []
    for metric in metrics_of(comparison, group):
        if metric_info(metric).role == "diversity":  # which have tables of their own
            continue
        told = {m.name: _values(m, group, metric) for m in comparison.methods}
        means = {name: mean_and_spread(values)[0] for name, values in told.items()}
        best = _best(means.values(), higher_is_better(metric))
        cells = [_quality(told[name], means[name] == best) for name in told]
        rows.append([directed_label(metric), *cells])
    return _table(["Metric", *(method.name for method in comparison.methods)], rows)


def _values(method: MethodSummary, group: SplitGroup, metric: str) -> list[float]:
    return [] if says_nothing(method, metric) else method_values(method, group, metric)


def _best(means: Iterable[float], higher: bool | None) -> float:
    finite = {mean for mean in means if math.isfinite(mean)}
    if higher is None or len(finite) < 2:
        return math.nan
    return max(finite) if higher else min(finite)


def _quality(values: Sequence[float], best: bool) -> str:
    if not values:
        return "undefined"
    mean, spread = mean_and_spread(values)
    beside = f" ± {spread_beside(mean, spread)}" if math.isfinite(spread) else ""
    return f"{'★ ' if best else ''}{number(mean)}{beside}"


def _figures(
    name: str,
    title: str,
    panels: Iterable[figures.Panel],
    files: dict[str, bytes],
) -> Iterator[str]:
    drawn = list(panels)
    if drawn:
        yield f"## {title}"
        yield CAPTIONS[name]
    yield from _images(name, drawn, files)


def _images(name: str, panels: Iterable[figures.Panel], files: dict[str, bytes]) -> Iterator[str]:
    group = ""
    for count, panel in enumerate(panels, start=1):
        if panel.group != group:
            group = panel.group
            yield f"### {_text(group)}"
        file = f"{name}-{count:02d}.svg"
        files[file] = panel.svg.encode()
        yield f"**{_text(panel.title)}**"
        yield _image(panel.alternative, file)


def _diversity(comparison: Comparison, files: dict[str, bytes]) -> Iterator[str]:
    tables = diversity_tables(comparison)
    if not tables:
        return
    yield "## Diversity"
    yield INTRODUCTION
    drawn = list(figures.decomposition_panels(comparison))
    if drawn:
        yield CAPTIONS["diversity"]
        yield from _images("diversity", drawn, files)
    for table in tables:
        yield f"### {_text(table.group.title)}"
        yield _text(f"{table.basis}.")
        rows = []
        for metric in table.metrics:
            told = (
                cell_text(m, table.group, metric)
                or _quality(method_values(m, table.group, metric), best=False)
                for m in table.methods
            )
            rows.append([directed_label(metric), *told])
        yield _table(["Metric", *(method.name for method in table.methods)], rows)
    if any(map(lacks, tables)):
        yield LACKING


def _frontier(comparison: Comparison) -> Iterator[str]:
    found = frontier_gaps(comparison)
    if found:
        yield "## Against the frontier"
        yield _text(GAPS)
    for title, heads, rows in gap_tables(comparison, found):
        yield f"### {_text(title)}, gap at equal MACs"
        yield _table(heads, rows)
    yield from _list(gap_notes(found))


def _examples(examples: Examples, files: dict[str, bytes]) -> Iterator[str]:
    file = "examples.png"
    files[file] = pictures.png(pictures.contact_sheet(examples))
    yield _image(f"{len(examples.images)} numbered test images, described in the tables.", file)
    yield f"### {pictures.HARDEST_TITLE}"
    yield _text(pictures.HARDEST_CAPTION.format(count=len(examples.hardest)))
    yield _example_table(examples, examples.hardest, examples.methods)
    for method, chosen in examples.overconfident.items():
        caption = pictures.OVERCONFIDENT_CAPTION if chosen else pictures.NO_ERRORS
        yield f"### {_text(pictures.OVERCONFIDENT_TITLE.format(method=method))}"
        yield _text(caption.format(count=len(chosen), method=method))
        if chosen:
            yield _example_table(examples, chosen, [method])


def _example_table(examples: Examples, chosen: Sequence[int], methods: Sequence[str]) -> str:
    rows = []
    for position in chosen:
        told = [pictures.opinion(examples, position, method) for method in methods]
        rows.append(
            [
                str(position + 1),
                str(int(examples.index[position])),
                pictures.truth(examples, position),
                f"{float(examples.nll[position]):.2f}",
                *(f"{said} ({share:.2f}){' ✓' if right else ''}" for said, share, right in told),
            ]
        )
    heads = ["Picture", "Test image", "True class", "Mean NLL", *methods]
    return _table(heads, rows, words=(2, *range(4, len(heads))))


def _cost_table(methods: Sequence[MethodSummary]) -> str:
    heads = [
        "Method",
        "MACs per image",
        "Parameters",
        "Latency, batch 1 (ms)",
        "Latency per image, batch 256 (ms)",
        "Peak memory (MiB)",
        "Training time (s)",
    ]
    rows = []
    for method in methods:
        cost = method.cost
        measured = (
            (cost.latency_ms_batch1, f"{cost.latency_ms_batch1:.3g}"),
            (cost.latency_ms_batch256, f"{cost.latency_ms_batch256:.3g}"),
            (cost.peak_memory_bytes, f"{cost.peak_memory_bytes / 2**20:,.1f}"),
            (cost.training_seconds, f"{cost.training_seconds or 0.0:,.1f}"),
        )
        known = [
            text if amount is not None and math.isfinite(amount) else "not measured"
            for amount, text in measured
        ]
        rows.append([method.name, f"{cost.macs:,}", f"{cost.parameters:,}", *known])
    return _table(heads, rows)


def _reproduction(comparison: Comparison) -> Iterator[str]:
    yield "## Data and how to reproduce"
    yield from _list(comparison.data_notes)
    yield _fenced(comparison.command, "bash")
    yield "### Configuration"
    yield _fenced(comparison.configuration, "yaml")
    yield "### Environment"
    yield _fenced(json.dumps(_plain(comparison.environment), indent=2, ensure_ascii=False), "json")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _glossary(comparison: Comparison) -> Iterator[str]:
    used = {m for group in split_groups(comparison) for m in metrics_of(comparison, group)}
    used |= {verdict.metric for verdict in comparison.judgements}
    known = [metric for metric in METRICS if metric in used]
    if known:
        yield "## What the metrics mean"
        yield "\n".join(
            f"- **{_text(directed_label(metric))}**: {_text(METRICS[metric].description)}"
            for metric in known
        )


# After @ or #, where GitHub would link a user or an issue, which no backslash prevents.
_BREAK = "<!-- -->"


def _text(words: str) -> str:
    """Escape what Markdown or HTML would read as anything but text, on one line."""
    line = escape(" ".join(words.split(" ")).replace("\n", " "), quote=False)
    line = re.sub(r"[\\`*|~$]", r"\\\g<0>", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    line = re.sub(r"@(?=\w)|#(?=\d)", rf"\g<0>{_BREAK}", line)
    return line.replace("](", "]\\(")  # brackets alone make no link


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[int] = (0,)
) -> str:
    """Write a table; columns of words stand at the left, those of numbers at the right."""
    align = ["---" if column in words else "---:" for column in range(len(heads))]
    lines = [[_text(head) for head in heads], align]
    lines += [[_text(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _image(alternative: str, file: str) -> str:
    described = _text(alternative).replace(_BREAK, "").replace("[", "\\[").replace("]", "\\]")
    return f"![{described}]({FOLDER}/{file})"


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
