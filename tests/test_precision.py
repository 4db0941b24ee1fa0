"""The precision that ``auto`` takes: measured once, kept by all sessions and all runs."""

import dataclasses

import pytest
import torch
from deepens.datasets.image_format import ImageFormat
from deepens.ensembles import DeepEnsemble
from deepens.ensembles.backbones import build
from deepens.experiments.comparison.compare import compare, plan
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.evaluation.assemble import assemble
from deepens.experiments.evaluation.train_and_evaluate import train_and_evaluate
from deepens.experiments.store.checkpoint import load_tensors
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import read_config
from deepens.experiments.training import precision, processes
from deepens.experiments.training.building import build_ensemble
from deepens.experiments.training.fitting import Recorder
from deepens.experiments.training.precision import faster, seconds_in_turns
from deepens.experiments.training.train import train

FAST, SLOW = {"32": 1.0, "bf16-mixed": 0.4}, {"32": 1.0, "bf16-mixed": 1.5}
SMALL = {"epochs": 2, "device": "cpu", "quiet": True, "corruptions": ("none",)}


class _Killed(Exception):
    pass


@pytest.fixture
def measured(monkeypatch):
    """Give what a step takes; the list counts how often it was measured."""
    asked = []

    def pretend(seconds):
        def measure(config, ensemble, image_format, batch_size):
            asked.append(batch_size)
            return seconds

        monkeypatch.setattr(precision, "measure_steps", measure)
        return asked

    return pretend


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (FAST, "bf16-mixed"),
        (SLOW, "32"),
        ({"32": 1.0, "bf16-mixed": 1.0}, "32"),
        ({"32": 1.0, "bf16-mixed": 0.91}, "32"),
        ({"32": 1.0, "bf16-mixed": 0.9}, "bf16-mixed"),
        ({}, "32"),
    ],
)
def test_bf16_is_taken_where_it_saves_a_tenth(seconds, expected):
    assert faster(seconds) == expected


def test_steps_are_taken_in_turns_after_one_of_each_and_an_outlier_does_not_count(monkeypatch):
    now, order, takes = [0.0], [], {"a": 1.0, "b": 2.0}

    def step(name):
        order.append(name)
        now[0] += takes[name] + 50 * (len(order) in (1, 2, 3))  # warming up, and one outlier

    steps = {name: lambda name=name: step(name) for name in takes}
    monkeypatch.setattr(precision, "ENOUGH_SECONDS", 1000.0)
    assert seconds_in_turns(steps, clock=lambda: now[0]) == takes
    assert order == ["a", "b"] * (1 + precision.ROUNDS)
    order.clear()
    monkeypatch.setattr(precision, "ENOUGH_SECONDS", 1.0)
    seconds_in_turns(steps, clock=lambda: now[0])
    assert order == ["a", "b"] * 2  # a slow network is measured once


@pytest.mark.parametrize("family", ["deep", "packed"])
def test_measuring_changes_neither_weights_nor_random_numbers(few_splits, family):
    config = TrainConfig(ensemble=family, members=2, batches="own", device="cpu")
    image_format = ImageFormat.of(few_splits)
    ensemble = build_ensemble(config, image_format)
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    state = torch.get_rng_state()
    found = precision.measure_steps(config, ensemble, image_format, 8)
    assert set(found) in (set(), {"32", "bf16-mixed"})
    assert all(value > 0 for value in found.values())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in ensemble.parameters())


def test_what_has_no_bf16_is_trained_in_32(monkeypatch, few_splits):
    network = DeepEnsemble(
        lambda: build("small-cnn", num_classes=10, channels=1, image_size=8), seeds=[1]
    )
    measure = precision.measure_steps
    form = ImageFormat.of(few_splits)
    config = TrainConfig(device="cpu")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert measure(config, network, form, 4) == {}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(precision, "training_step", _no_bf16)
    assert measure(config, network, form, 4) == {}


def _no_bf16(ensemble, images, name, members):
    if name == "bf16-mixed":
        raise RuntimeError("'a_layer' not implemented for 'BFloat16'")


