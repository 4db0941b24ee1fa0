"""MixupMP: what members are shown, and how it is weighed."""

import math

import pytest
import torch
from contract import CLASSES, ObjectiveContract
from deepens.ensembles import (
    CrossEntropy,
    DeepEnsemble,
    EnsembleModule,
    Mixup,
    MixupMP,
    TrainingStep,
)
from one_step import after, batch, convolutional, prepared, same
from torch import nn


class WithFixedDraws(MixupMP):
    """Draws that depend on the batch's place alone, so that members can be permuted."""

    def draw(self, ensemble, index, count, images):
        partners = torch.arange(count).roll(1)
        shares = torch.linspace(0.1, 0.9, count, dtype=images.dtype)
        return shares, partners, torch.full_like(shares, self.options.ratio)


class TestMixupMP(ObjectiveContract):
    def make(self):
        return WithFixedDraws(Mixup(ratio=0.5))


class TestMixupEnsemble(ObjectiveContract):
    def make(self):
        return WithFixedDraws(Mixup(ratio=math.inf), members_at_once=2)


def linear(num_members, seeds=None):
    return DeepEnsemble(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)),
        seeds=seeds or range(1, num_members + 1),
    ).double()


def test_ratio_zero_is_the_deep_ensemble_bit_for_bit():
    plain = after(CrossEntropy(), convolutional(3), *batch())
    found = after(MixupMP(Mixup(ratio=0.0)), convolutional(3), *batch())
    assert torch.equal(found[0], plain[0])
    assert same(found[2], plain[2])
    assert same(found[3], plain[3])
    assert not same(after(MixupMP(), convolutional(3), *batch())[2], plain[2])


