"""An ensemble without a single model of equal cost is judged against the two that bracket it."""

import csv
import dataclasses
import io
import math
import re

import pytest
from deepens.experiments.cli import entry as cli
from deepens.experiments.cli.summary_view import show_summary
from deepens.experiments.comparison.compare import plan
from deepens.experiments.comparison.headlines import headlines, merged
from deepens.experiments.comparison.judging import judge, judge_all
from deepens.experiments.comparison.partners import partner_of, without_equal
from deepens.experiments.comparison.sentences import verdict_sentence
from deepens.experiments.comparison.stored import load_comparison
from deepens.experiments.comparison.summary import summarize
from deepens.experiments.comparison.verdicts import Comparison
from deepens.experiments.config import CompareConfig
from deepens.experiments.report import build_report
from deepens.metrics.statistics.bootstrap import contrast_intervals
from deepens.metrics.statistics.draws import bootstrap_draws
from deepens.metrics.statistics.hypothesis_tests import holm_adjusted
from deepens.metrics.statistics.iso_compute import iso_compute_gaps
from deepens.metrics.suite import MeanEvaluation, OODEvaluation, SplitEvaluation
from report_data import blocks_of
from rich.console import Console
from test_comparison_pairs import make_method

OPTIONS = {"draws": 100, "seed": 3}
COSTS = (("single", 1.0, 100), ("wide-2", 1.7, 246), ("wide", 2.0, 404))


@pytest.fixture(scope="module")
def singles():
    return [make_method(*each, members=1, count=3) for each in COSTS]


@pytest.fixture(scope="module")
def packed():
    return make_method("packed", 1.9, 150, count=3)


def found_partner(ensemble, singles, tolerance=0.02):
    return partner_of(ensemble, singles, tolerance=tolerance)


def judged(ensembles, singles, tolerance=0.02):
    partners = {each.name: found_partner(each, singles, tolerance) for each in ensembles}
    return judge_all(ensembles, singles, **OPTIONS, tolerance=tolerance, partners=partners)


def at_cost(method, macs):
    return dataclasses.replace(method, cost=dataclasses.replace(method.cost, macs=macs))


def test_the_two_single_models_next_in_cost_are_taken_with_weights_linear_in_log_macs(
    packed, singles
):
    partner = found_partner(packed, singles)
    share = math.log(150 / 100) / math.log(246 / 100)
    assert [each.name for each in partner.singles] == ["single", "wide-2"]
    assert [weight for weight, _ in partner.parts] == pytest.approx([1 - share, share], abs=1e-12)
    assert partner.between == (("single", 100 / 150), ("wide-2", 246 / 150))
    assert partner.name == "single to wide-2, interpolated"


def test_a_single_model_of_equal_cost_is_the_partner_and_nothing_is_extrapolated(packed, singles):
    for macs in (242, 251):
        assert found_partner(at_cost(packed, macs), singles).name == "wide-2"
        assert found_partner(at_cost(packed, macs), singles).between == ()
    for macs in (97, 413):
        assert found_partner(at_cost(packed, macs), singles) is None
    assert found_partner(packed, singles[:1]) is None


def test_the_tolerance_decides_what_costs_the_same(packed, singles):
    near = at_cost(packed, 236)  # 4.2 % less than wide-2
    assert found_partner(near, singles).name == "single to wide-2, interpolated"
    assert found_partner(near, singles, 0.05).name == "wide-2"
    exact = at_cost(packed, 245)
    assert found_partner(exact, singles).name == "wide-2"
    assert found_partner(exact, singles, 0.001).between
    (verdict, *_) = judge(near, singles[1], **OPTIONS)
    assert verdict.cost_ratio == pytest.approx(236 / 246)
    (verdict, *_) = judge(near, singles[1], **OPTIONS, tolerance=0.05)
    assert verdict.cost_ratio == 1.0


def test_of_several_at_one_end_the_one_of_lowest_validation_loss_is_taken(packed, singles):
    def with_loss(name, macs, loss, method=singles[1]):
        runs = [dataclasses.replace(r, log=({"val/nll": loss},)) for r in method.replicates]
        return at_cost(dataclasses.replace(method, name=name, replicates=tuple(runs)), macs)

    ends = [with_loss("wide-2", 246, 0.5), with_loss("wide-2.1", 249, 0.4)]
    assert found_partner(packed, [singles[0], *ends]).between[1] == ("wide-2.1", 249 / 150)
    far = with_loss("wide-3", 300, 0.1)
    assert found_partner(packed, [singles[0], *ends, far]).between[1][0] == "wide-2.1"


