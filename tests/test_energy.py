"""Energy: the machine's counters, read from a folder like the kernel's."""

import sys
import threading
import time
import types

import pytest
import torch
from deepens.datasets import load
from deepens.experiments.config import TrainConfig
from deepens.experiments.cost import energy
from deepens.experiments.cost.energy import (
    Counter,
    EnergyMeter,
    counters_for,
    gpu_counter,
    package_counters,
    total_joules,
)
from deepens.experiments.evaluation.assemble import assemble
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import read_json, training_joules, write_json
from deepens.experiments.training import fitting
from deepens.experiments.training.fitting import Recorder
from deepens.experiments.training.train import train

RANGE = 262_143_328_850
"""Microjoules at which a common processor's counter wraps around."""


def domain(folder, place, name, microjoules, most=RANGE):
    path = folder / place
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


@pytest.fixture
def powercap(tmp_path):
    """Two packages with their parts, the whole platform, and a second view of a package."""
    files = {
        "first": domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000),
        "core": domain(tmp_path, "intel-rapl:0:0", "core", 1_000_000),
        "memory": domain(tmp_path, "intel-rapl:0:1", "dram", 1_000_000),
        "second": domain(tmp_path, "intel-rapl:1", "package-1", 7_000_000),
        "platform": domain(tmp_path, "intel-rapl:2", "psys", 20_000_000),
        "mirror": domain(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000),
    }
    (tmp_path / "intel-rapl").mkdir()  # the control type itself, which counts nothing
    return tmp_path, files


def test_packages_are_counted_and_neither_their_parts_nor_what_holds_them(powercap):
    folder, files = powercap
    counters = package_counters(folder)
    assert [counter.name for counter in counters] == ["package-0", "package-1"]
    with EnergyMeter(counters) as meter:
        assert meter.joules() == 0.0
        for name, more in [("first", 3), ("second", 4), ("core", 50), ("platform", 60)]:
            files[name].write_text(str(int(files[name].read_text()) + more * 10**6))
    assert meter.joules() == pytest.approx(7.0, abs=1e-9)
    files["first"].write_text("900000000")
    assert meter.joules() == pytest.approx(7.0, abs=1e-9)  # the context is over


def test_a_counter_that_wraps_around_goes_on(powercap):
    folder, files = powercap
    files["first"].write_text(str(RANGE - 2_000_000))
    with EnergyMeter(package_counters(folder)) as meter:
        for microjoules in (RANGE - 500_000, 1_000_000, 4_000_000, RANGE - 1, 5_000_000):
            files["first"].write_text(str(microjoules))
            meter.joules()
    assert meter.joules() == pytest.approx((RANGE + 7_000_000) / 1e6, abs=1e-4)


def write_at_once(file, text):
    """As the kernel does: nobody ever reads half of a number."""
    aside = file.with_suffix(".new")
    aside.write_text(text)
    aside.replace(file)


def test_a_thread_sees_a_wrap_that_nobody_asked_at(powercap):
    folder, files = powercap
    read = threading.Event()
    first, *others = package_counters(folder)

    def noted():
        found = first.read()
        if found == pytest.approx(200_000.0):
            read.set()
        return found

    watched = [Counter(first.name, noted, first.range), *others]
    with EnergyMeter(watched, interval=0.005) as meter:
        write_at_once(files["first"], "200000000000")
        assert read.wait(timeout=30)
        write_at_once(files["first"], "6000000")  # more than it was at the start
    assert meter.joules() == pytest.approx(RANGE / 1e6 + 1.0, abs=1e-6)
    assert "energy" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("missing", ["energy_uj", "max_energy_range_uj", "name"])
def test_nothing_is_told_where_one_package_cannot_be_read(powercap, missing):
    folder, _ = powercap
    (folder / "intel-rapl:1" / missing).unlink()
    (folder / "intel-rapl:1" / missing).mkdir()  # opening it fails, also for an administrator
    assert package_counters(folder) == ()
    assert package_counters(folder / "nowhere") == ()


def test_damaged_counters_are_none(powercap):
    folder, files = powercap
    files["second"].write_text("no number")
    assert package_counters(folder) == ()


def test_without_counters_energy_is_unknown_and_there_is_no_thread():
    before = threading.active_count()
    with EnergyMeter([]) as meter:
        assert threading.active_count() == before
        assert meter.joules() is None
    assert meter.joules() is None


def test_a_counter_that_goes_away_or_starts_again_makes_energy_unknown(powercap):
    folder, files = powercap
    with EnergyMeter(package_counters(folder)) as meter:
        files["second"].unlink()
    assert meter.joules() is None
    readings = iter([5.0, 7.0, 1.0, 9.0])
    with EnergyMeter([Counter("gpu", lambda: next(readings))]) as meter:
        assert meter.joules() == 2.0
        assert meter.joules() is None
    assert meter.joules() is None


def test_a_meter_measures_anew_each_time():
    readings = iter([1.0, 4.0, 10.0, 30.0])
    meter = EnergyMeter([Counter("gpu", lambda: next(readings))])
    with meter:
        pass
    assert meter.joules() == 3.0
    with meter:
        pass
    assert meter.joules() == 20.0