@pytest.mark.parametrize("ratio", [0.5, 2.0, 1e6, math.inf])
def test_coefficients_of_one_are_the_deep_ensemble_whatever_the_ratio(ratio):
    class Unmixed(MixupMP):
        def draw(self, ensemble, index, count, images):
            shares, partners, weights = super().draw(ensemble, index, count, images)
            return torch.ones_like(shares), partners, weights

    plain = after(CrossEntropy(), linear(2), *batch())
    found = after(Unmixed(Mixup(ratio=ratio)), linear(2), *batch())
    torch.testing.assert_close(found[1], plain[1], rtol=1e-12, atol=0)
    for first, second in zip(found[2], plain[2], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_a_large_ratio_has_the_gradient_of_mixup_alone():
    gradients = []
    for ratio in (1e6, math.inf):
        ensemble = linear(2)
        ensemble.set_step(4)
        found = after(MixupMP(Mixup(ratio=ratio)), ensemble, *batch(32))[2]
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9999


def test_loss_is_that_of_the_formula():
    """Images, soft labels and weights written out for each member."""
    ratio, (images, targets) = 0.5, batch()
    ensemble = linear(2).train()
    ensemble.set_step(3)
    objective = MixupMP(Mixup(ratio=ratio, beta=0.4))
    draws = [objective.draw(ensemble, index, 6, images) for index in range(2)]
    onehot = nn.functional.one_hot(targets, CLASSES).double()
    expected = []
    for (shares, partners, _), network in zip(draws, ensemble.networks, strict=True):
        total = nn.functional.cross_entropy(network(images), targets, reduction="sum")
        for b in range(6):
            image = shares[b] * images[b] + (1 - shares[b]) * images[partners[b]]
            label = shares[b] * onehot[b] + (1 - shares[b]) * onehot[partners[b]]
            total = total - ratio * (label * network(image[None]).log_softmax(-1)[0]).sum()
        expected.append(total / (6 * (1 + ratio)))
    values = objective(ensemble, images, targets).values
    torch.testing.assert_close(values, torch.stack(expected).detach(), rtol=1e-12, atol=0)
    soft = objective(ensemble, images, onehot).values
    torch.testing.assert_close(soft, values, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("ratio", "factor"), [(0.0, 1.0), (0.5, 1.5 / 2), (1.0, 1.0), (2.0, 3 / 2), (math.inf, 1.0)]
)
@pytest.mark.parametrize("statistics", ["joint", "separate"])
def test_division_by_rows_is_that_of_the_authors(ratio, factor, statistics):
    losses, gradients = [], []
    for divisor in ("weights", "rows"):
        options = Mixup(ratio=ratio, divisor=divisor, statistics=statistics)
        ensemble = linear(2)
        ensemble.set_step(4)
        found = after(MixupMP(options), ensemble, *batch())
        losses.append(found[1])
        gradients.append(found[2])
    torch.testing.assert_close(losses[1], factor * losses[0], rtol=1e-12, atol=0)
    for rows, weights in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(rows, factor * weights, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("beta", [0.2, 1.0, 4.0])
def test_coefficients_have_the_moments_of_their_beta(beta):
    ensemble = linear(1).train()
    ensemble.set_step(0)
    shares, _, _ = MixupMP(Mixup(beta=beta)).draw(ensemble, 0, 100_000, batch()[0])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.05)


def test_a_beta_near_zero_draws_the_images_again():
    ensemble = linear(1).train()
    ensemble.set_step(0)
    shares, _, _ = MixupMP(Mixup(beta=1e-3)).draw(ensemble, 0, 1000, batch()[0])
    assert torch.isfinite(shares).all()
    assert ((shares < 1e-6) | (shares > 1 - 1e-6)).double().mean() > 0.95


def test_draws_are_a_function_of_the_members_seed_and_the_step():
    images, targets = batch()

    def shown(seeds, step):
        ensemble = linear(len(seeds), seeds).train()
        ensemble.set_step(step)
        return MixupMP().examples(ensemble, images, targets).images

    together = shown([5, 9], 7)
    assert torch.equal(shown([9], 7)[0], together[1])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(shown([9], 8)[0], together[1])
    assert torch.equal(together[:, :6], images.expand(2, *images.shape))


def test_members_own_batches_are_mixed_within_themselves():
    images = torch.stack([torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)]).double()
    ensemble = linear(2).train()
    ensemble.set_step(1)
    shown = MixupMP().examples(ensemble, images, torch.zeros(2, 4, dtype=torch.long))
    torch.testing.assert_close(shown.images[0], torch.zeros(8, 1, 8, 8).double())
    torch.testing.assert_close(shown.images[1], torch.ones(8, 1, 8, 8).double())


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("statistics", ["joint", "separate"])
def test_chunks_have_the_joint_gradients(statistics, at_once):
    ensemble = convolutional(3)
    ensemble.set_step(2)
    options = Mixup(statistics=statistics)
    joint = after(MixupMP(options), ensemble, *batch())
    found = after(MixupMP(options, members_at_once=at_once), ensemble, *batch())
    for first, second in zip(found[2], joint[2], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)
    assert same(found[3], joint[3])


def test_separate_statistics_leave_the_running_ones_to_the_images():
    ensemble = convolutional(2)
    ensemble.set_step(2)
    plain = after(CrossEntropy(), ensemble, *batch())
    separate = after(MixupMP(Mixup(statistics="separate")), ensemble, *batch())
    joint = after(MixupMP(), ensemble, *batch())
    assert same(separate[3], plain[3])
    assert not same(joint[3], plain[3])
    assert not same(separate[2], joint[2])


def test_channels_last_images_stay_so():
    images = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    ensemble = DeepEnsemble(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)), seeds=[1, 2]
    )
    shown = MixupMP().examples(ensemble, images, torch.zeros(4, dtype=torch.long)).images
    assert all(own.is_contiguous(memory_format=torch.channels_last) for own in shown)


def dirichlet(ratio=1.0):
    return prepared(MixupMP(Mixup(ratio=ratio, weights="dirichlet")), 1000, 1, 8, 8)


