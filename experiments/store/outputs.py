"""Files that a command writes for its user: those of other options are never replaced unasked."""

import dataclasses
from pathlib import Path
from typing import Any

from .run import read_json, write_json

CIRCUMSTANCES = ("quiet", "device", "chunk", "overwrite", "out", "per_sample")
"""Options that change nothing in the file, or name it."""


def check_output(path: Path, config: Any) -> None:
    """Refuse to replace a file that was made with other options, unless ``config.overwrite``."""
    if config.overwrite or not path.exists():
        return
    try:
        known = read_json(_record(path))
    except (OSError, ValueError):
        known = {}
    wanted = _options(config)
    for name, value in known.items():  # of a version in which it took one value
        if isinstance(value, str) and isinstance(wanted.get(name), list):
            known[name] = [value]
    if known != wanted:
        differing = sorted(name for name in wanted.keys() & known if known[name] != wanted[name])
        how = f"other options ({', '.join(differing)})" if differing else "options not known here"
        raise ValueError(
            f"{path} exists and was made with {how}; choose another name, or replace it with "
            "--overwrite"
        )


def record_output(path: Path, config: Any) -> None:
    """Note the options of a file that is written, in a hidden file beside it."""
    write_json(_record(path), _options(config))


def _record(path: Path) -> Path:
    return path.with_name(f".{path.name}.options")


def _options(config: Any) -> dict[str, Any]:
    options = dataclasses.asdict(config)
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if name not in CIRCUMSTANCES
    }
