"""The first screen: one answer per ensemble, one row per method, one rule for every mark."""

import dataclasses
import math
import re
import statistics

import pytest
from deepens.experiments.comparison.formatting import number, plus_minus, signed
from deepens.experiments.comparison.headlines import (
    CANNOT_TELL,
    TOO_FEW_REPLICATES,
    headlines,
    merged,
)
from deepens.experiments.comparison.sentences import verdict_sentence
from deepens.experiments.comparison.summary import summarize
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate, Verdict
from deepens.experiments.cost.measurement import Cost

SPLITS = ("test", "shift/fog/1", "shift/fog/2", "near_ood/a", "near_ood/a.encoded", "near_ood/b")


def verdict(outcome, *, p_value=0.01, split="test", metric="nll", name="deep", replicates=3):
    return Verdict(
        split=split,
        metric=metric,
        challenger=name,
        baseline="wide",
        estimate=-0.05,
        low=-0.08,
        high=-0.02,
        agreeing=replicates,
        replicates=replicates,
        n=100,
        outcome=outcome,
        p_value=p_value,
        compared=9,
        raw_p_value=p_value / 9,
    )


def method(name, macs, level, family="single model", replicates=3):
    """Replicates whose values are the level and a little more each, by split and metric."""
    runs = []
    for r in range(replicates):
        metrics = {
            split: (
                {"auroc_msp": level + place / 100 + r / 1000}
                if "ood" in split
                else {"accuracy": level - place / 10 + r / 1000, "nll": 1 - level + r / 1000}
            )
            for place, split in enumerate(SPLITS)
        }
        runs.append(Replicate(f"{name}-{r}", metrics, {}))
    return MethodSummary(name, name, Cost(macs, 10, 1.0, 1.0, 10), tuple(runs), family)


def comparison(verdicts=(), **more):
    methods = (
        method("single", 100, 0.5),
        method("wide", 400, 0.6),
        method("deep", 400, 0.7, "deep ensemble"),
        method("packed", 130, 0.55, "packed ensemble"),
    )
    made = Comparison("data", "", methods, tuple(verdicts), 100, (), "", {}, "")
    return dataclasses.replace(made, **more)


@pytest.mark.parametrize(
    ("outcomes", "answer"),
    [
        ("better better undecided", "Yes"),
        ("better" + 19 * " undecided", "Yes"),
        ("better worse undecided", "Mixed"),
        ("worse undecided", "No"),
        ("undecided undecided", "Not shown"),
        ("undefined", "Not shown"),
    ],
)
def test_an_answer_counts_what_holds_after_correction_alone(outcomes, answer):
    for p_value, expected in ((0.05, answer), (0.06, "Not shown")):
        made = comparison(verdict(each, p_value=p_value) for each in outcomes.split())
        assert headlines(made)[0].answer == expected


def test_no_is_said_only_where_an_ensemble_is_shown_to_be_worse():
    far = [verdict("better", split="far_ood/x")] * 8
    assert headlines(comparison([verdict("worse"), *far]))[0].answer == "Mixed"


def test_yes_needs_a_better_result_on_the_test_images_themselves():
    far = verdict("better", split="far_ood/x")
    (part,) = headlines(comparison([verdict("undecided"), far]))
    assert part.answer == "In part"
    assert "1 of 2 comparisons, on OOD or shifted images only" in part.sentence
    (whole,) = headlines(comparison([verdict("better"), far]))
    assert whole.answer == "Yes"
    assert "only" not in whole.sentence


def test_data_or_replicates_that_cannot_tell_are_the_answer_whatever_the_outcomes():
    for outcome in ("better", "worse", "undecided"):
        made = comparison([verdict(outcome)], conclusive=False)
        assert headlines(made)[0].answer == CANNOT_TELL
        few = comparison([verdict(outcome, replicates=2)])
        assert headlines(few)[0].answer == TOO_FEW_REPLICATES
        assert "2 replicates" in headlines(few)[0].sentence


