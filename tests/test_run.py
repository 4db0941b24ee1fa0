"""The run directory: files whole or not at all, one configuration each, readable errors."""

import os

import pytest
from deepens.datasets.files import whole_file
from deepens.ensembles import Optimizer, Packed, Schedule
from deepens.experiments.cli.entry import COMMANDS, parse
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.store.environment import describe_environment
from deepens.experiments.store.run import (
    Run,
    claim,
    read_config,
    read_json,
    write_json,
    write_whole_text,
)

FULL = TrainConfig(
    members=3,
    optimizer=Optimizer("adamw", lr=0.001, clip=1.0),
    schedule=Schedule("step", milestones=(0.25, 0.5)),
    precision="bf16-mixed",
    early_stopping=4,
)


def test_configuration_survives_yaml():
    import yaml

    assert TrainConfig.from_dict(yaml.safe_load(FULL.to_yaml())) == FULL
    comparison = CompareConfig(methods=("deep",), draws=200)
    assert CompareConfig.from_dict(yaml.safe_load(comparison.to_yaml())) == comparison


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"membres": 3}, "unknown option 'membres'"),
        ({"optimizer": {"lrr": 3}}, "unknown option optimizer.lrr"),
        ({"members": 0}, "members must be >= 1, got 0"),
        ({"member": 1, "batches": "shared"}, "needs batches: own"),
        ({"member": 1, "keep": "best"}, "needs keep: last"),
        ({"member": 1, "early_stopping": 3}, "needs early_stopping: None"),
        ({"width": 0.0}, "width must be > 0, got 0.0"),
        ({"early_stopping": 0}, "early_stopping must be >= 1, got 0"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be >= 0, got -1.0"),
    ],
)
def test_bad_options_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        TrainConfig.from_dict(options)


def test_circumstances_make_no_difference_and_everything_else_does():
    base = TrainConfig()
    assert base.differences(TrainConfig(out="x", quiet=True, device="cpu", tensorboard=True)) == []
    assert TrainConfig(seed=1).differences(base) == ["seed: 1, not 0"]
    other = TrainConfig(optimizer=Optimizer(lr=0.2))
    assert other.differences(base) == ["optimizer.lr: 0.2, not 0.1"]


@pytest.mark.parametrize("execution", ["vmap", "compiled"])
def test_runs_by_an_execution_that_was_removed_are_still_read(tmp_path, execution):
    config = TrainConfig(ensemble="packed", out=str(tmp_path))
    text = config.to_yaml().replace("execution: loop", f"execution: {execution}", 1)
    assert text != config.to_yaml()
    (tmp_path / "config.yaml").write_text(text)
    stored = read_config(tmp_path, TrainConfig)
    assert stored.packed.execution == "loop"
    grouped = TrainConfig(ensemble="packed", packed=Packed(execution="grouped"))
    assert stored.differences(grouped) == []
    with pytest.raises(ValueError, match=r"packed\.execution"):
        parse(["train", "--packed.execution", execution])


def test_every_option_has_a_description():
    for kind in (command.config for command in COMMANDS.values()):
        text = "".join(str(base.__doc__) for base in kind.__mro__)
        for name in kind.__dataclass_fields__:
            assert f"\n        {name}: " in text, name


def test_file_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    write_whole_text(target, "old")

    def fail():
        with whole_file(target) as aside:
            aside.write_text("half")
            assert target.read_text() == "old"
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["file.txt"]
    write_whole_text(target, "new")
    assert target.read_text() == "new"


def test_undefined_numbers_become_null_in_json(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1.5, float("nan")], "b": {"c": 2}})
    assert (tmp_path / "x.json").read_text().count("null") == 1
    assert read_json(tmp_path / "x.json") == {"a": [1.5, None], "b": {"c": 2}}


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    (tmp_path / "y.json").write_text("[1]")
    for name in ("x", "y", "z"):
        with pytest.raises(ValueError, match=rf"{name}\.json is missing or damaged; delete it"):
            read_json(tmp_path / f"{name}.json")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "is damaged: it is not YAML"),
        ("- 1", "is damaged: it holds no options"),
        ("method: [deep]", "not a configuration of this kind of run: unknown option 'method'"),
        ("methods: [deep]", "is the directory of a comparison, .* it has no finished run yet"),
    ],
)
def test_damaged_configuration_is_named(tmp_path, text, line):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=line):
        Run.open(tmp_path)


def test_directory_grows_only_in_what_may_grow(tmp_path):
    claim(tmp_path / "x", CompareConfig(replicates=3))
    claim(tmp_path / "x", CompareConfig(replicates=5), growing=("replicates",))
    assert read_config(tmp_path / "x", CompareConfig).replicates == 5
    with pytest.raises(ValueError, match="epochs: 1, not 20"):
        claim(tmp_path / "x", CompareConfig(replicates=7, epochs=1), growing=("replicates",))
    assert read_config(tmp_path / "x", CompareConfig).replicates == 5


def test_environment_names_versions_and_hardware():
    environment = describe_environment()
    assert {"python", "torch", "lightning", "deepens"} <= set(environment["versions"])
    assert environment["processor"]
    assert environment["threads"] >= 1
