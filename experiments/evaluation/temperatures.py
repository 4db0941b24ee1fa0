"""Temperatures of a run: fitted on ``val/calibrate``, stored, and the same on every split."""

import dataclasses
import math
import warnings
from collections.abc import Mapping

from torch import Tensor

from ...metrics.calibration.temperature import WAYS, Temperature, fit_temperature
from ...metrics.core.catalogue import metrics_with
from ...metrics.samples import SampleValues, sample_values
from ...metrics.suite import SplitEvaluation
from ..store.errors import damaged
from ..store.run import Run, read_json, write_json

CALIBRATE = "val/calibrate"
"""The split on which temperatures are fitted, and nothing else is."""

JUDGED = "pooled"
"""The way in which methods are compared: it keeps every prediction, so accuracy is unchanged."""

_OF_SETS = "conformal_unidentified"

SCALED = ("nll", "brier", "ece", "confidence")
"""What a temperature changes and the report shows before and after."""

Temperatures = Mapping[str, Temperature]
Values = dict[str, int | float]


def fit_temperatures(logits: Tensor, targets: Tensor, why: str = "") -> dict[str, Temperature]:
    """A temperature in each way, from logits ``[M, N, C]`` and labels on ``val/calibrate``.

    Those that the images do not determine say so; ``why`` is a reason that holds for all.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "temperature.* is at the bound", RuntimeWarning)
        found: dict[str, Temperature] = {way: fit_temperature(logits, targets, way) for way in WAYS}
    if not why:
        return found
    return {way: dataclasses.replace(each, unidentified=why) for way, each in found.items()}


def scaled_values(logits: Tensor, targets: Tensor, ways: Temperatures) -> dict[str, SampleValues]:
    """Per-sample values of a labelled split's logits ``[M, N, C]`` at each temperature, by way."""
    return {
        way: sample_values(temperature.scale(logits), targets, more=False)
        for way, temperature in ways.items()
    }


def scaled_metrics(logits: Tensor, targets: Tensor, temperatures: Temperatures) -> Values:
    """Metrics at each temperature, as ``nll_pooled``, and those that members share.

    All are NaN where the temperature is not identified.
    """
    known = {way: each for way, each in temperatures.items() if not each.unidentified}
    metrics: Values = {key: math.nan for way in temperatures for key in scaled_keys(way)}
    for way, values in scaled_values(logits, targets, known).items():
        results = SplitEvaluation(values)()
        metrics |= {f"{name}_{way}": results[name].item() for name in SCALED}
        if way != "member":
            metrics[f"temperature_{way}"] = known[way].values[0]
    return metrics


def scaled_keys(way: str) -> tuple[str, ...]:
    """Keys of the metrics at a temperature."""
    return metrics_with(scope="temperature", way=way)


def save_temperatures(run: Run, temperatures: Temperatures, *, conformal: str = "") -> None:
    """Write ``temperature.json``, or delete it where there are none.

    ``conformal`` says why conformal sets are not identified, if they are not.
    """
    if temperatures:
        content = [temperature.to_dict() for temperature in temperatures.values()]
        more = {_OF_SETS: conformal} if conformal else {}
        write_json(run.temperature, {"fitted_on": CALIBRATE, "temperatures": content, **more})
    else:
        run.temperature.unlink(missing_ok=True)


def load_unidentified(run: Run) -> dict[str, str]:
    """Why temperatures, by way, and conformal sets (``"conformal"``) are not identified."""
    found = {way: each.unidentified for way, each in load_temperatures(run).items()}
    if found:
        found["conformal"] = str(read_json(run.temperature).get(_OF_SETS, ""))
    return {name: reason for name, reason in found.items() if reason}


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
