"""From a configuration to a run directory: what is in it, and that a killed run ends the same."""

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from deepens.ensembles import Optimizer, Schedule
from deepens.experiments.config import TrainConfig
from deepens.experiments.evaluation import train_and_evaluate as train_and_evaluate_module
from deepens.experiments.evaluation.assemble import assemble
from deepens.experiments.evaluation.predictions import load_metrics
from deepens.experiments.store import run as run_module
from deepens.experiments.store.checkpoint import load_tensors
from deepens.experiments.store.progress import Display
from deepens.experiments.store.run import Run, read_json, write_json
from deepens.experiments.training.fitting import Recorder
from deepens.experiments.training.train import train
from deepens.experiments.training.weights import load_ensemble
from deepens.metrics.core.mixture import mixture_log_probs
from filelock import FileLock, Timeout
from stored_logits import load_logits

QUIET = Display(quiet=True)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.usefixtures("unchecked"),  # many trainings; others are checked
]


def _config(out, **changes):
    changes = {"epochs": 3, "members": 2, "seed": 4, "quiet": True, "device": "cpu"} | changes
    return TrainConfig(out=str(out), **changes)


def _weights(run):
    return load_tensors(run.weights)[0]


def _assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def finished(shared_run):
    return shared_run("train", shifted=True, epochs=3, members=2, seed=4, device="cpu")


def test_run_directory_holds_the_whole_run_and_nothing_half_done(finished):
    names = {p.name for p in finished.path.iterdir()} - {".lock"}
    assert names == {
        "config.yaml",
        "environment.json",
        "log.csv",
        "metrics.json",
        "predictions",
        "temperature.json",
        "weights.safetensors",
    }
    assert read_json(finished.environment)["training_seconds"] > 0
    assert read_json(finished.environment)["versions"]["torch"]


