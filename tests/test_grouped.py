"""Grouped layers and member-aware functions, each against the members one by one."""

import pytest
import torch
import torch.nn.functional as F
from deepens.ensembles.families.executions import first_difference
from deepens.ensembles.families.grouped import GroupedNetwork, NotExactError, evaluate_grouped
from deepens.ensembles.families.grouped_layers import GroupedLayerNorm
from deepens.ensembles.families.member_functions import MemberFunctions
from deepens.ensembles.families.proof import first_random_module, locate, prove_equal, randomise
from torch import nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.shufflenetv2 import channel_shuffle

M = 3


def _members(*shape):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(M)]


def _networks(make):
    generator = torch.Generator().manual_seed(4)
    networks = [make().double().eval() for _ in range(M)]
    for network in networks:
        randomise(network, generator)
    return networks


FUNCTIONS = [
    ("cat of images", (2, 6, 4, 5), 1, lambda x: torch.cat([x, 2 * x], 1)),
    ("cat by a negative axis", (2, 7, 6), 2, lambda x: torch.cat([x, x.exp()], dim=-1)),
    ("cat of tokens", (2, 7, 6), 2, lambda x: torch.concat([x, x.exp()], dim=1)),
    ("cat of features", (2, 6), 1, lambda x: torch.cat((x, x.exp()), 1)),
    ("chunk", (2, 6, 4, 5), 1, lambda x: x.chunk(2, dim=1)[1]),
    ("torch.chunk", (2, 7, 6), 2, lambda x: torch.chunk(x, 3, -1)[1]),
    ("split by sizes", (2, 6, 4, 5), 1, lambda x: torch.split(x, [1, 5], dim=1)[1]),
    ("split by a size", (2, 6, 4, 5), 1, lambda x: x.split(4, 1)[1]),
    ("split by its own shape", (2, 6, 4, 5), 1, lambda x: x.split(x.shape[1] // 2, 1)[1]),
    ("split of its own sizes", (2, 6, 4), 2, lambda x: x.split([x.shape[2] // 2] * 2, 2)[1]),
    ("channel shuffle", (2, 6, 4, 5), 1, lambda x: F.channel_shuffle(x, 2)),
    ("shuffle by hand", (2, 6, 4, 5), 1, lambda x: channel_shuffle(x, 3)),
    ("split and swap", (2, 6, 4, 5), 1, lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
]


@pytest.mark.parametrize(
    ("shape", "axis", "function"), [case[1:] for case in FUNCTIONS], ids=[c[0] for c in FUNCTIONS]
)
def test_channel_functions_act_within_each_member(shape, axis, function):
    own = _members(*shape)
    members = torch.cat(own, axis)
    with MemberFunctions(M):
        joint = function(members)
    expected = torch.cat([function(values) for values in own], axis)
    assert torch.equal(joint, expected)


def test_channels_that_members_cannot_share_equally_are_refused():
    with (
        MemberFunctions(M),
        pytest.raises(ValueError, match="an axis of 4 has no equal parts for 3 members"),
    ):
        torch.cat([torch.ones(2, 4), torch.ones(2, 4)], 1)


class _Attending(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.embedding = nn.Conv2d(1, 8, 2, stride=2)
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, images):
        tokens = self.embedding(images).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens[:, :3], 2 * tokens[:, 1:])[0].mean(1)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"bias": False, "batch_first": True}])
def test_attention_with_other_keys_than_queries(options):
    networks = _networks(lambda: _Attending(**options))
    images = _members(4, 1, 4, 4)[0]
    for result, network in zip(evaluate_grouped(networks, images), networks, strict=True):
        torch.testing.assert_close(result, network(images), rtol=0, atol=1e-12)


def test_attention_that_has_its_sequence_first():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Conv2d(1, 8, 2, stride=2)
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, images):
            tokens = self.embedding(images).flatten(2).permute(2, 0, 1)
            return self.attention(tokens, tokens, tokens)[0].mean(0)

    networks = _networks(Sequences)
    images = _members(4, 1, 4, 4)[0]
    for result, network in zip(evaluate_grouped(networks, images), networks, strict=True):
        torch.testing.assert_close(result, network(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm", "first"), [(nn.LayerNorm, False), (LayerNorm2d, True)])
def test_norms_know_where_their_channels_are(norm, first):
    assert GroupedLayerNorm(norm(6), M).channels_first is first


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: nn.LayerNorm([2, 4, 4]), "there is no rule for it"),
        (lambda: nn.InstanceNorm2d(2, track_running_stats=True), "there is no rule for it"),
        (lambda: nn.ConvTranspose2d(2, 2, 3), "there is no rule for it"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), "reparametrised"),
        (lambda: nn.MultiheadAttention(4, 2, kdim=6), "another width"),
    ],
)
def test_layer_without_a_rule_is_named(layer, reason):
    with pytest.raises(NotExactError, match=rf"module '0.1' \(\w+\): .*{reason}"):
        GroupedNetwork(
            nn.Sequential(nn.Sequential(nn.ReLU(), layer())), num_members=2, own_images=False
        )


