"""Deep-ensemble uncertainty toolkit for image classification.

Subpackages load when they are first used, so that ``import deepens`` is quick:
``deepens.ensembles``, ``deepens.metrics``, ``deepens.datasets`` and ``deepens.experiments``.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["__version__", "datasets", "ensembles", "experiments", "metrics"]


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage when it is first named."""
    if name in __all__:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
