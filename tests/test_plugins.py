"""Another package's family: one registration makes options, a method, and its single model."""

import csv
import importlib
import subprocess
import sys

import pytest
from deepens.datasets import load
from deepens.ensembles import CrossEntropy, DeepEnsemble
from deepens.ensembles.options import OPTION_GROUPS, register_options
from deepens.experiments.cli.entry import action_of, main, parse
from deepens.experiments.comparison.command_line import command_line
from deepens.experiments.comparison.methods import find_method
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.evaluation.assemble import assemble
from deepens.experiments.training.building import build_network, build_objective
from deepens.experiments.training.registry import (
    FAMILIES,
    OBJECTIVES,
    register_family,
    register_objective,
)
from deepens.experiments.training.train import train

PLAY = ("--plugin", "toy_family", "--toy.slimness", "1.5")


@pytest.fixture(autouse=True)
def registries():
    """What a plugin registers is gone after each test, and so is the plugin."""
    held = [(registry, dict(registry)) for registry in (FAMILIES, OBJECTIVES, OPTION_GROUPS)]
    yield
    for registry, before in held:
        registry.clear()
        registry.update(before)
    sys.modules.pop("toy_family", None)


def _started(*words):
    command, config = parse(list(words))
    return action_of(command)(config)


def _refused(capsys, *words):
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_a_family_of_a_plugin_is_compared_and_its_runs_import_nothing(tmp_path, capsys):
    words = ["compare", *PLAY, "--methods", "single,toy-2,wide-toy-2", "--replicates", "1"]
    words += ["--epochs", "1", "--batch-size", "256", "--corruptions", "none", "--draws", "100"]
    assert main([*words, "--out", str(tmp_path / "c"), "--quiet"]) == 0
    with (tmp_path / "c" / "verdicts.csv").open() as file:
        pairs = {(row["challenger"], row["baseline"]) for row in csv.DictReader(file)}
    assert ("toy-2", "wide-toy-2") in pairs
    held = (tmp_path / "c" / "toy-2-0" / "config.yaml").read_text()
    assert "plugins:\n- toy_family\n" in held
    assert "toy:\n  slimness: 1.5\n" in held
    for other in ("single-0", "wide-toy-2-0"):  # whose networks these options do not concern
        assert "toy:" not in (tmp_path / "c" / other / "config.yaml").read_text()
    capsys.readouterr()
    # What is stored names the plugin, and never imports it.
    for registry in (FAMILIES, OPTION_GROUPS):
        del registry["toy"]
    del sys.modules["toy_family"]
    for command in (("report", "c"), ("evaluate", "c/toy-2-0")):
        line = _refused(capsys, command[0], str(tmp_path / command[1]), "--quiet")
        assert line.endswith("the configuration was made with plugins, give --plugin toy_family")
    assert "toy_family" not in sys.modules
    evaluated = ["evaluate", str(tmp_path / "c" / "toy-2-0"), "--plugin", "toy_family", "--quiet"]
    assert main(evaluated) == 0


