"""The protocols of our tables: their options exist, their files are there, and the script runs."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deepens.experiments.cli.entry import parse
from deepens.experiments.cli.grid_cells import expand, read_grid
from deepens.experiments.cli.recipes import take_recipe
from deepens.experiments.comparison.compare import check_methods
from deepens.experiments.protocols.ablation import table
from deepens.experiments.protocols.accuracy_in_time import rows

ROOT = Path(__file__).parent.parent
PROTOCOLS = ROOT / "experiments" / "protocols"
GPU = PROTOCOLS / "gpu.sh"
COMPARISONS = sorted(
    file for file in PROTOCOLS.rglob("*.yaml") if "methods:" in file.read_text("utf-8")
)
GRIDS = [file for file in COMPARISONS if "--grid" in file.read_text("utf-8")]


@pytest.mark.parametrize("file", [f for f in COMPARISONS if f not in GRIDS], ids=lambda f: f.stem)
def test_comparisons_are_of_known_methods_and_files(file):
    fast = ["--recipe", "fast"] if "--recipe fast" in file.read_text("utf-8") else []
    words, _ = take_recipe(["compare", "--config", str(file), *fast])
    _, config = parse(words)
    check_methods(config)
    assert Path(config.out).name in (file.stem, file.stem.removesuffix("-cpu"))
    if config.ood_exclude:
        assert (ROOT / config.ood_exclude).is_file()
    if fast:
        assert (config.backbone, config.average, config.precision) == (
            "airbench94",
            "lookahead",
            "auto",
        )


def test_evidence_is_evaluated_alike():
    seen = set()
    for file in (PROTOCOLS / "evidence").glob("*.yaml"):
        if file not in COMPARISONS:
            continue
        _, config = parse(["compare", "--config", str(file)])
        assert config.replicates >= 3
        assert config.label_smoothing == 0
        assert config.encode_ood
        seen.add((config.corruptions, config.severities, config.far_ood))
    assert len(seen) == 1
    assert next(iter(seen))[1] == (1, 3, 5)


def test_the_base_and_the_transfer_have_classes_apart():
    _, base = parse(["train", "--config", str(PROTOCOLS / "evidence" / "transformer-base.yaml")])
    _, transfer = parse(["compare", "--config", str(PROTOCOLS / "evidence" / "transformers.yaml")])
    assert set(base.holdout_classes).isdisjoint(transfer.holdout_classes)
    assert len(base.holdout_classes) == len(transfer.holdout_classes) == 5
    assert base.backbone == transfer.backbone


def test_the_ablation_changes_one_choice_at_a_time(tmp_path):
    from deepens.experiments.cli.plugins import load_plugins

    options = read_grid(PROTOCOLS / "fast-ablation.yaml")
    load_plugins(options["plugins"])
    cells = expand({k: v for k, v in options.items() if k != "out"}, tmp_path)
    _, recipe = parse(take_recipe(["compare", "--recipe", "fast"])[0])
    plain = cells[0].config
    for name in ("optimizer", "schedule", "average", "crop_fill", "flip", "epochs", "batch_size"):
        assert getattr(plain, name) == getattr(recipe, name), name
    for cell in cells[1:]:
        changed = {line.partition(":")[0] for line in cell.config.differences(plain)}
        assert len({name.partition(".")[0] for name in changed}) == 1, cell.name


def test_tables_are_of_what_is_finished(tmp_path):
    (tmp_path / "cifar10-fast").mkdir()
    lines = ["method,replicate,split,metric,value"]
    for replicate, accuracy in enumerate((0.8, 0.9)):
        lines += [f"single,{replicate},test,accuracy,{accuracy}"]
        lines += [f"single,{replicate},test,{name},0.5" for name in ("nll", "ece", "aurc")]
        lines += [f"single,{replicate},val/select,accuracy,0.1"]
    (tmp_path / "cifar10-fast" / "results.csv").write_text("\n".join(lines))
    half = "0.5000 ± 0.0000"
    row = f"| cifar10-fast | 2 | 0.8500 ± 0.0707 | {half} | {half} | {half} |"
    assert list(table(tmp_path))[2:] == [row]


def test_the_time_of_a_run_stands_beside_its_accuracy(tmp_path, shared_run):
    run = shared_run("protocols", epochs=1, members=1, seed=1, device="cpu")
    (row,) = rows([run.path, tmp_path])
    assert row["run"] == run.path.name
    assert 0 <= float(row["accuracy"]) <= 1


@pytest.mark.parametrize(
    ("words", "data", "line"),
    [
        (["--limit", "x"], "x", "takes no option but --limit tiny, got --limit x"),
        ([], "", "DEEPENS_DATA must name the folder of cifar10"),
    ],
)
def test_the_script_refuses_what_it_cannot_do(words, data, line):
    asked = subprocess.run(
        ["bash", str(GPU), *words],
        env=os.environ | {"DEEPENS_DATA": data},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 2
    assert line in asked.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_script_has_no_findings():
    subprocess.run(["shellcheck", str(GPU)], check=True)


@pytest.mark.slow
def test_the_script_runs_on_a_cpu_and_copies_its_results(tmp_path):
    places = {"RUNS": str(tmp_path / "runs"), "OUT": str(tmp_path / "out")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(GPU), "--limit", "tiny"]
    first = subprocess.run(
        command, env=os.environ | places | {"PATH": path}, capture_output=True, text=True
    )
    out = tmp_path / "out"
    steps = re.findall(r"^([\w-]+): status (\d+)", (out / "steps.txt").read_text(), re.MULTILINE)
    assert dict(steps) == dict.fromkeys(("smoke", "airbench96-0", "cost-half", "bench"), "0"), (
        first.stdout
    )
    assert (out / "bench.json").exists()
    with (out / "airbench96.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["training_seconds"]) > 0
    assert (out / "cost-half" / "results.csv").exists()
    assert not list(out.rglob("*.safetensors"))
    subprocess.run(command, env=os.environ | places | {"PATH": path}, check=True)
    assert len((out / "steps.txt").read_text().splitlines()) == len(steps)  # nothing is repeated
