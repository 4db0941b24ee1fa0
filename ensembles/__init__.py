"""Ensembles and what they minimise: the seams, the families and the one training loop."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones.network import Network as Network
    from .ensemble import Ensemble as Ensemble
    from .families.deep import DeepEnsemble as DeepEnsemble
    from .families.lora import LoRAEnsemble as LoRAEnsemble
    from .families.packed import PackedEnsemble as PackedEnsemble
    from .families.packed import pack as pack
    from .objective import Objective as Objective
    from .objective import ObjectiveValue as ObjectiveValue
    from .objective import TrainingImages as TrainingImages
    from .objective import TrainingStep as TrainingStep
    from .objectives.cross_entropy import CrossEntropy as CrossEntropy
    from .objectives.forde import FoRDE as FoRDE
    from .objectives.greedy import Greedy as Greedy
    from .objectives.likelihood import Likelihood as Likelihood
    from .objectives.mixup_mp import MixupMP as MixupMP
    from .objectives.parvi import FunctionSpace as FunctionSpace
    from .objectives.parvi import SteinVariational as SteinVariational
    from .objectives.parvi import WeightSpace as WeightSpace
    from .objectives.repulsion import RepulsionTerm as RepulsionTerm
    from .objectives.repulsion import Repulsive as Repulsive
    from .options import LoRA as LoRA
    from .options import Mixup as Mixup
    from .options import Noise as Noise
    from .options import Optimizer as Optimizer
    from .options import Packed as Packed
    from .options import Repulsion as Repulsion
    from .options import Schedule as Schedule
    from .training import EnsembleModule as EnsembleModule

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
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and lightning take seconds to load."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
