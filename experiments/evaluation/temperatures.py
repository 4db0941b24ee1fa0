"""Temperatures of a run: fitted on ``val/calibrate``, stored, and the same on every split."""

import warnings
from collections.abc import Mapping

from torch import Tensor

from ...metrics.calibration.temperature import WAYS, Temperature, fit_temperature
from ...metrics.samples import SampleValues, sample_values
from ...metrics.suite import SplitEvaluation
from ..store.errors import damaged
from ..store.run import Run, read_json, write_json

CALIBRATE = "val/calibrate"
"""The split on which temperatures are fitted, and nothing else is."""

JUDGED = "pooled"
"""The way in which methods are compared: it keeps every prediction, so accuracy is unchanged."""

SCALED = ("nll", "brier", "ece", "confidence")
"""What a temperature changes and the report shows before and after."""

Temperatures = Mapping[str, Temperature]
Values = dict[str, int | float]


def fit_temperatures(logits: Tensor, targets: Tensor) -> dict[str, Temperature]:
    """A temperature in each way, from logits ``[M, N, C]`` and labels on ``val/calibrate``."""
    with warnings.catch_warnings():
        # On few images that are all classified correctly, more confidence is always better: the
        # value at the bound shows it, and no one needs to act on it.
        warnings.filterwarnings("ignore", "temperature is at the bound", RuntimeWarning)
        return {way: fit_temperature(logits, targets, way) for way in WAYS}


def scaled_values(logits: Tensor, targets: Tensor, ways: Temperatures) -> dict[str, SampleValues]:
    """Per-sample values of a labelled split's logits ``[M, N, C]`` at each temperature, by way."""
    return {
        way: sample_values(temperature.scale(logits), targets, more=False)
        for way, temperature in ways.items()
    }


def scaled_metrics(logits: Tensor, targets: Tensor, temperatures: Temperatures) -> Values:
    """Metrics at each temperature, as ``nll_pooled``, and those that members share."""
    metrics: Values = {}
    for way, values in scaled_values(logits, targets, temperatures).items():
        results = SplitEvaluation(values)()
        metrics |= {f"{name}_{way}": results[name].item() for name in SCALED}
    shared = {way: each.values[0] for way, each in temperatures.items() if way != "member"}
    return metrics | {f"temperature_{way}": value for way, value in shared.items()}


def save_temperatures(run: Run, temperatures: Temperatures) -> None:
    """Write ``temperature.json``, or delete it where there are none."""
    if temperatures:
        content = [temperature.to_dict() for temperature in temperatures.values()]
        write_json(run.temperature, {"fitted_on": CALIBRATE, "temperatures": content})
    else:
        run.temperature.unlink(missing_ok=True)


def load_temperatures(run: Run) -> dict[str, Temperature]:
    """Temperatures by way; none without a validation split. A damaged file is a ValueError."""
    if not run.temperature.exists():
        return {}
    remedy = f"run `deepens evaluate {run.path}`"
    content = read_json(run.temperature, remedy=remedy).get("temperatures")
    try:
        temperatures = [Temperature.from_dict(each) for each in content or ()]
    except (ValueError, TypeError):
        raise damaged(run.temperature, remedy) from None
    return {temperature.way: temperature for temperature in temperatures}
