"""Averages of weights against loops that follow their formulas, and that a killed run resumes."""

import logging

import pytest
import torch
from deepens.datasets import Augmentation, DataModule, Pipeline, Split, Splits
from deepens.ensembles import CrossEntropy, DeepEnsemble, EnsembleModule, Optimizer, Schedule
from deepens.ensembles.averaging import WeightAverage
from deepens.ensembles.options import Averaging
from deepens.experiments.config import TrainConfig
from deepens.experiments.store.checkpoint import load_tensors
from deepens.experiments.store.progress import Display
from deepens.experiments.training.fitting import Recorder
from deepens.experiments.training.train import train
from lightning import Callback, Trainer
from torch import nn

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("unchecked")]
EPOCHS, STEPS = 4, 4


def _network():
    body = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(16, 3))


class _Before(Callback):
    """The weights after each step and before they are averaged, and those that are validated."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *others):
        self.steps.append(_state(module.ensemble))


class _Validated(Callback):
    def __init__(self, before):
        self.before = before

    def on_validation_end(self, trainer, module):
        self.before.validated.append(_state(module.ensemble))


def _state(ensemble):
    state = ensemble.state_dict().items()
    return {name: value.clone().double() for name, value in state if value.is_floating_point()}


def _fit(average=None, epochs=EPOCHS):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (80, 1, 4, 4), generator=generator, dtype=torch.uint8)
    targets = torch.randint(3, (80,), generator=generator)
    parts = {
        "train": Split(images[:64], targets[:64]),
        "val/select": Split(images[64:], targets[64:]),
    }
    splits = Splits("toy", ("a", "b", "c"), parts, (0.5,), (0.3,))
    ensemble = DeepEnsemble(_network, seeds=[1, 2])
    module = EnsembleModule(
        ensemble, CrossEntropy(), optimizer=Optimizer(lr=0.05), schedule=Schedule("constant")
    )
    pipeline = Pipeline(splits.mean, splits.std, Augmentation(crop_padding=1))
    data = DataModule(
        splits, batch_size=16, seeds=[1, 2], shared=False, pipeline=pipeline, eval_batch_size=16
    )
    before = _Before()
    start = _state(ensemble)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[before, *([average] if average else []), _Validated(before)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    ensemble.set_step(None)
    return start, before, _state(ensemble), (ensemble, data)


def _assert_equal(found, expected, names=None):
    for name in names or expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6, msg=name)


def _lerp(average, weights, decay):
    return {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}


def test_ema_is_its_recursion_and_training_does_not_see_it():
    _, plain, _, _ = _fit()
    start, seen, final, _ = _fit(WeightAverage("ema", Averaging(decay=0.6)))
    for mine, theirs in zip(seen.steps, plain.steps, strict=True):
        _assert_equal(mine, theirs)
    average = start
    for step, weights in enumerate(seen.steps, start=1):
        average = _lerp(average, weights, min(0.6, (1 + step) / (10 + step)))
        if step % STEPS == 0:
            _assert_equal(seen.validated[step // STEPS - 1], average)
    _assert_equal(final, average)


def test_lookahead_goes_on_from_the_average_every_few_steps():
    options = Averaging(every=3, lookahead=0.8)
    start, seen, final, _ = _fit(WeightAverage("lookahead", options))
    average, total = start, EPOCHS * STEPS
    for step, weights in enumerate(seen.steps, start=1):
        if step % 3 == 0:
            average = _lerp(average, weights, 0.8**3 * (step / total) ** 3)
    _assert_equal(final, average)
    changed = [
        not torch.equal(*(each["networks.0.body.4.weight"] for each in pair))
        for pair in zip(
            seen.validated, [s for i, s in enumerate(seen.steps, 1) if i % STEPS == 0], strict=True
        )
    ]
    assert all(changed)  # what is validated is the average


def test_swa_is_the_mean_of_the_last_epochs_with_statistics_of_its_own():
    start, seen, final, (ensemble, data) = _fit(WeightAverage("swa", Averaging(start=0.5)))
    ends = [seen.steps[STEPS * epoch - 1] for epoch in (3, 4)]
    mean = {name: (ends[0][name] + ends[1][name]) / 2 for name in start}
    names = [name for name in mean if "running" not in name]
    _assert_equal(final, mean, names)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(EPOCHS - 1)
    layer = ensemble.networks[0].body[0]
    means = torch.stack([layer(batch.images[0]).mean((0, 2, 3)) for batch in loader])
    found = final["networks.0.body.1.running_mean"]
    torch.testing.assert_close(found, means.mean(0).double(), rtol=0, atol=1e-5)


def test_without_any_epoch_to_average_the_last_weights_stay():
    _, seen, final, _ = _fit(WeightAverage("swa", Averaging(start=0.9)), epochs=1)
    assert len(seen.steps) == STEPS
    _assert_equal(final, seen.steps[-1], [n for n in final if "running" not in n])


class _Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["ema", "swa", "lookahead"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_killed_run_with_an_average_resumes_bit_for_bit(
    tmp_path, few_splits, monkeypatch, kind, keep
):
    def config(name):
        return TrainConfig(
            out=str(tmp_path / name), epochs=4, members=2, quiet=True, device="cpu", average=kind,
            averaging=Averaging(start=0.25, decay=0.9), checkpoint_seconds=0.0, keep=keep,
            backbone="airbench94", width=0.05, flip="alternate", crop_fill="reflect",
            label_smoothing=0.1, schedule=Schedule("triangular"),
            optimizer=Optimizer(lr=5.0, momentum=0.85, per_examples=1024, norm_bias=8.0),
        )  # fmt: skip

    display = Display(quiet=True)
    whole = train(config("whole"), splits=few_splits, display=display)
    original = Recorder.on_train_epoch_end

    def killed(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1:
            raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "on_train_epoch_end", killed)
        with pytest.raises(_Killed):
            train(config("killed"), splits=few_splits, display=display)
    resumed = train(config("killed"), splits=few_splits, display=display)
    mine, theirs = (load_tensors(run.weights)[0] for run in (resumed, whole))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    assert (resumed.path / "log.csv").read_text() == (whole.path / "log.csv").read_text()
