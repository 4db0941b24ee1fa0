"""Ensembles and what they minimise: the seams, the families and the one training loop."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones.network import Network
    from .backbones.pointwise import to_channels_last
    from .ensemble import Ensemble
    from .families.deep import DeepEnsemble
    from .families.lora import LoRAEnsemble
    from .families.packed import PackedEnsemble, pack
    from .objective import Objective, ObjectiveValue, TrainingImages, TrainingStep
    from .objectives.cross_entropy import CrossEntropy
    from .objectives.forde import FoRDE
    from .objectives.greedy import Greedy
    from .objectives.likelihood import Likelihood
    from .objectives.mixup_mp import MixupMP
    from .objectives.parvi import FunctionSpace, SteinVariational, WeightSpace
    from .objectives.repulsion import RepulsionTerm, Repulsive
    from .options import LoRA, Mixup, Noise, Optimizer, Packed, Repulsion, Schedule
    from .training import EnsembleModule

_NAMES = {
    ".backbones.network": "Network",
    ".backbones.pointwise": "to_channels_last",
    ".ensemble": "Ensemble",
    ".families.deep": "DeepEnsemble",
    ".families.lora": "LoRAEnsemble",
    ".families.packed": "PackedEnsemble pack",
    ".objective": "Objective ObjectiveValue TrainingImages TrainingStep",
    ".objectives.cross_entropy": "CrossEntropy",
    ".objectives.forde": "FoRDE",
    ".objectives.greedy": "Greedy",
    ".objectives.likelihood": "Likelihood",
    ".objectives.mixup_mp": "MixupMP",
    ".objectives.parvi": "FunctionSpace SteinVariational WeightSpace",
    ".objectives.repulsion": "RepulsionTerm Repulsive",
    ".options": "LoRA Mixup Noise Optimizer Packed Repulsion Schedule",
    ".training": "EnsembleModule",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and lightning take seconds to load."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