def test_one_that_was_trained_longer_is_no_end(packed, singles):
    def trained(method, epochs):
        cost = dataclasses.replace(method.cost, training_macs=epochs * method.cost.macs)
        return dataclasses.replace(method, cost=cost)

    long = dataclasses.replace(singles[1], name="epochs-4", cost=singles[1].cost)
    long = trained(at_cost(long, 120), 40)
    every = [trained(singles[0], 10), long, trained(singles[1], 10)]
    assert [name for name, _ in found_partner(packed, every).between] == ["single", "wide-2"]


def draws_of(method, split):
    runs = [replicate.values for replicate in method.replicates]
    if split == "test":
        evaluations, sizes = [SplitEvaluation(values["test"]) for values in runs], [120]
    elif split == "shift":
        shifted = ("shift/fog/1", "shift/blur/1")
        evaluations = [MeanEvaluation([values[each] for each in shifted]) for values in runs]
        sizes = [120]
    else:
        evaluations = [OODEvaluation(values["test"], values[split]) for values in runs]
        sizes = [120, 60]
    return bootstrap_draws(evaluations, sizes=sizes, **OPTIONS)


def test_the_verdict_is_the_contrast_of_the_three_methods_draws(packed, singles):
    own = [v for v in judged([packed], singles) if v.between]
    assert {v.baseline for v in own} == {"single to wide-2, interpolated"}
    share = math.log(1.5) / math.log(2.46)
    checked = 0
    for split in ("test", "shift", "near_ood/letters", "far_ood/noise"):
        ours, low, high, far = (draws_of(each, split) for each in (packed, *singles))
        weighted = [(1.0, ours), (share - 1.0, low), (-share, high)]
        expected = contrast_intervals(weighted)
        gaps = iso_compute_gaps(150, ours, [(100, low), (246, high), (404, far)])
        for verdict in (v for v in own if v.split == split and v.metric in expected):
            means = [d.observed[verdict.metric].mean().item() for d in (ours, low, high)]
            by_hand = means[0] - (1 - share) * means[1] - share * means[2]
            assert verdict.estimate == pytest.approx(by_hand, abs=1e-12)
            if verdict.outcome == "undefined":
                continue
            for interval in (expected[verdict.metric], gaps[verdict.metric]):
                assert verdict.estimate == pytest.approx(interval.estimate, abs=1e-12)
                assert verdict.low == pytest.approx(interval.low, abs=1e-12)
                assert verdict.high == pytest.approx(interval.high, abs=1e-12)
                assert verdict.raw_p_value == pytest.approx(interval.p_value, rel=1e-9)
            rows = zip(
                *(d.observed[verdict.metric].tolist() for d in (ours, low, high)), strict=True
            )
            signs = [a - (1 - share) * b - share * c for a, b, c in rows]
            assert verdict.agreeing == sum(each * by_hand > 0 for each in signs)
            checked += 1
    assert checked > 25
    defined = [v for v in own if v.outcome != "undefined"]
    assert holm_adjusted([v.raw_p_value for v in defined]) == [v.p_value for v in defined]
    assert {v.compared for v in own} == {len(defined)}
    assert {(v.replicates, v.cost_ratio) for v in own} == {(3, 1.0)}


def test_an_ensemble_that_lies_on_the_line_has_no_advantage(singles):
    low, _, high = singles
    half = at_cost(dataclasses.replace(low, name="deep"), 100)
    runs = []
    for a, b in zip(low.replicates, high.replicates, strict=True):
        values = {
            split: dataclasses.replace(
                a.values[split],
                **{
                    n: (getattr(a.values[split], n) + getattr(b.values[split], n)) / 2
                    for n in ("nll", "brier")
                },
            )
            for split in ("test",)
        }
        runs.append(dataclasses.replace(a, values=values, scaled=None))
    half = at_cost(dataclasses.replace(half, replicates=tuple(runs)), 200)
    high = at_cost(high, 400)
    own = {v.metric: v for v in judged([half], [low, high]) if v.between}
    for metric in ("nll", "brier"):
        assert own[metric].estimate == pytest.approx(0.0, abs=1e-12)
        assert own[metric].outcome == "undecided"


def test_verdicts_on_single_models_are_as_they_are_without(packed, singles):
    ensembles = [packed, make_method("deep", 2.5, 400, count=3)]
    plain = judge_all(ensembles, singles, **OPTIONS)
    both = judged(ensembles, singles)
    assert repr([v for v in both if not v.between]) == repr(list(plain))
    assert {v.challenger for v in both if v.between} == {"packed"}


def test_with_one_replicate_at_an_end_nothing_is_decided(packed, singles):
    one = dataclasses.replace(singles[0], replicates=singles[0].replicates[:1])
    own = [v for v in judged([packed], [one, *singles[1:]]) if v.between]
    assert {v.outcome for v in own} == {"undecided", "undefined"}
    assert {v.replicates for v in own} == {1}
    two = dataclasses.replace(singles[1], replicates=singles[1].replicates[:2])
    own = [v for v in judged([packed], [singles[0], two]) if v.between]
    assert {v.outcome for v in own} & {"better", "worse"}
    assert {v.mark for v in own} == {"not shown", ""}


