"""Ensembles and what they minimise: the seams, the families and the one training loop."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones.network import Network
    from .ensemble import Ensemble
    from .families.deep import DeepEnsemble
    from .families.lora import LoRAEnsemble
    from .families.packed import PackedEnsemble, pack
    from .objective import Objective, ObjectiveValue
    from .objectives.cross_entropy import CrossEntropy
    from .options import LoRA, Optimizer, Packed, Schedule
    from .training import EnsembleModule

_HOMES = {
    "CrossEntropy": ".objectives.cross_entropy",
    "DeepEnsemble": ".families.deep",
    "Ensemble": ".ensemble",
    "EnsembleModule": ".training",
    "LoRA": ".options",
    "LoRAEnsemble": ".families.lora",
    "Network": ".backbones.network",
    "Objective": ".objective",
    "ObjectiveValue": ".objective",
    "Optimizer": ".options",
    "Packed": ".options",
    "PackedEnsemble": ".families.packed",
    "Schedule": ".options",
    "pack": ".families.packed",
}
__all__ = [
    "CrossEntropy",
    "DeepEnsemble",
    "Ensemble",
    "EnsembleModule",
    "LoRA",
    "LoRAEnsemble",
    "Network",
    "Objective",
    "ObjectiveValue",
    "Optimizer",
    "Packed",
    "PackedEnsemble",
    "Schedule",
    "pack",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and lightning take seconds to load."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
