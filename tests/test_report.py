"""The view model of a report: its values are what was measured, and what is left out is said."""

import dataclasses
import math
import statistics

import pytest
from deepens.datasets.corruptions.shift import FROST_NOTE
from deepens.experiments.comparison.headlines import KIND_TITLES
from deepens.experiments.comparison.verdicts import Comparison
from deepens.experiments.report import build_report
from deepens.experiments.report.model import SIGNS
from deepens.experiments.report.splits import (
    SplitGroup,
    directed_label,
    severity_groups,
    split_groups,
    split_title,
)
from deepens.metrics.core.catalogue import METRICS, metrics_with
from report_data import (
    METHODS,
    OOD,
    SHIFTS,
    blocks_of,
    make_comparison,
    make_verdict,
    row_of,
    table_of,
    without_images,
)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_comparison()


@pytest.fixture(scope="module")
def report(comparison):
    return build_report(comparison)


def summarized(comparison, method, splits, metric) -> tuple[float, float]:
    replicates = next(m for m in comparison.methods if m.name == method).replicates
    values = [statistics.fmean(r.metrics[s][metric] for s in splits) for r in replicates]
    return statistics.fmean(values), statistics.stdev(values)


def forests(report):
    return [block for block in blocks_of(report, "verdict") if block.block == "forest"]


def long_rows(report) -> list[list[str]]:
    (table,) = (block for block in blocks_of(report, "results") if block.block == "long")
    return [[cell.text for cell in row] for row in table.rows]


def test_first_table_has_every_method_with_its_cost_and_the_mark_of_its_verdict(report):
    assert [row.head for row in report.overview.rows] == [name for name, *_ in METHODS]
    assert row_of(report.overview, "deep")[0] == "4\N{MULTIPLICATION SIGN} 4 M MACs"
    marks = {row.head: [cell.mark for cell in row.cells[1:]] for row in report.overview.rows}
    assert marks["single"] == marks["wide"] == [""] * 7
    by_head = dict(zip(report.overview.heads[2:], marks["deep"], strict=True))
    arrows = {directed_label(metric)[-1] for metric in ("accuracy", "nll")}
    assert arrows == {"↑", "↓"}
    assert by_head["Accuracy\N{NO-BREAK SPACE}↑"] == "better"
    assert by_head["NLL\N{NO-BREAK SPACE}↓"] == "better"
    assert by_head["ECE\N{NO-BREAK SPACE}↓"] == "worse"
    assert by_head["AURC\N{NO-BREAK SPACE}↓"] == "not shown"


def test_a_mark_is_given_only_where_the_difference_holds_after_correction(comparison):
    unsure = dataclasses.replace(make_verdict("test", "accuracy", 0.01, 0.004, 9), p_value=0.2)
    report = build_report(dataclasses.replace(comparison, judgements=(unsure,)))
    (forest,) = forests(report)
    assert [each.outcome for each in forest.intervals] == ["not shown"]
    assert next(r for r in report.overview.rows if r.head == "deep").cells[1].mark == "not shown"
    (row,) = (row for row in long_rows(report) if row[7])
    assert row[8] == "not shown"


def test_answers_cautions_and_what_to_deploy_are_those_of_the_summary(comparison, report):
    assert report.answers[0][0] == "Mixed."
    assert set(comparison.cautions) < set(report.cautions)
    few = build_report(without_images(make_comparison(20, 2)))
    assert any("Only 2 replicates" in caution for caution in few.cautions)


def test_forest_has_a_line_per_verdict_with_the_better_side_on_the_right(comparison, report):
    lines = [line for forest in forests(report) for line in forest.intervals]
    assert len(lines) == len(comparison.judgements)
    for line, verdict in zip(lines, comparison.judgements, strict=True):
        assert line.metric == directed_label(verdict.metric)
        sign = 1 if METRICS[verdict.metric].higher_is_better else -1
        ends = sorted((sign * verdict.low, sign * verdict.high))
        assert line.difference == f"{sign * verdict.estimate:+.4f}"
        assert line.interval == f"[{ends[0]:+.4f}, {ends[1]:+.4f}]"
        low, dot, high = line.places
        assert -1 <= low <= dot <= high <= 1
        # A positive number never stands left of zero.
        assert (dot > 0) == (float(line.difference) > 0)
        if line.outcome in ("better", "worse"):
            assert (low > 0) == (line.outcome == "better")