def test_log_has_one_row_an_epoch_with_members_and_mixture(finished):
    with (finished.path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {"train/loss_0", "train/loss_1", "val/nll", "val/nll_0", "val/accuracy"} <= set(rows[0])


def test_predictions_hold_float32_logits_of_every_member(finished, splits):
    logits = load_logits(finished)
    assert set(logits) == {
        "test",
        "val/calibrate",
        "val/conform",
        *splits.names("near_ood"),
        *splits.names("far_ood"),
    }
    values, targets = logits["test"]
    assert values.dtype == torch.float32
    assert values.shape == (2, len(splits["test"]), 8)
    assert torch.equal(targets, splits["test"].targets)


def test_metrics_cover_every_split_that_nothing_was_chosen_on(finished, splits):
    metrics = load_metrics(finished)
    expected = set(splits.names()) - {"train", "val/select"}
    assert set(metrics) == expected
    assert metrics["test"]["n"] == len(splits["test"])


def test_finished_run_is_not_repeated(finished, splits):
    before = finished.weights.stat().st_mtime_ns
    train(finished.config, splits=splits, display=QUIET)
    assert finished.weights.stat().st_mtime_ns == before


def test_another_configuration_in_the_same_directory_is_refused(finished, splits):
    other = dataclasses.replace(finished.config, epochs=4)
    with pytest.raises(ValueError, match=r"another configuration \(epochs: 4, not 3\).*--out"):
        train(other, splits=splits, display=QUIET)


def test_two_processes_do_not_work_in_one_run(tmp_path, splits, monkeypatch):
    monkeypatch.setattr(run_module, "LOCK_SECONDS", 0.01)
    config = _config(tmp_path / "run")
    with Run.start(config):
        pass
    code = (
        "import sys, pathlib; from deepens.experiments.store.run import exclusive\n"
        "with exclusive(pathlib.Path(sys.argv[1])):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="another process is working in .*run; wait for it"):
        train(config, splits=splits, display=QUIET)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    other.stdin.close()
    other.stdout.close()
    train(config, splits=splits, display=QUIET)


def test_the_lock_is_held_from_training_to_the_end_of_evaluation(run, splits, monkeypatch):
    taken = []

    class Counted(run_module.FileLock):
        def acquire(self, *options, **more):
            taken.append(Path(self.lock_file))
            return super().acquire(*options, **more)

    def evaluated(run, **options):
        with pytest.raises(Timeout):
            FileLock(run.path / ".lock", timeout=0).acquire()
        taken.append(evaluated)

    monkeypatch.setattr(run_module, "FileLock", Counted)
    monkeypatch.setattr(train_and_evaluate_module, "evaluate", evaluated)
    run.metrics.unlink()  # so that there is something left to evaluate
    train_and_evaluate_module.train_and_evaluate(run.config, splits=splits, display=QUIET)
    assert taken == [run.path / ".lock", evaluated]


def test_directory_that_is_no_run_is_refused(tmp_path, splits):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="exists and is not a run directory"):
        train(_config(tmp_path), splits=splits, display=QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_unknown_names_leave_no_directory(tmp_path, splits):
    for changes, line in [
        ({"ensemble": "depe"}, "unknown ensemble 'depe'; did you mean 'deep'"),
        ({"objective": "cross-entrpy"}, "unknown objective .* did you mean 'cross-entropy'"),
        ({"backbone": "smal-cnn"}, "small-cnn"),
    ]:
        with pytest.raises(ValueError, match=line):
            train(_config(tmp_path / "run", **changes), splits=splits, display=QUIET)
    assert not (tmp_path / "run").exists()


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    "changes", [{}, {"keep": "best", "early_stopping": 1, "batches": "shared"}]
)
def test_interrupted_run_ends_like_an_uninterrupted_one(tmp_path, splits, monkeypatch, changes):
    changes = {"epochs": 5, "optimizer": Optimizer(lr=0.3)} | changes
    whole = train(_config(tmp_path / "whole", **changes), splits=splits, display=QUIET)
    config = _config(tmp_path / "resumed", checkpoint_seconds=0.0, **changes)
    original = Recorder.on_train_epoch_end

    def killed(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1:
            raise _Killed

    monkeypatch.setattr(Recorder, "on_train_epoch_end", killed)
    with pytest.raises(_Killed):
        train(config, splits=splits, display=QUIET)
    monkeypatch.undo()
    resumed = train(config, splits=splits, display=QUIET)
    _assert_equal_weights(_weights(whole), _weights(resumed))
    assert (whole.path / "log.csv").read_text() == (resumed.path / "log.csv").read_text()
    assert not resumed.resume.exists()


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path, splits, monkeypatch):
    monkeypatch.setattr("deepens.experiments.training.train.suitable_threads", lambda *_: None)
    config = _config(tmp_path / "run", epochs=2, checkpoint_seconds=0.0)
    original, seen, before = Recorder.on_train_epoch_end, [], torch.get_num_threads()

    def killed(self, trainer, module):
        original(self, trainer, module)
        seen.append(torch.get_num_threads())
        if len(seen) == 1:
            raise _Killed

    monkeypatch.setattr(Recorder, "on_train_epoch_end", killed)
    try:
        torch.set_num_threads(2)
        with pytest.raises(_Killed):
            train(config, splits=splits, display=QUIET)
        torch.set_num_threads(1)
        run = train(config, splits=splits, display=QUIET)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2]
    assert read_json(run.environment)["fit_threads"] == 2


def test_threads_are_those_asked_for_and_a_begun_training_keeps_its_own(
    tmp_path, splits, monkeypatch, capsys
):
    config = _config(tmp_path / "run", epochs=2, checkpoint_seconds=0.0, threads=2)
    original, seen = Recorder.on_train_epoch_end, []

    def killed(self, trainer, module):
        original(self, trainer, module)
        seen.append(torch.get_num_threads())
        if len(seen) == 1:
            raise _Killed

    monkeypatch.setattr(Recorder, "on_train_epoch_end", killed)
    with pytest.raises(_Killed):
        train(config, splits=splits)
    other = dataclasses.replace(config, threads=3)
    said = "was begun with threads: 2, which stays, since it decides the last bits of weights; to "
    for _ in range(2):  # resumed, and finished
        run = train(other, splits=splits, display=Display())
        assert f"{run.path} {said}have 3" in capsys.readouterr().err
    train(config, splits=splits, display=Display())
    assert "threads" not in capsys.readouterr().err
    assert seen == [2, 2]
    assert read_json(run.environment)["fit_threads"] == 2


