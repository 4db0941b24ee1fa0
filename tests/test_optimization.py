"""Optimisers, schedules and per-member clipping against arithmetic by hand."""

import math

import pytest
import torch
from deepens.ensembles import CrossEntropy, DeepEnsemble, Optimizer, Schedule
from deepens.ensembles.backbones import build
from deepens.ensembles.backbones.airbench import airbench
from deepens.ensembles.optimization import build_optimizer, build_schedule, clip_members
from stacked import StackedLinear


def _ensemble(seeds=(1, 2)):
    return DeepEnsemble(
        lambda: build("small-cnn", num_classes=3, channels=1, image_size=8), seeds=seeds
    ).double()


def _norms(ensemble):
    return [
        math.sqrt(sum(float(p.grad.square().sum()) for p, _ in ensemble.member_parameters(i)))
        for i in range(ensemble.num_members)
    ]


def test_each_member_is_clipped_by_its_own_norm():
    ensemble = _ensemble()
    images = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    targets = torch.randint(3, (8,))
    values = CrossEntropy()(ensemble, images, targets)
    values.loss.backward()
    for parameter, _ in ensemble.member_parameters(0):
        parameter.grad *= 1000.0  # one member explodes; the other must not notice
    before = [p.grad.clone() for p, _ in ensemble.member_parameters(1)]
    bound = 2 * _norms(ensemble)[1]
    clip_members(ensemble, bound)
    first, second = _norms(ensemble)
    assert first == pytest.approx(bound, rel=1e-6)
    assert second == pytest.approx(bound / 2, rel=1e-12)
    for (parameter, _), gradient in zip(ensemble.member_parameters(1), before, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_clipping_a_stacked_parameter_clips_its_slices():
    stacked = StackedLinear(3, 1, seeds=[1, 2])
    stacked.weight.grad = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]])[..., None]
    clip_members(stacked, 1.0)
    expected = torch.tensor([[0.6, 0.8, 0.0], [0.3, 0.4, 0.0]])[..., None]
    torch.testing.assert_close(stacked.weight.grad, expected, rtol=0, atol=1e-6)


def test_weight_decay_can_spare_norms_and_biases():
    ensemble = _ensemble()
    decayed, spared = build_optimizer(
        ensemble, Optimizer(weight_decay=0.1, decay_all=False)
    ).param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    count = len(decayed["params"]) + len(spared["params"])
    assert count == len(list(ensemble.parameters()))


def test_stacked_biases_are_biases_and_stacked_matrices_are_matrices():
    ensemble = StackedLinear(3, 2, seeds=[1, 2])
    ensemble.bias = torch.nn.Parameter(torch.zeros(2, 2))
    pairs = ensemble.member_parameters
    ensemble.member_parameters = lambda index: [*pairs(index), (ensemble.bias, index)]
    decayed, spared = build_optimizer(ensemble, Optimizer(decay_all=False)).param_groups
    assert [id(p) for p in decayed["params"]] == [id(ensemble.weight)]
    assert [id(p) for p in spared["params"]] == [id(ensemble.bias)]


def test_frozen_parameters_get_no_optimiser_state():
    ensemble = _ensemble()
    ensemble.networks[0].requires_grad_(False)
    groups = build_optimizer(ensemble, Optimizer()).param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in ensemble.networks[1].parameters()}
    ensemble.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        build_optimizer(ensemble, Optimizer())


def test_first_sgd_step_is_nesterov_momentum_with_weight_decay():
    ensemble = _ensemble([1])
    optimizer = build_optimizer(ensemble, Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01))
    parameter = next(ensemble.parameters())
    before = parameter.detach().clone()
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    gradient = 1 + 0.01 * before
    torch.testing.assert_close(parameter.detach(), before - 0.1 * (gradient + 0.9 * gradient))


def _curve(schedule, total):
    optimizer = build_optimizer(_ensemble([1]), Optimizer(lr=1.0))
    scheduler = build_schedule(optimizer, schedule, total, epochs=1)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_after_warm_up():
    rates = _curve(Schedule("cosine", warmup=2, final=0.1), 10)
    expected = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_linear_holds_descends_and_holds():
    rates = _curve(Schedule("linear", final=0.01, hold=0.5, end=0.9), 10)
    descent = [1 - 0.99 * k / 4 for k in range(5)]
    assert rates == pytest.approx([1.0] * 5 + descent, abs=1e-12)


