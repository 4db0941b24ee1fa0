"""Ensembles against the frontier of single models, by numbers that were computed by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from deepens.experiments.comparison import frontier
from deepens.experiments.comparison.frontier import (
    conditional_diversity,
    frontier_gaps,
    splits_of,
)
from deepens.experiments.comparison.gains import gain_table
from deepens.experiments.comparison.robustness import robustness
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.metrics import (
    MeanEvaluation,
    OODEvaluation,
    SplitEvaluation,
    bootstrap_draws,
    contrast_intervals,
    evaluate_ood_values,
    evaluate_values,
)
from deepens.metrics.samples import SampleValues
from deepens.metrics.statistics.gain_correlation import gain_correlation
from deepens.metrics.statistics.hypothesis_tests import holm_adjusted

SHIFTS = ("shift/fog/1", "shift/fog/2")
SETS = ("near_ood/letters", "near_ood/signs")


def make_values(seed, correct, nll=None):
    generator = torch.Generator().manual_seed(seed)
    count = len(correct)
    draw = [torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(4)]
    return SampleValues(
        confidence=draw[0],
        entropy=draw[1],
        mutual_information=draw[2],
        disagreement=draw[3],
        nll=torch.rand(count, generator=generator).double() if nll is None else nll,
        brier=torch.rand(count, generator=generator).double(),
        correct=torch.tensor(correct),
    )


def make_method(name, macs, accuracies, *, family="single model", values=(), shifted=None):
    """A method by its accuracies, one a replicate; under shift less 0.1 and 0.3, or as told."""
    runs = []
    for number, accuracy in enumerate(accuracies):
        under = (accuracy - 0.1, accuracy - 0.3) if shifted is None else shifted
        metrics = {"test": {"n": 100, "accuracy": accuracy, "nll": 1 - accuracy}}
        metrics |= {s: {"accuracy": a} for s, a in zip(SHIFTS, under, strict=True)}
        found = {"auroc_msp": accuracy, "auroc_mutual_information": 0.5}
        metrics["near_ood/letters"] = {"auroc_msp": 0.0}
        metrics["near_ood/letters.encoded"] = found
        held = {"test": values[number]} if values else {}
        runs.append(Replicate(f"{name}-{number}", metrics, held))
    return MethodSummary(name, name, Cost(macs, 1, 1.0, 1.0, 1), tuple(runs), family)


def measured(name, macs, accuracies, *, family="single model", images=400, seed=0):
    """A method with the values of single images, hard and easy ones alike for all methods."""
    hard = torch.rand(images, generator=torch.Generator().manual_seed(99)).double()
    draw = torch.Generator().manual_seed(1000 * seed + macs)
    runs = []
    for number, accuracy in enumerate(accuracies):
        values = {}
        for place, split in enumerate(("test", *SHIFTS)):
            noise = 0.05 * torch.randn(images, generator=draw).double()
            right = hard + noise < accuracy - 0.1 * place
            values[split] = make_values(macs + 10 * number + place, right.tolist())
        for place, split in enumerate(SETS):
            values[split] = make_values(number + macs + 7 * place, [True] * (50 + 10 * place))
        metrics = {s: evaluate_values(values[s]) for s in ("test", *SHIFTS)}
        metrics |= {s: evaluate_ood_values(values["test"], values[s]) for s in SETS}
        runs.append(Replicate(f"{name}-{number}", metrics, values))
    return MethodSummary(name, name, Cost(macs, 1, 1.0, 1.0, 1), tuple(runs), family)


def make_comparison(*methods):
    return Comparison("data", "", methods, (), 200, (), "", {}, "")


@pytest.fixture(scope="module")
def comparison():
    return make_comparison(
        make_method("single", 100, [0.60, 0.64]),
        make_method("wide-4", 400, [0.70, 0.74]),
        make_method("wide-16", 1600, [0.80, 0.84]),
        make_method("deep", 200, [0.74, 0.78, 0.76], family="deep ensemble"),
        make_method("large", 1640, [0.9, 0.9], family="deep ensemble"),
        make_method("cheap", 90, [0.5, 0.5], family="cascade"),
        make_method("end", 1630, [0.90, 0.94], family="packed ensemble"),
    )


def gaps_of(comparison, name):
    return next(each for each in frontier_gaps(comparison) if each.method.name == name)


def test_gap_is_to_what_lies_half_way_in_log_macs(comparison):
    found = {(gap.kind, gap.metric): gap for gap in gaps_of(comparison, "deep").gaps}
    # 200 is half way from 100 to 400 MACs, where single models reach (0.62 + 0.72) / 2 = 0.67.
    assert found["test", "accuracy"].found.estimate == pytest.approx(0.76 - 0.67, abs=1e-12)
    assert found["test", "nll"].found.estimate == pytest.approx(0.67 - 0.76, abs=1e-12)
    assert found["shift", "accuracy"].found.estimate == pytest.approx(0.09, abs=1e-12)
    assert found["shift", "accuracy"].found.single == pytest.approx(0.47, abs=1e-12)
    # Of a near OOD set that has an encoded copy the copy alone counts.
    assert found["near_ood", "auroc_msp"].found.single == pytest.approx(0.67, abs=1e-12)
    assert set(found) == {
        ("test", "accuracy"),
        ("test", "nll"),
        ("shift", "accuracy"),
        ("near_ood", "auroc_msp"),
    }
    assert found["test", "accuracy"].found.count == 3


@pytest.fixture(scope="module")
def resampled():
    return make_comparison(
        measured("single", 100, [0.60, 0.62, 0.61]),
        measured("wide-4", 400, [0.70, 0.72]),
        measured("deep", 200, [0.85, 0.86, 0.87], family="deep ensemble"),
        measured("like", 201, [0.66, 0.67, 0.65], family="packed ensemble"),
    )


def test_intervals_of_gaps_are_those_of_the_weighted_sum_of_draws(resampled):
    single, wide, deep, _ = resampled.methods
    found = {(gap.kind, gap.metric): gap.found for gap in gaps_of(resampled, "deep").gaps}
    two_sets = [
        lambda ids, *oods, r=r: {
            name: torch.stack(
                [
                    OODEvaluation(r.values["test"], r.values[s])(ids, w)[name]
                    for s, w in zip(SETS, oods, strict=True)
                ]
            ).mean(0)
            for name in ("auroc_msp", "fpr95_entropy")
        }
        for method in (deep, single, wide)
        for r in method.replicates
    ]
    for kind, sizes, evaluations in (
        ("test", [400], lambda r: SplitEvaluation(r.values["test"])),
        ("shift", [400], lambda r: MeanEvaluation([r.values[s] for s in SHIFTS])),
        ("near_ood", [400, 50, 60], lambda r: two_sets.pop(0)),
    ):
        groups = [
            bootstrap_draws([evaluations(r) for r in m.replicates], sizes=sizes, draws=200)
            for m in (deep, single, wide)
        ]
        expected = contrast_intervals(list(zip((1.0, -0.5, -0.5), groups, strict=True)))
        held = {metric: each for (where, metric), each in found.items() if where == kind}
        assert {"test": "nll", "shift": "ece", "near_ood": "auroc_msp"}[kind] in held
        for metric in held.keys() & expected.keys():
            ours, theirs = held[metric], expected[metric]
            for end in ("estimate", "low", "high", "p_value"):
                assert getattr(ours, end) == pytest.approx(getattr(theirs, end), abs=1e-9), metric


def test_gap_counts_where_it_holds_among_all_gaps_of_the_ensemble(resampled):
    gaps = gaps_of(resampled, "deep").gaps
    adjusted = holm_adjusted([gap.found.p_value for gap in gaps])
    assert [gap.p_value for gap in gaps] == adjusted
    outcomes = {(gap.kind, gap.metric): gap.outcome for gap in gaps}
    assert outcomes["test", "accuracy"] == outcomes["shift", "accuracy"] == "better"
    assert outcomes["near_ood", "auroc_msp"] == "not shown"
    # At half the accuracy of the two, of images that the next draw might hold more of.
    like = {(gap.kind, gap.metric): gap for gap in gaps_of(resampled, "like").gaps}
    assert like["test", "accuracy"].outcome == "not shown"


def test_gap_without_images_or_with_one_replicate_has_no_interval(comparison, resampled):
    for methods in (
        comparison.methods[:4],  # nothing of single images was kept
        (*resampled.methods[:2], measured("deep", 200, [0.9], family="deep ensemble")),
    ):
        for gap in gaps_of(make_comparison(*methods), "deep").gaps:
            assert gap.outcome == "not shown"
            assert math.isfinite(gap.found.estimate)
            assert math.isnan(gap.found.low)
            assert math.isnan(gap.p_value)


def test_nothing_is_extrapolated_beyond_two_percent(comparison):
    large, cheap, end = (gaps_of(comparison, name) for name in ("large", "cheap", "end"))
    assert (large.gaps, cheap.gaps) == ((), ())
    assert large.beyond == (
        "beyond the single models: 0.00164 M MACs per image, and the most expensive, "
        "wide-16, takes 0.0016 M; add one of its cost"
    )
    assert "and the cheapest, single, takes" in cheap.beyond
    assert end.beyond == ""  # by 1.9 % only: compared with the dearest as it is
    accuracy = next(gap for gap in end.gaps if (gap.kind, gap.metric) == ("test", "accuracy"))
    assert accuracy.found.estimate == pytest.approx(0.92 - 0.82, abs=1e-12)


def test_an_ensemble_that_is_left_out_costs_no_draw_and_changes_no_other(resampled, monkeypatch):
    names = [each.method.name for each in frontier_gaps(resampled)]
    whole = {each.method.name: each for each in frontier_gaps(resampled)}
    kept = frontier_gaps(resampled, leave_out=names[:1])
    assert [each.method.name for each in kept] == names[1:]
    assert all(repr(each.gaps) == repr(whole[each.method.name].gaps) for each in kept)
    monkeypatch.setattr(frontier, "bootstrap_draws", None)
    assert frontier_gaps(resampled, leave_out=names) == ()


def test_single_models_of_one_cost_make_no_frontier(comparison):
    alone = make_comparison(comparison.methods[0], comparison.methods[3])
    assert gaps_of(alone, "deep").beyond.startswith("not compared, since all single models ")
    assert frontier_gaps(make_comparison(comparison.methods[3])) == ()


def test_metric_that_some_single_model_lacks_is_undefined(resampled):
    single = resampled.methods[0]
    first, *rest = single.replicates
    metrics = {**first.metrics, "test": first.metrics["test"] | {"nll": math.nan}}
    torn = dataclasses.replace(
        single, replicates=(dataclasses.replace(first, metrics=metrics), *rest)
    )
    gaps = gaps_of(make_comparison(torn, *resampled.methods[1:]), "deep").gaps
    outcomes = {(gap.kind, gap.metric): gap.outcome for gap in gaps}
    assert outcomes["test", "nll"] == "undefined"
    assert outcomes["test", "accuracy"] == "better"
    # Holm's method counts those that are left.
    left = [gap for gap in gaps if gap.found is not None]
    assert len(left) == len(gaps) - 1
    assert [gap.p_value for gap in left] == holm_adjusted([gap.found.p_value for gap in left])


def test_robustness_is_the_distance_to_the_line_through_single_models():
    def logit(share):
        return math.log(share / (1 - share))

    # Single models on the line logit(ood) = logit(id) - 1 exactly, whichever are drawn.
    singles = []
    for number, accuracy in enumerate((0.6, 0.65, 0.7, 0.75, 0.8)):
        under = 1 / (1 + math.exp(1 - logit(accuracy)))
        singles.append(make_method(f"s{number}", 100, [accuracy] * 2, shifted=(under, under)))
    deep = make_method("deep", 200, [0.75, 0.85], family="deep", shifted=(0.7, 0.6))
    found = robustness(make_comparison(*singles, deep))
    expected = 0.65 - 1 / (1 + math.exp(1 - logit(0.8)))
    (one,) = found.ensembles
    assert (found.singles, found.splits) == (5, 2)
    assert (one.low, one.estimate, one.high) == pytest.approx([expected] * 3, abs=1e-9)
    each = [0.65 - 1 / (1 + math.exp(1 - logit(a))) for a in (0.75, 0.85)]
    assert one.replicates == pytest.approx(each, abs=1e-9)
    (few,) = robustness(make_comparison(*singles[:4], deep)).ensembles
    assert few.estimate == pytest.approx(expected, abs=1e-9)
    assert math.isnan(few.low)


def test_line_needs_three_single_models_of_different_accuracy(comparison):
    two = make_comparison(comparison.methods[0], comparison.methods[1], comparison.methods[3])
    found = robustness(two)
    assert found.ensembles == ()
    assert found.reason.endswith("different accuracy, and there are 2.")
    same = make_method("same", 300, [0.60, 0.64])
    assert robustness(make_comparison(*two.methods, same)).reason.endswith("there are 2.")
    assert robustness(make_comparison(*comparison.methods[:3])) is None


def test_robustness_of_perfect_accuracy_says_why_there_is_none(comparison):
    perfect = make_method("perfect", 200, [1.0], family="deep ensemble")
    (one,) = robustness(make_comparison(*comparison.methods[:3], perfect)).ensembles
    assert "must lie in (0, 1), where the logit is finite, got 1" in one.reason


def test_diversity_is_averaged_over_right_and_over_wrong_images():
    values = [make_values(seed, [True, False, True, False]) for seed in (0, 1)]
    all_right = make_values(2, [True] * 4)
    deep = make_method("deep", 200, [0.7] * 3, family="deep", values=(*values, all_right))
    single = make_method("single", 100, [0.6], values=(make_values(3, [True] * 4),))
    (found,) = conditional_diversity(make_comparison(single, deep))
    for name in ("disagreement", "mutual_information"):
        right, wrong = getattr(found, name)
        held = [getattr(v, name).numpy() for v in (*values, all_right)]
        by_hand = [np.mean(held[0][[0, 2]]), np.mean(held[1][[0, 2]]), np.mean(held[2])]
        np.testing.assert_allclose(right, by_hand, rtol=0, atol=1e-12)
        by_hand = [np.mean(held[0][[1, 3]]), np.mean(held[1][[1, 3]])]  # the third errs nowhere
        np.testing.assert_allclose(wrong, by_hand, rtol=0, atol=1e-12)


def gain_methods(bases, ensembles=3, bigs=3):
    """Methods whose images are hard alike, so that gains are correlated but for the noise."""

    def values(count, start):
        return tuple(make_values(start + seed, [True] * 60) for seed in range(count))

    return (
        make_method("single", 100, [0.6] * bases, values=values(bases, 0)),
        make_method("deep", 400, [0.7] * ensembles, family="deep", values=values(ensembles, 20)),
        make_method("wide", 404, [0.7] * bigs, values=values(bigs, 40)),
    )


def test_gain_correlations_are_of_disjoint_bases():
    single, deep, wide = gain_methods(5)
    table = gain_table(make_comparison(single, deep, wide))
    assert [(row.ensemble.name, row.big.name, row.loss) for row in table.rows] == [
        ("deep", "wide", "nll"),
        ("deep", "wide", "brier"),
    ]
    for row in table.rows:
        losses = {
            method.name: [getattr(r.values["test"], row.loss) for r in method.replicates]
            for method in (single, deep, wide)
        }
        base = losses["single"]
        # The first half of five bases is two: the ensembles'; the next two are the large networks'.
        ours = [losses["deep"][i] - base[i] for i in (0, 1)]
        theirs = [losses["wide"][i] - base[i + 2] for i in (0, 1)]
        pairs = [gain_correlation(a, b).item() for a in ours for b in theirs]
        assert row.replicates == (2, 2)
        assert row.found.ensemble_big.estimate == pytest.approx(np.mean(pairs), abs=1e-9)
        null = gain_correlation(*ours).item()
        assert row.found.ensemble_ensemble.estimate == pytest.approx(null, abs=1e-9)
        null = gain_correlation(*theirs).item()
        assert row.found.big_big.estimate == pytest.approx(null, abs=1e-9)


def test_gain_correlations_need_four_bases_and_a_single_model_of_the_cost():
    methods = gain_methods(3)
    table = gain_table(make_comparison(*methods))
    assert table.rows == ()
    assert "at least 4 replicates of single" in table.reason
    assert table.reason.endswith("there are 3.")
    single, deep, _ = gain_methods(4)
    assert gain_table(make_comparison(single, deep)).reason.startswith("No ensemble has a larger")
    # A base is no larger network, whatever it costs.
    cheap = dataclasses.replace(deep, cost=single.cost)
    assert gain_table(make_comparison(single, cheap)).rows == ()


def test_gain_correlations_say_why_a_row_has_none():
    single, deep, wide = gain_methods(4, ensembles=1)
    rows = gain_table(make_comparison(single, deep, wide)).rows
    assert all("must hold >= 2 replicates each" in row.reason for row in rows)
    bare = dataclasses.replace(
        deep, replicates=tuple(dataclasses.replace(r, values={}) for r in deep.replicates)
    )
    rows = gain_table(make_comparison(single, bare, wide)).rows
    assert [row.reason for row in rows] == ["the losses of single test images were not kept"] * 2


def test_of_an_ood_set_that_has_an_encoded_copy_the_copy_alone_counts(comparison):
    assert splits_of(comparison, "near_ood") == ("near_ood/letters.encoded",)
    assert splits_of(comparison, "shift") == SHIFTS