def test_members_trained_in_turn_keep_the_threads_of_the_first(tmp_path, splits, monkeypatch):
    options = {"objective": "greedy", "members": 2, "epochs": 1}
    original, seen = Recorder.on_train_epoch_end, []

    def killed(self, trainer, module):
        original(self, trainer, module)
        seen.append(torch.get_num_threads())
        if len(seen) == 2:
            raise _Killed

    monkeypatch.setattr(Recorder, "on_train_epoch_end", killed)
    with pytest.raises(_Killed):
        train(_config(tmp_path / "run", threads=2, **options), splits=splits)
    run = train(_config(tmp_path / "run", threads=1, **options), splits=splits)
    assert seen == [2, 2, 2]
    assert read_json(run.environment)["fit_threads"] == 2


def test_kept_weights_are_those_of_the_best_epoch(tmp_path, splits):
    run = train(
        _config(tmp_path / "run", keep="best", epochs=4, optimizer=Optimizer(lr=1.5)),
        splits=splits,
        display=QUIET,
    )
    with (run.path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = min(range(4), key=lambda i: float(rows[i]["val/nll"]))
    again = train(
        _config(tmp_path / "other", epochs=4, optimizer=Optimizer(lr=1.5)),
        splits=splits,
        display=QUIET,
    )
    same = all(torch.equal(v, _weights(again)[k]) for k, v in _weights(run).items())
    assert same == (best == 3)
    ensemble, form = load_ensemble(run)
    select = splits["val/select"]
    images = (select.images / 255 - form.mean[0]) / form.std[0]
    log_probs = mixture_log_probs(ensemble(images)).detach()
    nll = -log_probs[torch.arange(len(select)), select.targets].mean()
    assert float(nll) == pytest.approx(min(float(row["val/nll"]) for row in rows), rel=1e-4)
    assert not (run.path / "best.safetensors").exists()


def test_logged_rates_follow_the_schedule(tmp_path, splits):
    schedule = Schedule("step", warmup=3, milestones=(0.5,), factor=0.1)
    run = train(
        _config(tmp_path / "run", optimizer=Optimizer(lr=0.02), schedule=schedule),
        splits=splits,
        display=QUIET,
    )
    with (run.path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        expected = 0.02 * schedule.multiplier(int(row["step"]), 30)
        assert float(row["lr"]) == pytest.approx(expected, rel=1e-9)
    assert len({row["lr"] for row in rows}) == 2


def test_training_stops_early_when_nothing_improves(tmp_path, splits):
    run = train(
        _config(tmp_path / "run", epochs=30, early_stopping=2, optimizer=Optimizer(lr=1e-12)),
        splits=splits,
        display=QUIET,
    )
    with (run.path / "log.csv").open() as file:
        values = [float(row["val/nll"]) for row in csv.DictReader(file)]
    assert len(values) < 30
    assert min(values[-2:]) >= min(values[:-2])


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": Optimizer(lr=0.05)},
        {"optimizer": Optimizer("adamw", lr=0.001)},
        {"optimizer": Optimizer(clip=0.01)},
        {"schedule": Schedule("constant")},
        {"precision": "bf16-mixed"},
        {"crop_padding": 0},
        {"flip": True},
        {"batches": "shared"},
        {"batch_size": 32},
        {"width": 0.5},
        {"seed": 5},
    ],
)
def test_every_option_reaches_the_weights(tmp_path, finished, splits, changes):
    run = train(_config(tmp_path / "run", **changes), splits=splits, display=QUIET)
    name = "networks.1.head.weight"  # a shared order is the first member's own
    first, second = _weights(finished)[name], _weights(run)[name]
    assert first.shape != second.shape or not torch.allclose(first, second, atol=1e-4)


def test_checkpoint_of_another_run_is_refused(tmp_path, splits, monkeypatch):
    def killed(self, trainer, module):
        original(self, trainer, module)
        raise _Killed

    original = Recorder.on_train_epoch_end
    monkeypatch.setattr(Recorder, "on_train_epoch_end", killed)
    for out, seed in [("a", 1), ("b", 2)]:
        with pytest.raises(_Killed):
            train(
                _config(tmp_path / out, seed=seed, checkpoint_seconds=0.0),
                splits=splits,
                display=QUIET,
            )
    monkeypatch.undo()
    shutil.copy(tmp_path / "a" / "resume.safetensors", tmp_path / "b" / "resume.safetensors")
    with pytest.raises(ValueError, match=r"resume\.safetensors belongs to another run"):
        train(_config(tmp_path / "b", seed=2), splits=splits, display=QUIET)


