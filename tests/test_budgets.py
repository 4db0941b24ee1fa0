"""What a budget affords, who is chosen for it, and when an ensemble counts as better."""

import dataclasses
import math
import statistics

import pytest
from deepens.experiments.comparison.budgets import answers, budgets_of
from deepens.experiments.comparison.single_models import (
    family_of,
    frontier_of,
    is_single,
    plain_single,
    validation_nll,
)
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate, Verdict
from deepens.experiments.cost.axes import AXES, Axis, multiple_text
from deepens.metrics.core.catalogue import METRICS
from deepens.metrics.samples import SampleValues
from report_data import make_comparison
from scipy import stats

MACS = AXES[0]
# Name, family, MACs, accuracy, validation NLL.
METHODS = (
    ("single", "single model", 1_000_000, 0.900, 0.50),
    ("wide-2x", "single model", 2_000_000, 0.905, 0.44),
    ("wide-4x", "single model", 4_010_000, 0.910, 0.42),
    ("wide-8x", "single model", 8_000_000, 0.908, 0.43),
    ("packed", "packed ensemble", 1_200_000, 0.904, 0.47),
    ("cascade", "cascade", 1_950_000, 0.928, math.nan),
    ("deep-2", "deep ensemble", 2_000_000, 0.915, 0.42),
    ("deep", "deep ensemble", 4_000_000, 0.930, 0.40),
    ("forde", "repulsive ensemble", 4_000_000, 0.926, 0.41),
    ("mixupmp", "repulsive ensemble", 4_040_000, 0.925, 0.39),
)


def make_budgets(
    images: int = 40,
    replicates: int = 3,
    splits=("test", "shift/blur/3", "near_ood/letters", "far_ood/noise"),
    half: float = 0.01,
) -> Comparison:
    """A comparison with verdicts of every ensemble against every single model."""
    plain = make_comparison(
        images,
        replicates,
        [(name, macs, accuracy) for name, _, macs, accuracy, _ in METHODS],
        splits,
    )
    methods = tuple(
        _completed(method, family, score)
        for method, (_, family, _, _, score) in zip(plain.methods, METHODS, strict=True)
    )
    return dataclasses.replace(plain, methods=methods, against_singles=judged(methods, half))


def _completed(method: MethodSummary, family: str, score: float) -> MethodSummary:
    log = () if math.isnan(score) else ({"val/nll": score - 0.1}, {"val/nll": score})
    replicates = tuple(
        dataclasses.replace(each, log=log, values=each.values | _shifted(each))
        for each in method.replicates
    )
    return dataclasses.replace(method, family=family, replicates=replicates)


def _shifted(replicate: Replicate) -> dict[str, SampleValues]:
    """Values of shifted copies, without which there is no verdict on shift."""
    names = (split for split in replicate.metrics if split.startswith("shift/"))
    return dict.fromkeys(names, replicate.values["test"])


def judged(methods, half: float) -> tuple[Verdict, ...]:
    """Verdicts by the normal distribution, with one width for all."""
    held = methods[0].replicates[0]
    splits = [split for split in held.metrics if not split.startswith("shift/")]
    return tuple(
        verdict
        for challenger in methods
        for baseline in methods
        if is_single(baseline) and not is_single(challenger)
        for split in (*splits, *(["shift"] if held.shifted else []))
        for verdict in _verdicts(challenger, baseline, split, half)
    )


def _verdicts(challenger: MethodSummary, baseline: MethodSummary, split: str, half: float):
    held = challenger.replicates[0].metrics
    shifted = next((name for name in held if name.startswith("shift")), "")
    for metric in held.get(shifted if split == "shift" else split, ()):
        higher = METRICS[metric].higher_is_better if metric in METRICS else None
        if higher is None:
            continue
        ours, theirs = (
            statistics.fmean(r.metric(split, metric) for r in m.replicates)
            for m in (challenger, baseline)
        )
        yield make_judged(challenger.name, baseline.name, split, metric, ours - theirs, half)


