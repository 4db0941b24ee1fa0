"""Names, seeds, and the single model of equal cost."""

import pytest
from deepens.datasets import load
from deepens.experiments.configuration import CompareConfig, TrainConfig
from deepens.experiments.macs import count_macs
from deepens.experiments.methods import (
    METHODS,
    ImageFormat,
    build_ensemble,
    build_network,
    choose,
    derive_seed,
    member_seeds,
    training_config,
)


@pytest.fixture(scope="module")
def form():
    return ImageFormat.of(load("digits"))


def test_unknown_name_is_refused_with_the_nearest_known():
    with pytest.raises(ValueError, match=r"unknown method 'depe'; did you mean 'deep'\? Known: "):
        choose("method", "depe", METHODS)
    with pytest.raises(ValueError, match=r"unknown method 'xyz'; Known: deep, lora, packed, single"):
        choose("method", "xyz", METHODS)


def test_seeds_are_the_same_everywhere():
    assert derive_seed(0, "member", 0) == 3506755128930326898
    assert derive_seed(2**63 - 1, "ä") == derive_seed(2**63 - 1, "ä")


def test_seeds_depend_on_every_part():
    parts = [(0,), (1,), (2**32,), (0, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "ab"), (0, 0)]
    assert len({derive_seed(*each) for each in parts}) == len(parts)


def test_single_member_has_the_seed_that_it_has_in_the_whole():
    whole = member_seeds(TrainConfig(members=3, seed=5))
    assert [member_seeds(TrainConfig(members=3, seed=5, member=i)) for i in range(3)] == [
        [seed] for seed in whole
    ]


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
