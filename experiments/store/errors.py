"""Errors that a user can put right: one clear line, and an exit status of their own."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

FAILED = 2
"""Exit status of everything that a user can put right."""

UNEXPECTED = 1
"""Exit status of an error that nobody foresaw."""

CORRECTABLE = (ValueError, OSError, FloatingPointError, ModuleNotFoundError)
"""What a command says in one line instead of a traceback."""


def choose(kind: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not among the known, by a ``ValueError`` with the nearest one."""
    known = sorted(known)
    if name not in known:
        raise ValueError(unknown(kind, name, known))


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """The line that refuses an unknown name."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {guess}Known: {', '.join(known)}"


def damaged(path: Path, remedy: str) -> ValueError:
    """The error for a deepens file that does not hold what it should, with the remedy."""
    return ValueError(f"{path} is missing or damaged; {remedy}")


def one_line(error: BaseException) -> str:
    """The one line that a person reads of an error that stops a command."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror.lower()}"
    return " ".join(str(error).split())