def test_what_an_end_lacks_is_not_judged(packed, singles):
    less = make_method("wide-2", 1.7, 246, members=1, count=3, splits=("test", "shift/fog/1"))
    own = [v for v in judged([packed], [singles[0], less]) if v.between]
    assert {v.split for v in own} == {"test"}


def made(ensembles, singles):
    found = judged(ensembles, singles)
    partners = {(each.name, found_partner(each, singles).name) for each in ensembles}
    return Comparison(
        *("data", "", (*singles, *ensembles)),
        tuple(v for v in found if (v.challenger, v.baseline) in partners),
        *(100, (), "", {}, ""),
        against_singles=tuple(v for v in found if not v.between),
    )


@pytest.fixture(scope="module")
def comparison(packed, singles):
    even = make_method("even", 1.35, 150, count=3)
    return made([packed, even, make_method("deep", 2.1, 400, count=3)], singles)


IN_FULL = (
    "single models of equal cost, interpolated linearly in log MACs between single (0.667 times "
    "the MACs) and wide-2 (1.64 times)"
)


def test_headlines_say_plainly_what_the_comparison_is_with(comparison):
    packed, even, deep = headlines(comparison)
    assert f"packed is better than {IN_FULL}, on " in packed.sentence
    assert even.answer == "Mixed"
    assert f"even is better than {IN_FULL}, on " in even.sentence
    none = [dataclasses.replace(v, p_value=1.0) for v in comparison.judgements if v.between]
    first, _ = headlines(dataclasses.replace(comparison, judgements=tuple(none)))
    assert first.sentence.startswith(f"No difference between packed and {IN_FULL}, is shown on ")
    assert packed.subject == f"packed against {IN_FULL}."
    assert "compute-matched" not in packed.sentence + even.sentence
    assert "deep" in deep.sentence
    assert "wide, the compute-matched single model" in deep.sentence
    assert packed.unjudged == ()
    assert "interpolated" not in deep.sentence


def test_kinds_of_images_without_a_verdict_are_named(packed, singles):
    less = make_method("wide-2", 1.7, 246, members=1, count=3, splits=("test",))
    runs = [
        dataclasses.replace(r, metrics=whole.metrics)
        for r, whole in zip(less.replicates, singles[1].replicates, strict=True)
    ]
    less = dataclasses.replace(less, replicates=tuple(runs))
    (found,) = headlines(made([packed], [singles[0], less]))
    assert "Not judged: Shift, Near OOD and Far OOD." in found.sentence


def test_only_what_has_the_same_ends_is_said_once(packed, singles):
    other = at_cost(dataclasses.replace(packed, name="other"), 151)
    same = dataclasses.replace(packed, name="same")
    comparison = dataclasses.replace(made([packed, other, same], singles), conclusive=False)
    found = merged(headlines(comparison))
    assert [each.challenger for each in found] == ["packed and same", "other"]
    assert found[0].sentence.startswith(f"packed and same against {IN_FULL}: ")


def test_sentences_of_verdicts_name_both_ends(comparison):
    said = {}
    for verdict in comparison.judgements:
        if verdict.between:
            said.setdefault(verdict.mark, verdict_sentence(verdict))
            worse = dataclasses.replace(verdict, outcome="worse", p_value=0.01)
            assert "between single and wide-2, beat " in verdict_sentence(worse)
            assert "times its MACs" not in said[verdict.mark]
    ends = "single models of equal cost, interpolated between single and wide-2"
    assert f" beats {ends} (" in said["better"]
    assert f" and {ends}, shown (" in said["not shown"]


def test_report_terminal_and_tables_agree(comparison):
    row = next(row for row in summarize(comparison).rows if row.name == "packed")
    assert row.partner == "single to wide-2, interpolated"
    marks = {
        v.metric: v.mark
        for v in comparison.judgements
        if (v.challenger, v.split) == ("packed", "test")
    }
    for key in ("accuracy", "nll", "ece", "aurc"):
        assert row.cells[key].mark == marks[key]
    report = build_report(comparison)
    texts = [block.text for block in blocks_of(report, "verdict") if block.block == "text"]
    assert f"packed is judged against {IN_FULL}." in texts
    heads = [block.text for block in blocks_of(report, "verdict") if block.block == "heading"]
    assert "packed against single to wide-2, interpolated" in heads
    frontier = [block for block in blocks_of(report, "frontier") if block.block == "table"]
    assert not [block.title for block in frontier if "gap at equal MACs" in block.title]
    out = io.StringIO()
    show_summary(summarize(comparison), Console(file=out, width=1000))
    said = out.getvalue()
    assert "packed against single to wide-2, interpolated: " in said
    assert "the compute-matched single models, or single models interpolated at equal cost" in said