def test_a_killed_run_keeps_its_precision_and_ends_as_if_it_had_been_given(
    tmp_path, few_splits, measured, monkeypatch, capsys
):
    config = TrainConfig(
        **SMALL, members=2, precision="auto", out=str(tmp_path / "auto"), checkpoint_seconds=0.0
    )
    asked = measured(FAST)
    original = Recorder.on_train_epoch_end

    def killed(self, trainer, module):
        original(self, trainer, module)
        raise _Killed

    monkeypatch.setattr(Recorder, "on_train_epoch_end", killed)
    with pytest.raises(_Killed):
        train(config, splits=few_splits, display=Display())
    said = "precision auto: bf16-mixed, since a training step takes in 32 1 s and in bf16-mixed 0.4"
    assert said in capsys.readouterr().err
    monkeypatch.setattr(Recorder, "on_train_epoch_end", original)
    measured(SLOW)
    run = train(config, splits=few_splits)
    assert asked == [64]
    assert run.config.precision == read_config(run.path, TrainConfig).precision == "bf16-mixed"
    given = dataclasses.replace(config, precision="bf16-mixed", out=str(tmp_path / "given"))
    plain = dataclasses.replace(config, precision="32", out=str(tmp_path / "plain"))
    weights, expected, other = (
        load_tensors(each.weights)[0]
        for each in (run, *(train(each, splits=few_splits) for each in (given, plain)))
    )
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert not all(torch.equal(value, other[name]) for name, value in weights.items())
    given = dataclasses.replace(given, precision="auto")
    assert train(given, splits=few_splits).config.precision == "bf16-mixed"
    with pytest.raises(ValueError, match="precision: 32, not bf16-mixed"):
        train(dataclasses.replace(given, precision="32"), splits=few_splits)
    assert asked == [64]


def test_all_runs_of_a_comparison_have_one_precision_in_every_session(
    tmp_path, few_splits, measured
):
    options = {"precision": "auto", "methods": ("single", "deep-2"), "replicates": 1}
    config = CompareConfig(**SMALL | {"epochs": 1}, **options, out=str(tmp_path / "x"))
    asked = measured(FAST)

    def until(name):
        def stop(finished):
            if finished == name:
                raise _Killed

        return stop

    with pytest.raises(_Killed):
        compare(config, splits=few_splits, finished=until("single-0"))
    measured(SLOW)
    assert plan(config).precision == "bf16-mixed"
    with pytest.raises(_Killed):
        compare(config, splits=few_splits, finished=until("deep-2-0"))
    assert asked == [64]
    assert read_config(tmp_path / "x", CompareConfig).precision == "bf16-mixed"
    runs = sorted(path.parent for path in tmp_path.glob("x/*/config.yaml"))
    assert len(runs) >= 2
    assert {read_config(path, TrainConfig).precision for path in runs} == {"bf16-mixed"}


def test_a_plan_measures_and_keeps_nothing(tmp_path, measured):
    config = CompareConfig(**SMALL, precision="auto", methods=("single",), out=str(tmp_path / "x"))
    asked = measured(FAST)
    assert plan(config).precision == "bf16-mixed"
    assert asked == [64]
    assert not (tmp_path / "x").exists()


def test_members_of_two_precisions_are_assembled_with_a_remark(
    tmp_path, few_splits, measured, capsys
):
    paths = []
    for member, seconds in enumerate((SLOW, FAST)):
        measured(seconds)
        options = {"precision": "auto", "members": 2, "member": member}
        config = TrainConfig(**SMALL, **options, out=str(tmp_path / str(member)))
        paths.append(train(config, splits=few_splits).path)
    run = assemble(paths, str(tmp_path / "whole"), display=Display())
    assert "members were trained in precision 32 and bf16-mixed: " in capsys.readouterr().err
    assert read_config(run.path, TrainConfig).precision == "auto"
    whole = dataclasses.replace(run.config, out=str(run.path))
    asked = measured(FAST)
    train(whole, splits=few_splits)  # it is finished
    assert len(asked) == 2


def test_members_in_processes_of_their_own_have_the_precision_of_the_whole(
    tmp_path, few_splits, measured, monkeypatch
):
    units = []

    def run_units(found, *_, **__):
        units.extend(found)
        raise _Killed

    monkeypatch.setattr(processes, "run_units", run_units)
    monkeypatch.setattr(processes, "cpu_count", lambda: 2)
    config = TrainConfig(**SMALL, precision="auto", members=2, jobs=2, out=str(tmp_path / "x"))
    asked = measured(FAST)
    for _ in range(2):
        with pytest.raises(_Killed):
            train_and_evaluate(config, splits=few_splits)
    assert asked == [64]
    options = [run for unit in units for run in unit.options.get("runs", [unit.options])]
    assert [run["precision"] for run in options] == ["bf16-mixed"] * 6
