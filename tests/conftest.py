"""Switch shape checking on for the whole library before anything of it is imported."""

import jaxtyping
import pytest

jaxtyping.install_import_hook("deepens", "beartype.beartype")


@pytest.fixture
def unchecked():
    """Switch shape checking off, as it is for users: what a library refuses, it refuses itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
