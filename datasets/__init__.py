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
    from .image_files import ImageFiles, count_images, iterate_images, list_images
    from .image_format import ImageFormat, channel_moments
    from .image_reading import read_image
    from .loading.datamodule import DataModule
    from .loading.stream_loader import OrderedLoader, StreamLoader, batches
    from .loading.training_loader import Batch, EpochOrder, Pipeline, TensorLoader
    from .options import DataOptions
    from .partition import cut_validation, stratified_parts
    from .sources.image_set import ImageSet, LabelledImages, OODDefaults
    from .sources.named_sets import load
    from .sources.registry import known, register_data_set
    from .split_names import SplitName
    from .splits import Split, Splits

_NAMES = {
    "augmentation.augmentations": "Augmentation AugmentationDraws",
    "augmentation.transforms": "cutout flip normalize random_crop resized_crop",
    "corruptions.corruption": "CORRUPTIONS Corruption Draws corrupt",
    "image_files": "ImageFiles count_images iterate_images list_images",
    "image_format": "ImageFormat channel_moments",
    "image_reading": "read_image",
    "loading.datamodule": "DataModule",
    "loading.stream_loader": "OrderedLoader StreamLoader batches",
    "loading.training_loader": "Batch EpochOrder Pipeline TensorLoader",
    "options": "DataOptions",
    "partition": "cut_validation stratified_parts",
    "sources.image_set": "ImageSet LabelledImages OODDefaults",
    "sources.named_sets": "load",
    "sources.registry": "known register_data_set",
    "split_names": "SplitName",
    "splits": "Split Splits",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import the module that holds ``name`` when it is first asked for."""
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
