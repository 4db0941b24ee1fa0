"""Switch shape checking on for the whole library before anything of it is imported."""

import jaxtyping
import pytest
import torch
from hypothesis import settings

jaxtyping.install_import_hook("deepens", "beartype.beartype")

# A check of a change must not fail by chance; `--hypothesis-profile=default` draws new examples.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same seeds: what it draws depends on no test before it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked():
    """Switch shape checking off, as it is for users: what a library refuses, it refuses itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
