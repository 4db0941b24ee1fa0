"""The command line as a user meets it: quick help, and one clear line for what is wrong."""

import math
import subprocess
import sys
import time

import pytest
import yaml
from deepens.experiments.cli import entry as cli
from deepens.experiments.config import CompareConfig, TrainConfig


def _refused(capsys, *words):
    """The one line on standard error with which a command line is refused."""
    assert cli.main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("deepens: ")
    return lines[0]


def _parsed(*words):
    """The configuration that a command receives."""
    return cli.parse(words)[1]


def _seconds(*words):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "deepens", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return time.monotonic() - started, done


def test_help_comes_without_importing_torch():
    _, done = _seconds("--help")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" not in imported
    assert all(name in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_a_command_comes_without_importing_torch(command):
    _, done = _seconds(command, "--help")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" not in imported
    assert "--quiet" in done.stdout


def test_options_default_to_those_of_the_dataclass():
    assert _parsed("train") == TrainConfig()
    assert _parsed("compare") == CompareConfig()


def test_options_reach_the_action():
    config = _parsed(
        "train", "--members", "3", "--optimizer.lr", "0.5", "--keep-logits",
        "--flip", "false", "--schedule.milestones", "0.1,0.2", "--quiet", "--out=runs/x",
    )  # fmt: skip
    assert (config.members, config.optimizer.lr, config.keep_logits) == (3, 0.5, True)
    assert (config.flip, config.quiet, config.out) == (False, True, "runs/x")
    assert config.schedule.milestones == (0.1, 0.2)


@pytest.mark.parametrize("value", ["single,deep", "[single,deep]", "[single, deep]"])
def test_methods_are_a_list_with_or_without_brackets(value):
    assert _parsed("compare", "--methods", value).methods == ("single", "deep")


def test_runs_to_assemble_are_given_by_position():
    assert _parsed("assemble", "a", "b", "--out", "c").runs == ("a", "b")


def test_every_option_comes_from_yaml_and_the_command_line_wins(tmp_path):
    file = tmp_path / "options.yaml"
    options = {"members": 7, "epochs": 9, "optimizer": {"name": "adamw", "lr": 0.001}}
    file.write_text(yaml.safe_dump(options))
    config = _parsed("train", "--config", str(file), "--epochs", "2")
    assert (config.members, config.epochs, config.optimizer.name) == (7, 2, "adamw")


def test_printed_configuration_can_be_read_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", "--members", "2", "--methods", "single,deep", "--print-config"])
    assert stopped.value.code == 0
    file = tmp_path / "options.yaml"
    file.write_text(capsys.readouterr().out)
    config = _parsed("compare", "--config", str(file))
    assert config == CompareConfig(members=2, methods=("single", "deep"))


def test_configuration_kept_by_a_run_can_be_read_back(tmp_path):
    config = TrainConfig(members=3, member=1, width=0.5)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert _parsed("train", "--config", str(file)) == config


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["train", "--membres", "3"], "unknown option --membres; did you mean --members?"),
        (["train", "--optimizer.lrr", "3"], "--optimizer.lrr; did you mean --optimizer.lr?"),
        (["train", "--members", "0"], "members must be >= 1, got 0"),
        (["train", "--members", "many"], "members"),
        (["train", "--member", "4"], "member must be in [0, 4), got 4"),
        (["train", "--epochs", "0"], "epochs must be >= 1, got 0"),
        (["train", "--optimizer.lr", "-1"], "optimizer.lr must be > 0"),
        (["train", "--precision", "16"], "precision must be one of auto, 32, bf16-mixed, got '16'"),
        (["train", "--optimizer.name", "sgdd"], "got 'sgdd'; did you mean sgd?"),
        (["train", "--lr", "3"], "unknown option --lr; did you mean --optimizer.lr?"),
        (["compare", "--replicates", "0"], "replicates must be >= 1, got 0"),
        (["compare", "--methods", "single,single"], "methods must be one or more different"),
        (["train", "--config", "missing.yaml"], "missing.yaml"),
        (["evaluate"], "run"),
    ],
)
def test_wrong_options_are_refused_in_one_line(capsys, words, line):
    assert line in _refused(capsys, *words)