def make_judged(
    challenger: str,
    baseline: str,
    split: str,
    metric: str,
    estimate: float,
    half: float,
    replicates: int = 3,
) -> Verdict:
    outcome = "undecided"
    if abs(estimate) > half:
        outcome = "better" if (estimate > 0) == METRICS[metric].higher_is_better else "worse"
    p_value = 2 * float(stats.norm.sf(abs(estimate) / half * 1.96))
    undefined = METRICS[metric].score == "mutual_information"
    return Verdict(
        split=split,
        metric=metric,
        challenger=challenger,
        baseline=baseline,
        estimate=math.nan if undefined else estimate,
        low=math.nan if undefined else estimate - half,
        high=math.nan if undefined else estimate + half,
        agreeing=replicates,
        replicates=replicates,
        n=40,
        outcome="undefined" if undefined else outcome,
        p_value=math.nan if undefined else min(1.0, 20 * p_value),
        compared=20,
        raw_p_value=math.nan if undefined else p_value,
    )


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return make_budgets()


def budget_at(comparison: Comparison, multiple: float, axis: Axis = MACS):
    (found,) = (
        each for each in budgets_of(comparison, axis) if math.isclose(each.multiple, multiple)
    )
    return found


def with_verdicts(comparison: Comparison, *verdicts: Verdict) -> Comparison:
    return dataclasses.replace(comparison, against_singles=verdicts)


def names(methods) -> list[str]:
    return [method.name for method in methods]


def test_budgets_are_the_distinct_costs_of_ensembles(comparison):
    # 1.2, 1.95, 2 (2.5 % more), 4, and 4.04, which is within 2 % of 4.
    found = budgets_of(comparison, MACS)
    assert [each.multiple for each in found] == [1.2, 1.95, 2.0, 4.0]
    assert found[-1].title == "4\N{MULTIPLICATION SIGN} (4 M MACs)"


def test_best_single_is_that_of_lowest_validation_nll_that_is_affordable(comparison):
    chosen = [each.single.name for each in budgets_of(comparison, MACS)]
    # wide-4x costs 4.01 M, within 2 %; wide-8x is never affordable.
    assert chosen == ["single", "single", "wide-2x", "wide-4x"]
    assert all(each.by_validation for each in budgets_of(comparison, MACS))


def test_a_dearer_single_of_higher_validation_nll_is_not_chosen(comparison):
    methods = tuple(
        _completed(m, m.family, 0.9) if m.name == "wide-4x" else m for m in comparison.methods
    )
    changed = dataclasses.replace(comparison, methods=methods)
    assert budget_at(changed, 4).single.name == "wide-2x"


def test_each_family_is_represented_by_its_dearest_and_ties_go_by_validation_nll(comparison):
    assert names(budget_at(comparison, 4).representatives) == [
        "packed",
        "cascade",
        "deep",
        "mixupmp",  # as dear as forde, within 2 %, and of lower validation NLL
    ]
    assert names(budget_at(comparison, 2).representatives) == ["packed", "cascade", "deep-2"]
    assert names(budget_at(comparison, 1.2).representatives) == ["packed"]


def test_what_is_chosen_does_not_depend_on_any_value_but_validation_nll(comparison):
    def shuffled(method: MethodSummary, place: int) -> MethodSummary:
        replicates = tuple(
            dataclasses.replace(
                replicate,
                metrics={
                    split: {name: (place * 7919 % 13) / 13 for name in held}
                    for split, held in replicate.metrics.items()
                },
                values={},
            )
            for replicate in method.replicates
        )
        return dataclasses.replace(method, replicates=replicates)

    methods = tuple(shuffled(method, i) for i, method in enumerate(comparison.methods))
    changed = dataclasses.replace(comparison, methods=methods, against_singles=())
    for axis in AXES:
        before, after = (budgets_of(each, axis) for each in (comparison, changed))
        assert [names([b.single, *b.representatives]) for b in before] == [
            names([b.single, *b.representatives]) for b in after
        ]