def test_verdicts_that_cannot_be_are_counted_once_per_split(comparison):
    undefined = dataclasses.replace(
        make_verdict(OOD[0], "auroc_mutual_information", math.nan, math.nan, 9),
        outcome="undefined",
        p_value=math.nan,
    )
    report = build_report(dataclasses.replace(comparison, judgements=(undefined,) * 2))
    (forest,) = forests(report)
    assert forest.intervals == ()
    assert "2 comparisons without a verdict, since this score needs several" in forest.remark


@pytest.mark.parametrize("metric", ["accuracy", "nll", "ece"])
def test_cells_are_mean_and_standard_deviation_over_replicates(comparison, report, metric):
    table = table_of(report, "results", "Test images")
    column = table.heads.index(directed_label(metric)) - 1
    for name, *_ in METHODS:
        mean, spread = summarized(comparison, name, ["test"], metric)
        assert row_of(table, name)[column] == f"{mean:.4f} ± {spread:.4f}"


def test_shift_is_the_unweighted_mean_over_shifted_splits(comparison, report):
    table = table_of(report, "shift", "Shift (mean of 3)")
    mean, spread = summarized(comparison, "deep", SHIFTS, "accuracy")
    assert row_of(table, "deep")[0] == f"{mean:.4f} ± {spread:.4f}"


def test_best_is_marked_once_in_directed_columns_and_never_in_others(report):
    for table in blocks_of(report, "results"):
        if table.block == "table":
            for column in range(len(table.heads) - 1):
                best = [row.cells[column].best for row in table.rows]
                assert sum(best) == table.heads[column + 1].endswith(("↑", "↓"))


def test_detection_has_a_block_per_score_without_single_models_where_members_are_compared(report):
    table = table_of(report, "ood", "Near OOD")
    groups = {}
    for row in table.rows:
        groups.setdefault(row.group, []).append(row.head)
    names = [name for name, *_ in METHODS]
    assert groups == {"MSP": names, "entropy": names, "mutual information": ["deep"]}
    assert [len(rows) for rows in table.groups] == [3, 3, 1]


def test_long_table_has_every_method_split_and_compared_metric_once(comparison, report):
    rows = [tuple(row[:3]) for row in long_rows(report)]
    assert len(rows) == len(set(rows))
    undirected = {m for m in metrics_with(role="diversity")} | {"n", "n_id", "n_ood", "n_gradients"}
    for group in (SplitGroup(split_title("test"), ("test",)), *severity_groups(comparison)):
        for name, *_ in METHODS:
            here = {row[2] for row in rows if row[:2] == (name, group.title)}
            measured = comparison.methods[0].replicates[0].metrics[group.splits[0]]
            assert here == {directed_label(m) for m in measured if m not in undirected}


def test_long_table_shows_the_interval_beside_the_ensemble_that_was_judged(comparison, report):
    (table,) = (block for block in blocks_of(report, "results") if block.block == "long")
    judged = [row for row in table.rows if row[8].text]
    assert len(judged) == len(comparison.judgements)
    for row in judged:
        assert row[0].text == "deep"
        assert row[7].note.startswith("[")
        assert row[8].title == "against wide"


def test_means_over_ood_sets_leave_out_what_was_encoded_a_second_time():
    splits = ("test", "far_ood/a", "far_ood/a.encoded", "far_ood/b", "far_ood/b.encoded")
    groups = split_groups(make_comparison(10, 1, METHODS[:1], splits))
    means = {group.title: group.splits for group in groups if len(group.splits) > 1}
    assert means == {
        "Far OOD (mean of 2)": ("far_ood/a", "far_ood/b"),
        "Far OOD (mean of 2, encoded)": ("far_ood/a.encoded", "far_ood/b.encoded"),
    }


def test_titles_of_splits_have_single_spaces_and_their_fields():
    assert split_title("shift/gaussian_noise/3") == "Shift: gaussian noise, severity 3"
    assert split_title("near_ood/a__b.encoded") == "Near OOD: a b (encoded)"
    assert split_title("shift") == KIND_TITLES["shift"]