def test_dirichlet_weights_are_kept_by_image_and_member():
    objective, ensemble = dirichlet(), linear(2).train()
    images, targets = batch()
    ensemble.set_step(0)

    def kept(indices):
        objective.set_step(TrainingStep(0, 9, torch.tensor(indices)))
        return objective.examples(ensemble, images, targets).labels[0][1][:, :6] * 12

    first = kept([3, 14, 15, 92, 65, 35])
    assert torch.equal(kept([35, 65, 92, 15, 14, 3]), first.flip(1))
    assert not torch.equal(first[0], first[1])
    objective.set_step(TrainingStep(5, 9, torch.tensor([[3] * 6, [14] * 6])))
    own = objective.examples(ensemble, images, targets).labels[0][1][:, :6] * 12
    assert torch.equal(own, torch.stack([first[0, :1].expand(6), first[1, 1:2].expand(6)]))


def test_dirichlet_weights_have_the_moments_of_a_dirichlet():
    """Over N images: mean one exactly, variance (N - 1) / (N + 1); pseudo-data: Gamma(r)."""
    objective = dirichlet(ratio=2.0)
    every = torch.stack([objective.member_weights(s, 1000, batch()[0]) for s in range(100)])
    torch.testing.assert_close(every.mean(1), torch.ones(100).double(), rtol=1e-12, atol=0)
    assert float(every.var(1, unbiased=False).mean()) == pytest.approx(999 / 1001, rel=0.03)
    ensemble = linear(1).train()
    ensemble.set_step(0)
    _, _, weights = objective.draw(ensemble, 0, 100_000, batch()[0])
    assert float(weights.mean()) == pytest.approx(2.0, rel=0.02)
    assert float(weights.var()) == pytest.approx(2.0, rel=0.05)


def test_dirichlet_weights_need_to_be_told_the_images():
    with pytest.raises(ValueError, match="call prepare with them first, and set_step"):
        MixupMP(Mixup(weights="dirichlet"))(linear(1), *batch())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"ratio": -0.5}, "mixup.ratio must be >= 0, got -0.5"),
        ({"ratio": math.nan}, "mixup.ratio must be >= 0, got nan"),
        ({"beta": 0.0}, "mixup.beta must be > 0 and finite, got 0"),
        ({"beta": -1.0}, "mixup.beta must be > 0 and finite, got -1"),
        ({"weights": "dirichlet", "ratio": math.inf}, "mixup.ratio must be finite with"),
    ],
)
def test_options_out_of_bounds_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        Mixup(**options)


def test_the_loop_hands_soft_labels_and_indices_on():
    class Watching(MixupMP):
        def examples(self, ensemble, images, targets):
            self.seen = (targets, self.step)
            return super().examples(ensemble, images, targets)

    objective = Watching()
    module = EnsembleModule(linear(2), objective)
    images, targets = batch()
    soft = nn.functional.one_hot(targets, CLASSES).double()
    trainer = type("Trainer", (), {"global_step": 3, "current_epoch": 0})()
    trainer.global_rank, trainer.world_size = 0, 1
    module.trainer = trainer
    module.on_train_epoch_start()
    module.training_step((images, soft, torch.arange(6)), 0)
    assert objective.seen[0] is soft
    assert objective.seen[1].number == 3
    assert torch.equal(objective.seen[1].indices, torch.arange(6))
    module.training_step((images, soft), 1)
    assert objective.seen[1].indices is None


def test_a_smoothed_mixed_label_is_the_mixture_of_the_smoothed_labels():
    smoothed, logits = MixupMP(smoothing=0.3), torch.randn(2, 6, CLASSES, dtype=torch.float64)
    first, second = torch.randint(CLASSES, (2, 2, 6))
    share = torch.rand(2, 6, dtype=torch.float64)
    mixed = share[..., None] * nn.functional.one_hot(first, CLASSES)
    mixed = mixed + (1 - share[..., None]) * nn.functional.one_hot(second, CLASSES)
    two = share * smoothed.loss(logits, first) + (1 - share) * smoothed.loss(logits, second)
    torch.testing.assert_close(smoothed.loss(logits, mixed), two, rtol=0, atol=1e-12)
