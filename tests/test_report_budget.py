"""The section that says which method to deploy: its words, its tables, and its script's numbers."""

import dataclasses
import json
import math
import re
from html import escape

import pytest
from deepens.experiments.comparison.budgets import answers, budgets_of
from deepens.experiments.comparison.verdicts import Comparison
from deepens.experiments.cost.axes import AXES
from deepens.experiments.report import figures, markdown, render_page, write_markdown
from deepens.experiments.report.budget import answered, budget_html, overview_rows
from deepens.experiments.report.budget_data import (
    OUTCOMES,
    main_places,
    recommendation,
    script_data,
    summary,
)
from test_budgets import make_budgets, make_judged, with_verdicts
from test_report import Reader, make_comparison

SIZE = 60_000
"""Bytes that the section may add to the largest page of the tests, which is near its bound."""


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_budgets()


@pytest.fixture(scope="module")
def section(comparison) -> str:
    return budget_html(comparison)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures out, which take most of the time."""
    for name in [name for name in vars(figures) if name.endswith(("_panels", "_panel"))]:
        monkeypatch.setattr(figures, name, lambda *drawn: iter(()))
    kinds = [(name, title, lambda drawn: iter(())) for name, title, _ in markdown._FIGURES]
    monkeypatch.setattr(markdown, "_FIGURES", kinds)


def largest(comparison: Comparison):
    budget = budgets_of(comparison, AXES[0])[-1]
    return budget, answers(comparison, budget)


def rows_of(html: str, title: str) -> list[list[str]]:
    """Return the texts of the cells of one table's body."""
    table = html[html.index(f'aria-label="{escape(title)}"') :].partition("</table>")[0]
    body = table[table.index("<tbody>") :]
    return [
        [Reader(cell).text for cell in re.findall(r"<t[dh].*?</t[dh]>", row)]
        for row in body.split("<tr>")[1:]
    ]


def test_overview_names_what_to_deploy_at_each_budget_with_sign_and_difference(comparison, section):
    rows = rows_of(section, "What to deploy")
    found = answered(comparison)
    assert len(rows) == len(found) == 4
    for (budget, here), (head, *cells, tally) in zip(found, rows, strict=True):
        assert head.startswith(f"{budget.multiple:g}\N{MULTIPLICATION SIGN}")
        assert f"best single: {budget.single.name}" in head
        places = main_places(list(here))
        assert len(cells) == len(places)
        for place, cell in zip(places, cells, strict=True):
            answer = here[place]
            sign = {"better": "✓", "worse": "✗", "undecided": "○"}[answer.outcome]
            assert cell.startswith(f"{sign} {answer.deploy.name}")
            if answer.winners:
                assert cell.endswith(f"{answer.winners[0].verdict.estimate:+.4f}")
        outcomes = [answer.outcome for answer in here.values()]
        decided = len(outcomes) - outcomes.count("undefined")
        said = f"✓ {outcomes.count('better')}, ✗ {outcomes.count('worse')} of {decided}"
        assert tally == said


def test_each_budget_has_a_row_a_main_metric_and_a_badge_a_family(comparison, section):
    for budget, here in answered(comparison):
        rows = rows_of(section, f"At {budget.title}")
        places = main_places(list(here))
        assert len(rows) == len(places) == 8
        for place, (_, _, *cells, deploy) in zip(places, rows, strict=True):
            answer = here[place]
            assert deploy == answer.deploy.name
            for difference, cell in zip(answer.differences, cells, strict=True):
                assert difference.outcome in cell
                assert f"{difference.verdict.estimate:+.4f}" in cell


def test_main_metrics_take_the_first_set_of_each_kind_encoded_where_there_is_such():
    found = [("test", "nll"), ("test", "brier")]
    found += [(f"near_ood/{name}", "auroc_entropy") for name in ("a", "b", "b.encoded")]
    found += [("far_ood/c", "auroc_entropy"), ("far_ood/d", "auroc_entropy"), ("shift", "nll")]
    assert main_places(found) == [
        ("test", "nll"),
        ("near_ood/b.encoded", "auroc_entropy"),
        ("far_ood/c", "auroc_entropy"),
        ("shift", "nll"),
    ]


def test_recommendation_says_who_wins_by_how_much_and_how_sure(comparison):
    verdicts = [
        make_judged("deep", "wide-4x", "test", "nll", -0.02, 0.01),
        make_judged("packed", "wide-4x", "test", "nll", -0.015, 0.01),
    ]
    budget, here = largest(with_verdicts(comparison, *verdicts))
    assert recommendation(here["test", "nll"], "nll") == (
        "Deploy deep: by NLL it beats wide-4x, the best single model, by -0.0200 "
        "(95 % interval [-0.0300, -0.0100], Holm p < 0.001). "
        "Also shown to beat it: packed; ensembles are not compared with each other."
    )
    assert summary(here, budget.single) == (
        "Deploy deep for NLL, where it is shown to beat wide-4x, the best single model."
    )