def test_unknown_option_in_yaml_is_refused_with_the_nearest_known(capsys, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("membres: 3\n")
    assert "members" in _refused(capsys, "train", "--config", str(file))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--data", "digit"], "digits"),
        (
            ["train", "--data", "../photos"],
            "must be folder:PATH for a folder: folder:../photos",
        ),
        (["compare", "--near-ood", "."], "must be folder:PATH for a folder: folder:."),
        (["train", "--backbone", "small-cn"], "small-cnn"),
        (["train", "--ensemble", "deap"], "unknown ensemble 'deap'; did you mean 'deep'?"),
        (["compare", "--methods", "singel,deep"], "did you mean 'single'?"),
        (["compare", "--data", "digts"], "digits"),
        (["evaluate", "nowhere"], "nowhere is not a run directory"),
        (["predict", "nowhere", "--images", "folder:x"], "nowhere is not a run directory"),
        (["report", "nowhere"], "nowhere is not a run directory"),
        (["train", "--batch-size", "100000"], "batch_size must be in [1, "),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_known(
    capsys, tmp_path, monkeypatch, words, line
):
    monkeypatch.chdir(tmp_path)
    assert line in _refused(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_options_of_several_values_may_be_repeated_listed_or_quoted():
    config = _parsed(
        *("compare", "--near-ood", "folder:/a b/ü😀", "--far-ood=svhn,dtd", "--methods", "single"),
        *("--near-ood", '"folder:/with, comma"', "--methods", "[wide, deep]"),
    )
    assert config.near_ood == ("folder:/a b/ü😀", "folder:/with, comma")
    assert config.far_ood == ("svhn", "dtd")
    assert config.methods == ("single", "wide", "deep")


def test_numbers_of_several_values_may_be_repeated():
    words = ("--schedule.milestones", "0.2", "--schedule.milestones", "0.5,0.7")
    assert _parsed("train", *words).schedule.milestones == (0.2, 0.5, 0.7)


@pytest.mark.parametrize("value", ["inf", "Inf", "+inf", ".inf"])
def test_infinity_is_a_number_in_each_spelling(value):
    for words in (["--mixup.ratio", value], [f"--mixup.ratio={value}"]):
        assert _parsed("train", "--out", "x", *words).mixup.ratio == math.inf
    numbers = _parsed("train", "--out", "x", "--mixup.ratio", "0.5", "--seed", "3")
    assert (numbers.mixup.ratio, numbers.seed) == (0.5, 3)


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_what_is_no_amount_of_pseudo_data_is_refused_by_the_option(capsys, value):
    line = _refused(capsys, "train", "--out", "x", "--mixup.ratio", value)
    assert "mixup.ratio must be >= 0, got" in line


def test_the_set_to_describe_is_given_without_its_option():
    config = _parsed("data", "folder:/photos/mine", "--image-size", "64")
    assert (config.data, config.image_size) == ("folder:/photos/mine", 64)
    assert config.file().name == "mine-sheet.png"


def test_a_sheet_of_another_kind_is_refused(capsys):
    assert "out must end in .png" in _refused(capsys, "data", "digits", "--out", "sheet.jpg")


@pytest.mark.slow
def test_every_option_without_a_value_in_a_file_may_have_none_or_is_refused(tmp_path):
    file, silent, refused = tmp_path / "options.yaml", [], 0
    for name, value in CompareConfig().to_dict(complete=True).items():
        for option in value if isinstance(value, dict) else [None]:
            file.write_text(yaml.safe_dump({name: None if option is None else {option: None}}))
            try:
                held = getattr(_parsed("compare", "--config", str(file)), name)
            except ValueError:
                refused += 1
            else:
                held = held if option is None else getattr(held, option)
                silent += [] if held is None or name == "plugins" else [(name, option)]
    assert silent == []
    assert refused > 60


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--width", "1e9"], "width must be <= 1000, got 1000000000.0"),
        (["--depth", "inf"], "depth must be <= 1000, got inf"),
        (["--width", "900", "--members", "9999"], "9999 networks with 8.4e+09 parameters take"),
        (["--members", "2147483648"], "members must be <= 10000, got 2147483648"),
        (["--image-size", "100000"], "image_size must be <= 8192, got 100000"),
        (["--image-size", "8000"], "image_size must be smaller: 2,236 images of 8000 pixels take"),
        (["--memory-limit", "nan"], "memory_limit must be >= 0 GiB, got nan"),
        (["--optimizer.lr", "1e308"], "optimizer.lr must be at most 3.4e+38, got 1e+308"),
        (["--tuning.weight-decay", "1e308"], "must be at most 3.4e+38, got 1e+308"),
        (["--noise.scale", "1e308"], "noise.scale must be at most 3.4e+38, got 1e+308"),
        (["--seed", "9" * 400], "seed must be a whole number of at most 64 bits"),
        (["--width", "9" * 400], "a number of more than 64 bits"),
        (["--epochs", "[" * 3000], "epochs"),
        (["--near-ood", "folder:.", "--ood-exclude", "/dev/zero"], "is not a regular file"),
    ],
)
def test_absurd_values_are_refused_in_one_line(capsys, words, line):
    assert line in _refused(capsys, "train", "--quiet", *words)


