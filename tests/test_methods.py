"""Names, seeds, and the single model of equal cost."""

import pytest
from deepens.datasets import load
from deepens.experiments.configuration import CompareConfig
from deepens.experiments.families import (
    ImageFormat,
    build_ensemble,
    build_network,
    member_seeds,
)
from deepens.experiments.macs import count_macs
from deepens.experiments.methods import METHODS, training_config


@pytest.fixture(scope="module")
def form():
    return ImageFormat.of(load("digits"))


def test_no_two_runs_of_a_comparison_share_a_member(form):
    config = CompareConfig(replicates=5)
    seeds = [
        seed
        for name in ("single", "wide", "deep")
        for replicate in range(5)
        for seed in member_seeds(
            training_config(config, name, replicate, METHODS["deep"].changes(config, form)[0])
        )
    ]
    assert len(set(seeds)) == len(seeds) == 60


@pytest.mark.parametrize("members", [2, 4, 7])
def test_wide_costs_what_the_ensemble_costs(form, members):
    config = CompareConfig(members=members)
    deep, _ = METHODS["deep"].changes(config, form)
    wide, note = METHODS["wide"].changes(config, form)
    costs = []
    for changes in (deep, wide):
        one = training_config(config, "x", 0, changes)
        costs.append(count_macs(build_ensemble(one, form), form.shape))
    assert costs[1] == pytest.approx(costs[0], rel=0.02)
    assert costs[0] == members * count_macs(build_network(config, form), form.shape)
    assert "wide is small-cnn at width" in note


def test_width_that_does_not_match_the_cost_is_refused(form):
    config = CompareConfig(members=3, width=0.25)
    with pytest.raises(ValueError, match=r"no width of small-cnn comes within 2 % .* \+2.1%"):
        METHODS["wide"].changes(config, form)


def test_wide_of_a_network_that_cannot_be_widened_is_refused(form):
    config = CompareConfig(backbone="torchvision:resnet18")
    with pytest.raises(ValueError, match="wide needs a backbone of ours"):
        METHODS["wide"].changes(config, form)
