"""The import of plugins: Python modules of other packages that register families, metrics, ..."""

import importlib
import os
import sys
from collections.abc import Iterable
from importlib import metadata

GROUP = "deepens.plugins"
"""The entry-point group of packages that are loaded by every command."""


def load_installed_plugins() -> list[str]:
    """Import the plugins of installed packages, and return the names of their modules."""
    points = metadata.entry_points(group=GROUP)
    for point in points:
        try:
            point.load()
        except ImportError as error:
            line = f"the installed plugin {point.value} cannot be imported: {error}"
            raise ValueError(f"{line}; update or uninstall its package") from error
    return [point.module for point in points]


def load_plugins(names: Iterable[str]) -> None:
    """Import plugins by dotted name, installed ones or files here; a failure is a ValueError."""
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
