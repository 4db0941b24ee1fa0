"""The layout of the report: one page of escaped text, with its style and figures inside."""

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from string import Template

from ...metrics.catalogue import METRICS
from ..comparison import Comparison
from . import figures, tables, verdicts
from .splits import directed_label, metrics_of, split_groups

_FEWEST_REPLICATES = 3

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
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
</body>
</html>
""")

_INTERVAL = Template(
    "Differences are ensemble minus single model. The 95 % interval comes from a paired bootstrap "
    "over test images ($draws draws, both methods on the same images) and from the spread of the "
    "replicates, with Student's quantile at Welch's degrees of freedom. "
    "Intervals are not corrected for there being many, and measures overlap (NLL and Brier score, "
    "for example), so the counts above are a summary and not a test."
)


def render_page(comparison: Comparison) -> str:
    """Write a comparison as one HTML page that refers to nothing outside itself.

    Args:
        comparison: What was measured and concluded.

    Returns:
        The page.
    """
    sections = (
        ("Verdict, metric by metric", _verdicts(comparison)),
        ("Quality", _quality(comparison)),
        ("Quality against cost", _panels(figures.quality_panels(comparison))),
        ("Calibration", _calibration(comparison)),
        ("Selective prediction", _selective(comparison)),
        ("Out-of-distribution detection", _detection(comparison)),
        ("Cost", _cost(comparison)),
        ("How to reproduce", _reproduction(comparison)),
        ("What the metrics mean", _glossary(comparison)),
    )
    return _PAGE.substitute(
        title=escape(f"Is this ensemble worth its cost? {comparison.data}"),
        style=files(__package__).joinpath("style.css").read_text(encoding="utf-8"),
        data=escape(comparison.data),
        headlines=_headlines(comparison),
        warnings=_warnings(comparison),
        sections="\n".join(
            f"<section>\n<h2>{title}</h2>\n{body}\n</section>" for title, body in sections if body
        ),
    )


def _headlines(comparison: Comparison) -> str:
    found = verdicts.headlines(comparison.verdicts)
    if not found:
        return '<p class="headline">There is nothing to compare: no verdict was reached.</p>'
    return "\n".join(
        f'<p class="headline"><strong>{escape(headline.answer)}.</strong> '
        f"{escape(headline.sentence)}</p>"
        for headline in found
    )


def _warnings(comparison: Comparison) -> str:
    warnings = [comparison.caveat] if comparison.caveat else []
    fewest = min((len(method.replicates) for method in comparison.methods), default=0)
    if fewest < _FEWEST_REPLICATES:
        warnings.append(
            f"Only {fewest} replicate{'' if fewest == 1 else 's'}: how much training itself varies "
            f"is hardly known, so trust no interval here. Use at least {_FEWEST_REPLICATES}."
        )
    return "\n".join(
        f'<p class="warning"><strong>Caution.</strong> {escape(text)}</p>' for text in warnings
    )


def _verdicts(comparison: Comparison) -> str:
    if not comparison.verdicts:
        return ""
    interval = _INTERVAL.substitute(draws=comparison.draws)
    return (
        f"<p>{escape(interval)}</p>\n"
        '<p class="key">In each bar the upright line is zero and the dot the estimate; '
        "right of zero favours the ensemble, whichever way the metric points.</p>\n"
        f"{verdicts.verdict_list(comparison.verdicts)}"
    )


def _quality(comparison: Comparison) -> str:
    return (
        f"{_descriptions(comparison)}\n"
        "<p>Mean ± standard deviation (ddof 1) over replicates. ↑ more is better, ↓ less is "
        "better, ★ the best mean, which need not be a significant difference.</p>\n"
        f"{tables.quality_tables(comparison)}"
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
    return _panels(
        figures.reliability_panels(comparison),
        "On the dashed diagonal, confidence equals accuracy. All replicates together; bars are "
        "95 % Wilson intervals for the images of one replicate. Below: images in each bin, mean "
        "over replicates, on a log axis.",
    )


def _selective(comparison: Comparison) -> str:
    return _panels(
        figures.risk_coverage_panel(comparison),
        "How often the model errs if it answers only the images it is most confident about. "
        "Lines are means over replicates, bands their range. The thin dotted lines are the "
        "oracle's, which has the same errors but rejects every one of them first.",
    )


def _detection(comparison: Comparison) -> str:
    return _panels(
        figures.ood_panels(comparison),
        "Predictive entropy of each method, all replicates together: the further the OOD images "
        "lie to the right of the test images, the easier they are to tell apart.",
    )


def _panels(panels: Iterable[figures.Panel], introduction: str = "") -> str:
    drawn = [panel.html() for panel in panels]
    if not drawn:
        return ""
    before = f"<p>{escape(introduction)}</p>\n" if introduction else ""
    return f'{before}<div class="panels">\n{"".join(drawn)}\n</div>'


def _cost(comparison: Comparison) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    return tables.cost_table(comparison) + (f"\n<ul>{notes}</ul>" if notes else "")


def _reproduction(comparison: Comparison) -> str:
    return (
        f"<pre><code>{escape(comparison.command)}</code></pre>\n"
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
    } | {verdict.metric for verdict in comparison.verdicts}
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
