"""Images and labels by the names of their splits, ready for training and evaluation.

Names load when they are first used, so that ``import deepens.datasets`` needs neither Lightning
nor scikit-learn. The function ``digits`` is reached as ``load("digits")``, since the package's
attribute of that name is the module.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .augmentation.augmentations import Augmentation, AugmentationDraws
    from .augmentation.transforms import cutout, flip, normalize, random_crop, resized_crop
    from .corruptions.corruption import CORRUPTIONS, Corruption, Draws, corrupt
    from .image_files import ImageFiles, count_images, iterate_images, list_images, read_image
    from .image_format import ImageFormat, channel_moments
    from .loading.datamodule import DataModule
    from .loading.ordered_loader import OrderedLoader, batches
    from .loading.pipeline import Pipeline
    from .loading.stream_loader import StreamLoader
    from .loading.tensor_loader import TensorLoader
    from .loading.training_loader import Batch, EpochOrder
    from .options import DataOptions
    from .partition import cut_validation, stratified_parts
    from .sources.image_set import ImageSet, LabelledImages, OODDefaults
    from .sources.named_sets import load
    from .sources.registry import known, register_data_set
    from .split_names import SplitName
    from .splits import Split, Splits

__all__ = [
    "CORRUPTIONS",
    "Augmentation",
    "AugmentationDraws",
    "Batch",
    "Corruption",
    "DataModule",
    "DataOptions",
    "Draws",
    "EpochOrder",
    "ImageFiles",
    "ImageFormat",
    "ImageSet",
    "LabelledImages",
    "OODDefaults",
    "OrderedLoader",
    "Pipeline",
    "Split",
    "SplitName",
    "Splits",
    "StreamLoader",
    "TensorLoader",
    "batches",
    "channel_moments",
    "corrupt",
    "count_images",
    "cut_validation",
    "cutout",
    "flip",
    "iterate_images",
    "known",
    "list_images",
    "load",
    "normalize",
    "random_crop",
    "read_image",
    "register_data_set",
    "resized_crop",
    "stratified_parts",
]

_MODULES = {
    "augmentation.augmentations": ("Augmentation", "AugmentationDraws"),
    "sources.image_set": ("ImageSet", "LabelledImages", "OODDefaults"),
    "sources.named_sets": ("load",),
    "sources.registry": ("known", "register_data_set"),
    "corruptions.corruption": ("CORRUPTIONS", "Corruption", "Draws", "corrupt"),
    "loading.datamodule": ("DataModule",),
    "image_files": (
        "ImageFiles",
        "count_images",
        "iterate_images",
        "list_images",
        "read_image",
    ),
    "options": ("DataOptions",),
    "loading.ordered_loader": ("OrderedLoader", "batches"),
    "split_names": ("SplitName",),
    "image_format": ("ImageFormat", "channel_moments"),
    "partition": ("cut_validation", "stratified_parts"),
    "splits": ("Split", "Splits"),
    "loading.stream_loader": ("StreamLoader",),
    "loading.pipeline": ("Pipeline",),
    "loading.tensor_loader": ("TensorLoader",),
    "loading.training_loader": ("Batch", "EpochOrder"),
    "augmentation.transforms": ("cutout", "flip", "normalize", "random_crop", "resized_crop"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` when it is first asked for."""
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
