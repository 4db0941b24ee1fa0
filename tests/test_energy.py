"""Energy: what zeus measures, over the sittings of a training and the passes of a model."""

import sys
import types

import pytest
import torch
from deepens.experiments.config import TrainConfig
from deepens.experiments.cost.energy import EnergyMeter, monitor_for, total_joules
from deepens.experiments.evaluation.assemble import assemble
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import read_json, training_joules, write_json
from deepens.experiments.training import fitting
from deepens.experiments.training.fitting import Recorder
from deepens.experiments.training.train import train


class FakeMonitor:
    """Measures what `use` says, of one GPU and one processor package."""

    def __init__(self, gpu_indices=(), cpu_indices=(0,)):
        self.gpu_indices, self.cpu_indices = list(gpu_indices), list(cpu_indices)
        self.gpu = self.cpu = 0.0
        self.windows, self.broken = {}, False

    def use(self, cpu, gpu=0.0):
        self.cpu += cpu
        self.gpu += gpu

    def begin_window(self, key):
        if key in self.windows:
            raise ValueError(f"{key} already exists")
        self.windows[key] = (self.cpu, self.gpu)

    def end_window(self, key):
        if self.broken:
            raise OSError("the counter is gone")
        cpu, gpu = self.windows.pop(key)
        return types.SimpleNamespace(
            gpu_energy={0: self.gpu - gpu} if self.gpu_indices else {},
            cpu_energy={0: self.cpu - cpu} if self.cpu_indices else None,
        )


def test_a_meter_adds_up_cards_and_packages_while_it_lasts_and_starts_anew_each_time():
    monitor = FakeMonitor(gpu_indices=[0])
    monitor.use(100.0)
    meter = EnergyMeter(monitor)
    for _ in range(2):
        with meter:
            monitor.use(1.0, gpu=2.0)
            assert meter.joules() == 3.0
            monitor.use(4.0)
            assert meter.joules() == 7.0
            monitor.use(0.5)
        monitor.use(50.0)
        assert meter.joules() == 7.5
    assert monitor.windows == {}


def test_windows_of_two_meters_do_not_collide():
    monitor = FakeMonitor()
    with EnergyMeter(monitor) as outer:
        with EnergyMeter(monitor) as inner:
            monitor.use(1.0)
        monitor.use(2.0)
    assert (inner.joules(), outer.joules()) == (1.0, 3.0)


def test_a_counter_that_goes_away_makes_energy_unknown():
    monitor = FakeMonitor()
    with EnergyMeter(monitor) as meter:
        monitor.use(1.0)
        assert meter.joules() == 1.0
        monitor.broken = True
        assert meter.joules() is None
        monitor.broken = False
        assert meter.joules() is None
    assert meter.joules() is None


def test_a_failure_inside_ends_the_window():
    monitor = FakeMonitor()
    with pytest.raises(RuntimeError), EnergyMeter(monitor):
        raise RuntimeError
    assert monitor.windows == {}


