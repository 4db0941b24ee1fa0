"""The view model as files: one self-contained HTML page, or Markdown with its figures beside it."""

import base64
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from ...datasets.files import whole_file
from ..comparison.verdicts import Comparison
from ..store.run import write_whole_text
from .chart_specs import CONFIG
from .document import build_report
from .model import SIGNS, Chart, Code, Report, Sheet

FOLDER = "report_figures"
"""Where the figures of a Markdown report are, beside it."""

_SCRIPTS = ("script.js", "charts.js", "explorer.js")


def render_page(comparison: Comparison, *, report: Report | None = None) -> str:
    """Render a comparison as one HTML page that refers to nothing outside itself.

    The page allows no script but its own, by the hash of their text. ``report`` is the comparison's
    view model, where it is built already.
    """
    report = report or build_report(comparison)
    charts = {chart.name: chart.spec for chart in _charts(report.sections)}
    scripts = [vega(), "\n".join(map(_part, _SCRIPTS))]
    return (
        template_environment(html=True)
        .get_template("page.html")
        .render(
            report=report,
            charts={"config": CONFIG, "methods": comparison.names, "specs": charts},
            signs=SIGNS,
            at=lambda place: f"{100 + 92 * place:.1f}",
            style=Markup(_part("style.css")),
            scripts=[Markup(script) for script in scripts],
            hashes=[_digest(script) for script in scripts],
        )
    )


def write_markdown(comparison: Comparison, path: Path, *, report: Report | None = None) -> None:
    """Write a comparison as Markdown, and its figures to ``report_figures/`` beside it.

    Every file is written whole or not at all, the text last. Figures of an earlier report that
    this one does not have are deleted then. ``report`` is as in `render_page`.
    """
    content: dict[str, bytes] = {}

    def file(block: Chart | Sheet) -> str:
        if isinstance(block, Chart):
            name, drawn = f"{block.name}.svg", svg(block.spec).encode()
        else:
            name, drawn = "examples.png", block.draw()
        content[name] = drawn
        return f"{FOLDER}/{name}"

    environment = template_environment(html=False)
    environment.filters["file"] = file
    template = environment.get_template("report.md")
    text = template.render(report=report or build_report(comparison), signs=SIGNS)
    folder = path.parent / FOLDER
    for name, each in content.items():
        with whole_file(folder / name) as aside:
            aside.write_bytes(each)
    write_whole_text(path, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
    for old in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if old.name not in content:
            old.unlink()


def svg(spec: Mapping[str, Any]) -> str:
    """Draw a chart in Vega-Lite as SVG on white, with text that needs no font of its own."""
    import vl_convert

    # Marks that only a pointer finds would be most of the file.
    layers = [each for each in spec.get("layer", ()) if each.get("name") != "hover"]
    spec = {**spec, "layer": layers} if layers else spec
    drawn: str = vl_convert.vegalite_to_svg({**spec, "config": {**CONFIG, "background": "white"}})
    ids: dict[str, str] = {}  # which count on over all drawings of a process
    drawn = re.sub(r"clip\d+", lambda found: ids.setdefault(found[0], f"clip{len(ids)}"), drawn)
    return drawn.replace("currentColor", "#1b1f24")


@functools.cache
def vega() -> str:
    """Return the JavaScript of Vega, Vega-Lite and Vega-Embed, from the installed vl-convert.

    Putting it together takes seconds, so a process does it once. It is never read from a cache
    on disk, which others could write: every report executes it.
    """
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


@functools.cache
def template_environment(*, html: bool) -> Environment:
    """Return the templates, which escape what they are given as HTML, or by the filter ``md``."""
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=html, trim_blocks=True, lstrip_blocks=True
    )
    options = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    environment.policies["json.dumps_kwargs"] = options
    environment.filters |= {"md": markdown_text, "fenced": _fenced, "alternative": _alternative}
    return environment


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _charts(blocks: Iterable[Any]) -> Iterator[Chart]:
    """Yield all charts in sections, blocks and what is folded in them."""
    for block in blocks:
        yield from getattr(block, "charts", ())
        yield from _charts(getattr(block, "blocks", ()))


# After @ or #, where GitHub would link a user or an issue, which no backslash prevents.
_BREAK = "<!-- -->"


def markdown_text(words: str) -> str:
    r"""Escape what Markdown or HTML would read as anything but text, on one line.

    Example:
        >>> from deepens.experiments.report.render import markdown_text
        >>> markdown_text("a|b <i>*c*")
        'a\\|b &lt;i&gt;\\*c\\*'
    """
    line = escape(" ".join(words.split(" ")).replace("\n", " "), quote=False)
    line = re.sub(r"[\\`*|~$]", r"\\\g<0>", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    line = re.sub(r"@(?=\w)|#(?=\d)", rf"\g<0>{_BREAK}", line)
    return line.replace("](", "]\\(")  # brackets alone make no link


def _alternative(description: str) -> str:
    text = markdown_text(description).replace(_BREAK, "")
    return text.replace("[", "\\[").replace("]", "\\]")


def _fenced(code: Code) -> str:
    longest = max((len(run) for run in re.findall(r"`+", code.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{code.language}\n{code.text.rstrip()}\n{fence}"
