"""The command line: typed options of configuration.py, and the commands that take them.

Nothing heavy is imported before a command's options are known to be right, so that help and
refusals come at once.
"""

import argparse
import csv
import dataclasses
import difflib
import importlib
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser

from ... import __version__
from .. import config as configuration
from ..store.errors import FAILED, one_line

POSITIONAL = {
    "run": "Directory of a run.",
    "runs": "Directories of the members' runs.",
    "data": "A set's name, or folder:PATH.",
}

_NOT_FINITE = {"inf": ".inf", "+inf": ".inf", "-inf": "-.inf", "nan": ".nan"}
"""Python's spelling -> YAML's, which the parser reads."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        config: The dataclass whose fields are the command's options.
        action: ``module:function`` that takes it, imported when the options are right.
        help: One line.
        positional: The options that are given without their name.
    """

    config: type
    action: str
    help: str
    positional: str | None = None


COMMANDS = {
    "data": Command(
        configuration.DataConfig,
        ".describe_data:run_data",
        "what is in an image set or folder: splits, classes, balance, and a sheet of images",
        "data",
    ),
    "compare": Command(
        configuration.CompareConfig,
        ".compare_command:run_compare",
        "the main job: train methods, several times each, and report which is worth its cost",
    ),
    "train": Command(configuration.TrainConfig, ".commands:run_train", "train one ensemble"),
    "evaluate": Command(
        configuration.EvaluateConfig,
        ".commands:run_evaluate",
        "metrics of a run from its saved member logits",
        "run",
    ),
    "score": Command(
        configuration.ScoreConfig,
        ".commands:run_score",
        "metrics of anybody's logits, from files of any framework",
    ),
    "cascade": Command(
        configuration.CascadeConfig,
        ".commands:run_cascade",
        "an early-exit cascade of a run's members: most of the ensemble at little more than one",
        "run",
    ),
    "predict": Command(
        configuration.PredictConfig,
        ".commands:run_predict",
        "class, confidence and uncertainty of your own images",
        "run",
    ),
    "assemble": Command(
        configuration.AssembleConfig,
        ".commands:run_assemble",
        "one ensemble from members trained one by one",
        "runs",
    ),
    "report": Command(
        configuration.ReportConfig,
        ".compare_command:run_report",
        "rebuild a comparison's report without training",
        "run",
    ),
}

