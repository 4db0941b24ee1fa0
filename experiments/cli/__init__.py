"""The command line: the only room that parses and prints."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; see :func:`.entry.main`."""
    from .entry import main as run

    return run(arguments)
