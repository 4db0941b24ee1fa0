"""Images and labels by the names of their splits, ready for training and evaluation.

Names load when they are first used, so that ``import deepens.datasets`` needs neither Lightning
nor scikit-learn. The function ``digits`` is reached as ``load("digits")``, since the package's
attribute of that name is the module.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalogue import known, load
    from .corruptions import CORRUPTIONS, Corruption, Draws, corrupt
    from .datamodule import DataModule
    from .image_folder import list_images, read_image
    from .splits import Split, Splits, cut_validation, stratified_parts
    from .tensor_loader import EpochOrder, OrderedLoader, Pipeline, TensorLoader, batches
    from .transforms import Augmentation, flip, normalize, random_crop

__all__ = [
    "CORRUPTIONS",
    "Augmentation",
    "Corruption",
    "DataModule",
    "Draws",
    "EpochOrder",
    "OrderedLoader",
    "Pipeline",
    "Split",
    "Splits",
    "TensorLoader",
    "batches",
    "corrupt",
    "cut_validation",
    "flip",
    "known",
    "list_images",
    "load",
    "normalize",
    "random_crop",
    "read_image",
    "stratified_parts",
]

_MODULES = {
    "catalogue": ("known", "load"),
    "corruptions": ("CORRUPTIONS", "Corruption", "Draws", "corrupt"),
    "datamodule": ("DataModule",),
    "image_folder": ("list_images", "read_image"),
    "splits": ("Split", "Splits", "cut_validation", "stratified_parts"),
    "tensor_loader": ("EpochOrder", "OrderedLoader", "Pipeline", "TensorLoader", "batches"),
    "transforms": ("Augmentation", "flip", "normalize", "random_crop"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` when it is first asked for."""
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