def test_validation_splits_and_sets_that_have_an_encoded_copy_do_not_count():
    left_out = [verdict("worse", split="val/select"), verdict("worse", split="near_ood/a")]
    copy = verdict("better", split="near_ood/a.encoded", metric="auroc_msp")
    (headline,) = headlines(comparison([*left_out, copy]))
    assert headline.answer == "In part"
    assert "1 of 1 comparison," in headline.sentence


def test_each_pair_has_its_own_answer():
    found = headlines(comparison([verdict("better"), verdict("worse", name="packed")]))
    assert [each.answer for each in found] == ["Yes", "No"]
    assert [(each.challenger, each.baseline) for each in found] == [
        ("deep", "wide"),
        ("packed", "wide"),
    ]
    assert [each.counts for each in found] == ["1 better of 1", "1 worse of 1"]


def test_a_difference_not_shown_comes_with_the_least_that_would_have_been_detected():
    each = dataclasses.replace(verdict("undecided"), error=0.015, freedom=math.inf, open=9)
    # Of nine none is shown: the next needs p <= 0.05 / 9, at 2.77 standard errors, and 0.84 more.
    assert each.least_detectable == pytest.approx(0.015 * (2.773 + 0.842), rel=1e-3)
    assert dataclasses.replace(each, open=1).least_detectable == pytest.approx(0.042, rel=1e-3)
    (headline,) = headlines(comparison([each]))
    assert "0.054 in NLL would have been shown" in headline.sentence
    assert "under the same correction" in headline.sentence
    assert "; 0.054 would have been shown with a probability of 80 %)" in verdict_sentence(each)
    assert "would have been shown" not in verdict_sentence(verdict("better"))
    none = dataclasses.replace(each, metric="accuracy", error=0.3)
    assert math.isinf(none.least_detectable)
    assert "no difference at all would have been shown" in verdict_sentence(none)
    assert math.isnan(dataclasses.replace(each, replicates=2).least_detectable)


def test_every_method_has_a_row_with_its_means_and_deviations():
    rows = {row.name: row for row in summarize(comparison([verdict("better")])).rows}
    assert list(rows) == ["single", "wide", "deep", "packed"]
    assert [row.multiple for row in rows.values()] == [1.0, 4.0, 4.0, 1.3]
    assert [row.partner for row in rows.values()] == [None, None, "wide", None]
    cell = rows["deep"].cells["accuracy"]
    assert cell.mean == pytest.approx(0.701)
    assert cell.sd == pytest.approx(statistics.stdev([0.7, 0.701, 0.702]))
    assert cell.best
    assert not rows["wide"].cells["accuracy"].best
    # Over both shifted copies; over the OOD sets, of a set with an encoded copy the copy alone.
    assert rows["deep"].cells["shift"].mean == pytest.approx(0.551)
    assert rows["deep"].cells["near_ood"].mean == pytest.approx(0.7 + 0.045 + 0.001)


def test_columns_without_values_are_left_out():
    assert [c.key for c in summarize(comparison()).columns] == [
        *("accuracy", "nll", "near_ood", "shift"),
    ]


def test_marks_follow_one_rule():
    verdicts = [
        verdict("better"),
        verdict("better", metric="accuracy", p_value=0.2),
        verdict("worse", split="shift", metric="accuracy"),
        verdict("better", split="near_ood/a.encoded", metric="auroc_msp"),
        verdict("undecided", split="near_ood/b", metric="auroc_msp"),
    ]
    rows = {row.name: row for row in summarize(comparison(verdicts)).rows}
    marks = {key: cell.mark for key, cell in rows["deep"].cells.items()}
    assert marks == {
        "nll": "better",
        "accuracy": "not shown",
        "shift": "worse",
        "near_ood": "not shown",
    }
    assert {cell.mark for name in ("wide", "packed") for cell in rows[name].cells.values()} == {""}
    both = [*verdicts[:4], verdict("better", split="near_ood/b", metric="auroc_msp")]
    assert summarize(comparison(both)).rows[2].cells["near_ood"].mark == "better"


