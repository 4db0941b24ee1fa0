"""Tables beside those of quality: temperatures, calibration errors, selective prediction."""

import dataclasses
import re

import pytest
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.report.page import render_page
from deepens.experiments.report.told import calibration_tables, selection_tables, set_tables

RAW = {"nll": 0.5, "brier": 0.3, "ece": 0.1, "confidence": 0.8, "accuracy": 0.9, "n": 200.0}
WAYS = ("pooled", "joint", "member")


def metrics_of(name: str, number: int) -> dict[str, float]:
    shift = 0.01 * number + (0.002 if name == "deep" else 0.0)
    held = {key: value + shift if value < 1 else value for key, value in RAW.items()}
    held["mutual_information"] = 0.1 if name == "deep" else 0.0
    for place, way in enumerate(WAYS):
        held |= {f"{key}_{way}": held[key] - 0.02 * (place + 1) for key in ("nll", "brier", "ece")}
        held[f"confidence_{way}"] = 0.85
    held |= {"temperature_pooled": 1.5 + shift, "temperature_joint": 1.25}
    held |= {"mce": 0.4, "smooth_calibration_error": 0.09, "aurc": 0.02, "e_aurc": 0.01}
    return held


def make_comparison(change=lambda metrics: metrics) -> Comparison:
    methods = tuple(
        MethodSummary(
            name,
            name,
            Cost(1000, 100, 1.0, 0.5, 2**20, None),
            tuple(
                Replicate(f"{name}-{n}", {"test": change(metrics_of(name, n))}, {}, ())
                for n in range(2)
            ),
        )
        for name in ("single", "deep")
    )
    return Comparison("toy", "", methods, (), 10, (), "", {}, "deepens compare")


def rows_of(html: str, title: str) -> list[list[str]]:
    table = html[html.index(title) :].partition("</table>")[0]
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    return [
        [
            re.sub(r"<[^>]+>", "", c).replace("\N{NO-BREAK SPACE}", " ")
            for c in re.findall(r"<t[hd].*?</t[hd]>", row)
        ]
        for row in rows
    ]


def test_raw_and_scaled_stand_in_one_table_for_every_method():
    rows = rows_of(calibration_tables(make_comparison()), "raw and at temperature T")
    assert rows[0] == [
        *("Temperature", "Method", "NLL ↓", "Brier score ↓", "ECE ↓", "Mean confidence", "T")
    ]
    assert rows[1][:3] == ["raw", "single", "★ 0.5050 ± 0.0071"]
    assert rows[2][:2] == ["deep", "0.5070 ± 0.0071"]
    assert [row[0] for row in rows[1::2]] == ["raw", "T pooled", "T joint", "T member"]
    assert rows[3][2] == "★ 0.4850 ± 0.0071"
    assert rows[3][6].startswith("1.505")
    assert rows[7][2].startswith("★ 0.4450")  # a single model counts among those by member too
    assert [rows[1][6], rows[7][6]] == ["1", "each its own"]


def test_a_temperature_that_is_not_known_is_not_told_as_one():
    def without(metrics):
        return {k: v for k, v in metrics.items() if not k.startswith("temperature")}

    rows = rows_of(calibration_tables(make_comparison(without)), "raw and at temperature T")
    assert [rows[1][6], rows[3][6], rows[7][6]] == ["1", "undefined", "each its own"]


def test_conformal_sets_have_a_section_with_a_block_for_each_score():
    def with_sets(metrics):
        of_lac = {"coverage_lac": 0.91, "set_size_lac": 1.5, "empty_sets_lac": 0.02}
        return metrics | of_lac | {"coverage_aps": 0.95, "worst_class_coverage_aps": 0.8}

    page = render_page(make_comparison(with_sets))
    rows = rows_of(page, "Test images, conformal sets")
    assert rows[0][:4] == ["Score", "Method", "Coverage", "Set size"]
    assert rows[0][6] == "Worst coverage by class ↑"
    assert [row[0] for row in rows[1::2]] == ["LAC", "APS", "RAPS"]
    assert rows[1][1:4] == ["single", "0.9100 ± 0.0000", "1.5000 ± 0.0000"]
    assert rows[4][1] == "0.9500 ± 0.0000"
    assert "fitted on val/conform" in page
    assert set_tables(make_comparison()) == ""
    assert "conformal" not in page[page.index('id="results"') :].partition("Every method")[0]


def test_calibration_errors_and_selection_have_tables_and_leave_that_of_quality():
    page = render_page(make_comparison())
    heads = rows_of(page, "Test images, calibration errors")[0]
    assert heads == ["Method", "ECE ↓", "MCE ↓", "Smooth ECE ↓"]
    assert rows_of(page, "Test images, selection")[0] == ["Method", "AURC ↓", "E-AURC ↓"]
    quality = page[page.index('id="results"') :].partition("Every method, split")[0]
    assert "Smooth ECE" not in quality
    assert "T pooled" not in quality
    assert "fitted on val/calibrate and kept under shift" in page


@pytest.mark.parametrize("tables", [calibration_tables, selection_tables])
def test_runs_of_earlier_versions_have_no_such_tables(tables):
    comparison = make_comparison(lambda metrics: {key: metrics[key] for key in RAW})
    assert tables(comparison) == ""


def test_a_temperature_that_a_replicate_lacks_is_not_averaged():
    comparison = make_comparison()
    single = comparison.methods[0]
    bare = {"test": dict(RAW, mutual_information=0.0)}
    lacking = dataclasses.replace(single.replicates[1], metrics=bare)
    methods = (
        dataclasses.replace(single, replicates=(single.replicates[0], lacking)),
        comparison.methods[1],
    )
    rows = rows_of(
        calibration_tables(dataclasses.replace(comparison, methods=methods)), "temperature T"
    )
    assert "(1 undefined)" in rows[3][2]
