"""The entry point of the command line: the commands, and one clear line for what is wrong.

Nothing heavy is imported before options are known to be valid: help and refusals appear at once.
"""

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ..benchmarks.suite import BENCHMARKS
from ..comparison.methods import methods_table
from ..config import CompareConfig, TrainConfig, option_types
from ..evaluation import options as evaluation
from ..store.errors import CORRECTABLE, FAILED, UNEXPECTED, one_line
from ..store.termination import TERMINATED, Terminated, terminable
from ..training.places import LostProcessError, Place, check_launcher, place_of, wait_for_first
from ..training.registry import FAMILIES, OBJECTIVES
from .options import BenchConfig, DataConfig, GridConfig, ReportConfig
from .parsing import Command, guess, parse_words
from .plugins import files_of, load_installed_plugins, load_plugins, take_plugins
from .recipes import take_recipe

_HELP = {
    "data": "describe an image set: splits, classes, balance, and a contact sheet",
    "compare": "the main job: train methods, several times each, and report which is worth "
    "its cost",
    "train": "train one ensemble",
    "evaluate": "metrics of a run from its saved member logits",
    "score": "metrics of stored logits, from files of any framework",
    "cascade": "an early-exit cascade of a run's members: near-ensemble quality at little more "
    "than one member's cost",
    "predict": "class, confidence and uncertainty of your own images",
    "assemble": "one ensemble from members trained one by one",
    "report": "rebuild a comparison's report without training",
    "bench": "how fast this installation is, as ratios to baselines",
    "grid": "many comparisons from one file, one for each combination of data and backbone",
}


def _command(name: str, config: type, module: str, positional: str | None = None) -> Command:
    paths = "images" if name == "predict" else None
    return Command(config, f".{module}:run_{name}", _HELP[name], positional, paths)


