"""The layout of the report: one page of escaped text, with its style, script and figures inside."""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template

from ...metrics.core.catalogue import METRICS
from ..comparison.headlines import headlines
from ..comparison.verdicts import FEWEST_REPLICATES, Comparison
from . import analysis, budget, diversity, figures, results, tables, told
from . import example_pictures as examples
from . import verdict_list as verdicts
from .markdown import CAPTIONS
from .splits import directed_label, metrics_of, split_groups

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src '$hash'; img-src data:">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<a class="skip" href="#content">Skip to the report</a>
<nav aria-label="Sections">
<ol>$links</ol>
</nav>
<div class="report" id="content" tabindex="-1">
<header>
<p class="kicker">deepens · $data</p>
<h1>Is this ensemble worth its cost?</h1>
<p class="against">Against a single model of the same inference cost.</p>
$headlines
$warnings
</header>
<main>
$sections
</main>
</div>
<script>$script</script>
</body>
</html>
""")

_INTERVAL = Template(
    "Differences are ensemble minus single model. The 95 % interval comes from a paired bootstrap "
    "over test images ($draws draws, both methods on the same images) and from the spread of the "
    "replicates, with Student's quantile at Welch's degrees of freedom. "
    "Each interval stands for itself; p-values are adjusted, by Holm's method, for all verdicts on "
    "the same two methods, however they overlap (NLL and Brier score, for example)."
)


@dataclass(frozen=True)
class _Section:
    """One entry of the index and what it leads to.

    Attributes:
        anchor: The section's id.
        short: Its name in the index.
        title: Its heading.
        body: HTML; a section without any is left out.
    """

    anchor: str
    short: str
    title: str
    body: str

    def html(self) -> str:
        return (
            f'<section id="{self.anchor}" aria-labelledby="{self.anchor}-title">\n'
            f'<h2 id="{self.anchor}-title">{self.title}</h2>\n{self.body}\n</section>'
        )

    def link(self) -> str:
        return f'<li><a href="#{self.anchor}">{self.short}</a></li>'


def render_page(comparison: Comparison) -> str:
    """Write a comparison as one HTML page that refers to nothing outside itself.

    The page allows one script, its own, by the hash of its text.

    Args:
        comparison: What was measured and concluded.

    Returns:
        The page.
    """
    sections = [section for section in _sections(comparison) if section.body]
    script = "\n".join(map(_part, ("script.js", "budget.js")))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _PAGE.substitute(
        hash=f"sha256-{digest}",
        title=escape(f"Is this ensemble worth its cost? {comparison.data}"),
        style=_part("style.css"),
        script=script,
        data=escape(comparison.data),
        links="".join(section.link() for section in sections),
        headlines=_headlines(comparison),
        warnings=_warnings(comparison),
        sections="\n".join(section.html() for section in sections),
    )


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _sections(comparison: Comparison) -> Iterator[_Section]:
    quality = _panels(figures.quality_panels(comparison), CAPTIONS["quality"])
    training = _panels(figures.training_panels(comparison), CAPTIONS["training"])
    reproduction, glossary = _reproduction(comparison), _glossary(comparison)
    yield _Section("verdict", "Verdict", "Verdict, metric by metric", _verdicts(comparison))
    yield _Section("budget", "Budget", "Which to deploy", budget.budget_html(comparison))
    yield _Section("results", "Results", "All results", _results(comparison))
    yield _Section("quality", "Quality and cost", "Quality against cost", quality)
    yield _Section("calibration", "Calibration", "Calibration", _calibration(comparison))
    yield _Section("selective", "Selection", "Selective prediction", _selective(comparison))
    yield _Section("sets", "Prediction sets", "Conformal prediction sets", _sets(comparison))
    yield _Section("ood", "OOD detection", "Out-of-distribution detection", _detection(comparison))
    yield _Section("shift", "Shift", "Distribution shift", _shift(comparison))
    yield _Section("diversity", "Diversity", "Diversity", _diversity(comparison))
    frontier = analysis.analysis_html(comparison)
    yield _Section("analysis", "Frontier", "Against the frontier", frontier)
    yield _Section("images", "Images", "The images themselves", _images(comparison))
    yield _Section("training", "Training", "Training", training)
    yield _Section("cost", "Cost", "Cost", _cost(comparison))
    yield _Section("reproduce", "Reproduce", "Data and how to reproduce", reproduction)
    yield _Section("metrics", "Metrics", "What the metrics mean", glossary)


def _headlines(comparison: Comparison) -> str:
    found = headlines(comparison)
    if not found:
        return '<p class="headline">There is nothing to compare: no verdict was reached.</p>'
    return "\n".join(
        f'<p class="headline"><strong>{escape(headline.answer)}.</strong> '
        f"{escape(' '.join(filter(None, (headline.sentence, headline.tally))))}</p>"
        for headline in found
    )


def _warnings(comparison: Comparison) -> str:
    warnings = [*comparison.cautions, *filter(None, [comparison.caveat])]
    fewest = min((len(method.replicates) for method in comparison.methods), default=0)
    if fewest < FEWEST_REPLICATES:
        warnings.append(
            f"Only {fewest} replicate{'' if fewest == 1 else 's'}: how much training itself varies "
            "is hardly known, so trust no interval here. Use at least "
            f"{FEWEST_REPLICATES}."
        )
    return "\n".join(
        f'<p class="warning"><strong>Caution.</strong> {escape(text)}</p>' for text in warnings
    )


def _verdicts(comparison: Comparison) -> str:
    notes = _list(comparison.verdict_notes)
    if not comparison.judgements:
        return notes
    interval = _INTERVAL.substitute(draws=comparison.draws)
    return (
        f"{verdicts.scoreboard(comparison.judgements)}\n"
        "<p>Metrics of one split overlap: they are not so many independent findings. In each bar "
        "the upright line is zero and the dot the estimate; right of zero favours the ensemble, "
        "whichever way the metric points.</p>\n"
        f"{verdicts.verdict_list(comparison.judgements)}\n"
        "<details><summary>How the intervals are made</summary>\n"
        f"<p>{escape(interval)}</p></details>\n{notes}"
    )


def _results(comparison: Comparison) -> str:
    table = results.results_table(comparison)
    if not table:
        return ""
    return (
        f"{_descriptions(comparison)}\n"
        "<p>Mean ± standard deviation (ddof 1) over replicates. ↑ more is better, ↓ less is "
        "better, ★ the best mean, which need not be a significant difference.</p>\n"
        f"{tables.quality_tables(comparison)}\n"
        "<h3>Every method, split and metric that is compared</h3>\n"
        "<p>Differences and outcomes stand with the ensembles that were judged. Each corruption "
        "by itself, and what other tables tell of each set, is in "
        "<code>results.csv</code>.</p>\n"
        f"{table}"
    )


def _descriptions(comparison: Comparison) -> str:
    counts = {method.name: len(method.replicates) for method in comparison.methods}
    return _definitions(
        {
            method.name: f"{method.description}; "
            f"{counts[method.name]} replicate{'' if counts[method.name] == 1 else 's'}"
            for method in comparison.methods
        }
    )


def _calibration(comparison: Comparison) -> str:
    drawn = _panels(figures.reliability_panels(comparison), CAPTIONS["reliability"])
    found = told.calibration_tables(comparison)
    written = f"<p>{escape(told.TEMPERATURES)}</p>\n{found}" if found else ""
    return "\n".join(filter(None, (drawn, written)))


def _selective(comparison: Comparison) -> str:
    drawn = _panels(figures.risk_coverage_panel(comparison), CAPTIONS["risk-coverage"])
    return "\n".join(filter(None, (drawn, told.selection_tables(comparison))))


def _sets(comparison: Comparison) -> str:
    found = told.set_tables(comparison)
    return f"<p>{escape(told.SETS)}</p>\n{found}" if found else ""


def _detection(comparison: Comparison) -> str:
    histograms = _panels(figures.ood_panels(comparison), CAPTIONS["ood"])
    curves = _panels(figures.roc_panels(comparison), CAPTIONS["roc"])
    found = tables.detection_tables(comparison)
    parts = (
        ("", f"{found}\n<p>{escape(tables.OOD_SCORES)}</p>" if found else ""),
        ("<h3>Predictive entropy</h3>\n", histograms),
        ("<h3>ROC curves</h3>\n", curves),
    )
    return "\n".join(f"{heading}{body}" for heading, body in parts if body)


def _shift(comparison: Comparison) -> str:
    curves = _panels(figures.severity_panels(comparison), CAPTIONS["severity"])
    return "\n".join(part for part in (tables.shift_tables(comparison), curves) if part)


def _diversity(comparison: Comparison) -> str:
    found = diversity.diversity_html(comparison)
    if not found:
        return ""
    drawn = _panels(figures.decomposition_panels(comparison), CAPTIONS["diversity"])
    return "\n".join(filter(None, (f"<p>{escape(diversity.INTRODUCTION)}</p>", drawn, found)))


def _panels(panels: Iterable[figures.Panel], introduction: str = "") -> str:
    """Write figures beside each other; groups of them have headings, and all but one are folded."""
    before = f"<p>{escape(introduction)}</p>\n" if introduction else ""
    drawn: list[str] = []
    for group, members in groupby(panels, key=lambda panel: panel.group):
        held = [panel.html() for panel in members]
        body = f'<div class="panels">{"".join(held)}</div>'
        if group and drawn:
            count = f"{len(held)} figure{'' if len(held) == 1 else 's'}"
            summary = f"{escape(group)} <span>{count}</span>"
            body = f"<details><summary>{summary}</summary>\n{body}</details>"
        elif group:
            body = f"<h3>{escape(group)}</h3>\n{body}"
        drawn.append(body)
    return before + "\n".join(drawn) if drawn else ""


def _cost(comparison: Comparison) -> str:
    return "\n".join(filter(None, (tables.cost_table(comparison), _list(comparison.notes))))


def _images(comparison: Comparison) -> str:
    pictures = examples.examples_html(comparison)
    return "\n".join(filter(None, (pictures, _list(comparison.picture_notes))))


def _list(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<ul>{items}</ul>" if items else ""


def _reproduction(comparison: Comparison) -> str:
    notes = _list(comparison.data_notes)
    data = f"<h3>Data</h3>\n{notes}\n<h3>Command</h3>\n" if notes else ""
    return (
        f"{data}<pre><code>{escape(comparison.command)}</code></pre>\n"
        "<details><summary>Configuration</summary>\n"
        f"<pre><code>{escape(comparison.configuration)}</code></pre></details>\n"
        "<details><summary>Environment</summary>\n"
        f"{_definitions(dict(_flattened(comparison.environment)))}</details>"
    )


def _flattened(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested mappings, with the path to each joined by dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _glossary(comparison: Comparison) -> str:
    used = {
        metric for group in split_groups(comparison) for metric in metrics_of(comparison, group)
    } | {verdict.metric for verdict in comparison.judgements}
    return _definitions(
        {
            directed_label(metric): information.description
            for metric, information in METRICS.items()
            if metric in used
        }
    )


def _definitions(entries: Mapping[str, str]) -> str:
    if not entries:
        return ""
    rows = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in entries.items()
    )
    return f"<dl>{rows}</dl>"