def test_a_failure_inside_leaves_no_thread(powercap):
    with pytest.raises(KeyError), EnergyMeter(package_counters(powercap[0])):
        raise KeyError("training")
    assert "energy" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def nvml(monkeypatch):
    """A GPU whose counter has millijoules, and which NVML knows by another number than torch."""
    millijoules = iter([40_000, 41_500, 44_000])
    module = types.ModuleType("pynvml")
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = {"GPU-1234": "card 7"}.__getitem__
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: {"card 7": millijoules}[
        handle
    ].__next__()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1234")
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    return module


def test_energy_of_a_gpu_is_its_own_with_the_packages(nvml, powercap, monkeypatch):
    folder, files = powercap
    find = package_counters
    monkeypatch.setattr(energy, "package_counters", lambda: find(folder))
    counters = counters_for(torch.device("cuda"))
    assert [counter.name for counter in counters] == ["a card", "package-0", "package-1"]
    with EnergyMeter(counters) as meter:  # 41.5 J; the first reading was the search's
        files["first"].write_text("6000000")
    assert meter.joules() == pytest.approx(44.0 - 41.5 + 1.0, abs=1e-9)


def test_a_gpu_without_a_counter_has_no_energy_though_the_packages_have(
    nvml, powercap, monkeypatch
):
    find = package_counters
    monkeypatch.setattr(energy, "package_counters", lambda: find(powercap[0]))
    assert len(counters_for(torch.device("cpu"))) == 2

    def refuse(handle):
        raise RuntimeError("not supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    assert gpu_counter(torch.device("cuda")) is None
    assert counters_for(torch.device("cuda")) == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert counters_for(torch.device("cuda")) == ()
    assert counters_for(torch.device("meta")) == ()


def test_real_counters_grow_where_there_are_some():
    counters = package_counters()
    if not counters:
        pytest.skip("this machine's energy cannot be read")
    with EnergyMeter(counters) as meter:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            torch.ones(200, 200) @ torch.ones(200, 200)
    assert 0 < meter.joules() < 5_000


def test_a_sum_with_an_unknown_part_is_unknown():
    assert total_joules([]) == 0.0
    assert total_joules([1.5, 2.5]) == 4.0
    assert total_joules([1.5, None, 2.5]) is None


QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def splits():
    return load("digits")


@pytest.fixture
def ten_an_epoch(monkeypatch):
    """A machine that uses 10 J in an epoch and nothing in between."""
    used = [0.0]
    original = Recorder.on_train_epoch_end

    def epoch(self, trainer, module):
        used[0] += 10.0
        original(self, trainer, module)

    monkeypatch.setattr(Recorder, "on_train_epoch_end", epoch)
    counter = Counter("package-0", lambda: used[0])
    monkeypatch.setattr(fitting, "counters_for", lambda device: (counter,))
    return monkeypatch


def config_of(path, **changes):
    options = {"epochs": 2, "members": 2, "checkpoint_seconds": 0.0, "device": "cpu"}
    return TrainConfig(out=str(path), quiet=True, **options | changes)


def interrupted(config, splits, monkeypatch, *, after):
    counting, count = Recorder.on_train_epoch_end, 0

    def stop(self, trainer, module):
        nonlocal count
        counting(self, trainer, module)
        count += 1
        if count == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "on_train_epoch_end", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, splits=splits, display=QUIET)
    monkeypatch.setattr(Recorder, "on_train_epoch_end", counting)


@pytest.mark.parametrize(("objective", "epochs"), [("cross-entropy", 2), ("greedy", 4)])
def test_energy_of_training_adds_up_over_its_sittings(
    tmp_path, splits, ten_an_epoch, objective, epochs
):
    config = config_of(tmp_path / "run", objective=objective)
    interrupted(config, splits, ten_an_epoch, after=epochs - 1)
    run = train(config, splits=splits, display=QUIET)
    assert training_joules(run) == pytest.approx(10.0 * epochs)
    assert read_json(run.environment)["training_joules"] == pytest.approx(10.0 * epochs)


def test_energy_is_unknown_where_one_sitting_s_is(tmp_path, splits, ten_an_epoch):
    config = config_of(tmp_path / "run")
    with ten_an_epoch.context() as patched:
        patched.setattr(fitting, "counters_for", lambda device: ())
        interrupted(config, splits, patched, after=1)
    run = train(config, splits=splits, display=QUIET)
    assert read_json(run.environment)["training_joules"] is None
    assert training_joules(run) is None


def test_a_base_s_energy_is_part_of_what_is_trained_on_it(tmp_path, splits, ten_an_epoch):
    options = {"ensemble": "lora", "backbone": "vit-micro/4", "base_epochs": 1, "epochs": 1}
    run = train(config_of(tmp_path / "run", **options), splits=splits, display=QUIET)
    assert training_joules(run) == pytest.approx(10.0 * 2)


def test_energy_of_members_put_together_is_their_sum(tmp_path, splits, ten_an_epoch):
    ten_an_epoch.setattr(
        "deepens.experiments.evaluation.assemble.evaluate", lambda run, **options: None
    )
    parts = [
        train(
            config_of(tmp_path / f"{i}", member=i, epochs=1),
            splits=splits,
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
