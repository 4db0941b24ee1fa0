import copy
import dataclasses
import time
import types

import pytest
import torch
import torch.nn.functional as F
import torchvision
from deepens.ensembles.backbones import build
from deepens.experiments.cost import energy
from deepens.experiments.cost.energy import measure_energy
from deepens.experiments.cost.macs import count_macs, count_parameters
from deepens.experiments.cost.measurement import (
    Cost,
    measure_costs,
    measure_latency,
    peak_memory,
)
from torch import nn

DIGITS = (1, 8, 8)
CIFAR = (3, 32, 32)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small passes on many threads mostly wait for one another where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_cnn(width=1.0):
    return build("small-cnn", num_classes=10, channels=1, image_size=8, width=width)


class Several(nn.Module):
    """Members first, like an ensemble: logits are [members, batch, classes]."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images):
        return torch.stack([member(images) for member in self.members])


class FusedAttention(nn.Module):
    """Pixels are tokens; self-attention without any projection."""

    def forward(self, images):
        tokens = images.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


def snapshot(model):
    return (
        [part.training for part in model.modules()],
        {name: (value.clone(), value.device) for name, value in model.state_dict().items()},
        [(dict(part._forward_hooks), dict(part._forward_pre_hooks)) for part in model.modules()],
    )


def assert_unchanged(before, model):
    modes, state, hooks = snapshot(model)
    assert modes == before[0]
    assert hooks == before[2]
    for name, (value, device) in state.items():
        assert device == before[1][name][1]
        assert torch.equal(value, before[1][name][0])


def test_macs_of_a_grouped_convolution_are_those_counted_by_hand():
    assert count_macs(nn.Conv2d(64, 128, 3, padding=1, groups=4), (64, 32, 32)) == 18_874_368


def test_macs_of_linear_layers_are_those_counted_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    assert count_macs(model, DIGITS) == 64 * 32 + 32 * 10


def test_macs_of_bare_attention_are_two_products_of_tokens_by_tokens():
    # 64 tokens of 16: queries with keys, and weights with values.
    assert count_macs(FusedAttention(), (16, 8, 8)) == 2 * 64 * 64 * 16


@pytest.mark.parametrize("training", [True, False])
def test_macs_of_the_fused_encoder_layer_hold_its_attention(training):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

        def forward(self, images):
            return self.layer(images.flatten(2).transpose(1, 2))

    expected = 16 * 4 * 32**2 + 2 * 16**2 * 32 + 2 * 16 * 32 * 64
    assert count_macs(Encoder().train(training), (32, 4, 4)) == expected


def test_macs_of_cifar_resnet18_are_the_published_ones():
    with torch.device("meta"):
        model = build("resnet18", num_classes=10, channels=3, image_size=32)
    assert count_parameters(model) == pytest.approx(11.17e6, rel=0.001)
    assert count_macs(model, CIFAR) == pytest.approx(0.555e9, rel=0.002)


def test_macs_of_vision_transformer_b16_are_the_published_ones():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16()
    assert count_macs(model, (3, 224, 224)) == pytest.approx(17.56e9, rel=0.005)


def test_macs_of_efficientnet_b2_at_260_pixels_are_the_published_ones():
    with torch.device("meta"):
        model = torchvision.models.efficientnet_b2()
    assert count_macs(model, (3, 260, 260)) == pytest.approx(0.9936e9, rel=0.005)


@pytest.mark.parametrize(("name", "patch", "size"), [("vit-micro", 2, 8), ("vit-tiny", 4, 32)])
def test_macs_of_our_vision_transformer_follow_its_formula(name, patch, size):
    tokens = (size // patch) ** 2
    width, blocks = {"vit-micro": (96, 4), "vit-tiny": (192, 12)}[name]
    expected = (
        tokens * 3 * patch**2 * width
        + blocks * (4 * tokens * width**2 + 2 * tokens**2 * width + 8 * tokens * width**2)
        + width * 10
    )
    with torch.device("meta"):
        model = build(f"{name}/{patch}", num_classes=10, channels=3, image_size=size)
    assert count_macs(model, (3, size, size)) == expected


def test_an_ensemble_costs_the_sum_of_its_members():
    members = [small_cnn(), small_cnn(), small_cnn(1.5)]
    ensemble = Several(members)
    assert count_macs(ensemble, DIGITS) == sum(count_macs(member, DIGITS) for member in members)
    assert count_parameters(ensemble) == sum(count_parameters(member) for member in members)


def test_a_shared_member_counts_its_parameters_once_and_its_macs_twice():
    member = small_cnn()
    ensemble = Several([member, member])
    assert count_parameters(ensemble) == count_parameters(member)
    assert count_macs(ensemble, DIGITS) == 2 * count_macs(member, DIGITS)


def test_a_model_that_looks_at_values_is_counted_too():
    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.offset = torch.zeros(64)

        def forward(self, images):
            flat = images.flatten(1) + self.offset
            return self.linear(flat if flat.sum().item() > 0 else -flat)

    assert count_macs(Looking(), DIGITS) == 640


def test_counting_takes_and_changes_no_weights_of_the_model():
    model = small_cnn()
    model.body[1].eval()
    model.head.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    count_macs(model, DIGITS)
    peak_memory(model, DIGITS, batch_size=2)
    measure_latency({"model": model}, DIGITS, repeats=1)
    assert_unchanged(before, model)


def test_measuring_leaves_global_state_alone():
    fast_path = torch.backends.mha.get_fastpath_enabled()
    state = torch.get_rng_state()
    measure_costs({"model": nn.Flatten()}, DIGITS, repeats=1, batch_repeats=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_model_comes_out_unchanged_when_it_fails():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    for measure in (
        lambda: count_macs(model, DIGITS),
        lambda: peak_memory(model, DIGITS),
        lambda: measure_latency({"model": model}, DIGITS),
    ):
        with pytest.raises(RuntimeError):
            measure()
        assert all(part.training for part in model.modules())


def test_a_slower_model_has_the_larger_latency():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 4000), nn.Linear(4000, 4000))
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    latency = measure_latency({"wide": wide, "narrow": narrow}, DIGITS, repeats=15)
    assert latency["wide"].p50 > 3 * latency["narrow"].p50
    assert all(value.p50 <= value.p95 for value in latency.values())


def test_latency_is_per_image(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Steady(nn.Module):
        def forward(self, images):
            now[0] += 0.002 * len(images)  # seconds
            return images

    for batch_size in (1, 64):
        found = measure_latency({"model": Steady()}, (3, 4, 4), batch_size=batch_size, repeats=9)
        assert found["model"].p50 == pytest.approx(2.0, rel=1e-9)  # milliseconds
        assert found["model"].p95 == pytest.approx(2.0, rel=1e-9)


def test_every_model_runs_equally_often_and_they_take_turns():
    calls = []

    class Recording(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, images):
            assert torch.is_inference_mode_enabled()
            assert not self.training
            calls.append(self.name)
            return images

    models = {name: Recording(name) for name in "abc"}
    measure_latency(models, DIGITS, repeats=4, warmup=2)
    rounds = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca", "cab"]


class Noting(nn.Module):
    """Notes which images it is shown, by their first pixel."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, images):
        self.shown.append(images[:, 0, 0, 0].int().tolist())
        return images


