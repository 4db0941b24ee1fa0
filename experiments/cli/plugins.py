"""Plugins: Python modules of other packages that register families, objectives, metrics, ...

Only a user's own words load them: ``--plugin``, ``plugins`` in a ``--config`` or ``--grid`` file,
and entry points of installed packages. What a run directory records is never imported, not even
where its file is given by ``--config`` or ``--grid``.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...datasets.plain_data import conform, read_yaml
from ..config import plugin_words
from ..training.plugins import load_installed_plugins, load_plugins
from .spelling import split_values

__all__ = ["files_of", "load_installed_plugins", "load_plugins", "plugins_in", "take_plugins"]

OWN_FILES = (
    *("comparison.json", "environment.json", "metrics.json", "log.csv", "results.csv"),
    *("weights.safetensors", "resume.safetensors", ".lock"),
)
"""Files that deepens writes into the directories of runs, comparisons and grids."""


def take_plugins(
    words: Sequence[str], installed: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Split the plugins that a command line names, itself or in its ``--config``, from the rest.

    It returns the other words, and the names of all plugins, the installed ones first. Files are
    refused as by `plugins_in`.

    Example:
        >>> from deepens.experiments.cli.plugins import take_plugins
        >>> take_plugins(["--plugin", "mine", "--epochs=3", "--plugin=a,b"])
        (['--epochs=3'], ['mine', 'a', 'b'])
    """
    rest, names, remaining = list[str](), list(installed), list(words)
    while remaining:
        word = remaining.pop(0)
        option, has_value, value = word.partition("=")
        if option in ("--plugin", "--plugins"):
            names += split_values(value if has_value else remaining.pop(0) if remaining else "")
            continue
        rest.append(word)
    for file in files_of(words, "--config"):
        names += plugins_in(_options(file), file, names)
    return rest, list(dict.fromkeys(names))


def files_of(words: Sequence[str], *options: str) -> list[Path]:
    """The files that follow some options on a command line."""
    found = []
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        option, _, value = word.partition("=")
        if option in options and (value or following):
            found.append(Path(value or following))
    return found


def _options(file: Path) -> Mapping[str, Any]:
    """The options that a file of the user's holds; a ValueError names the file."""
    options = read_yaml(file)
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"{file} must hold options by name")
    return options


def plugins_in(options: Any, file: Path, named: Iterable[str]) -> list[str]:
    """The plugins in a file's options, beside those that are named already.

    The file of a run directory, which somebody else may have made, may name no others.
    """
    plugins = options.get("plugins") if isinstance(options, dict) else None
    plugins = [plugins] if isinstance(plugins, str) else plugins or ()
    plugins = list(conform(plugins, tuple[str, ...], f"{file}: plugins"))
    known = list(named)
    new = [name for name in plugins if name not in known]
    if new and (_of_run(file) or _of_run(file.resolve())):
        remedy = f"if you trust {', '.join(map(str, new))}, add{plugin_words(new)}"
        line = f"{file} is of a run directory, from which no plugin is imported"
        raise ValueError(f"{line}; {remedy}")
    return plugins


def _of_run(file: Path) -> bool:
    """Whether a file is in a directory of a run, or is the file of a begun comparison or grid."""
    places = [file.parent]
    if file.name in ("config.yaml", "grid.yaml"):  # which a directory of runs has
        places += [each for each in file.parent.iterdir() if each.is_dir()]
    return any((place / name).exists() for place in places for name in OWN_FILES)
