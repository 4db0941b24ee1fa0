"""The command compare: make a comparison, write its report, and print its summary."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from ..comparison.compare import compare, plan
from ..comparison.formatting import counted_text
from ..comparison.plan import Plan
from ..comparison.sentences import verdict_sentence, why_undefined
from ..comparison.stored import load_comparison, write_tables
from ..comparison.summary import summarize
from ..comparison.verdicts import Comparison
from ..config import CompareConfig
from ..cost.axes import AXES
from ..report import build_report, write_markdown, write_report
from ..store.progress import Display, duration
from ..store.run import exclusive, read_config
from .summary_view import show_summary
from .text_tables import output, show


def run_compare(config: CompareConfig) -> int:
    """Compare, write the report, and print the summary."""
    display = Display(quiet=config.quiet)
    if config.dry_run:
        return show_plan(plan(config, display=display))
    comparison = compare(config, display=display)
    write_reports(comparison, config.directory())
    show_comparison(comparison, config.directory(), verbose=config.verbose)
    return 0


def show_plan(plan: Plan) -> int:
    """Print what a comparison would do, and what would be missing from it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for name in ("cost", "batches", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in plan.methods:
        cost = "" if each.macs is None else AXES[0].text(float(each.macs))
        took = "" if each.seconds is None else f"{duration(each.seconds)} x {plan.replicates}"
        if each.source:
            took = f"{counted_text(each.members or 1, 'member')} of {each.source}"
        table.add_row(each.name, cost, each.batches, took)
    show(table)
    print(
        f"training takes about {duration(plan.seconds)} here in precision {plan.precision}, by one "
        "measured step of each method"
    )
    for warning in plan.warnings:
        print(f"caution: {warning}")
    return 0


def rebuild(path: Path, *, display: Display) -> Comparison:
    """Read a finished comparison, and write its tables and its report again, without any data.

    A directory without a finished comparison, or in which another process works, is a ValueError.
    """
    read_config(path, CompareConfig)  # another directory gets no lock
    with exclusive(path, otherwise="then give the same command again"):
        comparison = load_comparison(path, display=display)
        write_tables(comparison, path)
        write_reports(comparison, path)
    return comparison


def write_reports(comparison: Comparison, path: Path) -> None:
    """Write ``report.html``, and ``report.md`` with its figures, into a comparison's directory."""
    report = build_report(comparison)  # once: it resamples images
    write_report(comparison, path / "report.html", report=report)
    write_markdown(comparison, path / "report.md", report=report)


def show_comparison(comparison: Comparison, path: Path, *, verbose: bool) -> None:
    """Print a comparison's summary and the path of its report, after the details if ``verbose``."""
    console = output()
    if verbose:
        for line in _details(comparison):
            console.print(line, soft_wrap=True)
        console.print()
    show_summary(summarize(comparison), console)
    print(path / "report.html")


def _details(comparison: Comparison) -> Iterator[str]:
    """Yield every verdict as a sentence, and every note."""
    undefined: Counter[str] = Counter()
    for verdict in comparison.judgements:
        if verdict.outcome == "undefined":
            undefined[why_undefined(verdict.metric)] += 1
        else:
            yield verdict_sentence(verdict)
    for reason, count in undefined.items():
        yield f"{counted_text(count, 'comparison')} without a verdict, since {reason}"
    for note in (*comparison.picture_notes, *comparison.data_notes, *comparison.notes):
        yield f"note: {note}"
