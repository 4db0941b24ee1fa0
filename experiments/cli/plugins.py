"""Plugins: Python modules of other packages that register families, objectives, metrics, ...

Only a user's own words load them: ``--plugin``, ``plugins`` in a file that is given by ``--config``
or ``--grid``, and entry points of installed packages. What a run directory records is never
imported.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from .spelling import split_values

GROUP = "deepens.plugins"
"""The entry-point group of packages that are loaded by every command."""


def load_installed_plugins() -> None:
    """Import the plugins of installed packages.

    Raises:
        ValueError: One cannot be imported.
    """
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()
        except ImportError as error:
            raise ValueError(
                f"the installed plugin {point.value} cannot be imported: {error}; update or "
                "uninstall its package"
            ) from error


def load_plugins(names: Iterable[str]) -> None:
    """Import plugins by name, installed ones or files in the current directory.

    Args:
        names: Names of modules, with dots.

    Raises:
        ValueError: One is not the name of a module, or cannot be imported.
    """
    here = os.getcwd()
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"a plugin must be the name of a Python module, got {name!r}")
        sys.path.append(here)  # last, so that no file here hides an installed package
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"the plugin {name} cannot be imported: {error}") from error
        finally:
            sys.path.remove(here)


def take_plugins(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the plugins that a command line names, itself or in its ``--config``, from the rest.

    Args:
        words: The words behind the command.

    Returns:
        The other words, and the names of the plugins.

    Example:
        >>> from deepens.experiments.cli.plugins import take_plugins
        >>> take_plugins(["--plugin", "mine", "--epochs=3", "--plugin=a,b"])
        (['--epochs=3'], ['mine', 'a', 'b'])
    """
    rest: list[str] = []
    names: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        option, has_value, value = word.partition("=")
        if option in ("--plugin", "--plugins"):
            if not has_value:
                value = remaining.pop(0) if remaining else ""
            names += split_values(value)
            continue
        if option == "--config":
            names += plugins_in(_read(Path(value or next(iter(remaining), ""))))
        rest.append(word)
    return rest, list(dict.fromkeys(names))


def plugins_in(options: Any) -> list[str]:
    """The plugins that the options of a file name."""
    named = options.get("plugins") if isinstance(options, dict) else None
    return [named] if isinstance(named, str) else list(named or ())


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # which the parser of the command refuses in its own words
