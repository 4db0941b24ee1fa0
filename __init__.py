"""Deep-ensemble uncertainty toolkit for image classification.

Train, evaluate and compare ensembles with the functions below; build on their parts with the
subpackages. Both load when they are first used, so that ``import deepens`` is quick:

=====================================  =========================================================
``train``, ``evaluate``, ``predict``   one ensemble: train it, its metrics, answers on new images
``assemble``                           one ensemble of members that were trained one by one
``compare``, ``write_report``          several methods, and whether an ensemble is worth its cost
``load_run``, ``load_comparison``      what was trained and compared before
``TrainConfig``, ``CompareConfig``     the options of both
``register_family``, ``_objective``,   a plugin's own family, objective, method, backbone, data set
``_method``, ``_backbone``, ...        or metric
=====================================  =========================================================

No function prints: progress is shown on standard error where a ``Display`` is passed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets as datasets
    from . import ensembles as ensembles
    from . import experiments as experiments
    from . import metrics as metrics
    from .datasets.sources.registry import register_data_set as register_data_set
    from .ensembles.backbones import register_backbone as register_backbone
    from .experiments.comparison.compare import compare as compare
    from .experiments.comparison.methods import Method as Method
    from .experiments.comparison.methods import register_method as register_method
    from .experiments.comparison.stored import load_comparison as load_comparison
    from .experiments.config import CompareConfig as CompareConfig
    from .experiments.config import TrainConfig as TrainConfig
    from .experiments.evaluation.assemble import assemble as assemble
    from .experiments.evaluation.evaluate import evaluate as evaluate
    from .experiments.evaluation.predict import predict as predict
    from .experiments.evaluation.predictions import load_run as load_run
    from .experiments.evaluation.train_and_evaluate import train_and_evaluate as train  # noqa: F401
    from .experiments.report import write_report as write_report
    from .experiments.store.progress import Display as Display
    from .experiments.training.registry import register_family as register_family
    from .experiments.training.registry import register_objective as register_objective
    from .metrics.registry import register_metric as register_metric

__version__ = "0.1.0"

_SUBPACKAGES = ("datasets", "ensembles", "experiments", "metrics")
_FUNCTIONS = {
    "CompareConfig": "experiments.config",
    "Display": "experiments.store.progress",
    "Method": "experiments.comparison.methods",
    "TrainConfig": "experiments.config",
    "assemble": "experiments.evaluation.assemble",
    "compare": "experiments.comparison.compare",
    "evaluate": "experiments.evaluation.evaluate",
    "load_comparison": "experiments.comparison.stored",
    "load_run": "experiments.evaluation.predictions",
    "predict": "experiments.evaluation.predict",
    "register_backbone": "ensembles.backbones",
    "register_data_set": "datasets.sources.registry",
    "register_family": "experiments.training.registry",
    "register_method": "experiments.comparison.methods",
    "register_metric": "metrics.registry",
    "register_objective": "experiments.training.registry",
    "train": "experiments.evaluation.train_and_evaluate:train_and_evaluate",
    "write_report": "experiments.report",
}
"""Name -> the module that defines it, with its name there where it is another."""

__all__ = ["__version__", *_SUBPACKAGES, *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    """Import a function or a subpackage when it is first named."""
    if name in _SUBPACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name in _FUNCTIONS:
        module, _, own = _FUNCTIONS[name].partition(":")
        return getattr(importlib.import_module(f".{module}", __name__), own or name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
