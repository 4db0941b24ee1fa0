"""Policies: how many members run on an image."""

from .calibration import (
    TASKS,
    Calibration,
    OutOfReachError,
    Task,
    TooFewImagesError,
    assess,
    calibrate,
    calibrate_passing,
    threshold_at_coverage,
    threshold_at_risk,
    window_around,
)
from .cascade import Cascade, CascadeQueue, Stage, ensemble_stages, replay
from .models import DescribedStage, ExpectedImages, model_stages
from .monitor import PassThroughMonitor
from .search import halves, search_windows
from .window import WindowPolicy

__all__ = [
    "TASKS",
    "Calibration",
    "Cascade",
    "CascadeQueue",
    "DescribedStage",
    "ExpectedImages",
    "OutOfReachError",
    "PassThroughMonitor",
    "Stage",
    "Task",
    "TooFewImagesError",
    "WindowPolicy",
    "assess",
    "calibrate",
    "calibrate_passing",
    "ensemble_stages",
    "halves",
    "model_stages",
    "replay",
    "search_windows",
    "threshold_at_coverage",
    "threshold_at_risk",
    "window_around",
]
