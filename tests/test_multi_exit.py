"""Properties of the multi-exit residual network, its stages and its loss.

Tolerances are for float64, unless a test says otherwise.
"""

import copy
import re

import pytest
import torch
from deepens.ensembles.backbones import build, build_multi_exit
from deepens.ensembles.backbones.convolutional import narrow_resnet
from deepens.experiments.cost.macs import count_macs
from torch import nn

CLASSES = 7
EXITS = pytest.mark.parametrize("num_exits", [1, 2, 3])


def make(layers=8, seed=0, **options):
    torch.manual_seed(seed)
    options = {"num_classes": CLASSES, "channels": 3, "num_exits": 3} | options
    return build_multi_exit(f"resnet{layers}", **options)


def images_for(batch, size=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, dtype=torch.float64, generator=generator)


def ready(network):
    """Give the norms statistics as after training, and switch to evaluation."""
    network.double().train()
    torch.manual_seed(4)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            nn.init.uniform_(part.weight, 0.5, 1.5)
    with torch.no_grad():
        network(images_for(32, seed=2))
    return network.eval()


def in_turn(stages, images):
    hidden, all_logits = images, []
    for stage in stages:
        hidden, logits = stage(hidden)
        all_logits.append(logits)
    return torch.stack(all_logits)


@EXITS
@pytest.mark.parametrize("layers", [8, 14])
def test_stages_in_turn_are_the_exits_bit_for_bit(layers, num_exits):
    network = ready(make(layers, num_exits=num_exits))
    images = images_for(5)
    stages = network.stages()
    assert len(stages) == num_exits
    assert torch.equal(in_turn(stages, images), network.exits(images))


@EXITS
def test_every_exit_is_its_head_on_the_mean_over_the_places_behind_its_stage(num_exits):
    network = ready(make(14, num_exits=num_exits))
    hidden, behind = images_for(5), []
    for index, part in enumerate(network.body[:-2]):
        hidden = part(hidden)
        if index in (4, 6, 8):  # a stem of three modules, then two blocks a stage
            behind.append(hidden.mean(dim=(2, 3)))
    heads = [*network.early_heads, network.head]
    expected = [
        features @ head.weight.T + head.bias
        for features, head in zip(behind[-num_exits:], heads, strict=True)
    ]
    torch.testing.assert_close(
        network.exits(images_for(5)), torch.stack(expected), rtol=0, atol=1e-12
    )


@EXITS
def test_the_last_exit_is_the_plain_network_of_the_same_seed_bit_for_bit(num_exits):
    network = ready(make(14, num_exits=num_exits, width=1.3))
    torch.manual_seed(0)
    plain = narrow_resnet(14, num_classes=CLASSES, channels=3, width=1.3)
    drawn = make(14, num_exits=num_exits, width=1.3).state_dict()
    assert all(torch.equal(drawn[key], value) for key, value in plain.state_dict().items())
    missing, unexpected = plain.double().load_state_dict(network.state_dict(), strict=False)
    assert not missing
    assert all(key.startswith("early_heads.") for key in unexpected)
    images = images_for(5)
    expected = plain.eval()(images)
    assert torch.equal(network(images), expected)
    assert torch.equal(network.exits(images)[-1], expected)
    assert torch.equal(network.head(network.features(images)), expected)


def test_the_exits_of_some_images_are_those_images_exits():
    network = ready(make(14))
    images, chosen = images_for(9), torch.tensor([7, 0, 4])
    everything = network.exits(images)
    assert (everything[:, 0] - everything[:, 1]).abs().max() > 1e-3
    torch.testing.assert_close(
        network.exits(images[chosen]), everything[:, chosen], rtol=0, atol=1e-12
    )