def test_undefined_metrics_are_called_undefined_and_counted():
    comparison = make_comparison(20, 3)
    deep = comparison.methods[1]
    metrics = [dict(replicate.metrics) for replicate in deep.replicates]
    metrics[0]["test"] = metrics[0]["test"] | {"nll": math.nan}
    replicates = tuple(
        dataclasses.replace(replicate, metrics=each)
        for replicate, each in zip(deep.replicates, metrics, strict=True)
    )
    methods = (comparison.methods[0], dataclasses.replace(deep, replicates=replicates))
    report = build_report(without_images(dataclasses.replace(comparison, methods=methods)))
    cells = row_of(table_of(report, "results", "Test images"), "deep")
    assert "(1 undefined)" in cells[1]
    (table,) = (block for block in blocks_of(report, "results") if block.block == "long")
    row = next(
        r
        for r in table.rows
        if [c.text for c in r[:3]] == ["deep", "Test images", cells and directed_label("nll")]
    )
    assert row[5].text == "2 of 3"


def test_single_replicate_has_no_standard_deviation():
    report = build_report(without_images(make_comparison(20, 1)))
    assert not any(
        cell.note for row in table_of(report, "results", "Test").rows for cell in row.cells
    )


def test_costs_are_shown_relative_to_the_single_model(report):
    table = table_of(report, "cost", "Cost")
    cells = dict(zip(table.heads[1:], row_of(table, "deep"), strict=True))
    assert cells["MACs per image"] == "4 M MACs \N{MULTIPLICATION SIGN} 4.00"
    assert row_of(table, "wide")[table.heads.index("Training time") - 1] == "not measured"
    assert "Energy per image" not in table.heads


def test_energy_and_training_compute_have_columns_and_charts_where_they_are_known(comparison):
    methods = tuple(
        dataclasses.replace(
            method,
            cost=dataclasses.replace(method.cost, training_macs=10**12, joules_per_image=0.002),
        )
        for method in comparison.methods
    )
    report = build_report(without_images(dataclasses.replace(comparison, methods=methods)))
    assert "2 mJ" in row_of(table_of(report, "cost", "Cost"), "deep")[-1]
    folded = [block.summary for block in blocks_of(report, "quality") if block.block == "folded"]
    assert folded == [
        *("Parameters", "Latency, batch 1", "Latency per image, batch 256"),
        *("Training compute", "Energy per image"),
    ]


def test_each_note_stands_where_it_belongs(comparison, report):
    for anchor, notes in (
        ("images", comparison.picture_notes),
        ("cost", comparison.notes),
        ("reproduce", comparison.data_notes),
    ):
        items = [tuple(b.items) for b in blocks_of(report, anchor) if b.block == "notes"]
        assert notes in items
    assert set(comparison.verdict_notes) <= set(report.cautions)
    assert not any(b.block == "notes" for b in blocks_of(report, "verdict"))
    codes = [b.text for b in blocks_of(report, "reproduce") if b.block == "code"]
    assert codes[0] == comparison.command
    assert "replicates: 3" in codes[1]
    assert '"torch": "2.6.0"' in codes[2]


def test_our_own_frost_is_remarked_below_the_tables_of_shift(comparison, report):
    frosted = dataclasses.replace(comparison, data_notes=("Left out.", FROST_NOTE))
    with_note, without = (
        [b.items for b in blocks_of(each, "shift") if b.block == "notes"]
        for each in (build_report(frosted), report)
    )
    assert [tuple(items) for items in with_note] == [(FROST_NOTE,)]
    assert without == []


def test_metrics_that_were_measured_are_explained(comparison, report):
    (entries,) = (b.entries for b in blocks_of(report, "metrics"))
    assert entries[directed_label("nll")] == METRICS["nll"].description
    assert directed_label("mce") not in entries


def test_every_chart_is_described_with_numbers(report):
    charts = [
        chart
        for section in report.sections
        for block in blocks_of(report, section.anchor)
        for chart in getattr(block, "charts", ())
    ]
    assert len(charts) > 20
    assert len({chart.name for chart in charts}) == len(charts)
    for chart in charts:
        assert sum(character.isdigit() for character in chart.description) >= 4, chart.name


def test_comparison_without_verdicts_or_methods_still_has_a_report(comparison):
    bare = dataclasses.replace(comparison, judgements=(), verdict_notes=())
    report = build_report(without_images(bare))
    assert "verdict" not in [section.anchor for section in report.sections]
    empty = build_report(dataclasses.replace(bare, methods=()))
    assert empty.overview is None
    assert [s.anchor for s in empty.sections] == ["images", "cost", "reproduce"]


def test_signs_tell_outcomes_apart_without_colour():
    signs = [SIGNS[mark] for mark in ("better", "worse", "not shown", "undefined")]
    assert len(set(signs)) == 4
