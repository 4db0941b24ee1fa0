"""Methods on the scale of deep ensembles by size, and how a report tells it."""

import dataclasses
import math

import pytest
import torch
from deepens.experiments.comparison.ensemble_sizes import (
    MEASURE,
    deep_ensembles,
    ensemble_sizes,
)
from deepens.experiments.comparison.verdicts import MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.experiments.report.frontier_view import frontier_blocks
from deepens.experiments.report.model import Table, Text
from deepens.metrics.samples import SampleValues
from report_data import make_comparison

IMAGES = 300
HARD = torch.rand(IMAGES, generator=torch.Generator().manual_seed(0)).double()


def method(name, members, loss, *, family="deep ensemble", seed=0, over=""):
    """Three replicates whose NLL at the temperature is about ``loss``, hard images alike."""
    runs = []
    for number in range(3):
        noise = torch.randn(IMAGES, generator=torch.Generator().manual_seed(10 * seed + number))
        nll = loss * (0.5 + HARD / HARD.mean() / 2) + 0.001 * noise
        flags = torch.ones(IMAGES, dtype=torch.bool)
        values = SampleValues(HARD, HARD, HARD, HARD, nll=nll.double(), brier=HARD, correct=flags)
        metrics = {"test": {"n": IMAGES, MEASURE: values.nll.mean().item()}}
        runs.append(Replicate(f"{name}-{number}", metrics, {"test": values}, scaled=values))
    cost = Cost(1000 * members, 1, 1.0, 1.0, 1)
    return MethodSummary(name, name, cost, tuple(runs), family, over)


def law(members):
    return 0.3 + 0.1 / members


def comparison(*more, sizes=(1, 2, 4)):
    deep = [
        method(f"deep-{m}" if m > 1 else "single", m, law(m), seed=m)
        if m > 1
        else method("single", 1, law(1), family="single model", seed=1)
        for m in sizes
    ]
    methods = (*deep, *more)
    return dataclasses.replace(make_comparison(), methods=methods, judgements=())


def test_a_method_as_good_as_a_deep_ensemble_is_worth_its_members():
    packed = method("packed-4", 1, law(2), family="packed ensemble", seed=50)
    found = ensemble_sizes(comparison(packed))
    assert found.sizes == pytest.approx({m: law(m) for m in (1, 2, 4)}, abs=1e-3)
    equivalent = found.equivalents["packed-4"]
    assert equivalent.estimate == pytest.approx(2, abs=0.05)
    assert equivalent.low <= 2 <= equivalent.high
    assert list(found.equivalents) == ["packed-4"]
    assert found.law is None


def test_deep_ensembles_are_those_whose_members_cost_what_single_does():
    other = method("mixupmp-1", 4, 0.3, family="MixupMP ensemble")
    cascade = method("cascade-deep-4", 2, 0.3, over="deep-4")
    found = deep_ensembles(comparison(other, cascade))
    assert {size: each.name for size, each in found.items()} == {
        1: "single",
        2: "deep-2",
        4: "deep-4",
    }


def test_the_law_of_the_smaller_ensembles_predicts_the_largest():
    found = ensemble_sizes(comparison(sizes=(1, 2, 3, 4, 8)))
    assert found.largest == 8
    assert found.law.predicted == pytest.approx(law(8), abs=2e-3)
    assert found.law.low <= found.law.predicted - found.law.observed <= found.law.high


def test_without_two_sizes_or_temperatures_there_is_nothing():
    assert ensemble_sizes(comparison(sizes=(1,))) is None
    assert ensemble_sizes(comparison(sizes=(2, 4))) is None
    whole = comparison()
    lacking = [
        dataclasses.replace(
            each, replicates=tuple(dataclasses.replace(r, scaled=None) for r in each.replicates)
        )
        for each in whole.methods
    ]
    assert ensemble_sizes(dataclasses.replace(whole, methods=tuple(lacking))) is None


def test_a_method_without_a_temperature_is_named_and_left_out():
    packed = method("packed-4", 1, 0.35, family="packed ensemble")
    first, *rest = packed.replicates
    lost = dataclasses.replace(first, metrics={"test": {"n": IMAGES, MEASURE: math.nan}})
    found = ensemble_sizes(comparison(dataclasses.replace(packed, replicates=(lost, *rest))))
    assert (dict(found.equivalents), found.left_out) == ({}, ("packed-4",))


def test_reports_tell_equivalents_and_law():
    packed = method("packed-4", 1, law(2), family="packed ensemble", seed=50)
    better = method("forde", 4, 0.2, family="repulsive ensemble", seed=60)
    blocks = list(frontier_blocks(comparison(packed, better, sizes=(1, 2, 3, 4, 8))))
    (table,) = [b for b in blocks if isinstance(b, Table) and b.title.startswith("Independent")]
    cells = {row.head: row.cells[0].plain for row in table.rows}
    assert cells["packed-4"].startswith(("2 [", "2.0 ["))
    assert cells["forde"] == "over 8 [8, over 8]"
    assert table.basis.startswith("deep ensembles: NLL 0.3999 with 1, 0.3500 with 2")
    sentences = [b.text for b in blocks if isinstance(b, Text)]
    assert any("M^-" in text and "for 8 members; they reach 0.31" in text for text in sentences), (
        sentences
    )