def test_options_of_a_plugin_are_typed_documented_and_checked(capsys):
    _, config = parse(["train", "--ensemble", "toy", *PLAY])
    assert (config.toy.slimness, config.plugins) == (1.5, ("toy_family",))
    assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(SystemExit):
        main(["train", "--plugin=toy_family", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Factor by which each member is narrower than the network." in shown
    assert "toy.slimness must be >= 1" in _refused(capsys, "train", *PLAY[:3], "0.5")
    assert "did you mean --toy.slimness?" in _refused(capsys, "train", *PLAY[:2], "--slimness=2")


def test_a_plugin_is_named_in_a_file_of_the_users_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("plugins: [toy_family]\nensemble: toy\n")
    _, config = parse(["train", "--config", str(file), "--toy.slimness=2"])
    assert (config.plugins, config.toy.slimness) == (("toy_family",), 2.0)


@pytest.mark.parametrize("evidence", ["comparison.json", "metrics.json", "single-0/log.csv"])
@pytest.mark.parametrize("option", ["--config", "--grid"])
def test_no_file_of_a_run_directory_imports_a_plugin(tmp_path, monkeypatch, option, evidence):
    (tmp_path / evidence).parent.mkdir(exist_ok=True)
    (tmp_path / evidence).write_text("")
    file = tmp_path / "config.yaml"
    file.write_text("plugins: [harmful]\ndata: digits\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "harmful.py").write_text("raise AssertionError('was imported')\n")
    with pytest.raises(ValueError, match="no plugin is imported; .* add --plugin harmful"):
        _started("compare", option, str(file))
    (tmp_path / "harmful.py").write_text("")  # now named, and so trusted, by the user
    assert parse(["compare", option, str(file), "--plugin", "harmful"])[1].plugins == ("harmful",)
    del sys.modules["harmful"]


def test_a_file_beside_a_run_directory_is_the_users_own(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_text("")
    (tmp_path / "mine.yaml").write_text("plugins: [toy_family]\n")
    assert parse(["train", "--config", str(tmp_path / "mine.yaml")])[1].plugins == ("toy_family",)


def test_a_run_that_uses_no_option_of_a_plugin_is_read_without_it(tmp_path):
    parse(["train", *PLAY])
    single = TrainConfig(members=1)
    assert "toy" not in single.to_dict()
    assert "toy.slimness: 1.0, not 1.5" in single.differences(parse(["train", *PLAY])[1])
    _, config = parse(["compare", *PLAY])
    assert "--toy.slimness 1.5" in command_line(config)
    assert "toy" not in command_line(CompareConfig())


def test_a_plugin_may_be_a_file_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "own_plugin.py").write_text("import deepens\nPLAYED = deepens.__version__\n")
    monkeypatch.chdir(tmp_path)
    parse(["train", "--plugin", "own_plugin"])
    assert sys.modules.pop("own_plugin").PLAYED


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("no_such_plugin", "the plugin no_such_plugin cannot be imported"),
        ("../x.py", "a plugin must be the name of a Python module, got '../x.py'"),
    ],
)
def test_a_plugin_that_is_none_is_refused_in_one_line(capsys, name, line):
    assert line in _refused(capsys, "train", "--plugin", name)


def test_installed_packages_are_plugins_by_their_entry_point(tmp_path):
    info = tmp_path / "toys-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[deepens.plugins]\ntoy = toy_family\n")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; "
        "from deepens.experiments.cli.entry import parse; "
        "config = parse(['train', '--ensemble', 'toy'])[1]; "
        "print(config.toy.slimness, *config.plugins)"
    )
    here = str(importlib.import_module("toy_family").__file__).rpartition("/")[0]
    command = [sys.executable, "-c", code, str(tmp_path), here]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1.0 toy_family"


def test_an_objective_with_a_label_is_a_method():
    register_objective("plain", OBJECTIVES["cross-entropy"].make, label="plain ensemble")
    method = find_method("plain-3")
    assert (method.family, method.matched) == ("plain ensemble", "wide-3")


def test_names_are_registered_once():
    with pytest.raises(ValueError, match="ensemble family 'deep' is registered already"):
        register_family("deep", FAMILIES["deep"].build)
    with pytest.raises(ValueError, match="must be letters, digits and dashes, got 'a b'"):
        register_family("a b", FAMILIES["deep"].build)
    with pytest.raises(ValueError, match="option group 'packed' is already Packed"):
        register_options("packed", OPTION_GROUPS["lora"])


def test_a_family_that_needs_shared_batches_is_refused_before_data_is_read(capsys):
    words = ["train", "--ensemble", "multi-exit", "--data", "image-folder", "--data-root", "none"]
    assert "set --batches shared" in _refused(capsys, *words, "--batches", "own")
    assert "leave --member out" in _refused(capsys, *words, "--member", "0")


class Claims(DeepEnsemble):
    """A deep ensemble that can say of itself that its members share parameters."""

    shared = False

    @property
    def shares_parameters(self):
        return self.shared and self.num_members > 1


def test_members_that_share_parameters_are_neither_trained_alone_nor_assembled(
    tmp_path, monkeypatch
):
    def build(config, image_format, base, seeds):
        return Claims(lambda: build_network(config, image_format), seeds=seeds)

    register_family("claims", build)
    digits, options = load("digits"), {"ensemble": "claims", "members": 2, "quiet": True}
    parts = [
        TrainConfig(out=str(tmp_path / f"{i}"), member=i, epochs=1, batch_size=512, **options)
        for i in range(2)
    ]
    runs = [train(part, splits=digits).path for part in parts]
    monkeypatch.setattr(Claims, "shared", True)
    with pytest.raises(ValueError, match="share parameters, .* train them together"):
        assemble(runs, str(tmp_path / "all"))
    assert not (tmp_path / "all").exists()
    alone = TrainConfig(out=str(tmp_path / "new"), member=0, **options)
    with pytest.raises(ValueError, match="share parameters, .* leave --member out"):
        train(alone, splits=digits)
    assert not (tmp_path / "new").exists()


def test_members_at_once_reach_a_likelihood_that_was_made_without():
    register_objective("forgetful", lambda config: CrossEntropy())
    for name in ("forgetful", "forgetful+weight-repulsion", "forgetful+greedy"):
        objective = build_objective(TrainConfig(objective=name, members_at_once=2))
        likelihood = next(each for each in objective.modules() if isinstance(each, CrossEntropy))
        assert likelihood.members_at_once == 2