@pytest.mark.parametrize(
    ("device", "gpus", "packages", "measured"),
    [
        ("cpu", [], [0, 1], True),
        ("cpu", [], [], False),
        ("cuda:1", [1], [0], True),
        ("cuda:1", [1], [], True),
        ("meta", [], [0], False),
    ],
)
def test_zeus_measures_what_computes_where_counters_can_be_read(
    monkeypatch, device, gpus, packages, measured
):
    zeus = types.ModuleType("zeus.monitor")
    zeus.ZeusMonitor = lambda gpu_indices: FakeMonitor(gpu_indices, packages)
    monkeypatch.setitem(sys.modules, "zeus", types.ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", zeus)
    monitor = monitor_for(torch.device(device))
    assert (monitor is not None) == measured
    if measured:
        assert monitor.gpu_indices == gpus


def test_without_zeus_or_where_it_fails_energy_is_unknown(monkeypatch):
    def refuse(gpu_indices):
        raise PermissionError("no counters")

    zeus = types.ModuleType("zeus.monitor")
    zeus.ZeusMonitor = refuse
    monkeypatch.setitem(sys.modules, "zeus", types.ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", zeus)
    assert monitor_for(torch.device("cpu")) is None
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)  # as if it were not installed
    assert monitor_for(torch.device("cpu")) is None
    with EnergyMeter(None) as meter:
        assert meter.joules() is None
    assert meter.joules() is None


def test_a_sum_with_an_unknown_part_is_unknown():
    assert total_joules([]) == 0.0
    assert total_joules([1.5, 2.5]) == 4.0
    assert total_joules([1.5, None, 2.5]) is None


QUIET = Display(quiet=True)


@pytest.fixture
def ten_an_epoch(monkeypatch):
    """A machine that uses 10 J in an epoch and nothing in between."""
    monitor = FakeMonitor()
    original = Recorder.on_train_epoch_end

    def epoch(self, trainer, module):
        monitor.use(10.0)
        original(self, trainer, module)

    monkeypatch.setattr(Recorder, "on_train_epoch_end", epoch)
    monkeypatch.setattr(fitting, "monitor_for", lambda device, count: monitor)
    return monkeypatch


def config_of(path, **changes):
    options = {"epochs": 2, "members": 2, "checkpoint_seconds": 0.0, "device": "cpu"}
    return TrainConfig(out=str(path), quiet=True, **options | changes)


def interrupted(config, few_splits, monkeypatch, *, after):
    counting, count = Recorder.on_train_epoch_end, 0

    def stop(self, trainer, module):
        nonlocal count
        counting(self, trainer, module)
        count += 1
        if count == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "on_train_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, splits=few_splits, display=QUIET)
    monkeypatch.setattr(Recorder, "on_train_epoch_end", counting)


@pytest.mark.parametrize(("objective", "epochs"), [("cross-entropy", 2), ("greedy", 4)])
def test_energy_of_training_adds_up_over_its_sittings(
    tmp_path, few_splits, ten_an_epoch, objective, epochs
):
    config = config_of(tmp_path / "run", objective=objective)
    interrupted(config, few_splits, ten_an_epoch, after=epochs - 1)
    run = train(config, splits=few_splits, display=QUIET)
    assert training_joules(run) == pytest.approx(10.0 * epochs)
    assert read_json(run.environment)["training_joules"] == pytest.approx(10.0 * epochs)


def test_energy_is_unknown_where_one_sitting_s_is(tmp_path, few_splits, ten_an_epoch):
    config = config_of(tmp_path / "run")
    with ten_an_epoch.context() as patched:
        patched.setattr(fitting, "monitor_for", lambda device, count: None)
        interrupted(config, few_splits, patched, after=1)
    run = train(config, splits=few_splits, display=QUIET)
    assert read_json(run.environment)["training_joules"] is None
    assert training_joules(run) is None


def test_a_base_s_energy_is_part_of_what_is_trained_on_it(tmp_path, few_splits, ten_an_epoch):
    options = {"ensemble": "lora", "backbone": "vit-micro/4", "base_epochs": 1, "epochs": 1}
    run = train(config_of(tmp_path / "run", **options), splits=few_splits, display=QUIET)
    assert training_joules(run) == pytest.approx(10.0 * 2)


def test_energy_of_members_put_together_is_their_sum(tmp_path, few_splits, ten_an_epoch):
    ten_an_epoch.setattr(
        "deepens.experiments.evaluation.assemble.evaluate", lambda run, **options: None
    )
    parts = [
        train(
            config_of(tmp_path / f"{i}", member=i, epochs=1),
            splits=few_splits,
            display=QUIET,
        )
        for i in range(2)
    ]
    paths = [part.path for part in parts]
    whole = assemble(paths, str(tmp_path / "whole"), display=QUIET)
    assert training_joules(whole) == pytest.approx(20.0)
    content = read_json(parts[1].environment)
    del content["training_joules"]  # as earlier versions wrote it
    write_json(parts[1].environment, content)
    assert training_joules(assemble(paths, str(tmp_path / "older"), display=QUIET)) is None
    write_json(parts[1].environment, content | {"training_joules": "much"})
    with pytest.raises(ValueError, match=r"environment\.json is missing or damaged; delete .*1"):
        training_joules(parts[1])
