"""What a person reads after compare and report: the answer first, and all of it where asked for."""

import dataclasses
import io
import re

import pytest
from deepens.experiments.cli import compare_command
from deepens.experiments.cli.compare_command import run_compare, show_comparison
from deepens.experiments.cli.options import ReportConfig
from deepens.experiments.cli.report_command import run_report
from deepens.experiments.cli.summary_view import show_summary
from deepens.experiments.comparison.sentences import verdict_sentence
from deepens.experiments.comparison.summary import summarize
from deepens.experiments.config import CompareConfig
from rich.console import Console


def printed(comparison, width, **options):
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    show_summary(summarize(comparison), console)
    return console.file.getvalue()


def test_the_answer_a_row_per_method_and_the_report_are_printed(
    loaded_comparison, capsys, tmp_path
):
    show_comparison(loaded_comparison, tmp_path, verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("Cannot tell on this data.")
    assert lines[1].startswith("deep and packed against wide")  # once, not for each
    (head,) = (line for line in lines if line.startswith("method"))
    for column in ("cost", "Accuracy", "NLL", "ECE", "AURC", "Near-OOD AUROC", "Far-OOD AUROC"):
        assert column in head
    rows = [line.split()[0] for line in lines[lines.index(head) + 1 :]][:5]
    assert rows == [method.name for method in loaded_comparison.methods]
    assert f"caution: {loaded_comparison.caveat}" in lines
    assert any(line.startswith("deploy: ") for line in lines)
    assert lines[-1] == str(tmp_path / "report.html")
    assert len(lines) < 20


def test_every_verdict_and_note_is_printed_where_asked_for(loaded_comparison, capsys, tmp_path):
    found = dataclasses.replace(loaded_comparison, data_notes=("One is left out.",))
    show_comparison(found, tmp_path, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    for verdict in found.judgements:
        assert (verdict_sentence(verdict) in lines) == (verdict.outcome != "undefined")
    assert {f"note: {note}" for note in (*found.notes, *found.data_notes)} <= set(lines)
    undefined = sum(verdict.outcome == "undefined" for verdict in found.judgements)
    assert any(line.startswith(f"{undefined} comparisons without a verdict") for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_tables_fit_the_terminal_and_hold_every_value(loaded_comparison, width):
    text = printed(loaded_comparison, width)
    summary = summarize(loaded_comparison)
    below = text.partition("\n\n")[2].splitlines()
    tables = [line for line in below if re.match(r"method|single |wide |deep ", line)]
    assert all(len(line.rstrip()) <= width for line in tables)
    for row in summary.rows:
        for cell in row.cells.values():
            assert f"{cell.mean:.4f} ± {cell.sd:.4f}" in text


def test_without_styles_a_star_marks_the_best_and_marks_are_those_that_can_be_printed(
    loaded_comparison,
):
    best = max(summarize(loaded_comparison).rows, key=lambda row: row.cells["accuracy"].mean)
    cell = best.cells["accuracy"]
    value = f"{cell.mean:.4f} ± {cell.sd:.4f}"
    assert f"{value}*" in printed(loaded_comparison, 300)
    styled = printed(loaded_comparison, 300, force_terminal=True)
    assert f"\x1b[1m{value}" in styled
    assert f"{value}*" not in styled
    assert {"✓", "○"} <= set(printed(loaded_comparison, 300))


def test_the_answers_of_several_pairs_come_with_their_counts(loaded_comparison):
    sure = tuple(
        dataclasses.replace(v, outcome="better", p_value=0.001, replicates=3)
        if (v.challenger, v.metric, v.split) == ("deep", "nll", "test")
        else dataclasses.replace(v, p_value=1.0, replicates=3)
        for v in loaded_comparison.judgements
    )
    found = dataclasses.replace(loaded_comparison, judgements=sure, conclusive=True)
    first, *_ = printed(found, 300).splitlines()
    answers = r"deep against wide: Yes \(1 better of \d+\); packed against wide: Not shown"
    more = r"; cascade-deep against single to wide, interpolated: Not shown"
    none = r" \(none shown of \d+\)"
    assert re.search(rf"{answers}{none}{more}{none}\.$", first)


def test_what_a_summary_cautions_is_no_note_too(loaded_comparison, capsys, tmp_path):
    show_comparison(loaded_comparison, tmp_path, verbose=True)
    text = capsys.readouterr().out
    (note,) = loaded_comparison.verdict_notes
    assert text.count(note) == 1


def test_a_single_pair_is_answered_with_its_reason(loaded_comparison):
    verdicts = tuple(v for v in loaded_comparison.judgements if v.challenger == "deep")
    only = dataclasses.replace(loaded_comparison, judgements=verdicts)
    first, second, *_ = printed(only, 80).splitlines()
    assert first == "Is this ensemble worth its cost? Cannot tell on this data."
    assert second.startswith("deep against wide, the compute-matched single model:")


def test_without_anything_to_compare_the_table_stands(loaded_comparison):
    none = dataclasses.replace(loaded_comparison, judgements=(), against_singles=())
    text = printed(none, 300)
    assert "nothing to compare" in text
    assert "single" in text


def test_the_commands_write_the_report_and_print_the_summary(
    loaded_comparison, monkeypatch, capsys, tmp_path
):
    written = []
    for name in ("write_report", "write_markdown"):
        monkeypatch.setattr(
            compare_command, name, lambda comparison, path, report: written.append(path)
        )
    monkeypatch.setattr(compare_command, "write_tables", lambda comparison, path: None)
    monkeypatch.setattr(compare_command, "compare", lambda config, display: loaded_comparison)
    monkeypatch.setattr(compare_command, "load_comparison", lambda path, display: loaded_comparison)
    assert run_compare(CompareConfig(out=str(tmp_path), quiet=True)) == 0
    after_compare = capsys.readouterr().out
    config = CompareConfig(out=str(tmp_path), quiet=True)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for method in loaded_comparison.methods:
        (tmp_path / f"{method.name}-0").mkdir()
        (tmp_path / f"{method.name}-0" / "config.yaml").write_text("members: 1\n")
    assert run_report(ReportConfig(str(tmp_path), pairs=("deep:wide",), quiet=True)) == 0
    after_report = capsys.readouterr().out
    assert after_report.startswith(after_compare)
    assert "deep against wide, at 0.998 times its MACs (+: deep is better):" in after_report
    assert written == 2 * [tmp_path / "report.html", tmp_path / "report.md"]