def test_budgets_compare_with_single_models_alone(comparison):
    assert {v.baseline for v in comparison.against_singles} == {"single", "wide-2", "wide"}


def test_a_note_names_both_ends_or_what_would_bracket():
    built_in = CompareConfig()
    published = CompareConfig(backbone="torchvision:shufflenet_v2_x0_5")
    weights = CompareConfig(backbone="timm:resnet18@a1_in1k")
    costs = {"single": 100, "wide-2": 110, "wide-4": 111, "wide-16": 1600}
    between = without_equal("deep", 105, costs, built_in)
    assert between == (
        "deep is judged against single models of equal cost, interpolated linearly in log MACs "
        "between single (0.952 times the MACs) and wide-2 (1.05 times the MACs) or wide-4 (1.06 "
        "times the MACs), since no single model among the methods costs the same within 2 %; how "
        "far the line between them bends is not in the intervals; add wide to --methods for one "
        "of equal cost"
    )
    assert "wide to --methods" not in without_equal("deep", 105, costs, published)
    said = {
        config.backbone: without_equal("deep-2", 200, {"single": 100}, config, planned=True)
        for config in (built_in, published, weights)
    }
    start = (
        "deep-2 will have no verdict: no single model among the methods costs the same within 2 %, "
        "and none costs more, so nothing can be interpolated; add "
    )
    assert list(said.values()) == [
        f"{start}{name} to --methods" for name in ("wide-2", "resolution-2.5", "family-2.5")
    ]
    cheap = without_equal("packed", 50, {"single": 100}, published)
    assert cheap.startswith("No verdict on packed: ")
    assert "none costs less" in cheap
    assert "add resolution-0.4 to" in cheap


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "nan"])
def test_a_tolerance_out_of_bounds_is_refused(value, capsys):
    words = ["compare", "--cost-tolerance", value, "--dry-run"]
    assert cli.main(words) == 2
    assert "cost_tolerance must be in (0, 1), got" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no rule for small images")
def test_an_ensemble_of_a_published_network_gets_a_verdict(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["compare", "--backbone", "torchvision:shufflenet_v2_x0_5", "--corruptions", "none"]
    words += ["--methods", "single,family-3,deep-2", "--replicates", "1", "--draws", "100"]
    words += ["--epochs", "1", "--quiet", "--out", str(out)]
    assert cli.main([*words, "--dry-run"]) == 0
    ends = r"between single \(0\.5 times the MACs\) and family-3 \(1\.\d+ times the MACs\), since"
    planned = re.search(
        f"caution: deep-2 will be (judged against .*{ends}.*)", capsys.readouterr().out
    )
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"caution: deep-2 is {planned[1]}." in said
    assert "deep-2 against single models of equal cost, interpolated linearly" in said
    with (out / "verdicts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["baseline"] for row in rows} == {"single to family-3, interpolated"}
    results = load_comparison(out).results.groupby(["method", "split", "metric"]).value.mean()
    costs = {m.name: m.cost.macs for m in load_comparison(out).methods}
    share = math.log(2) / math.log(costs["family-3"] / costs["single"])
    for row in rows:
        if row["split"] == "test" and row["metric"] in ("accuracy", "nll"):
            low, ours, high = (
                results[n, "test", row["metric"]] for n in ("single", "deep-2", "family-3")
            )
            expected = ours - (1 - share) * low - share * high
            assert float(row["difference"]) == pytest.approx(expected, rel=1e-9)
            assert float(row["p_value"]) <= float(row["adjusted_p_value"])
    # Reports follow a tolerance that is set later: nothing is trained again.
    weights = {path: path.stat().st_mtime_ns for path in out.glob("*/weights.safetensors")}
    assert cli.main([*words, "--cost-tolerance", "0.6"]) == 0
    assert "deep-2 against single, the compute-matched single model" in capsys.readouterr().out
    assert cli.main(["report", str(out)]) == 0
    assert "against single, the compute-matched" in (out / "report.md").read_text(encoding="utf-8")
    assert weights == {path: path.stat().st_mtime_ns for path in weights}


SMALL = {"corruptions": ("none",), "epochs": 1, "replicates": 1, "draws": 100, "quiet": True}


def test_the_plan_says_what_will_be_interpolated(tmp_path):
    small = SMALL | {"out": str(tmp_path / "out"), "methods": ("single", "wide-4", "deep-2")}
    (said,) = plan(CompareConfig(**small)).warnings
    assert said.startswith(
        "deep-2 will be judged against single models of equal cost, interpolated linearly in log "
        "MACs between single (0.5 times the MACs) and wide-4 (2"
    )
    assert said.endswith("add wide-2 to --methods for one of equal cost")
    assert plan(CompareConfig(**small, cost_tolerance=0.5)).warnings == ()