def test_validation_nll_is_of_the_weights_that_were_kept(comparison):
    deep = next(method for method in comparison.methods if method.name == "deep")
    assert validation_nll(deep) == pytest.approx(0.40)
    assert validation_nll(deep, best_kept=True) == pytest.approx(0.30)
    kept = dataclasses.replace(comparison, configuration="keep: best\n")
    logs = {"wide-2x": 0.10, "wide-4x": 0.20}  # of the best epoch; the last ones say otherwise
    methods = tuple(
        dataclasses.replace(
            m,
            replicates=tuple(
                dataclasses.replace(r, log=({"val/nll": logs[m.name]}, *r.log))
                for r in m.replicates
            ),
        )
        if m.name in logs
        else m
        for m in comparison.methods
    )
    changed = dataclasses.replace(kept, methods=methods)
    assert budget_at(changed, 4).single.name == "wide-2x"
    unkept = dataclasses.replace(changed, configuration="keep: last\n")
    assert budget_at(unkept, 4).single.name == "wide-4x"


def test_without_logs_the_best_single_is_the_dearest_and_it_is_said(comparison):
    methods = tuple(_completed(m, m.family, math.nan) for m in comparison.methods)
    found = budget_at(dataclasses.replace(comparison, methods=methods), 2)
    assert (found.single.name, found.by_validation) == ("wide-2x", False)
    assert all(math.isnan(validation_nll(method)) for method in methods)


def test_a_cost_that_is_not_known_affords_nothing(comparison):
    axis = next(each for each in AXES if each.key == "training")
    methods = tuple(
        dataclasses.replace(
            m,
            cost=dataclasses.replace(m.cost, training_seconds=None)
            if m.name in ("deep", "wide-4x")
            else m.cost,
        )
        for m in comparison.methods
    )
    changed = dataclasses.replace(comparison, methods=methods)
    found = budget_at(changed, 4, axis)
    assert found.single.name == "wide-2x"
    assert "deep-2" in names(found.representatives)
    unknown = dataclasses.replace(methods[0].cost, training_seconds=None)
    none = (dataclasses.replace(methods[0], cost=unknown), *methods[1:])
    assert budgets_of(dataclasses.replace(comparison, methods=none), axis) == ()


def test_a_budget_below_every_single_has_no_answer(comparison):
    slim = dataclasses.replace(comparison.methods[4].cost, macs=500_000)
    methods = tuple(
        dataclasses.replace(m, cost=slim) if m.name == "packed" else m for m in comparison.methods
    )
    changed = dataclasses.replace(comparison, methods=methods)
    found = budget_at(changed, 0.5)
    assert found.single is None
    assert answers(changed, found) == {}


def test_a_budget_holds_the_verdicts_of_its_best_single_and_its_representatives(comparison):
    verdicts = [
        make_judged("deep", "wide-4x", "test", "nll", -0.02, 0.01),
        make_judged("deep", "wide-4x", "shift", "nll", -0.03, 0.01),
        make_judged("packed", "wide-4x", "test", "ece", -0.02, 0.01),
    ]
    other = make_judged("deep", "single", "test", "accuracy", 0.02, 0.01)  # not the best single
    unseen = make_judged("forde", "wide-4x", "test", "accuracy", 0.02, 0.01)  # not looked at
    changed = with_verdicts(comparison, *verdicts, other, unseen)
    found = answers(changed, budget_at(changed, 4))
    held = [d.verdict for each in found.values() for d in each.differences]
    assert held == verdicts
    assert {each.outcome for each in found.values()} == {"better"}


def test_what_does_not_survive_holm_is_not_shown(comparison):
    budget = budget_at(comparison, 4)
    for p_value, outcome in ((0.05, "better"), (0.06, "not shown")):
        close = dataclasses.replace(
            make_judged("deep", "wide-4x", "test", "nll", -0.02, 0.01), p_value=p_value
        )
        found = answers(with_verdicts(comparison, close), budget)["test", "nll"]
        assert found.outcome == close.mark == outcome
        assert found.deploy.name == ("deep" if outcome == "better" else "wide-4x")


def test_the_largest_advantage_wins_whichever_way_the_metric_points(comparison):
    verdicts = [
        make_judged(name, "wide-4x", "test", metric, sign * size, 0.001)
        for metric, sign in (("accuracy", 1), ("nll", -1))
        for name, size in (("packed", 0.01), ("deep", 0.02), ("cascade", -0.03))
    ]
    changed = with_verdicts(comparison, *verdicts)
    found = answers(changed, budget_at(changed, 4))
    for metric in ("accuracy", "nll"):
        answer = found["test", metric]
        assert answer.deploy.name == "deep"
        assert names(winner.method for winner in answer.winners) == ["deep", "packed"]
        assert [d.outcome for d in answer.differences] == ["better", "better", "worse"]


