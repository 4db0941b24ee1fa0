"""Ensembles and what they minimise: the seams, the families and the one training loop."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones.network import Network
    from .ensemble import Ensemble
    from .families.deep import DeepEnsemble
    from .objective import Objective, ObjectiveValue
    from .objectives.cross_entropy import CrossEntropy
    from .options import Optimizer, Schedule
    from .training import EnsembleModule

_HOMES = {
    "CrossEntropy": ".objectives.cross_entropy",
    "DeepEnsemble": ".families.deep",
    "Ensemble": ".ensemble",
    "EnsembleModule": ".training",
    "Network": ".backbones.network",
    "Objective": ".objective",
    "ObjectiveValue": ".objective",
    "Optimizer": ".options",
    "Schedule": ".options",
}
__all__ = [
    "CrossEntropy",
    "DeepEnsemble",
    "Ensemble",
    "EnsembleModule",
    "Network",
    "Objective",
    "ObjectiveValue",
    "Optimizer",
    "Schedule",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and lightning take seconds to load."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
