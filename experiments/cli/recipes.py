"""Recipes that come with deepens: files of options, which any option given overrides."""

from collections.abc import Sequence
from pathlib import Path

from ...datasets.plain_data import read_yaml
from ..config import flatten
from .parsing import guess

FOLDER = Path(__file__).parent.parent / "recipes"


def recipes() -> tuple[str, ...]:
    """Names of the recipes."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def take_recipe(words: Sequence[str]) -> tuple[list[str], str]:
    """A command line with the recipe's file before all options, and a line that says what it sets.

    Without ``--recipe`` the words stay as they are, and the line is empty.

    Raises:
        ValueError: The recipe is unknown, there are several, or the command trains nothing.
    """
    command, *options = words
    remaining, names = list[str](), list[str]()
    given = iter(options)
    for word in given:
        option, has_value, value = word.partition("=")
        if option != "--recipe":
            remaining.append(word)
            continue
        names.append(value if has_value else next(given, ""))
    if not names:
        return list(words), ""
    if command not in ("train", "compare"):
        raise ValueError(f"--recipe is an option of train and compare, got it with {command}")
    if len(names) > 1:
        raise ValueError(f"--recipe must be given once, got {', '.join(names)}")
    known = recipes()
    if names[0] not in known:
        listed = " or ".join(known)
        raise ValueError(f"--recipe must be {listed}, got {names[0]!r}{guess(names[0], known)}")
    file = FOLDER / f"{names[0]}.yaml"
    set_by_it = flatten(read_yaml(file))
    shown = ", ".join(f"{name} {value}" for name, value in set_by_it.items())
    return [command, f"--config={file}", *remaining], f"recipe {names[0]}: {shown}"
