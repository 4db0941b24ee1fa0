import dataclasses
import statistics

import pytest
import torch
from deepens.experiments.comparison import Comparison, MethodSummary, Replicate, judge
from deepens.experiments.cost import Cost
from deepens.experiments.pairs import describe_pairs, find_pairs
from deepens.metrics.catalogue import METRICS
from deepens.metrics.samples import sample_values
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
        runs.append(
            Replicate(f"{name}-{replicate}", {"test": evaluate_values(values)}, {"test": values})
        )
    cost = Cost(macs, 10, 1.0, 1.0, 10)
    return MethodSummary(name, name, cost, tuple(runs))


@pytest.fixture(scope="module")
def comparison():
    methods = (_method("single", 1.0, 10), _method("deep", 2.0, 40), _method("packed", 1.7, 10))
    return Comparison("data", "", methods, (), 200, (), "", {}, "")


def test_lines_hold_the_judgement_of_the_two_methods(comparison):
    lines = list(describe_pairs(comparison, ["packed:deep"], backbones=ONE, seed=0))
    assert lines[0] == "packed minus deep, at 0.25 times its MACs:"
    _, deep, packed = comparison.methods
    verdicts = {v.metric: v for v in judge(packed, deep, draws=200, seed=0)}
    nll = next(line for line in lines if line.startswith(f"  {METRICS['nll'].label} (test)"))
    found = verdicts["nll"]
    assert f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}], worse" in nll
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


def test_single_itself_has_no_share(comparison):
    assert not any(
        "gain" in line
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
    assert not any("gain" in line for line in lines)


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
    assert not any(line.startswith("  NLL") and "gain" in line for line in lines)
