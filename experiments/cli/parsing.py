"""Parsers of the commands, made from the fields of their dataclasses and the registered groups."""

import argparse
import dataclasses
import difflib
import re
import typing
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ...datasets.plain_data import construct, meant
from ..config import Recipe, flatten, option_types
from .options import GridConfig
from .spelling import spell

POSITIONAL = {
    "run": "Run directory.",
    "runs": "Run directories of the members.",
    "data": "Name of a data set, or folder:PATH.",
    "names": "Benchmarks to run; all by default.",
}
RECIPE = "Start from the options of a recipe: fast or standard. Options that are given win."
PLUGIN = "Python module that registers families, objectives, metrics, ...; may be repeated."

_TRUTH = ("True", "False")


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        config: The dataclass whose fields are the command's options.
        action: ``module:function`` that takes it, imported once the options are valid.
        help: One line.
        positional: The option that is given without its name.
        paths: The option that takes several paths, as a shell writes out a pattern.
    """

    config: type
    action: str
    help: str
    positional: str | None = None
    paths: str | None = None


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help whose epilog keeps its lines."""


def build_parser(name: str, command: Command, epilog: str = "") -> ArgumentParser:
    """The parser of one command; the epilog stands below the options."""
    kind, positional = command.config, command.positional
    defaults = {each.name: each.default for each in dataclasses.fields(kind)}
    needed = positional is not None and defaults[positional] is dataclasses.MISSING
    given = "" if not positional else positional.upper()
    given = f" {given}" if needed or not given else f" [{given} ...]"
    parser = ArgumentParser(
        prog=f"deepens {name}",
        usage=f"deepens {name}{given.rstrip()} [options]",
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog=epilog,
        exit_on_error=False,
        formatter_class=_Formatter,
    )
    if kind is not GridConfig:
        parser.add_argument("--config", action="config", help="Read options from a YAML file.")
    if positional is not None:
        several = typing.get_origin(option_types(kind)[positional]) is tuple
        number = ("+" if needed else "*") if several else None
        parser.add_argument(positional, type=str, nargs=number, help=POSITIONAL[positional])
    parser.add_class_arguments(kind, skip={"groups", "plugins", positional} - {None})
    if issubclass(kind, Recipe):
        parser.add_argument("--recipe", default=argparse.SUPPRESS, help=RECIPE)  # read before
        for group, options in option_types(kind).items():
            if group not in {field.name for field in dataclasses.fields(kind)}:
                parser.add_class_arguments(options, group)
    kinds: Any = tuple[str, ...]
    parser.add_argument("--plugins", "--plugin", type=kinds, default=(), help=PLUGIN)
    return parser


def parse_words(name: str, command: Command, words: Sequence[str], epilog: str = "") -> Any:
    """The configuration of a command from a command line; a wrong option is a ValueError."""
    options = _flat_types(command.config)
    alone = command.positional is None  # otherwise a word may be a positional one
    try:
        spelled = spell(words, options, several_words=alone, paths=command.paths)
        parsed = build_parser(name, command, epilog).parse_args(spelled)
    except argparse.ArgumentError as error:
        raise ValueError(f"{name}: {_with_guess(str(error), options)}") from error
    except OverflowError:
        raise ValueError(f"{name}: an option holds a number of more than 64 bits") from None
    except RecursionError:
        raise ValueError(f"{name}: the value of an option is nested too deeply") from None
    return _configure(command.config, parsed.as_dict())


def parse_options(name: str, command: Command, options: Mapping[str, Any]) -> Any:
    """The configuration of a command from plain data, checked like a --config file."""
    known = _flat_types(command.config)
    for option, value in flatten(options).items():
        if option not in known:
            if any(each.startswith(f"{option}.") for each in known):
                raise ValueError(f"{option} must contain options by name, got {value!r}")
            raise ValueError(f"unknown option {option}{guess(option, known)}")
    try:
        parsed = build_parser(name, command).parse_object(dict(options))
    except argparse.ArgumentError as error:
        raise ValueError(_with_guess(str(error), known)) from error
    except OverflowError:
        raise ValueError("an option holds a number of more than 64 bits") from None
    return _configure(command.config, parsed.as_dict())


def guess(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Suggest the nearest known name, or nothing."""
    known = list(known)
    near = [each for each in known if each.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _configure(kind: type, parsed: Mapping[str, Any]) -> Any:
    known = option_types(kind)
    given = {name: value for name, value in parsed.items() if name in known}
    if issubclass(kind, Recipe):
        return kind.from_dict(given)
    return construct(kind, given, "")


def _flat_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Types of a command's options by name, those of its groups as ``group.option``."""
    flat: dict[str, Any] = {}
    for name, hint in option_types(kind).items():
        if dataclasses.is_dataclass(hint):
            flat |= _flat_types(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            flat[prefix + name] = hint
    return flat


def _with_guess(message: str, options: Mapping[str, Any]) -> str:
    """Reword the parser's refusal of an option or a choice, with the nearest known one."""
    wrong = re.search(r'key "([\w.]+)".*?Literal\[(.*?)\]\. Got value: (\S+)', message, re.S)
    if wrong:
        choices = re.findall(r"'(.*?)'", wrong[2])
        must = f"{wrong[1]} must be one of {', '.join(choices)}"
        if wrong[3] in _TRUTH:
            return f"{must}, got {wrong[3]}{meant(True)}"
        return f"{must}, got {wrong[3]!r}{guess(wrong[3], choices)}"
    typed = re.search(
        r"key \"([\w.]+)\".*? <class '(str|tuple)'>\. Got value: (\w+)$", message, re.S
    )
    if typed and (typed[2] == "tuple" or typed[3] in _TRUTH):
        must = "text" if typed[2] == "str" else f"a list, such as [{_word(typed[3])}]"
        more = meant(True) if typed[3] in _TRUTH else ""
        return f"{typed[1]} must be {must}, got {typed[3]}{more}"
    refusals = r"[Uu]nrecognized arguments: --|does not accept option '|Option '(?=\S+ is not acc)"
    if not (unknown := re.search(rf"(?:{refusals})([\w.]+)", message)):
        return message
    name = unknown[1]
    group = re.search(r"Group '(\w+)'", message)
    if group and not name.startswith(f"{group[1]}."):
        name = f"{group[1]}.{name}"
    return f"unknown option --{name}{guess(name, options, '--')}"


def _word(text: str) -> str:
    return "none" if text in _TRUTH else text