def test_no_limit_of_memory_is_one():
    assert _parsed("train", "--memory-limit", "inf").memory_bytes > 2**60


@pytest.mark.parametrize("words", [["--data", "cifar10"], ["--data", "folder:~/images"]])
def test_without_a_home_directory_paths_are_to_be_given(capsys, monkeypatch, words):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert "set HOME, or give --data-root and --cache" in _refused(capsys, "train", *words)


@pytest.mark.parametrize(
    "text",
    ["backbone: nonsense", "epochs: many", "membres: 3", "optimizer: {lr: 0}", "[1]", "a: ["],
)
def test_a_refusal_names_the_file_of_the_options(capsys, tmp_path, text):
    file = tmp_path / "options.yaml"
    file.write_text(text + "\n")
    assert str(file) in _refused(capsys, "train", "--config", str(file), "--quiet")
    assert str(file) in _refused(
        capsys, "compare", "--grid", str(file), "--out", str(tmp_path / "o")
    )


def test_an_unforeseen_error_is_one_line_with_its_file_and_the_way_to_the_traceback(
    capsys, monkeypatch, tmp_path
):
    def fail(config):
        path = tmp_path / "metrics.json"
        path.write_text("{}")
        raise KeyError("accuracy")

    monkeypatch.setattr(cli, "action_of", lambda command: fail)
    monkeypatch.delenv("DEEPENS_TRACEBACK", raising=False)
    assert cli.main(["train"]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"deepens: unexpected KeyError at {tmp_path / 'metrics.json'}: 'accuracy'; "
        "DEEPENS_TRACEBACK=1 shows where\n"
    )
    monkeypatch.setenv("DEEPENS_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.main(["train"])


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_several_processes_of_a_launcher_is_refused(capsys, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert "start the command once" in _refused(capsys, "train", "--quiet")
    monkeypatch.setenv(name, "1")
    assert cli.main(["--version"]) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "--backbone", "nonsense"], "got 'nonsense'"),
        (["train", "--objective", "nonsense"], "unknown objective 'nonsense'"),
        (
            ["train", "--ensemble", "lora", "--base", "none.safetensors"],
            "none.safetensors does",
        ),
        (["train", "--ensemble", "lora", "--adapters", "none"], "adapters must be a folder"),
        (["train", "--detectors", "nonsense"], "nonsense"),
        (["train", "--out", "taken"], "taken exists and is not a run directory"),
        (["compare", "--backbone", "nonsense"], "got 'nonsense'"),
        (["compare", "--methods", "nonsense"], "unknown method 'nonsense'"),
        (["compare", "--out", "taken"], "taken exists and is not a run directory"),
    ],
)
def test_what_needs_no_image_is_refused_before_any_is_read(
    capsys, tmp_path, monkeypatch, words, line
):
    def read(*arguments, **options):
        raise AssertionError("images are read")

    for module in ("evaluation.train_and_evaluate", "comparison.compare"):
        monkeypatch.setattr(f"deepens.experiments.{module}.load", read)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert line in _refused(capsys, *words, "--quiet")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "corruptions: no",
            "corruptions must be a list, such as [none], got False; YAML reads",
        ),
        ("corruptions: none", "corruptions must be a list, such as [none], got none"),
        ("corruptions: [off]", "corruptions must be text, got False; YAML reads no,"),
        ("average: no", "average must be one of none, ema, swa, lookahead, got False; YAML reads"),
        ("backbone: on", "backbone must be text, got True; YAML reads"),
    ],
)
def test_words_that_yaml_takes_for_truth_values_are_explained(tmp_path, capsys, text, line):
    (tmp_path / "o.yaml").write_text(text)
    assert line in _refused(capsys, "train", "--config", str(tmp_path / "o.yaml"))