def test_moved_run_keeps_its_best_weights(tmp_path, splits, monkeypatch):
    changes = {"keep": "best", "epochs": 6, "optimizer": Optimizer(lr=1.5)}
    whole = train(_config(tmp_path / "whole", **changes), splits=splits, display=QUIET)
    original = Recorder.on_train_epoch_end

    def killed(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 4:
            raise _Killed

    monkeypatch.setattr(Recorder, "on_train_epoch_end", killed)
    with pytest.raises(_Killed):
        train(
            _config(tmp_path / "a", checkpoint_seconds=0.0, **changes),
            splits=splits,
            display=QUIET,
        )
    monkeypatch.undo()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = train(_config(tmp_path / "b", **changes), splits=splits, display=QUIET)
    _assert_equal_weights(_weights(whole), _weights(moved))


def test_members_trained_one_by_one_assemble_to_the_joint_run(tmp_path, finished, splits):
    parts = [
        train(_config(tmp_path / f"part{i}", member=i), splits=splits, display=QUIET)
        for i in (1, 0)
    ]
    whole = assemble([part.path for part in parts], str(tmp_path / "whole"), display=QUIET)
    _assert_equal_weights(_weights(finished), _weights(whole))
    assert finished.weights.read_bytes() == whole.weights.read_bytes()
    for name, (logits, _) in load_logits(finished).items():
        assert torch.equal(logits, load_logits(whole)[name][0]), name
    with pytest.raises(ValueError, match=r"each of the members 0 to 1 once, got \[1\]"):
        assemble([parts[0].path], str(tmp_path / "half"), display=QUIET)
    with pytest.raises(ValueError, match="trains a whole ensemble"):
        assemble([finished.path], str(tmp_path / "half"), display=QUIET)
    other = train(_config(tmp_path / "other", member=0, epochs=1), splits=splits, display=QUIET)
    with pytest.raises(ValueError, match="do not belong to one ensemble .*epochs: 1, not 3"):
        assemble([parts[0].path, other.path], str(tmp_path / "half"), display=QUIET)


def test_interrupt_is_an_interrupt_and_leaves_the_handler_and_no_weights(tmp_path, splits):
    config = _config(tmp_path / "run", epochs=1000)
    # A shell lets its background jobs ignore the signal, and this would train all epochs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            train(config, splits=splits, display=QUIET)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.slow
def test_killed_process_and_the_same_command_again_end_in_the_same_weights(tmp_path):
    def command(out):
        return [
            sys.executable, "-m", "deepens.experiments.cli.entry", "train", "--data", "digits",
            "--members", "2", "--epochs", "60", "--corruptions", "none", "--device", "cpu",
            "--checkpoint-seconds", "0", "--quiet", "--out", str(tmp_path / out),
        ]  # fmt: skip

    subprocess.run(command("whole"), check=True, capture_output=True)
    process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL)
    resume = tmp_path / "killed" / "resume.safetensors"
    deadline = time.monotonic() + 120
    while not resume.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert resume.exists()
    assert not (tmp_path / "killed" / "weights.safetensors").exists()
    subprocess.run(command("killed"), check=True, capture_output=True)
    first = load_tensors(tmp_path / "whole" / "weights.safetensors")[0]
    second = load_tensors(tmp_path / "killed" / "weights.safetensors")[0]
    _assert_equal_weights(first, second)


def test_members_of_other_numbers_of_threads_are_assembled_with_a_remark(tmp_path, splits, capsys):
    runs = [train(_config(tmp_path / str(i), member=i, members=2), splits=splits) for i in (0, 1)]
    record = read_json(runs[1].environment)
    assert record["fit_threads"] == 1
    paths = [run.path for run in runs]
    assemble(paths, str(tmp_path / "same"), display=Display())
    assert "threads" not in capsys.readouterr().err
    write_json(runs[1].environment, record | {"fit_threads": 2})
    assemble(paths, str(tmp_path / "whole"), display=Display())
    assert "members were trained on 1, 2 threads" in capsys.readouterr().err