def test_a_runner_on_survivors_gets_the_exits_and_runs_every_module_on_them_alone():
    network = ready(make(14))
    images, seen = images_for(9), {}

    def note(module, inputs, output):
        seen.setdefault(module, []).append(len(output))

    parts = list(network.body[:-2])
    for part in parts:
        part.register_forward_hook(note)
    hidden, index, results = images, torch.arange(9), []
    for stage, kept in zip(network.stages(), ([0, 2, 3, 8], [1, 3], []), strict=True):
        hidden, logits = stage(hidden)
        results.append((index, logits))
        hidden, index = hidden[kept], index[kept]
    assert [index.tolist() for index, _ in results] == [list(range(9)), [0, 2, 3, 8], [2, 8]]
    assert [seen[part] for part in parts] == [[9]] * 5 + [[4]] * 2 + [[2]] * 2
    everything = network.exits(images)
    for exit_logits, (index, logits) in zip(everything, results, strict=True):
        torch.testing.assert_close(logits, exit_logits[index], rtol=0, atol=1e-12)


def test_no_survivors_pass_through_every_stage():
    network = ready(make())
    assert in_turn(network.stages(), images_for(0)).shape == (3, 0, CLASSES)


def test_stages_follow_the_networks_weights_and_mode_and_a_copy_its_own():
    network = ready(make())
    images, stages = images_for(5), network.stages()
    twin = copy.deepcopy(network)
    before = network.exits(images)
    network.load_state_dict(ready(make(seed=3)).state_dict())
    assert torch.equal(in_turn(stages, images), network.exits(images))
    assert (in_turn(stages, images) - before).abs().max() > 1e-3
    assert torch.equal(in_turn(twin.stages(), images), before)
    trained = copy.deepcopy(network).train().exits(images)
    network.train()
    assert torch.equal(in_turn(stages, images), trained)


def test_taking_stages_registers_nothing_and_leaves_every_mode():
    network = make().eval()
    network.body[0].train()
    names = list(network.state_dict())
    modes = [part.training for part in network.modules()]
    network.stages()
    assert list(network.state_dict()) == names
    assert [part.training for part in network.modules()] == modes


def test_multiply_accumulates_of_every_stage_are_those_counted_by_hand():
    network = make(num_classes=10)
    blocks = [
        # Stem, then two convolutions of 16 channels at 32x32 places.
        32**2 * 16 * 3 * 9 + 2 * 32**2 * 16 * 16 * 9,
        # One convolution to the new width, one at it, and the 1x1 shortcut.
        16**2 * (16 * 32 * 9 + 32 * 32 * 9 + 16 * 32),
        8**2 * (32 * 64 * 9 + 64 * 64 * 9 + 32 * 64),
    ]
    heads = [10 * width for width in (16, 32, 64)]
    shapes = [(3, 32, 32), (16, 32, 32), (32, 16, 16)]
    counted = [
        count_macs(stage, shape) for stage, shape in zip(network.stages(), shapes, strict=True)
    ]
    assert counted == [block + head for block, head in zip(blocks, heads, strict=True)]
    assert counted == [5_161_120, 3_670_336, 3_670_656]
    assert sum(counted) == count_macs(network, (3, 32, 32)) + sum(heads[:-1])


def test_early_heads_are_a_small_share_of_parameters_and_multiply_accumulates():
    network = make(20, num_classes=100)
    early = sum(parameter.numel() for parameter in network.early_heads.parameters())
    assert early == (16 + 1) * 100 + (32 + 1) * 100
    assert early < 0.02 * sum(parameter.numel() for parameter in network.parameters())
    assert count_macs(network, (3, 32, 32)) > 1000 * (16 + 32) * 100


@EXITS
def test_fewer_exits_join_the_first_stages(num_exits):
    network, full = make(14, num_exits=num_exits), make(14)
    stages, all_stages = network.stages(), full.stages()
    joined = 4 - num_exits
    assert [len(stage.blocks) for stage in stages] == [3 + 2 * joined, *[2] * (num_exits - 1)]
    shapes = [(3, 32, 32), (16, 32, 32), (32, 16, 16)][:joined]
    first = sum(map(count_macs, all_stages[:joined], shapes))
    skipped = CLASSES * sum((16, 32, 64)[: joined - 1])
    assert count_macs(stages[0], (3, 32, 32)) == first - skipped