def test_steps_drop_at_their_milestones():
    rates = _curve(Schedule("step", milestones=(0.3, 0.6), factor=0.2), 10)
    assert rates == pytest.approx([1.0] * 3 + [0.2] * 3 + [0.04] * 4, abs=1e-12)


def test_constant_stays():
    assert _curve(Schedule("constant"), 5) == [1.0] * 5


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"name": "adam"}, "optimizer.name must be 'sgd' or 'adamw', got 'adam'"),
        ({"lr": 0.0}, "optimizer.lr must be > 0"),
        ({"lr": float("nan")}, "optimizer.lr must be > 0 and finite, got nan"),
        ({"momentum": 1.0}, r"optimizer.momentum must be in \(0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay must be >= 0, got -1.0"),
        ({"clip": 0.0}, "optimizer.clip must be > 0, got 0.0"),
    ],
)
def test_bad_optimiser_options_are_refused(unchecked, options, line):
    with pytest.raises(ValueError, match=line):
        Optimizer(**options)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"name": "cosin"}, "schedule.name must be"),
        ({"warmup": -1}, "schedule.warmup must be >= 0, got -1"),
        ({"final": 2.0}, r"schedule.final must be in \[0, 1\], got 2.0"),
        ({"hold": 0.9, "end": 0.5}, "0 <= hold < end <= 1, got 0.9 and 0.5"),
        ({"milestones": (0.5, 1.5)}, r"schedule.milestones must be in \(0, 1\)"),
        ({"factor": 0.0}, "schedule.factor must be > 0, got 0.0"),
    ],
)
def test_bad_schedule_options_are_refused(unchecked, options, line):
    with pytest.raises(ValueError, match=line):
        Schedule(**options)


def test_triangular_rises_to_its_peak_and_falls_to_the_end():
    rates = _curve(Schedule("triangular", initial=0.2, peak=0.25, final=0.1), 8)
    rise, fall = [0.2, 0.6], [1 - 0.9 * k / 6 for k in range(6)]
    assert rates == pytest.approx(rise + fall, abs=1e-12)


@pytest.mark.parametrize("batch", [256, 1024])
def test_rates_per_example_are_those_of_summed_losses(batch):
    """As the authors write it: the sum of the losses, and rates that fit it."""
    options = Optimizer(lr=11.5, momentum=0.85, weight_decay=0.0153, per_examples=1024)
    per_step = options.per_step(batch)
    scale = 1024 * (1 + 1 / (1 - 0.85))
    rate, decay = 11.5 / scale, 0.0153 * batch / scale
    ours, theirs = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    theirs.load_state_dict(ours.state_dict())
    summed = torch.optim.SGD(
        theirs.parameters(), lr=rate, momentum=0.85, nesterov=True, weight_decay=decay / rate
    )
    mean = torch.optim.SGD(
        ours.parameters(),
        lr=per_step.lr,
        momentum=0.85,
        nesterov=True,
        weight_decay=per_step.weight_decay,
    )
    for _ in range(3):
        images = torch.randn(batch, 3)
        for network, optimizer in ((ours, mean), (theirs, summed)):
            optimizer.zero_grad()
            losses = network(images).square()
            (losses.mean() if network is ours else losses.sum()).backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-4, atol=1e-6)


def test_norm_biases_have_a_rate_of_their_own_and_the_same_decay():
    ensemble = _ensemble()
    plain, norms = build_optimizer(ensemble, Optimizer(lr=0.1, norm_bias=64)).param_groups
    assert (plain["lr"], norms["lr"]) == pytest.approx((0.1, 6.4))
    products = [group["lr"] * group["weight_decay"] for group in (plain, norms)]
    assert products == pytest.approx([0.1 * 5e-4] * 2)
    biases = {id(m.bias) for m in ensemble.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {id(p) for p in norms["params"]} == biases
    assert len(biases) > 0
    assert len(plain["params"]) + len(norms["params"]) == len(list(ensemble.parameters()))


def test_biases_that_stop_after_some_epochs_stop():
    network = DeepEnsemble(lambda: airbench(94, num_classes=3, channels=1, width=0.02), seeds=[1])
    optimizer = build_optimizer(network, Optimizer(lr=1.0))
    scheduler = build_schedule(optimizer, Schedule("constant"), total_steps=10, epochs=5)
    main, whitening = optimizer.param_groups
    rates = []
    for _ in range(10):
        rates.append((main["lr"], whitening["lr"]))
        optimizer.step()
        scheduler.step()
    assert rates == [(1.0, 1.0)] * 6 + [(1.0, 0.0)] * 4
