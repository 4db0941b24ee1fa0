from functools import partial

import pytest
import torch
from deepens.ensembles.backbones import build
from deepens.experiments.macs import count_macs
from deepens.experiments.scaling import match_width
from torch import nn

BACKBONES = {
    "small-cnn": (1, 8, 8),
    "resnet8": (3, 32, 32),
    "resnet18": (3, 32, 32),
    "wrn-28-10": (3, 32, 32),
    "vit-micro/2": (1, 8, 8),
    "vit-tiny/4": (3, 32, 32),
}


def maker(name, shape):
    return partial(build, name, num_classes=10, channels=shape[0], image_size=shape[1])


def meta_macs(make, shape, width=1.0):
    with torch.device("meta"):
        network = make(width=width)
    return count_macs(network, shape)


EVERY = [
    # Deep networks take a second each time: one factor stands for all in a quick run.
    pytest.param(name, factor, marks=pytest.mark.slow)
    if name not in ("small-cnn", "resnet8") and factor != 4
    else (name, factor)
    for name in BACKBONES
    for factor in (2, 3, 4, 8)
]


@pytest.mark.parametrize(("name", "factor"), EVERY)
def test_every_backbone_reaches_an_ensembles_cost_within_two_per_cent(name, factor):
    shape = BACKBONES[name]
    make = maker(name, shape)
    target = factor * meta_macs(make, shape)
    match = match_width(lambda width: make(width=width), target, shape)
    assert match.within_tolerance
    assert abs(match.relative_error) <= 0.02
    assert match.relative_error == match.macs / target - 1
    assert match.macs == meta_macs(make, shape, match.width)


def test_the_match_is_the_best_of_a_dense_grid_of_widths():
    shape = BACKBONES["small-cnn"]
    make = maker("small-cnn", shape)
    target = 5 * meta_macs(make, shape)
    match = match_width(lambda width: make(width=width), target, shape, tolerance=1e-4)
    grid = [2.1 + step / 96 for step in range(36)]
    best = min(abs(meta_macs(make, shape, width) / target - 1) for width in grid)
    assert abs(match.relative_error) <= best + 1e-12


def test_the_cost_of_the_network_itself_is_matched_at_once():
    shape = BACKBONES["resnet8"]
    make = maker("resnet8", shape)
    match = match_width(lambda width: make(width=width), meta_macs(make, shape), shape)
    assert match.width == 1
    assert match.relative_error == 0


def test_a_smaller_cost_is_matched_too():
    shape = BACKBONES["resnet18"]
    make = maker("resnet18", shape)
    match = match_width(lambda width: make(width=width), meta_macs(make, shape) // 4, shape)
    assert match.within_tolerance
    assert 0.45 < match.width < 0.55


def test_a_network_too_coarse_for_the_tolerance_says_so():
    def coarse(width):
        return nn.Conv2d(1, 16 * max(1, round(width)), 3, padding=1)

    one = count_macs(coarse(1), (1, 8, 8))
    match = match_width(coarse, int(2.5 * one), (1, 8, 8))
    assert not match.within_tolerance
    assert match.macs in (2 * one, 3 * one)
    assert abs(match.relative_error) == pytest.approx(0.2, abs=1e-3)


def test_a_target_below_the_narrowest_network_says_so():
    make = maker("small-cnn", (1, 8, 8))
    match = match_width(lambda width: make(width=width), 10, (1, 8, 8))
    assert not match.within_tolerance
    assert match.macs == meta_macs(make, (1, 8, 8), 1e-3)


def test_a_rounding_that_is_not_monotone_is_searched_nearby():
    def jagged(width):
        # Every second width is rounded up to the next multiple of eight, as grouped widths are.
        channels = max(1, round(100 * width))
        return nn.Conv2d(1, channels + (-channels % 8 if channels % 2 else 0), 1)

    target = 150 * 64
    match = match_width(jagged, target, (1, 8, 8))
    assert match.within_tolerance


def test_a_construction_that_needs_weights_is_built_for_real():
    def needing(width):
        network = nn.Conv2d(1, max(1, round(100 * width)), 1)
        assert isinstance(network.weight.sum().item(), float)
        return network

    assert match_width(needing, 3 * 6400, (1, 8, 8)).width == pytest.approx(3, rel=0.02)


def test_the_search_leaves_the_random_state_alone():
    def real(width):
        network = nn.Conv2d(1, max(1, round(100 * width)), 1)
        network.weight.sum().item()
        return network

    before = torch.get_rng_state()
    match_width(real, 19_200, (1, 8, 8))
    make = maker("small-cnn", (1, 8, 8))
    match_width(lambda width: make(width=width), 400_000, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_arguments_out_of_bounds_are_refused_by_name_bound_and_value():
    with pytest.raises(ValueError, match="target_macs must be >= 1, got 0"):
        match_width(lambda width: nn.Flatten(), 0, (1, 8, 8))
    with pytest.raises(ValueError, match="tolerance must be > 0, got 0"):
        match_width(lambda width: nn.Flatten(), 1, (1, 8, 8), tolerance=0.0)
    with pytest.raises(ValueError, match="build must grow with its width, got 64 "):
        match_width(lambda width: nn.Conv2d(1, 1, 1), 1_000, (1, 8, 8))