def test_filters_of_all_members_read_one_shared_image():
    networks = _networks(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)))
    form = GroupedNetwork(networks[0], M, own_images=False)
    form.settle(form.tensors(networks), torch.zeros(2, 1, 8, 8, dtype=torch.float64))
    assert (form.body[0].groups, form.body[0].in_channels) == (1, 1)
    assert (form.body[1].groups, form.body[1].in_channels) == (2 * M, 4 * M)


class _InEvaluationAlone(nn.Module):
    def forward(self, values):
        return values if self.training else values.missing


def test_failure_in_the_first_run_names_the_module():
    networks = _networks(lambda: nn.Sequential(nn.Flatten(), nn.Sequential(_InEvaluationAlone())))
    form = GroupedNetwork(networks[0], M, own_images=False)
    line = r"module '1\.0' \(_InEvaluationAlone\): 'Tensor' object has no attribute 'missing'"
    with pytest.raises(NotExactError, match=line):
        form.settle({}, torch.zeros(2, 1, 2, 2, dtype=torch.float64))


def test_grouped_network_holds_no_weights():
    form = GroupedNetwork(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), M, own_images=False)
    assert all(tensor.is_meta for tensor in form.state_dict().values())


def test_proof_fails_for_a_form_that_mixes_members():
    networks = _networks(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))

    def mixed(members, images):
        results = [member(images) for member in members]
        return [results[0], results[1] + 1e-5 * results[0], results[2]]

    with pytest.raises(NotExactError, match="not each member's own"):
        prove_equal(networks, torch.zeros(2, 1, 2, 2), mixed)


def test_proof_sees_statistics_that_are_not_moved():
    networks = _networks(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4)))

    def forgetful(members, images):
        states = [{k: v.clone() for k, v in m.state_dict().items()} for m in members]
        results = [member(images) for member in members]
        for member, state in zip(members, states, strict=True):
            member.load_state_dict(state)
        return results

    prove_equal(networks, torch.zeros(2, 1, 2, 2), forgetful)
    for network in networks:
        network.train()
    with pytest.raises(NotExactError, match="not each member's own"):
        prove_equal(networks, torch.zeros(2, 1, 2, 2), forgetful)


def test_locating_finds_nothing_in_an_exact_form():
    networks = _networks(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    assert locate(networks, torch.rand(2, 1, 8, 8, dtype=torch.float64)) is None


def test_randomised_networks_are_zero_nowhere():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    randomise(network, torch.Generator().manual_seed(0))
    assert all(parameter.all() for parameter in network.parameters())
    assert (network[1].running_var > 0.4).all()
    assert network[1].running_mean.all()


def test_innermost_module_that_draws_is_found_and_only_in_training():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Dropout(0.001)))
    network.train()
    images = torch.zeros(2, 1, 4, 4)
    before = torch.get_rng_state()
    assert first_random_module(network, images) == ("1.1", "Dropout")
    assert first_random_module(network.eval(), images) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_module_with_a_generator_of_its_own_is_found():
    generator = torch.Generator()

    class Noise(nn.Module):
        def forward(self, values):
            return values + torch.rand(values.shape, generator=generator)

        def __deepcopy__(self, memo):
            return self

    assert first_random_module(Noise(), torch.zeros(2, 1, 2, 2)) == ("", "Noise")


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), None),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "1"),
        (nn.Sequential(nn.Flatten(2), nn.Linear(4, 2)), "0"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()), "2"),
        (nn.Sequential(nn.Flatten()), "1"),
    ],
)
def test_first_difference_names_the_module(other, name):
    assert first_difference(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), other) == name
