"""The one training loop: joint equals separate, and what is not finite stops it."""

import logging

import pytest
import torch
from deepens.datasets import Augmentation, DataModule, Pipeline, Split, Splits
from deepens.ensembles import CrossEntropy, DeepEnsemble, EnsembleModule, Optimizer, Schedule
from deepens.metrics.core.mixture import mixture_log_probs
from lightning import Callback, Trainer
from torch import nn

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")


def _splits(samples=80):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, 1, 4, 4), generator=generator, dtype=torch.uint8)
    targets = torch.randint(3, (samples,), generator=generator)
    train, select = Split(images[:64], targets[:64]), Split(images[64:], targets[64:])
    return Splits("toy", ("a", "b", "c"), {"train": train, "val/select": select}, (0.5,), (0.3,))


def _network():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(96, 3),
    )


def _fit(seeds, *, shared=False, optimizer=None, epochs=3, callbacks=(), network=_network):
    splits = _splits()
    ensemble = DeepEnsemble(network, seeds=seeds)
    module = EnsembleModule(
        ensemble,
        CrossEntropy(),
        optimizer=optimizer or Optimizer(lr=0.05, clip=1.0),
        schedule=Schedule(warmup=2),
    )
    data = DataModule(
        splits,
        batch_size=16,
        seeds=seeds,
        shared=shared,
        pipeline=Pipeline(splits.mean, splits.std, Augmentation(crop_padding=1)),
        eval_batch_size=10,
    )
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    ensemble.set_step(None)
    return ensemble.eval(), trainer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_members_trained_together_equal_members_trained_one_by_one_bit_for_bit(name):
    optimizer = Optimizer(name, lr=0.02, clip=0.5)
    joint, _ = _fit([5, 6, 7], optimizer=optimizer)
    for index, seed in enumerate([5, 6, 7]):
        alone, _ = _fit([seed], optimizer=optimizer)
        for key, value in alone.member_state(0).items():
            assert torch.equal(value, joint.member_state(index)[key]), key


def test_training_does_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    first, _ = _fit([5, 6])
    torch.manual_seed(2)
    second, _ = _fit([5, 6])
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_shared_batches_train_other_weights_than_own_batches():
    own, _ = _fit([5, 6])
    shared, _ = _fit([5, 6], shared=True)
    assert not torch.equal(
        own.member_state(1)["body.0.weight"], shared.member_state(1)["body.0.weight"]
    )


def test_logged_validation_metrics_are_those_of_the_whole_split():
    ensemble, trainer = _fit([5, 6])
    select = _splits()["val/select"]
    images = (select.images / 255 - 0.5) / 0.3
    logits = ensemble(images).double()
    log_probs = mixture_log_probs(logits)
    picked = torch.arange(len(select)), select.targets
    logged = trainer.callback_metrics
    assert float(logged["val/nll"]) == pytest.approx(-float(log_probs[picked].mean()), rel=1e-5)
    member = logits[1].log_softmax(-1)
    assert float(logged["val/nll_1"]) == pytest.approx(-float(member[picked].mean()), rel=1e-5)
    accuracy = (log_probs.argmax(-1) == select.targets).double().mean()
    assert float(logged["val/accuracy"]) == pytest.approx(float(accuracy), rel=1e-6)


class _Poison(Callback):
    """Makes one member's weights infinite before a step."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 6:
            with torch.no_grad():
                next(module.ensemble.networks[1].parameters()).fill_(float("inf"))


def test_non_finite_loss_names_member_step_and_likely_cause():
    with pytest.raises(
        FloatingPointError,
        match=r"loss of member 1 is not finite at step 6 \(epoch 2\): .*learning rate below",
    ):
        _fit([5, 6], callbacks=[_Poison()])


def test_diverging_learning_rate_is_named_as_the_cause():
    plain = lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 50), nn.ReLU(), nn.Linear(50, 3))  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"updates probably diverged.*optimizer\.lr"):
        _fit([5], optimizer=Optimizer(lr=1e15), network=plain, epochs=20)


def test_clipping_reaches_the_members_gradients():
    plain = Optimizer(lr=0.05, momentum=0.01, weight_decay=0.0)
    clipped = Optimizer(lr=0.05, momentum=0.01, weight_decay=0.0, clip=1e-6)
    start = DeepEnsemble(_network, seeds=[5])
    for options, moves in [(plain, True), (clipped, False)]:
        ensemble, _ = _fit([5], optimizer=options)
        pairs = zip(ensemble.member_parameters(0), start.member_parameters(0), strict=True)
        farthest = max(float((p - q).detach().abs().max()) for (p, _), (q, _) in pairs)
        assert (farthest > 0.01) == moves
        assert (farthest < 1e-5) != moves


class _PoisonLastStep(Callback):
    """Makes one member's weights infinite after the last step of an epoch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step == 4:
            with torch.no_grad():
                next(module.ensemble.networks[1].parameters()).fill_(float("inf"))


def test_divergence_in_the_last_step_of_an_epoch_is_named_before_validation():
    with pytest.raises(
        FloatingPointError,
        match=r"validation logits of member 1 are not finite after step 4 \(epoch 1\)",
    ):
        _fit([5, 6], callbacks=[_PoisonLastStep()])


class _BadImages(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        batch[0][0, 0, 0] = float("nan")


def test_non_finite_images_are_named_as_the_cause():
    with pytest.raises(FloatingPointError, match="member 0 .* the images hold NaN or infinity"):
        _fit([5, 6], callbacks=[_BadImages()])