def test_what_to_deploy_is_an_ensemble_only_where_it_is_shown_to_be_better():
    against = [
        dataclasses.replace(verdict("better", name=name), baseline="wide", raw_p_value=p)
        for name, p in (("deep", 0.001),)
    ]
    made = comparison(against, against_singles=tuple(against))
    deploy = " ".join(summarize(made).deploy)
    assert "deep for NLL" in deploy
    assert "wide, the best affordable single model" in deploy
    unclear = [dataclasses.replace(each, p_value=0.2) for each in against]
    deploy = " ".join(summarize(comparison(against, against_singles=tuple(unclear))).deploy)
    assert "deep for" not in deploy
    assert "wide at 4" in deploy


def test_nothing_is_recommended_where_data_or_replicates_cannot_tell():
    few = [verdict("better", replicates=2)]
    (line,) = summarize(comparison(few, against_singles=tuple(few))).deploy
    assert "at least 3" in line
    (line,) = summarize(comparison(few, conclusive=False)).deploy
    assert "cannot tell" in line


def test_cautions_name_the_caveat_few_replicates_and_what_the_data_warn_of():
    made = comparison(caveat="Small.", cautions=("Copies.",), verdict_notes=("No verdict.",))
    assert summarize(made).cautions == ("Small.", "Copies.", "No verdict.")
    one = dataclasses.replace(made, methods=(method("single", 1, 0.5, replicates=1),))
    assert any("Only 1 replicate:" in each for each in summarize(one).cautions)
    judged = dataclasses.replace(made, judgements=(verdict("better"),))
    assert "No verdict." in summarize(judged).cautions


@pytest.mark.parametrize("outcome", ["better", "worse"])
def test_a_mark_needs_holms_correction_and_enough_replicates(outcome):
    assert verdict(outcome).mark == outcome
    assert verdict(outcome, p_value=0.06).mark == "not shown"
    assert verdict(outcome, replicates=2).mark == "not shown"
    assert (verdict("undecided").mark, verdict("undefined").mark) == ("not shown", "")


def test_the_table_of_verdicts_keeps_the_mark_apart_from_the_uncorrected_outcome():
    frame = comparison([verdict("better"), verdict("worse", p_value=0.2)]).verdicts
    assert list(frame["interval_outcome"]) == ["better", "worse"]
    assert list(frame["outcome"]) == ["better", "not shown"]


def test_numbers_have_no_negative_zero_and_at_most_a_few_digits():
    assert number(-0.0) == number(0.0) == "0.0000"
    assert signed((-1e-7, -0.02, 0.02))[0] == "0.0000"
    values = [sign * 10.0**power for power in range(-300, 301, 7) for sign in (1, -1)]
    for value in values:
        texts = [number(value), plus_minus(0.5, abs(value)), plus_minus(value, abs(value))]
        texts += [text for more in values for text in signed((value, more, value))]
        assert max(map(len, texts)) <= 14
        assert not any(re.fullmatch(r"[+-]0(\.0*)?", text) for text in texts)
        if abs(value) >= 1e-6:
            assert float(signed((value, 0.0, value))[0]) == pytest.approx(value, rel=0.05)


def test_that_the_data_cannot_tell_is_said_once_of_all_ensembles():
    both = [verdict("better"), verdict("worse", name="packed")]
    (one,) = merged(headlines(comparison(both, conclusive=False)))
    assert one.sentence.startswith("deep and packed against wide, ")
    apart = headlines(comparison(both))
    assert merged(apart) == list(apart)


def test_a_headline_counts_by_kind_of_images_so_that_none_hides_another():
    mixed = [verdict("worse"), verdict("better", split="shift", metric="accuracy")]
    (found,) = headlines(comparison(mixed))
    assert found.answer == "Mixed"
    assert "Test images: 1 worse of 1; Shift: 1 better of 1." in found.sentence
    assert found.unjudged == ("Near OOD",)  # results and no verdict
