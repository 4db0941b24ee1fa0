"""What to deploy within a budget: words, tables, and the texts that the page's script shows."""

import dataclasses
import json

import pytest
from deepens.experiments.comparison.budgets import answers, budgets_of
from deepens.experiments.comparison.sentences import difference_text
from deepens.experiments.comparison.verdicts import Comparison
from deepens.experiments.cost.axes import AXES
from deepens.experiments.report import build_report
from deepens.experiments.report.budget_text import (
    listed_summary,
    main_places,
    place_label,
    recommendation,
)
from deepens.experiments.report.explorer import explorer
from report_data import blocks_of, make_comparison, row_of, table_of
from test_budgets import make_budgets, make_judged, with_verdicts


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_budgets()


@pytest.fixture(scope="module")
def report(comparison):
    return build_report(comparison)


@pytest.fixture(scope="module")
def data(comparison):
    return json.loads(json.dumps(explorer(comparison).data, allow_nan=False))


def answered(comparison):
    return [(each, answers(comparison, each)) for each in budgets_of(comparison, AXES[0])]


def test_overview_names_what_to_deploy_at_each_budget_with_mark_and_difference(comparison, report):
    table = table_of(report, "budget", "At each budget")
    budgets = answered(comparison)
    assert len(table.rows) == len(budgets) == 4
    for (budget, here), row in zip(budgets, table.rows, strict=True):
        assert f"best single: {budget.single.name}" in row.note
        *cells, tally = row.cells
        for place, cell in zip(main_places(list(here)), cells, strict=True):
            answer = here[place]
            assert (cell.mark, cell.text) == (answer.outcome, answer.deploy.name)
            if answer.winners:
                assert cell.note == " ".join(difference_text(answer.winners[0].verdict))
        outcomes = [answer.outcome for answer in here.values()]
        total = len(outcomes) - outcomes.count("undefined")
        shown = f"✓ {outcomes.count('better')}, ✗ {outcomes.count('worse')} of {total}"
        assert tally.text == shown


def test_each_budget_has_a_row_per_main_metric_and_a_mark_per_family(comparison, report):
    for budget, here in answered(comparison):
        table = table_of(report, "budget", f"At {budget.title}")
        for row, place in zip(table.rows, main_places(list(here)), strict=True):
            _, *cells, deploy = row.cells
            assert row.head == place_label(place)
            assert deploy.text == here[place].deploy.name
            for difference, cell in zip(here[place].differences, cells, strict=True):
                assert cell.mark == cell.text == difference.outcome
                assert cell.note == " ".join(difference_text(difference.verdict))


def test_main_metrics_take_the_first_set_of_each_kind_by_its_encoded_copy_where_there_is_one():
    found = [("test", "nll"), ("test", "brier")]
    found += [(f"near_ood/{name}", "auroc_entropy") for name in ("b", "b.encoded", "a")]
    found += [("far_ood/c", "auroc_entropy"), ("far_ood/d", "auroc_entropy"), ("shift", "nll")]
    assert main_places(found) == [
        ("test", "nll"),
        ("near_ood/b.encoded", "auroc_entropy"),
        ("far_ood/c", "auroc_entropy"),
        ("shift", "nll"),
    ]


def test_recommendation_says_which_method_is_better_by_how_much_and_how_sure(comparison):
    verdicts = [
        make_judged("deep", "wide-4x", "test", "nll", -0.02, 0.01),
        make_judged("packed", "wide-4x", "test", "nll", -0.018, 0.01),
    ]
    budget, here = answered(with_verdicts(comparison, *verdicts))[-1]
    text = recommendation(here["test", "nll"], "nll")
    for part in ("deep", "packed", "wide-4x", "+0.0200", "[+0.0100, +0.0300]", "p = 0.002"):
        assert part in text
    assert "deep for NLL" in listed_summary(here, budget.single)


@pytest.mark.parametrize(
    ("estimate", "replicates", "part"),
    [
        (-0.001, 3, "no ensemble is shown to be better"),
        (0.03, 3, "it is shown to beat deep"),
        (-0.03, 2, "Too few replicates"),
    ],
)
def test_recommendation_without_a_better_ensemble_is_the_single_model_or_none(
    comparison, estimate, replicates, part
):
    verdict = make_judged("deep", "wide-4x", "test", "nll", estimate, 0.01, replicates)
    _, here = answered(with_verdicts(comparison, verdict))[-1]
    answer = here["test", "nll"]
    assert part in recommendation(answer, "nll")
    assert (answer.deploy is None) == (replicates < 3)


def test_data_that_cannot_separate_methods_recommend_none_anywhere(comparison):
    verdict = make_judged("deep", "wide-4x", "test", "nll", -0.02, 0.01)
    unclear = dataclasses.replace(with_verdicts(comparison, verdict), conclusive=False)
    budget, here = answered(unclear)[-1]
    answer = here["test", "nll"]
    assert (answer.deploy, answer.winners) == (None, ())
    for text in (recommendation(answer, "nll"), listed_summary(here, budget.single)):
        assert "cannot tell" in text
    assert "Deploy deep" not in json.dumps(explorer(unclear).data)
    assert "Deploy wide" not in json.dumps(explorer(unclear).data)
    *_, row = table_of(build_report(unclear), "budget", "At each budget").rows
    assert "cannot tell on this data" in {cell.text for cell in row.cells}


def test_script_has_the_text_of_every_answer_at_every_budget_of_every_cost(comparison, data):
    names = [name for name, *_ in data["methods"]]
    known = [(axis, found) for axis in AXES if (found := budgets_of(comparison, axis))]
    assert len(known) >= 6  # costs that were not measured have no budgets
    for (axis, budgets), drawn in zip(known, data["axes"], strict=True):
        assert drawn["label"] == axis.label
        assert [title for _, title, *_ in drawn["budgets"]] == [each.title for each in budgets]
        for budget, (*_, affordable, number) in zip(budgets, drawn["budgets"], strict=True):
            scene = data["scenes"][number]
            costs = [axis.of(method.cost) for method in comparison.methods]
            assert affordable == [int(cost <= budget.amount * 1.02) for cost in costs]
            assert names[scene["single"]] == budget.single.name
            assert [names[i] for i in scene["methods"]] == [m.name for m in budget.representatives]
            found = answers(comparison, budget)
            places = [place for place, each in found.items() if each.outcome != "undefined"]
            texts = [recommendation(found[place], place[1]) for place in places]
            assert scene["sentences"] == texts
            for row, method in enumerate(budget.representatives):
                pair = data["pairs"][f"{scene['methods'][row]},{scene['single']}"]
                for column, place in enumerate(places):
                    (difference,) = (d for d in found[place].differences if d.method is method)
                    mark = data["marks"][int(scene["marks"][row][column])]
                    assert mark[0] == difference.outcome.replace(" ", "-")
                    assert mark[1].endswith(f" {difference.outcome}")
                    assert tuple(pair[column]) == difference_text(difference.verdict)


def test_script_has_the_same_means_as_the_tables(report, data):
    column = [label for _, label, _ in data["metrics"]].index("NLL")
    table = table_of(report, "results", "Test images")
    for (name, *_), value in zip(data["methods"], data["values"][column], strict=True):
        assert value[3] == row_of(table, name)[1]


def test_comparison_without_verdicts_against_singles_has_no_section():
    plain = make_comparison(20, 1, splits=("test",))
    assert explorer(plain) is None
    assert not blocks_of(build_report(plain), "budget")
