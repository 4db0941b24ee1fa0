"""The shortest command line that makes a comparison again."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ...datasets.options import FIVE_CORRUPTIONS
from ..config import CompareConfig


def command_line(config: CompareConfig) -> str:
    """Write the command that makes a comparison again, with the options that are not the defaults.

    Example:
        >>> from deepens.experiments.comparison.command_line import command_line
        >>> from deepens.experiments.config import CompareConfig
        >>> command_line(CompareConfig(epochs=3, methods=("single", "deep-2")))
        'deepens compare --data digits --epochs 3 --methods single,deep-2'
    """
    words = ["deepens compare"]
    if config.evaluates_fully and config.corrupted_by == FIVE_CORRUPTIONS:
        config = dataclasses.replace(config, corruptions=())  # as when they are absent
    for name, value in _flat_changes(config.to_dict(), CompareConfig().to_dict(complete=True)):
        for shown in _spelled(value) if isinstance(value, list) else [str(value)]:
            between = "=" if shown.startswith("-") else " "  # or it would be read as an option
            words.append(f"--{name.replace('_', '-')}{between}{shlex.quote(shown)}")
    return " ".join(words)


def _spelled(values: Sequence[Any]) -> list[str]:
    """Write a list as one word, or as a word a value where one of them must be quoted."""
    texts = [str(value) for value in values]
    if all(re.fullmatch(r"[^\s,\"\[\]]+", text) for text in texts):
        return [",".join(texts)]
    return ['"{}"'.format(text.replace('"', '""')) for text in texts]


def _flat_changes(
    options: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> Sequence[tuple[str, Any]]:
    changes: list[tuple[str, Any]] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            changes += _flat_changes(value, defaults[name], f"{prefix}{name}.")
        elif value != defaults[name] or name == "data":
            changes.append((prefix + name, value))
    return changes