GRID = Command(
    configuration.GridConfig,
    ".grid:run_grid",
    "many comparisons from one file, one for each combination of data and backbone",
)
"""What compare is with --grid."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Errors that a user can put right are one line on standard error and exit status 2; set
    DEEPENS_TRACEBACK to see where they come from.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"deepens {__version__}")
        return 0
    try:
        return _dispatch(words[0], words[1:])
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (
        ValueError,
        OSError,
        FloatingPointError,
        ModuleNotFoundError,
        argparse.ArgumentError,
    ) as error:
        if os.environ.get("DEEPENS_TRACEBACK"):
            raise
        print(f"deepens: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        resumes = words[0] in ("train", "compare", "assemble")
        more = "; the same command goes on from the last checkpoint" if resumes else ""
        print(f"deepens: interrupted{more}", file=sys.stderr)
        return 130


def _dispatch(name: str, words: Sequence[str]) -> int:
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}{_guess(name, COMMANDS)}; see deepens --help")
    command = COMMANDS[name]
    if name == "compare" and any(word.partition("=")[0] == "--grid" for word in words):
        command = GRID
        _only_grid_options(words)
    parser = build_parser(name, command)
    options = _options(command.config)
    try:
        alone = command.positional is None  # else a word may be a positional one
        parsed = parser.parse_args(_spell(words, options, several_words=alone))
    except argparse.ArgumentError as error:
        raise ValueError(f"{name}: {_with_guess(str(error), options)}") from error
    given = {k: v for k, v in parsed.as_dict().items() if k != "config"}
    config = _configure(command.config, given)
    module, _, function = command.action.partition(":")
    action: Callable[[Any], int] = getattr(importlib.import_module(module, __package__), function)
    return action(config)


def _only_grid_options(words: Sequence[str]) -> None:
    allowed = {"--help", *(f"--{option}" for option in _options(GRID.config))}
    given = (word.partition("=")[0] for word in words if word.startswith("--"))
    if other := next((word for word in given if word not in allowed), None):
        raise ValueError(
            f"compare: --grid takes --out and --quiet beside it, got {other}; "
            "write the option into the grid's file"
        )


def parse_options(name: str, options: Mapping[str, Any]) -> Any:
    """The configuration of a command from plain data, checked as a --config file is.

    Raises:
        ValueError: An option that does not exist, or is of a wrong type or size.
    """
    kind = COMMANDS[name].config
    known = _options(kind)
    for option, value in _flat(options):
        if option not in known:
            if any(each.startswith(f"{option}.") for each in known):
                raise ValueError(f"{option} must hold options by name, got {value!r}")
            raise ValueError(f"unknown option {option}{_guess(option, known)}")
        if value is None and type(None) not in typing.get_args(known[option]):
            raise ValueError(f"{option} must have a value, got none")
    try:
        parsed = build_parser(name).parse_object(dict(options))
    except argparse.ArgumentError as error:
        raise ValueError(_with_guess(str(error), known)) from error
    return _configure(kind, {k: v for k, v in parsed.as_dict().items() if k != "config"})


def _flat(options: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def build_parser(name: str, command: Command | None = None) -> ArgumentParser:
    """The parser of one command, from the fields of its dataclass."""
    command = command or COMMANDS[name]
    more = "With --grid GRID.yaml [--out DIR] [--quiet]: " + GRID.help + "."
    parser = ArgumentParser(
        prog=f"deepens {name}",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog=more if command is COMMANDS["compare"] else None,
        exit_on_error=False,
    )
    if command is not GRID:
        parser.add_argument("--config", action="config", help="Options from a YAML file.")
    skip = set()
    if command.positional is not None:
        several = typing.get_origin(_options(command.config)[command.positional]) is tuple
        parser.add_argument(
            command.positional,
            type=str,
            nargs="+" if several else None,
            help=POSITIONAL[command.positional],
        )
        skip = {command.positional}
    parser.add_class_arguments(command.config, skip=skip)
    return parser


def _configure(kind: type, given: dict[str, Any]) -> Any:
    if issubclass(kind, configuration.Recipe):
        return kind.from_dict(given)
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _options(kind: type, prefix: str = "") -> dict[str, Any]:
    """Types of a dataclass's options by name, those of its groups as ``group.option``."""
    options: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if name not in {f.name for f in dataclasses.fields(kind)}:
            continue
        if dataclasses.is_dataclass(hint):
            options |= _options(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            options[prefix + name] = hint
    return options


def _spell(
    words: Sequence[str], options: dict[str, Any], *, several_words: bool = False
) -> list[str]:
    """Accept dashes for underscores, a bare --flag for --flag true, inf, and a,b for [a,b].

    An option that takes several values may also be given several times, or several words.
    """
    spelled: list[str] = []
    several: dict[str, list[str]] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--") or word == "--":
            spelled.append(word)
            continue
        name, has_value, value = word[2:].partition("=")
        name = name.replace("-", "_")
        hint = options.get(name)
        if hint is bool and not has_value:
            following = remaining[0].lower() if remaining else ""
            value, has_value = (
                (remaining.pop(0), "=") if following in ("true", "false") else ("true", "=")
            )
        elif hint is float:
            following = remaining[0].lower() if remaining else ""
            if not has_value and following in _NOT_FINITE:
                value, has_value = remaining.pop(0), "="
            value = _NOT_FINITE.get(value.lower(), value)
        elif typing.get_origin(hint) is tuple:
            if not has_value and remaining:
                value = remaining.pop(0)
            several.setdefault(name, []).extend(_values(value))
            while several_words and remaining and not remaining[0].startswith("-"):
                several[name].extend(_values(remaining.pop(0)))
            continue
        spelled.append(f"--{name}{has_value}{value}")
    for name, values in several.items():
        text = typing.get_args(options[name])[0] is str
        shown = json.dumps(values, ensure_ascii=False) if text else f"[{','.join(values)}]"
        spelled.append(f"--{name}={shown}")
    return spelled


def _values(value: str) -> list[str]:
    """The values in ``a,b`` or ``[a,b]``; a comma may stand in quotes."""
    inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    rows = list(csv.reader([inside], skipinitialspace=True))
    return [each.strip() for each in rows[0]] if rows and inside.strip() else []


def _with_guess(message: str, options: dict[str, Any]) -> str:
    """Add the nearest known option to a refusal of an unknown one."""
    found = re.search(
        r"[Uu]nrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'"
        r"|Option '([\w.]+)' is not accepted",
        message,
    )
    wrong = re.search(r'key "([\w.]+)".*?Literal\[(.*?)\]\. Got value: (\S+)', message, re.S)
    if wrong:
        choices = re.findall(r"'(.*?)'", wrong[2])
        return (
            f"{wrong[1]} must be one of {', '.join(choices)}, got {wrong[3]!r}"
            f"{_guess(wrong[3], choices)}"
        )
    if not found:
        return message
    name = next(group for group in found.groups() if group)
    group = re.search(r"Group '(\w+)'", message)
    if group and not name.startswith(f"{group[1]}."):
        name = f"{group[1]}.{name}"
    return f"unknown option --{name}{_guess(name, options, '--')}"


def _guess(name: str, known: Iterable[str], prefix: str = "") -> str:
    known = list(known)
    near = [each for each in known if each.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _overview() -> str:
    lines = [
        f"deepens {__version__}: is this ensemble worth its cost?",
        "",
        "usage: deepens COMMAND [options]        deepens COMMAND --help shows a command's options",
        "",
        *(f"  {name:10} {command.help}" for name, command in COMMANDS.items()),
        "",
        "start here: deepens compare --data digits",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