COMMANDS = {
    "data": _command("data", DataConfig, "describe_data", "data"),
    "compare": _command("compare", CompareConfig, "compare_command"),
    "train": _command("train", TrainConfig, "commands"),
    "evaluate": _command("evaluate", evaluation.EvaluateConfig, "commands", "run"),
    "score": _command("score", evaluation.ScoreConfig, "commands"),
    "cascade": _command("cascade", evaluation.CascadeConfig, "commands", "run"),
    "predict": _command("predict", evaluation.PredictConfig, "commands", "run"),
    "assemble": _command("assemble", evaluation.AssembleConfig, "commands", "runs"),
    "report": _command("report", ReportConfig, "report_command", "run"),
    "bench": _command("bench", BenchConfig, "bench_command", "names"),
}
GRID = _command("grid", GridConfig, "grid")
"""What compare is with --grid."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Errors that a user can correct are one line on standard error and exit status 2, any other is
    one line and status 1; with the environment variable DEEPENS_TRACEBACK set, the traceback is
    shown instead.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    place = Place()
    try:
        if not words or words[0] in ("-h", "--help", "--version"):
            print(f"deepens {__version__}" if "--version" in words else _overview())
            return 0
        words, recipe = take_recipe(words)
        with terminable():
            command, config = parse(words)
            check_launcher(config)
            place = place_of(config)
            if recipe and not config.quiet and place.first:
                print(recipe, file=sys.stderr)
            return action_of(command)(config)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (*CORRECTABLE, argparse.ArgumentError) as error:
        if os.environ.get("DEEPENS_TRACEBACK"):
            raise
        if isinstance(error, LostProcessError) and error.told is not None:
            return error.told
        if wait_for_first(place, error):
            print(f"deepens: {place.said(_named(error, words))}", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, Terminated) as stopped:
        resumes = words[0] in ("train", "compare", "assemble")
        more = "; the same command continues from the last checkpoint" if resumes else ""
        terminated = isinstance(stopped, Terminated)
        if place.first:
            how = "terminated" if terminated else "interrupted"
            print(f"deepens: {how}{more}", file=sys.stderr)
        return TERMINATED if terminated else 130
    except Exception as error:  # a fault of the program, or of a file that it did not expect
        if os.environ.get("DEEPENS_TRACEBACK"):
            raise
        if wait_for_first(place, error):
            print(f"deepens: {place.said(_unexpected(error))}", file=sys.stderr)
        return UNEXPECTED


def _named(error: Exception, words: Sequence[str]) -> str:
    """The line of an error; of wrong options with the file that they may have come from."""
    line = one_line(error)
    files = [str(file) for file in files_of(words, "--config", "--grid") if str(file) not in line]
    if not files or isinstance(error, OSError):
        return line
    return f"{line} (with options from {', '.join(files)})"


def _unexpected(error: Exception) -> str:
    """The line of an error that nobody foresaw, with the file that was being worked on."""
    files = [
        value
        for frame, _ in traceback.walk_tb(error.__traceback__)
        for value in frame.f_locals.values()
        if isinstance(value, Path) and value.is_file() and value.suffix != ".py"
    ]
    where = f" at {files[-1]}" if files else ""
    kind = type(error).__name__
    return f"unexpected {kind}{where}: {one_line(error)}; DEEPENS_TRACEBACK=1 shows where"


def parse(words: Sequence[str]) -> tuple[Command, Any]:
    """Read a command line, import the plugins that it names, and return its configuration too.

    An unknown command or option, a wrong value, and a plugin that cannot be imported are a
    ValueError.

    Example:
        >>> from deepens.experiments.cli.entry import parse
        >>> _, config = parse(["train", "--epochs", "3", "--optimizer.lr=0.5"])
        >>> config.epochs, config.optimizer.lr
        (3, 0.5)
    """
    name, *options = words
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}{guess(name, COMMANDS)}; see deepens --help")
    command = COMMANDS[name]
    if name == "compare" and any(word.partition("=")[0] == "--grid" for word in options):
        command = GRID
        _only_grid_options(options)
    installed = load_installed_plugins()
    options, plugins = take_plugins(options, installed)
    load_plugins(name for name in plugins if name not in installed)
    if plugins and "plugins" in option_types(command.config):
        options.append(f"--plugins={json.dumps(plugins)}")
    return command, parse_words(name, command, options, _epilog(command))


def action_of(command: Command) -> Callable[[Any], int]:
    """Import the function that carries out a command."""
    module, _, function = command.action.partition(":")
    action: Callable[[Any], int] = getattr(importlib.import_module(module, __package__), function)
    return action


def _only_grid_options(words: Sequence[str]) -> None:
    allowed = ("--help", "--grid", "--out", "--quiet", "--plugin", "--plugins")
    given = (word.partition("=")[0] for word in words if word.startswith("--"))
    if other := next((word for word in given if word not in allowed), None):
        raise ValueError(
            f"compare: --grid can be combined with --out, --quiet and --plugin only, got {other}; "
            "write the option into the file of the grid"
        )


def _epilog(command: Command) -> str:
    """What is registered under the names that a command takes."""
    if command is COMMANDS["compare"]:
        rows = _listed(methods_table())
        grid = f"With --grid GRID.yaml [--out DIR] [--quiet]: {GRID.help}."
        return f"methods, with a number M of members or a factor K:\n{rows}\n\n{grid}"
    if command is COMMANDS["train"]:
        families = _listed((family.name, family.label) for family in FAMILIES.values())
        return f"ensembles:\n{families}\n\nobjectives: {', '.join(OBJECTIVES)}"
    if command is COMMANDS["bench"]:
        titles = _listed((name, each.title) for name, each in BENCHMARKS.items())
        return f"benchmarks, each the times of one thing over those of another:\n{titles}"
    return ""


def _listed(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:20} {words}" for name, words in rows)


def _overview() -> str:
    commands = "\n".join(f"  {name:10} {command.help}" for name, command in COMMANDS.items())
    return (
        f"deepens {__version__}: is this ensemble worth its cost?\n\n"
        "usage: deepens COMMAND [options]        deepens COMMAND --help shows a command's options"
        f"\n\n{commands}\n\nstart here: deepens compare --data digits"
    )


if __name__ == "__main__":
    sys.exit(main())