def numbered(count):
    return torch.arange(count)[:, None, None, None].expand(count, *DIGITS).float()


def test_passes_take_given_images_in_turn_and_all_models_the_same():
    models = {"a": Noting(), "b": Noting()}
    measure_latency(models, DIGITS, repeats=4, warmup=1, batch_size=2, images=numbered(7))
    # The seventh makes no whole batch; the timed passes begin with the first.
    expected = [[4, 5], [0, 1], [2, 3], [4, 5], [0, 1]]
    assert models["a"].shown == models["b"].shown == expected


def test_costs_are_measured_on_given_images_of_which_few_are_repeated():
    noting = Noting()
    measure_costs({"a": noting}, DIGITS, repeats=5, batch_repeats=2, images=numbered(3))
    batches = [shown for shown in noting.shown if len(shown) == 256]
    assert [0, 1, 2, 0, 1] in [
        [shown[0] for shown in noting.shown[start : start + 5]] for start in range(5)
    ]
    assert [place % 3 for place in range(256)] in batches


def test_images_that_do_not_fit_are_refused():
    for images in (numbered(3), torch.zeros(8, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"images must be >= 4 of shape \(1, 8, 8\), got"):
            measure_latency({"a": Noting()}, DIGITS, batch_size=4, images=images)


class Hungry(nn.Module):
    """Uses a number of joules for each image."""

    used = 0.0

    def __init__(self, joules):
        super().__init__()
        self.joules = joules

    def forward(self, images):
        Hungry.used += self.joules * len(images)
        return images


class HungryMonitor:
    """Measures what all hungry models use."""

    def begin_window(self, key):
        self.before = Hungry.used

    def end_window(self, key):
        return types.SimpleNamespace(gpu_energy={}, cpu_energy={0: Hungry.used - self.before})


def test_energy_is_that_of_the_model_s_own_images():
    models = {"little": Hungry(0.25), "much": Hungry(3.0)}
    options = {"batch_size": 8, "seconds": 0.01, "monitor": HungryMonitor()}
    assert measure_energy(models, DIGITS, **options) == {
        "little": pytest.approx(0.25),
        "much": pytest.approx(3.0),
    }
    with pytest.raises(ValueError, match="images must be >= 8 of shape"):
        measure_energy(models, DIGITS, images=numbered(3), **options)


def test_energy_is_none_and_takes_no_pass_where_it_cannot_be_read(monkeypatch):
    noting = Noting()
    monkeypatch.setattr(energy, "monitor_for", lambda device: None)
    assert measure_energy({"a": noting}, DIGITS, batch_size=2) == {"a": None}
    assert not noting.shown


def test_costs_have_energy_where_it_can_be_read(monkeypatch):
    options = {"repeats": 1, "batch_repeats": 1, "training_joules": {"a": 7.5, "b": None}}
    models = {"a": Hungry(0.5), "b": Hungry(2.0), "c": Hungry(1.0)}
    monkeypatch.setattr(energy, "monitor_for", lambda device: None)
    unknown = measure_costs(models, DIGITS, **options)
    assert [cost.joules_per_image for cost in unknown.values()] == [None, None, None]
    monkeypatch.setattr(energy, "monitor_for", lambda device: HungryMonitor())
    known = measure_costs(models, DIGITS, **options)
    assert [known[name].joules_per_image for name in "abc"] == pytest.approx([0.5, 2.0, 1.0])
    assert [known[name].training_joules for name in "abc"] == [7.5, None, None]
    assert Cost(**dataclasses.asdict(known["a"])) == known["a"]


def test_costs_of_earlier_versions_can_be_read():
    older = {"macs": 1, "parameters": 2, "latency_ms_batch1": 3.0, "latency_ms_batch256": 1.0}
    cost = Cost(**older, peak_memory_bytes=5)
    assert cost.training_joules is cost.joules_per_image is cost.training_macs is None


def test_peak_memory_of_a_chain_is_the_one_computed_by_hand():
    # Nothing is freed but what no later layer needs; the caller holds the images throughout.
    chain = nn.Sequential(
        nn.Flatten(),  # a view of the images
        nn.Linear(64, 500, bias=False),
        nn.ReLU(),  # here 500 + 500 live: the peak
        nn.ReLU(inplace=True),  # adds nothing
        nn.Linear(500, 20, bias=False),
        nn.Linear(20, 10, bias=False),
    )
    weights = 64 * 500 + 500 * 20 + 20 * 10
    for batch_size in (1, 7):
        live = batch_size * (64 + 500 + 500)
        assert peak_memory(chain, DIGITS, batch_size=batch_size) == 4 * (weights + live)


def test_peak_memory_counts_what_a_skip_connection_keeps():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(64, 300, bias=False)
            self.narrow = nn.Linear(300, 64, bias=False)

        def forward(self, images):
            flat = images.flatten(1) * 2  # kept until the sum
            return flat + self.narrow(self.wide(flat))

    expected = 2 * 64 * 300 + 5 * (64 + 64 + 300 + 64)
    assert peak_memory(Skip(), DIGITS, batch_size=5) == 4 * expected


def test_members_in_a_loop_need_the_activations_of_one():
    members = [small_cnn() for _ in range(4)]
    state = sum(
        tensor.numel() * tensor.element_size() for tensor in members[0].state_dict().values()
    )
    single = peak_memory(members[0], DIGITS, batch_size=32)
    ensemble = peak_memory(Several(members), DIGITS, batch_size=32)
    logits = 4 * 32 * 10 * 4
    assert single + 3 * state <= ensemble <= single + 3 * state + logits


def test_peak_memory_counts_shared_weights_once():
    layer = nn.Linear(64, 64, bias=False)
    once = peak_memory(nn.Sequential(nn.Flatten(), layer), DIGITS)
    twice = peak_memory(nn.Sequential(nn.Flatten(), layer, layer), DIGITS)
    assert twice == once + 4 * 64


def test_measured_costs_agree_with_the_single_functions():
    models = {"one": small_cnn(), "two": Several([small_cnn(), small_cnn()])}
    costs = measure_costs(models, DIGITS, repeats=3, batch_repeats=2, training_seconds={"two": 1.5})
    for name, cost in costs.items():
        assert cost.macs == count_macs(models[name], DIGITS)
        assert cost.parameters == count_parameters(models[name])
        assert cost.peak_memory_bytes == peak_memory(models[name], DIGITS, batch_size=256)
        assert cost.latency_ms_batch256 < cost.latency_ms_batch1
        assert cost.device == "cpu"
    assert costs["one"].training_seconds is None
    assert costs["two"].training_seconds == 1.5
    assert Cost(**dataclasses.asdict(costs["two"])) == costs["two"]


def test_arguments_out_of_bounds_are_refused_by_name_bound_and_value():
    model = nn.Flatten()
    with pytest.raises(
        ValueError, match=r"image_shape must be three sizes >= 1 .* got \(1, 0, 8\)"
    ):
        count_macs(model, (1, 0, 8))
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        peak_memory(model, DIGITS, batch_size=0)
    with pytest.raises(ValueError, match="repeats must be >= 1, got 0"):
        measure_latency({"model": model}, DIGITS, repeats=0)
    with pytest.raises(ValueError, match="models must hold at least one model, got none"):
        measure_latency({}, DIGITS)
    models = {"cpu": nn.Linear(1, 1), "meta": copy.deepcopy(nn.Linear(1, 1)).to("meta")}
    with pytest.raises(ValueError, match="models must be on one device"):
        measure_latency(models, DIGITS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_costs_on_a_gpu_are_measured_there():
    model = build("resnet18", num_classes=10, channels=3, image_size=32).cuda()
    cost = measure_costs({"model": model}, CIFAR, repeats=3, batch_repeats=3)["model"]
    watched = peak_memory(model.cpu(), CIFAR, batch_size=256)
    assert cost.device == torch.cuda.get_device_name()
    assert cost.macs == count_macs(model, CIFAR)
    assert 0.9 * watched < cost.peak_memory_bytes < 3 * watched
