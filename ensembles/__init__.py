"""Ensembles and what they minimise: the seams, the families and the one training loop."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones.network import Network
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

_HOMES = {
    "CrossEntropy": ".objectives.cross_entropy",
    "DeepEnsemble": ".families.deep",
    "Ensemble": ".ensemble",
    "EnsembleModule": ".training",
    "FoRDE": ".objectives.forde",
    "FunctionSpace": ".objectives.parvi",
    "Greedy": ".objectives.greedy",
    "Likelihood": ".objectives.likelihood",
    "LoRA": ".options",
    "LoRAEnsemble": ".families.lora",
    "Mixup": ".options",
    "MixupMP": ".objectives.mixup_mp",
    "Network": ".backbones.network",
    "Noise": ".options",
    "Objective": ".objective",
    "ObjectiveValue": ".objective",
    "Optimizer": ".options",
    "Packed": ".options",
    "PackedEnsemble": ".families.packed",
    "Repulsion": ".options",
    "RepulsionTerm": ".objectives.repulsion",
    "Repulsive": ".objectives.repulsion",
    "Schedule": ".options",
    "SteinVariational": ".objectives.parvi",
    "TrainingImages": ".objective",
    "TrainingStep": ".objective",
    "WeightSpace": ".objectives.parvi",
    "pack": ".families.packed",
}
__all__ = [
    "CrossEntropy",
    "DeepEnsemble",
    "Ensemble",
    "EnsembleModule",
    "FoRDE",
    "FunctionSpace",
    "Greedy",
    "Likelihood",
    "LoRA",
    "LoRAEnsemble",
    "Mixup",
    "MixupMP",
    "Network",
    "Noise",
    "Objective",
    "ObjectiveValue",
    "Optimizer",
    "Packed",
    "PackedEnsemble",
    "Repulsion",
    "RepulsionTerm",
    "Repulsive",
    "Schedule",
    "SteinVariational",
    "TrainingImages",
    "TrainingStep",
    "WeightSpace",
    "pack",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and lightning take seconds to load."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
