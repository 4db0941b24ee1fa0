"""What a run's predictions hold: member logits, scores of detectors, and metrics of them."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ...datasets import SplitName
from ...metrics.samples import SampleValues, sample_values
from ..store.checkpoint import load_tensors
from ..store.run import Run, damaged, read_json
from ..training.weights import hash_file
from .temperatures import JUDGED, load_temperatures, scaled_values

SHIFT = "shift/"
"""Begins the name of a shifted copy of the test split."""

ENCODED = ".encoded"
"""Ends the name of an OOD set's copy that went through the training images' encoder."""

DETECTOR = "detector/"
"""Begins the name of the tensor ``[M, N]`` of a detector's scores, beside the logits."""

AGAIN = "`deepens evaluate {} --predict`"
"""What predicts a run again."""


def is_encoded(split: str) -> bool:
    """Tell whether a split holds another's OOD images, encoded as the training images are."""
    return SplitName.parse(split).encoded


def load_metrics(run: Run) -> dict[str, dict[str, int | float]]:
    """A run's ``metrics.json``; undefined values are NaN.

    Raises:
        ValueError: The file is missing or damaged.
    """
    remedy = f"run `deepens evaluate {run.path}`"
    return read_metrics({"metrics": read_json(run.metrics)}, "metrics", remedy, run.metrics)


def predicted_data(run: Run) -> str | None:
    """Fingerprint of the splits that a run's predictions are of; None where there are none."""
    if not index_file(run).exists():
        return None
    return read_json(index_file(run)).get("data")


def predicted_detectors(run: Run) -> tuple[str, ...]:
    """The detectors whose scores a run's predictions hold."""
    if not index_file(run).exists():
        return ()
    held = read_json(index_file(run)).get("detectors", [])
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise damaged(index_file(run), f"run {AGAIN.format(run.path)}")
    return tuple(held)


def load_logits(run: Run) -> dict[str, tuple[Tensor, Tensor | None]]:
    """A run's saved member logits ``[M, N, C]`` and targets ``[N]`` (None for OOD), by split.

    Raises:
        ValueError: One is missing, damaged, or made by other weights than the run's.
    """
    return {
        name: (tensors["logits"], tensors.get("targets")) for name, tensors in _predictions(run)
    }


def load_scores(run: Run) -> dict[str, dict[str, Tensor]]:
    """A run's saved scores of detectors, ``[M, N]`` by name, of each split that has some.

    Raises:
        ValueError: As `load_logits`.
    """
    found = {name: detector_scores(tensors) for name, tensors in _predictions(run)}
    return {name: scores for name, scores in found.items() if scores}


def detector_scores(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores ``[M, N]`` of each detector among the tensors of a split."""
    return {
        name.removeprefix(DETECTOR): tensor
        for name, tensor in tensors.items()
        if name.startswith(DETECTOR)
    }


def members_of(run: Run) -> int:
    """How many members a run's logits are of."""
    return run.config.members if run.config.member is None else 1


def _predictions(run: Run) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What the file of each split holds, checked."""
    weights = None
    if run.weights.exists():
        load_tensors(run.weights)  # what is damaged is named before what was made with it
        weights = hash_file(run.weights)
    members, known = members_of(run), None
    for name in read_index(run)["splits"]:
        file = run.prediction(name)
        if not file.exists():
            raise damaged(file, f"run {AGAIN.format(run.path)}")
        tensors, content = load_tensors(file)
        _check(file, name, tensors, content, weights)
        logits = tensors["logits"]
        classes = known or logits.shape[-1]
        if logits.ndim != 3 or (len(logits), logits.shape[-1]) != (members, classes):
            raise ValueError(
                f"{file} holds logits of shape {list(logits.shape)}, not [{members}, samples, "
                f"{classes}]; run {AGAIN.format(run.path)}"
            )
        for detector, scores in detector_scores(tensors).items():
            if scores.shape != logits.shape[:2]:
                raise ValueError(
                    f"{file} holds scores of the detector {detector} of shape "
                    f"{list(scores.shape)}, not {list(logits.shape[:2])}; run "
                    f"{AGAIN.format(run.path)}"
                )
        known = classes if name == "test" else known
        yield name, tensors


def load_values(run: Run, *, shift: bool = False, more: bool = True) -> dict[str, SampleValues]:
    """Per-sample values of a run's saved logits, by split.

    Args:
        run: A trained run.
        shift: Whether also of the shift splits, where their logits were kept.
        more: Whether also what no comparison resamples; it takes as much memory again.

    Raises:
        ValueError: As ``load_logits``, or logits that are not finite.
    """
    return {
        name: values_of(
            tensors["logits"],
            tensors.get("targets"),
            str(run.prediction(name)),
            scores=detector_scores(tensors) if more else {},
            more=more,
        )
        for name, tensors in _predictions(run)
        if shift or not SplitName.parse(name).is_shift
    }


def load_scaled(run: Run) -> SampleValues | None:
    """Per-sample values of a run's test split at the temperature by which methods are compared.

    Returns:
        None where the run has no temperature.

    Raises:
        ValueError: As ``load_logits``, or a damaged file of temperatures.
    """
    temperatures = load_temperatures(run)
    logits, targets = load_logits(run)["test"]
    if JUDGED not in temperatures or targets is None:
        return None
    return scaled_values(logits, targets, {JUDGED: temperatures[JUDGED]})[JUDGED]


def values_of(
    logits: Tensor,
    targets: Tensor | None,
    where: str,
    *,
    scores: Mapping[str, Tensor] = MappingProxyType({}),
    more: bool = True,
) -> SampleValues:
    """Of all members together; of each detector, the mean of the members' scores."""
    try:
        values = sample_values(logits, targets, more=more)
        means = {name: members.double().mean(0) for name, members in scores.items()}
        return dataclasses.replace(values, detectors={**values.detectors, **means})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check(
    file: Path, name: str, tensors: Mapping[str, Tensor], content: Any, weights: str | None
) -> None:
    remedy = "; run `deepens evaluate RUN --predict`"
    if not isinstance(content, dict) or content.get("split") != name or "logits" not in tensors:
        raise ValueError(f"{file} holds no predictions of the split {name!r}{remedy}")
    if weights is not None and content.get("weights") != weights:
        raise ValueError(f"{file} holds predictions of other weights than the run's{remedy}")


def index_file(run: Run) -> Path:
    """Where the names of the predicted splits stand."""
    return run.path / "predictions" / "index.json"


def read_index(run: Run) -> dict[str, Any]:
    """Names of the splits whose logits were kept, and what those do not tell."""
    remedy = f"run {AGAIN.format(run.path)}"
    if not index_file(run).exists():
        raise damaged(index_file(run), remedy)
    index = read_json(index_file(run))
    if not isinstance(index.get("splits"), list) or "test" not in index["splits"]:
        raise damaged(index_file(run), remedy)
    return index


def read_metrics(
    content: Mapping[str, Any], key: str, remedy: str, file: Path | None = None
) -> dict[str, dict[str, int | float]]:
    """Metrics as JSON holds them: null stands for an undefined value, NaN."""
    try:
        metrics = {
            split: {k: float("nan") if v is None else v for k, v in held.items()}
            for split, held in content[key].items()
        }
        if file is not None:
            metrics["test"]["accuracy"]
    except (KeyError, AttributeError):
        raise damaged(file or Path("predictions/index.json"), remedy) from None
    return metrics