def test_a_single_model_that_beats_ensembles_is_deployed_and_it_is_said(comparison):
    verdicts = [
        make_judged("deep", "wide-4x", "test", "nll", 0.02, 0.01),
        make_judged("packed", "wide-4x", "test", "nll", 0.001, 0.01),
    ]
    changed = with_verdicts(comparison, *verdicts)
    answer = answers(changed, budget_at(changed, 4))["test", "nll"]
    assert (answer.outcome, answer.deploy.name) == ("worse", "wide-4x")


@pytest.mark.parametrize(("replicates", "outcome"), [(2, "too few replicates"), (3, "better")])
def test_fewer_than_three_replicates_say_nothing(comparison, replicates, outcome):
    verdict = make_judged("deep", "wide-4x", "test", "nll", -0.02, 0.001, replicates)
    changed = with_verdicts(comparison, verdict)
    answer = answers(changed, budget_at(changed, 4))["test", "nll"]
    assert answer.outcome == outcome
    assert (answer.deploy and answer.deploy.name) == ("deep" if outcome == "better" else None)


def test_undefined_verdicts_stay_so_and_count_for_nothing(comparison):
    lacking = make_judged("deep", "wide-4x", "near_ood/x", "auroc_mutual_information", 0.1, 0.01)
    one = make_judged("deep", "wide-4x", "test", "nll", -0.02, 0.01)
    changed = with_verdicts(comparison, lacking, one)
    found = answers(changed, budget_at(changed, 4))
    assert found["near_ood/x", "auroc_mutual_information"].outcome == "undefined"
    assert found["test", "nll"].outcome == "better"


def test_methods_without_a_family_are_told_apart_by_name():
    plain = make_comparison(10, 1, splits=("test",)).methods
    assert [is_single(method) for method in plain] == [True, False, True]
    assert [family_of(method) for method in plain] == ["single model", "deep", "single model"]
    cascade = dataclasses.replace(plain[0], family="cascade")
    assert not is_single(cascade)


def test_costs_are_multiples_of_the_plain_single_model(comparison):
    assert plain_single(comparison.methods).name == "single"
    assert plain_single(comparison.methods[1:]).name == "wide-2x"
    assert plain_single(comparison.methods[4:]) is None
    assert multiple_text(4.0) == "4\N{MULTIPLICATION SIGN}"


@pytest.mark.parametrize(
    ("key", "amount", "text"),
    [
        ("macs", 1_234_567.0, "1.23 M MACs"),
        ("memory", 3.0 * 2**20, "3.0 MiB"),
        ("latency", 0.5, "0.5 ms"),
        ("training", 90.0, "90 s"),
        ("training", 5400.0, "90 min"),
        ("training", 9000.0, "2.5 h"),
        ("compute", 2.5e18, "2.5 E MACs"),
        ("energy", 0.02, "20 mJ"),
        ("training-energy", 12.0, "12 J"),
        ("training-energy", 36_500.0, "36.5 kJ"),
    ],
)
def test_amounts_are_written_with_their_unit(key, amount, text):
    (axis,) = (each for each in AXES if each.key == key)
    assert axis.text(amount) == text


def test_a_single_model_that_was_trained_longer_is_not_on_the_frontier():
    comparison = make_comparison(40, 2, (("single", 1_000_000, 0.9), ("wide", 2_000_000, 0.91)))
    plain, wide = comparison.methods

    def trained(method, name, times):
        macs = round(times * 3e6 * method.cost.macs)
        return dataclasses.replace(
            method, name=name, family="single model",
            cost=dataclasses.replace(method.cost, training_macs=macs),
        )  # fmt: skip

    methods = [
        trained(plain, "single", 1.0),
        trained(wide, "wide", 1.02),
        trained(plain, "long-2", 2.0),
    ]
    assert [method.name for method in frontier_of(methods)] == ["single", "wide"]
    unknown = dataclasses.replace(plain, family="single model")
    assert [method.name for method in frontier_of([unknown, methods[2]])] == ["single", "long-2"]