@pytest.mark.parametrize(
    ("estimate", "replicates", "said"),
    [
        (-0.001, 3, "Deploy wide-4x, the best single model: by NLL no ensemble is shown"),
        (0.03, 3, "by NLL it is shown to beat deep, and no ensemble is shown to beat it."),
        (-0.03, 2, "Too few replicates to say: a claim needs at least 3."),
    ],
)
def test_recommendation_without_a_winner_is_the_single_model_or_none(
    comparison, estimate, replicates, said
):
    verdict = make_judged("deep", "wide-4x", "test", "nll", estimate, 0.01, replicates)
    _, here = largest(with_verdicts(comparison, verdict))
    assert said in recommendation(here["test", "nll"], "nll")


def test_script_has_every_number_of_every_answer(comparison):
    data = json.loads(script_data(comparison))
    names = [name for name, *_ in data["methods"]]
    known = [(axis, found) for axis in AXES if (found := budgets_of(comparison, axis))]
    assert len(known) >= 6  # what was not measured has no budgets
    for (axis, budgets), drawn in zip(known, data["axes"], strict=True):
        assert drawn["label"] == axis.label
        assert [title for _, title, _ in drawn["budgets"]] == [each.title for each in budgets]
        for budget, (_, _, number) in zip(budgets, drawn["budgets"], strict=True):
            scene = data["scenes"][number]
            assert names[scene["single"]] == budget.single.name
            assert [names[i] for i in scene["methods"]] == [m.name for m in budget.representatives]
            found = answers(comparison, budget)
            places = [place for place, each in found.items() if each.outcome != "undefined"]
            assert len(places) == len(data["metrics"])
            for row, method in enumerate(budget.representatives):
                pair = data["pairs"][f"{scene['methods'][row]},{scene['single']}"]
                for column, place in enumerate(places):
                    (difference,) = (d for d in found[place].differences if d.method is method)
                    assert OUTCOMES[int(scene["outcomes"][row][column])] == difference.outcome
                    assert scene["p"][row][column] == pytest.approx(difference.p_value, rel=0.01)
                    verdict = difference.verdict
                    numbers = [verdict.estimate, verdict.low, verdict.high]
                    assert pair[column] == pytest.approx(numbers, rel=1e-5)


def test_script_has_means_and_deviations_over_replicates(comparison):
    data = json.loads(script_data(comparison))
    column = [label for _, label, _ in data["metrics"]].index("NLL")
    values = [replicate.metrics["test"]["nll"] for replicate in comparison.methods[0].replicates]
    mean = sum(values) / 3
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert data["values"][column][0] == pytest.approx([mean, spread, 3], rel=1e-5)


def test_page_has_the_section_after_the_verdict_and_its_data_for_the_script(comparison, undrawn):
    page = render_page(comparison)
    links = re.findall(r'<li><a href="#(\w+)">', page)
    assert links[:3] == ["verdict", "budget", "results"]
    (data,) = re.findall(r"data-budget='([^']*)'", page)
    assert page.count("<script") == 1
    assert json.loads(Reader(f"<p>{data}</p>").text)["plain"] == "single"


def test_comparison_without_verdicts_against_singles_has_no_section(undrawn):
    plain = make_comparison(20, 1, splits=("test",))
    assert budget_html(plain) == ""
    assert 'id="budget"' not in render_page(plain)
    assert answered(plain) == []


def test_hostile_names_are_escaped(comparison):
    hostile = "'\"><script>alert(1)</script>&amp;{method}"
    methods = tuple(
        dataclasses.replace(m, name=hostile, family=hostile) if m.name == "deep" else m
        for m in comparison.methods
    )
    verdicts = tuple(
        dataclasses.replace(v, challenger=hostile) if v.challenger == "deep" else v
        for v in comparison.against_singles
    )
    changed = dataclasses.replace(comparison, methods=methods, against_singles=verdicts)
    html = budget_html(changed)
    reader = Reader(html)
    assert "<script" not in html
    assert not reader.wrong
    assert not reader.open
    assert hostile in reader.text
    (data,) = re.findall(r"data-budget='([^']*)'", html)
    assert hostile in [name for name, *_ in json.loads(_unescaped(data))["methods"]]


def _unescaped(text: str) -> str:
    reader = Reader(f"<p>{text}</p>")
    return "".join(reader.texts)


def test_section_is_small(comparison, section):
    assert len(section.encode()) < SIZE


def test_markdown_has_a_row_a_budget(comparison, tmp_path, undrawn):
    write_markdown(comparison, tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    part = text[text.index("## Which to deploy") :].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    heads, rows = overview_rows(answered(comparison))
    assert len(lines) == 2 + len(rows)
    assert lines[0].count("|") == len(heads) + 1
    for line, (budget, here) in zip(lines[2:], answered(comparison), strict=True):
        assert line.startswith(f"| {budget.title} | {budget.single.name} |")
        for place in main_places(list(here)):
            assert f" {here[place].deploy.name} " in line
