"""The commands compare and report: make or read a comparison, write its report, and print it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..comparison.compare import compare
from ..comparison.frames import write_tables
from ..comparison.pairs import describe_pairs
from ..comparison.sentences import verdict_sentence, why_undefined
from ..comparison.stored import load_comparison
from ..comparison.summary import summarize
from ..comparison.verdicts import Comparison
from ..config import CompareConfig, ReportConfig
from ..report import write_markdown, write_report
from ..store.progress import Display
from ..store.run import Run, read_config
from .summary_view import show_summary
from .text_tables import output


def run_compare(config: CompareConfig) -> int:
    """Compare, write the report, and print the summary."""
    display = Display(quiet=config.quiet)
    comparison = compare(config, display=display)
    write_reports(comparison, config.directory())
    _show(comparison, config.directory(), verbose=config.verbose)
    return 0


def run_report(config: ReportConfig) -> int:
    """Rebuild the report from the runs, and print the summary."""
    path = Path(config.run)
    if (path / "grid.yaml").exists():
        from .grid import run_grid_report  # which makes comparisons itself

        return run_grid_report(path, quiet=config.quiet)
    comparison = rebuild(path, display=Display(quiet=config.quiet))
    _show(comparison, path, verbose=config.verbose)
    seed = read_config(path, CompareConfig).seed
    backbones = {
        method.name: Run.open(path / method.replicates[0].directory).config.backbone
        for method in comparison.methods
    }
    for line in describe_pairs(comparison, config.pairs, backbones=backbones, seed=seed):
        print(line)
    return 0


def rebuild(path: Path, *, display: Display) -> Comparison:
    """Read a finished comparison, and write its tables and its report again, without any data.

    Args:
        path: The comparison's directory.
        display: Where progress is shown.

    Returns:
        The comparison.

    Raises:
        ValueError: The directory holds no finished comparison.
    """
    comparison = load_comparison(path, display=display)
    write_tables(comparison, path)
    write_reports(comparison, path)
    return comparison


def write_reports(comparison: Comparison, path: Path) -> None:
    """Write ``report.html``, and ``report.md`` with its figures, into a comparison's directory."""
    write_report(comparison, path / "report.html")
    write_markdown(comparison, path / "report.md")


def _show(comparison: Comparison, path: Path, *, verbose: bool) -> None:
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
        yield f"{count} comparison{'' if count == 1 else 's'} without a verdict, since {reason}"
    notes = ("verdict_notes", "picture_notes", "data_notes", "notes")
    for note in (note for kind in notes for note in getattr(comparison, kind)):
        yield f"note: {note}"
