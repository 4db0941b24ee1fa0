"""One difference has one verdict, wherever a reader meets it, and one orientation."""

import dataclasses
import io
import re
from collections import defaultdict

import pytest
from deepens.experiments.cli.summary_view import show_summary
from deepens.experiments.comparison.formatting import SIGNS
from deepens.experiments.comparison.headlines import headlines
from deepens.experiments.comparison.judging import judge_all
from deepens.experiments.comparison.pairs import describe_pairs
from deepens.experiments.comparison.sentences import difference_text, verdict_sentence
from deepens.experiments.comparison.summary import COLUMNS, summarize
from deepens.experiments.comparison.verdicts import SHIFT, Comparison
from deepens.experiments.report import build_report, write_markdown
from deepens.experiments.report.budget_text import place_label
from deepens.experiments.report.explorer import explorer
from deepens.experiments.report.splits import directed_label, split_title
from deepens.metrics.core.catalogue import METRICS
from report_data import blocks_of
from rich.console import Console
from test_comparison_pairs import make_method

PARTNERS = {("deep", "wide"), ("packed", "wide-2")}
WORDS = {"better": "better", "worse": "worse", "not shown": "no difference shown"}


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Two ensembles, each with a partner and with another single model that costs something else.

    Some differences hold after correction, and some intervals exclude zero but do not.
    """
    ensembles = [make_method("deep", 2.1, 400, count=3), make_method("packed", 1.9, 246, count=3)]
    costs = (("single", 1.0, 100), ("wide-2", 1.7, 246), ("wide", 2.0, 404))
    singles = [make_method(*each, members=1, count=3) for each in costs]
    against = judge_all(ensembles, singles, draws=100, seed=3)
    own = tuple(v for v in against if (v.challenger, v.baseline) in PARTNERS)
    assert {"better", "worse", "not shown", ""} == {v.mark for v in against}
    assert any(v.outcome in ("better", "worse") and v.mark == "not shown" for v in own)
    return Comparison(
        *("data", "", (*singles, *ensembles), own, 100, (), "", {}, ""), against_singles=against
    )


@pytest.fixture(scope="module")
def report(comparison):
    return build_report(comparison)


@pytest.fixture(scope="module")
def verdicts(comparison):
    return {(v.challenger, v.baseline, v.split, v.metric): v for v in comparison.against_singles}


def in_forests(report):
    """The outcome and the advantage of each line of the forest plots."""
    pair = ("", "")
    for block in blocks_of(report, "verdict"):
        if block.block == "heading":
            pair = tuple(block.text.split(" against "))
        for line in block.intervals if block.block == "forest" else ():
            yield (*pair, block.title, line.metric), line.outcome, line.difference


def in_long_table(report):
    (table,) = (block for block in blocks_of(report, "results") if block.block == "long")
    for method, split, metric, *_, difference, outcome in table.rows:
        if outcome.text:
            partner = outcome.title.removeprefix("against ")
            title = re.sub(r" \(mean of \d+\)", "", split.text)
            yield (method.text, partner, title, metric.text), outcome.text, difference.text


def in_budget_tables(report, places):
    for block in blocks_of(report, "budget"):
        if block.block == "table" and block.heads[0] == "Metric":
            single = block.heads[1].removesuffix(" (best single model)")
            for row in block.rows:
                split, metric = next(each for each in places if place_label(each) == row.head)
                name, title = directed_label(metric), split_title(split)
                for method, cell in zip(block.heads[2:-1], row.cells[1:-1], strict=True):
                    yield (method, single, title, name), cell.text, cell.note.partition(" ")[0]


def in_explorer(comparison):
    data = explorer(comparison).data
    names = [name for name, *_ in data["methods"]]
    for scene in data["scenes"]:
        for marks, method in zip(scene["marks"], scene["methods"], strict=True):
            single = scene["single"]
            numbers = data["pairs"][f"{method},{single}"]
            for (split, _, label), mark, pair in zip(data["metrics"], marks, numbers, strict=True):
                place = (names[method], names[single], data["splits"][split], label)
                yield place, data["marks"][int(mark)][1].split(" ", 1)[1], (pair or [""])[0]


def test_every_place_in_a_report_says_the_same_of_one_difference(comparison, report, verdicts):
    expected = {
        (challenger, baseline, split_title(split), directed_label(metric)): v.mark or "undefined"
        for (challenger, baseline, split, metric), v in verdicts.items()
    }
    found = defaultdict(set)
    sources = {
        "forest": list(in_forests(report)),
        "results": list(in_long_table(report)),
        "budgets": list(in_budget_tables(report, {key[2:] for key in verdicts})),
        "explorer": list(in_explorer(comparison)),
    }
    for name, places in sources.items():
        assert {outcome for _, outcome, _ in places} >= {"better", "worse", "not shown"}, name
        for place, outcome, difference in places:
            found[place].add((outcome, difference))
    assert len(found) > 40
    for place, said in found.items():
        assert len(said) == 1, (place, said)
        assert said.pop()[0] == expected[place], place


def test_first_screen_terminal_pairs_and_headlines_say_the_same(comparison, verdicts, report):
    rows = {row.name: row for row in summarize(comparison).rows}
    overview = {row.head: row for row in report.overview.rows}
    out = io.StringIO()
    show_summary(summarize(comparison), Console(file=out, width=1000))
    printed = {line.split()[0]: line for line in out.getvalue().splitlines() if line.strip()}
    for challenger, baseline in PARTNERS:
        marks = []
        cells = overview[challenger].cells[1:]
        for column, cell in zip(summarize(comparison).columns, cells, strict=True):
            split = {"test": "test", SHIFT: SHIFT, "near_ood": "near_ood/letters"}.get(
                column.kind, "far_ood/noise"
            )
            mark = verdicts[challenger, baseline, split, column.metric].mark
            assert rows[challenger].cells[column.key].mark == cell.mark == mark
            advantage, interval = difference_text(
                verdicts[challenger, baseline, split, column.metric]
            )
            assert f"advantage {advantage} {interval}" in cell.title
            # The interval stands beside what is claimed, also in the terminal.
            claimed = mark in ("better", "worse")
            assert cell.more == (interval if claimed else "")
            assert (f"{SIGNS[mark]} {interval}" in printed[challenger]) == claimed
            marks.append(SIGNS[mark])
        assert len(marks) == len(COLUMNS)
        signs = set(SIGNS.values())
        assert [each for each in printed[challenger] if each in signs] == marks
        (headline,) = (each for each in headlines(comparison) if each.challenger == challenger)
        own = [v.mark for key, v in verdicts.items() if key[:2] == (challenger, baseline)]
        for way in ("better", "worse"):
            if own.count(way):
                assert f"{own.count(way)} {way}" in headline.counts
        ours, theirs = challenger, baseline
        lines = "\n".join(describe_pairs(comparison, [f"{ours}:{theirs}"], backbones={}, seed=3))
        for key, v in verdicts.items():
            if key[:2] == (ours, theirs) and v.mark:
                (line,) = (
                    each
                    for each in lines.splitlines()
                    if each.startswith(f"  {METRICS[v.metric].label} ({v.split}): ")
                )
                assert f"], {WORDS[v.mark]}, " in line


def test_a_frontier_leaves_ensembles_with_a_partner_to_their_verdicts(comparison, report):
    alone = dataclasses.replace(comparison, judgements=())
    for made, shown in ((report, False), (build_report(alone), True)):
        heads = {
            head
            for block in blocks_of(made, "frontier")
            if block.block == "table" and "gap at equal MACs" in block.title
            for head in block.heads
        }
        assert ({"deep", "packed"} <= heads) == shown
        assert bool({"deep", "packed"} & heads) == shown


def test_markdown_says_what_the_page_says(comparison, report, tmp_path):
    write_markdown(comparison, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    for (_, _, _, metric), outcome, difference in in_forests(report):
        if outcome != "undefined":
            start = re.escape(f"| {metric} | {difference} |")
            assert re.search(rf"^{start}.*{SIGNS[outcome]} {outcome}", text, re.MULTILINE)


def test_better_is_the_positive_side_of_every_number(comparison, report):
    for place, outcome, difference in [*in_forests(report), *in_explorer(comparison)]:
        if outcome in ("better", "worse"):
            assert (float(difference) > 0) == (outcome == "better"), place
    for verdict in comparison.against_singles:
        if verdict.mark in ("better", "worse"):
            estimate, low, high = verdict.advantage
            assert low <= estimate <= high
            assert (low > 0) == (verdict.mark == "better")
            assert f" {estimate:+.4f}," in verdict_sentence(verdict)
