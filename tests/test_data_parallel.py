"""Several processes that share each batch: refused where it cannot be, else one training."""

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from deepens.experiments.config import TrainConfig
from deepens.experiments.store.checkpoint import load_tensors
from deepens.experiments.training.parts import check_processes
from deepens.experiments.training.places import Place, check_launcher, place_of
from deepens.experiments.training.train import train

AGAIN = "the same command continues from the last checkpoint"
BOTH = TrainConfig(devices=2, device="cpu")
SRUN = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Whatever started the tests is no launcher of them."""
    for name in (*SRUN, *TORCHRUN, "SLURM_JOB_NAME", "SLURM_LOCALID", "NODE_RANK", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch_size": 63}, "batch_size must be a multiple of 2, .*, got 63"),
        ({"strategy": "fsdp"}, "strategy fsdp is not supported here: .* use --strategy ddp"),
        ({"jobs": 2}, "jobs and executor .* --devices lets 2 processes share .*: choose one"),
        ({"executor": "ray"}, "jobs and executor .*: choose one of the two"),
    ],
)
def test_what_processes_cannot_share_is_refused(options, line):
    with pytest.raises(ValueError, match=line):
        check_processes(TrainConfig(devices=2, device="cpu", **options))


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="devices must be <= 1, the GPUs that torch sees here"):
        check_processes(TrainConfig(devices=2))
    assert check_processes(TrainConfig()) == Place()


@pytest.mark.parametrize("objective", ["forde", "function-repulsion"])
def test_an_objective_that_compares_members_on_a_batch_is_refused_by_name(tmp_path, objective):
    options = {"objective": objective, "devices": 2, "device": "cpu", "data": "digits"}
    with pytest.raises(ValueError, match=f"objective {objective} compares members on one batch"):
        train(TrainConfig(**options, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_one_process_is_no_part_of_a_runs_identity():
    assert TrainConfig().substance() == TrainConfig(devices=1, num_nodes=1).substance()
    assert not TrainConfig().substance().keys() & {"devices", "num_nodes", "strategy"}
    assert TrainConfig(devices=2).substance()["devices"] == 2


@pytest.mark.parametrize(
    ("variables", "config", "line"),
    [
        (TORCHRUN, TrainConfig(), r"2 processes \(WORLD_SIZE\), and 1 is asked for: give --dev"),
        (TORCHRUN, TrainConfig(devices=4), r"2 processes \(WORLD_SIZE\), and 4 are asked for"),
        (TORCHRUN | {"WORLD_SIZE": "1"}, BOTH, r"1 processes \(WORLD_SIZE\), and 2 are asked for"),
        (TORCHRUN, object(), "1 is asked for: start the command once"),
        ({"PMI_SIZE": "2"}, BOTH, r"2 processes \(PMI_SIZE\)"),
        (SRUN, TrainConfig(devices=4), "srun started 2 processes, and 4 are asked for"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, BOTH, "start it with --ntasks-per-node=2"),
    ],
)
def test_a_launcher_of_another_number_is_refused(monkeypatch, variables, config, line):
    set_all(monkeypatch, variables)
    with pytest.raises(ValueError, match=line):
        check_launcher(config)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place(0, 2)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2, 1)),
        (TORCHRUN, Place(1, 2, 1, launched=True)),
        (SRUN | {"SLURM_LOCALID": "1"}, Place(1, 2, 1, launched=True)),
        (SRUN | {"SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "0"}, Place(0, 2)),
    ],
)
def test_a_process_knows_its_place(monkeypatch, variables, place):
    set_all(monkeypatch, variables)
    check_launcher(BOTH)
    assert place_of(BOTH) == place
    assert place_of(TrainConfig()) == Place()


# What follows are real processes, of small networks on the digits.

FOLDER = Path(__file__).parent
WORDS = (
    *("train", "--data", "digits", "--plugin", "toy_backbone", "--backbone", "toy-cnn"),
    *("--members", "2", "--epochs", "3", "--device", "cpu", "--corruptions", "none"),
)
OPTIONS = {
    "own": ["--optimizer.clip", "1"],
    "mixupmp": ["--objective", "mixupmp", "--mixup.weights", "dirichlet", "--average", "swa"],
    "greedy": ["--objective", "greedy", "--keep", "best"],
    "svgd": [*("--objective", "weight-repulsion", "--repulsion.update", "svgd"), "--average=ema"],
    "explicit": ["--ensemble", "explicit", "--batches", "shared", "--early-stopping", "1"],
}


def start(folder, *words, before=(), **variables):
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *before, "-m", "deepens", *WORDS, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_interruptible,
    )


def _interruptible():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it


def ended(process):
    """The exit status and what was said of it."""
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said.splitlines()


def log(folder):
    with (folder / "log.csv").open(encoding="utf-8") as file:
        return [
            {k: float(v.lstrip("'")) for k, v in row.items() if v} for row in csv.DictReader(file)
        ]


def weights(folder):
    return load_tensors(folder / "weights.safetensors")[0]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return str(found.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_have_the_loss_curve_of_one(tmp_path, name):
    for out, words in (("one", []), ("two", ["--devices", "2"])):
        status, said = ended(start(tmp_path, *OPTIONS[name], *words, "--out", out))
        assert status == 0, said
        assert sum("predict" in line for line in said) == 1  # the first process alone
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) >= 2
    for first, second in zip(one, two, strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-5)
    assert two[0]["train/loss"] != two[-1]["train/loss"]
    assert {file.name for file in (tmp_path / "one").iterdir()} == {
        file.name for file in (tmp_path / "two").iterdir()
    }


@pytest.mark.slow
def test_batch_normalisation_is_said_to_be_apart(tmp_path):
    words = ["--backbone", "small-cnn", "--devices", "2", "--epochs", "1"]
    status, said = ended(start(tmp_path, *words, "--out", "out"))
    assert status == 0
    (line,) = [line for line in said if "batch normalisation" in line]
    assert "each of the 2 processes normalises by its own 32 of 64 images" in line


@pytest.mark.slow
def test_launchers_train_the_same(tmp_path):
    words = ["--devices", "2", "--quiet"]
    assert ended(start(tmp_path, *words, "--out", "own"))[0] == 0
    run = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    assert ended(start(tmp_path, *words, "--out", "torchrun", before=run))[0] == 0
    tasks = SRUN | {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "MASTER_PORT": free_port()}
    tasks |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "fit", "MASTER_ADDR": "127.0.0.1"}
    both = [
        start(tmp_path, *words, "--out", "srun", **tasks | {"SLURM_PROCID": r, "SLURM_LOCALID": r})
        for r in ("0", "1")
    ]
    assert [ended(task)[0] for task in both] == [0, 0]
    for launcher in ("torchrun", "srun"):
        assert same(weights(tmp_path / launcher), weights(tmp_path / "own"))


LONG = ["--devices", "2", "--epochs", "60", "--checkpoint-seconds", "0", "--quiet"]
STOPS = {
    "second killed": (
        *("second", signal.SIGKILL, 2),
        f"deepens: process 1 of 2 ended early, by signal 9; {AGAIN}",
    ),
    "first killed": (
        *("first", signal.SIGKILL, -signal.SIGKILL),
        f"deepens: process 1 of 2: another process of the training ended early; {AGAIN}",
    ),
    "terminated": ("first", signal.SIGTERM, 143, f"deepens: terminated; {AGAIN}"),
    "interrupted": ("both", signal.SIGINT, 130, f"deepens: interrupted; {AGAIN}"),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    status, said = ended(start(folder, *LONG, "--average", "ema", "--out", "out"))
    assert status == 0, said
    return folder / "out"


def started_by(process):
    """The other process of a training; Lightning starts it by the same command."""
    (listed,) = Path(f"/proc/{process.pid}/task").glob(f"{process.pid}/children")
    for child in map(int, listed.read_text().split()):
        if b"toy_backbone" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    raise AssertionError("it has no other process")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", STOPS)
def test_a_process_that_ends_early_ends_all_with_one_line(tmp_path, undisturbed, name):
    which, number, expected, line = STOPS[name]
    words = [*LONG, "--average", "ema", "--out", "out"]
    process = start(tmp_path, *words)
    checkpoint, deadline = tmp_path / "out" / "resume.safetensors", time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    second = started_by(process)
    if which == "both":
        os.killpg(process.pid, number)
    else:
        os.kill(second if which == "second" else process.pid, number)
    assert ended(process) == (expected, [line])  # its pipe is closed when all have ended
    status, said = ended(start(tmp_path, *words))
    assert status == 0, said
    assert same(weights(tmp_path / "out"), weights(undisturbed))
    assert (tmp_path / "out" / "log.csv").read_text() == (undisturbed / "log.csv").read_text()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_once(tmp_path):
    words = ["--devices", "2", "--optimizer.lr", "1e30", "--quiet", "--out", "out"]
    status, said = ended(start(tmp_path, *words))
    assert status == 2
    (line,) = said
    assert line.startswith("deepens: the loss of member 0 is not finite at step 1")
