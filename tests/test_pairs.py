import dataclasses
import statistics

import pytest
import torch
from deepens.experiments.comparison.judging import judge
from deepens.experiments.comparison.pairs import describe_pairs, find_pairs
from deepens.experiments.comparison.verdicts import Comparison, MethodSummary, Replicate
from deepens.experiments.cost.measurement import Cost
from deepens.metrics.core.catalogue import METRICS
from deepens.metrics.samples import sample_values
from deepens.metrics.statistics.bootstrap import paired_bootstrap
from deepens.metrics.suite import evaluate_values

ONE = dict.fromkeys(("single", "deep", "packed"), "resnet8")


def _method(name, sharpness, macs, replicates=3):
    """Members whose logits point to the right class the more, the sharper they are."""
    runs = []
    for replicate in range(replicates):
        generator = torch.Generator().manual_seed(sum(name.encode()) + replicate)
        targets = torch.arange(400) % 4
        logits = torch.randn(2, 400, 4, generator=generator)
        logits[:, range(400), targets] += sharpness
        values = sample_values(logits, targets)
        found = {"test": values}
        for corruption, weaker in [("fog", 0.7), ("blur", 0.4)]:
            found[f"shift/{corruption}/1"] = sample_values(weaker * logits.roll(1, 2), targets)
            found[f"shift/{corruption}/2"] = sample_values(weaker * logits, targets)
        metrics = {split: evaluate_values(each) for split, each in found.items()}
        runs.append(Replicate(f"{name}-{replicate}", metrics, found))
    cost = Cost(macs, 10, 1.0, 1.0, 10)
    return MethodSummary(name, name, cost, tuple(runs))


@pytest.fixture(scope="module")
def comparison():
    methods = (_method("single", 1.0, 10), _method("deep", 2.0, 40), _method("packed", 1.7, 10))
    return Comparison("data", "", methods, (), 200, (), "", {}, "")


def test_lines_hold_the_judgement_of_the_two_methods(comparison):
    lines = list(describe_pairs(comparison, ["packed:deep"], backbones=ONE, seed=0))
    assert lines[0] == "packed against deep, at 0.25 times its MACs (+: packed is better):"
    _, deep, packed = comparison.methods
    verdicts = {v.metric: v for v in judge(packed, deep, draws=200, seed=0) if v.split == "test"}
    nll = next(line for line in lines if line.startswith(f"  {METRICS['nll'].label} (test)"))
    found = verdicts["nll"]
    estimate, low, high = found.advantage
    assert high < 0
    assert f"{estimate:+.4f} [{low:+.4f}, {high:+.4f}], worse" in nll
    assert "3 replicates, n = 400" in nll


def test_share_of_the_gain_is_that_of_the_means_with_the_range_of_replicates(comparison):
    single, deep, packed = (
        [r.metrics["test"]["nll"] for r in method.replicates]
        for method in (comparison.methods[0], comparison.methods[1], comparison.methods[2])
    )
    mean = statistics.fmean
    share = (mean(single) - mean(packed)) / (mean(single) - mean(deep))
    each = [(z - x) / (z - y) for x, y, z in zip(packed, deep, single, strict=True)]
    assert 0.3 < share < 0.95
    expected = (
        f"{share:.0%} (replicates {min(each):.0%} to {max(each):.0%}) of deep's gain over single"
    )
    lines = list(describe_pairs(comparison, ["packed:deep"], backbones=ONE, seed=0))
    assert any(line.startswith(f"  {METRICS['nll'].label}") and expected in line for line in lines)


def test_shift_is_judged_by_the_mean_over_copies_of_the_same_images(comparison):
    _, deep, packed = comparison.methods
    verdicts = {v.metric: v for v in judge(packed, deep, draws=200, seed=0) if v.split == "shift"}

    def by_image(method):
        """NLL of each image, averaged over its copies: one column of numbers to resample."""
        return [
            lambda weights, r=replicate: {
                "nll": (weights * torch.stack([r.values[s].nll for s in r.shifted]).mean(0)).sum(-1)
                / 400
            }
            for replicate in method.replicates
        ]

    expected = paired_bootstrap(by_image(packed), by_image(deep), sizes=[400], draws=200)["nll"]
    found = verdicts["nll"]
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (expected.estimate, expected.low, expected.high), rel=1e-9
    )
    assert found.n == 400
    assert {"accuracy", "nll", "brier", "ece"} == verdicts.keys()
    lines = list(describe_pairs(comparison, ["packed:deep"], backbones=ONE, seed=0))
    assert any("NLL (shift): " in line for line in lines)


def test_shifted_copies_of_other_lengths_are_not_judged(comparison):
    _, deep, packed = comparison.methods
    half = sample_values(torch.zeros(2, 200, 4), torch.arange(200) % 4)

    def cut(method):
        replicates = tuple(
            dataclasses.replace(r, values={**r.values, "shift/fog/1": half})
            for r in method.replicates
        )
        return dataclasses.replace(method, replicates=replicates)

    verdicts = judge(cut(packed), cut(deep), draws=20, seed=0)
    assert {verdict.split for verdict in verdicts} == {"test"}


def test_single_itself_has_no_share(comparison):
    assert not any(
        "gain over" in line
        for line in describe_pairs(comparison, ["deep:single"], backbones=ONE, seed=0)
    )


@pytest.mark.parametrize("name", ["packed", "packed:", "packed:dep", "deep:deep"])
def test_what_is_no_pair_is_refused(comparison, name):
    methods = {method.name: method for method in comparison.methods}
    with pytest.raises(ValueError, match="pairs must be FIRST:SECOND with two of single, deep"):
        find_pairs([name], methods)


def test_methods_of_different_networks_have_no_share(comparison):
    backbones = ONE | {"packed": "vit-micro/2"}
    lines = describe_pairs(comparison, ["packed:deep"], backbones=backbones, seed=0)
    assert not any("gain over" in line for line in lines)


def test_a_loss_is_no_gain(comparison):
    # deep stands for single here: the single network is worse than it in all replicates
    other = {"single": "deep", "deep": "single"}
    swapped = dataclasses.replace(
        comparison,
        methods=tuple(
            dataclasses.replace(method, name=other.get(method.name, method.name))
            for method in comparison.methods
        ),
    )
    lines = list(describe_pairs(swapped, ["packed:deep"], backbones=ONE, seed=0))
    assert not any(line.startswith("  NLL") and "gain over" in line for line in lines)