@EXITS
def test_the_gradient_of_the_exits_sum_reaches_every_parameter(num_exits):
    network = make(14, num_exits=num_exits).double()
    network.exits(images_for(4)).logsumexp(dim=2).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_the_plain_pass_trains_all_but_the_early_heads():
    network = make().double()
    network(images_for(4)).logsumexp(dim=1).sum().backward()
    without = {key for key, value in network.named_parameters() if value.grad is None}
    assert without == {f"early_heads.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}


def test_an_exit_moves_nothing_behind_it():
    network = make().double()
    network.exits(images_for(4))[0].logsumexp(dim=1).sum().backward()
    moved = {key for key, value in network.named_parameters() if value.grad.abs().sum() > 0}
    kept = ("body.0.", "body.1.", "body.3.", "early_heads.0.")
    assert moved == {key for key, _ in network.named_parameters() if key.startswith(kept)}


def test_width_scales_every_width_and_neither_input_nor_classes():
    for one, other in zip(make().parameters(), make(width=2.0).parameters(), strict=True):
        for axis, (small, large) in enumerate(zip(one.shape, other.shape, strict=True)):
            kept = axis >= 2 or small in (3, CLASSES)
            assert large == (small if kept else 2 * small)


@pytest.mark.parametrize("width", [0.01, 0.37, 1.41421356, 2.8])
def test_every_width_gives_working_exits(width):
    network = make(width=width).double()
    assert network.exits(images_for(2)).isfinite().all()


def test_twice_the_depth_is_the_deeper_network_of_the_family():
    deeper, scaled = make(14), make(8, depth=2.0)
    images = images_for(3)
    assert torch.equal(ready(deeper).exits(images), ready(scaled).exits(images))


def test_the_seed_decides_every_drawn_tensor():
    first, same, other = (dict(make(seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not any(
        torch.equal(first[key], other[key])
        for key in first
        if first[key].ndim > 1 or key.startswith(("head", "early_heads"))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_exits": 0}, "num_exits must be from 1 to 3, the number of stages, got 0"),
        ({"num_exits": -1}, "num_exits must be from 1 to 3, the number of stages, got -1"),
        ({"num_exits": 4}, "num_exits must be from 1 to 3, the number of stages, got 4"),
    ],
)
def test_arguments_out_of_bounds_are_refused_by_name_bound_and_value(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**options)


def test_a_network_without_places_for_exits_is_refused():
    line = "network must have places for exits, as resnet8, resnet18, airbench94 and their like"
    with pytest.raises(ValueError, match=line):
        build_multi_exit("wrn-16-4", num_exits=2, num_classes=3, channels=1)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 4), ("airbench94", 3), ("airbench96", 3)])
def test_exits_of_other_networks_are_their_heads_on_the_pooled_maps_behind_each_stage(name, count):
    options = {"num_classes": CLASSES, "channels": 3, "width": 0.05}
    torch.manual_seed(0)
    plain = ready(build(name, image_size=16, **options))
    torch.manual_seed(0)
    network = ready(build_multi_exit(name, num_exits=count, **options))
    images, places = images_for(4), network.exit_places
    assert torch.equal(network.exits(images)[-1], plain(images))
    assert len(places.ends) == len(set(places.ends)) == count
    heads = [*network.early_heads, network.head]
    for exit_logits, end, head in zip(network.exits(images), places.ends, heads, strict=True):
        maps = network.body[:end](images)
        pool = maps.amax if name.startswith("airbench") else maps.mean
        scale = 9 if name.startswith("airbench") else 1
        torch.testing.assert_close(exit_logits, head(pool((2, 3)) / scale))
    assert all((head.bias is None) == (network.head.bias is None) for head in heads)
    assert torch.equal(network.up_to(0)(images), network.exits(images)[0])
