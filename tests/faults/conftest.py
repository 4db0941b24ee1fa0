"""Every test in this folder is slow: it takes processes of its own."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Command


def pytest_collection_modifyitems(items):
    """All of these take processes of their own."""
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def start(tmp_path) -> Callable[..., Command]:
    """Start a command in the test's folder: ``start("train", "--epochs", "3")``."""
    started = []

    def start(*words: str) -> Command:
        started.append(Command([*words], tmp_path))
        return started[-1]

    yield start
    for command in started:
        if command.process.is_alive():
            command.process.kill()
        command.process.join()


@pytest.fixture
def draws(request):
    """Random numbers of a test's own, the same in every session."""
    return random.Random(request.node.name)
