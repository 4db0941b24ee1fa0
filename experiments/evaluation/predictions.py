"""A run's predictions: member logits, scores of detectors and metrics, each file read once."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from jaxtyping import Float, Integer
from torch import Tensor

from ...datasets import SplitName
from ...datasets.plain_data import conform
from ...metrics.calibration.temperature import Temperature
from ...metrics.samples import SampleValues, sample_values
from ..store.checkpoint import load_tensors, save_tensors, stored_checksum
from ..store.errors import damaged
from ..store.run import Run, read_json, write_json
from ..training.weights import hash_file
from .shift_values import ShiftValues, load_shift_values
from .temperatures import JUDGED, load_temperatures, load_unidentified, scaled_values

Metrics = dict[str, dict[str, int | float]]
"""``{split: {metric: value}}``; undefined values are NaN."""

PREDICTIONS = "predictions"
"""Key in ``metrics.json``: the hash of the index of the predictions that it was computed of."""

EXTENT, QUICK, UNPREDICTED = "extent", "quick", "unpredicted"
"""Keys in the index of a run that is not evaluated in full: that it is so, and the splits that were
left out; input gradients are then left out too."""

DETECTOR = "detector/"
"""Begins the name of the tensor ``[M, N]`` of a detector's scores, beside the logits."""


class Predictions:
    """A run's predictions, opened once and read split by split when they are asked for.

    Use it for everything that rests on a run's logits. Each file is read and checked once, and the
    weights are hashed once, for as long as the object lives.

    Args:
        run: A run, or the path of one, whose splits were predicted.

    Raises:
        ValueError: By each method: a file is missing, damaged, of another shape, or was made with
            other weights than the run's.

    Example:
        >>> from deepens.experiments.evaluation.predictions import Predictions
        >>> Predictions("runs/missing").logits("test")
        Traceback (most recent call last):
        ValueError: runs/missing is not a run directory: runs/missing does not exist
    """

    def __init__(self, run: Run | Path | str) -> None:
        self.run = run if isinstance(run, Run) else Run.open(run)
        self._tensors: dict[str, dict[str, Tensor]] = {}
        self._values: dict[tuple[str, bool], SampleValues] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits whose logits are stored."""
        return tuple(self.index["splits"])

    @property
    def data(self) -> str | None:
        """Fingerprint of the splits that were predicted; None where nothing was."""
        return self._stored.get("data")

    @property
    def detectors(self) -> tuple[str, ...]:
        """The detectors whose scores are stored."""
        names = self._stored.get("detectors", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise damaged(_index_file(self.run), self._remedy)
        return tuple(names)

    @property
    def num_members(self) -> int:
        """The number of members whose logits are stored."""
        return self.run.config.members if self.run.config.member is None else 1

    @cached_property
    def index(self) -> dict[str, Any]:
        """What ``predictions/index.json`` holds."""
        names = self._stored.get("splits")
        listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not listed or "test" not in (names or []):
            raise damaged(_index_file(self.run), self._remedy)
        return self._stored

    @property
    def extent(self) -> Literal["quick", "full"]:
        """How much was measured, as `Recipe.evaluate` says; full in runs of earlier versions."""
        return "quick" if self._stored.get(EXTENT) == QUICK else "full"

    @property
    def unpredicted(self) -> tuple[str, ...]:
        """The shifted splits that a quick evaluation left out."""
        try:
            return conform(self.index.get(UNPREDICTED, ()), tuple[str, ...], UNPREDICTED)
        except ValueError:
            raise damaged(_index_file(self.run), self._remedy) from None

    @property
    def lacking(self) -> tuple[str, ...]:
        """What a quick evaluation left out: shift, gradients."""
        if self.extent != "quick":
            return ()
        found = {"shift": self.unpredicted, "gradients": self.num_members > 1}
        return tuple(name for name, there in found.items() if there)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """What a quick evaluation left out, in words."""
        words = {
            "shift": f"{len(self.unpredicted)} corrupted copies of the test images",
            "gradients": "the similarity of the members' input gradients",
        }
        return tuple(words[name] for name in self.lacking)

    @cached_property
    def metrics(self) -> Metrics:
        """What ``metrics.json`` holds, with NaN where a metric is undefined."""
        return load_metrics(self.run)

    @cached_property
    def temperatures(self) -> dict[str, Temperature]:
        """Temperatures fitted on ``val/calibrate``, by way; empty without that split."""
        return load_temperatures(self.run)

    @property
    def unidentified(self) -> dict[str, str]:
        """Why temperatures, by way, and ``"conformal"`` sets are not identified, where so."""
        return load_unidentified(self.run)

    @property
    def copied(self) -> dict[str, int]:
        """How many images of validation splits are training images; empty where not counted."""
        try:
            return conform(self.index.get("copied", {}), dict[str, int], "copied")
        except ValueError:
            raise damaged(_index_file(self.run), self._remedy) from None

    @property
    def shift(self) -> Metrics:
        """Metrics of shifted splits, whose logits need not be stored."""
        return _parse_metrics(self.index.get("shift"), _index_file(self.run), self._remedy)

    @cached_property
    def shift_values(self) -> ShiftValues:
        """Values of shifted splits whose logits are not stored; none in early runs or cascades."""
        checksum = self.index.get("shift_values")
        if checksum is None:
            return ShiftValues({})
        known = {"checksum": checksum, "weights": self.weights, "remedy": self._remedy}
        return load_shift_values(self.run, **known)

    @property
    def gradients(self) -> Metrics:
        """Similarity of the members' input gradients; empty in runs of earlier versions."""
        return _parse_metrics(self.index.get("gradients", {}), _index_file(self.run), self._remedy)

    def logits(self, split: str) -> Float[Tensor, "members samples classes"]:
        """Member logits of a split."""
        return self._load(split)["logits"]

    def targets(self, split: str) -> Integer[Tensor, " samples"] | None:
        """Labels of a split; None of OOD images."""
        return self._load(split).get("targets")

    def scores(self, split: str) -> dict[str, Float[Tensor, "members samples"]]:
        """Scores of each detector; empty where none scored the split."""
        return _detector_scores(self._load(split))

    def values(self, split: str, *, more: bool = True) -> SampleValues:
        """Per-sample values of all members together; of each detector, the members' mean score.

        ``more`` adds the values that no comparison resamples, which take as much memory again.
        Logits that are not finite are a ValueError.
        """
        if (split, more) not in self._values:
            tensors = self._load(split)
            self._values[split, more] = values_of(
                tensors["logits"],
                tensors.get("targets"),
                str(self.run.prediction(split)),
                scores=_detector_scores(tensors) if more else {},
                more=more,
            )
            if SplitName.parse(split).is_shift:  # there are many, and their logits are large
                del self._tensors[split]
        return self._values[split, more]

    def scaled(self) -> SampleValues | None:
        """Test images at the temperature by which methods are compared; None without one."""
        targets = self.targets("test")
        fitted = self.temperatures.get(JUDGED)
        if fitted is None or fitted.unidentified or targets is None:
            return None
        return scaled_values(self.logits("test"), targets, {JUDGED: fitted})[JUDGED]

    def check(self) -> None:
        """Read and check every file."""
        for split in self.splits:
            self._load(split)
        _ = self.metrics, self.shift_values

    def release(self) -> None:
        """Let go of all that was read but the values; it is read again when it is asked for."""
        self._tensors.clear()
        self.__dict__.pop("shift_values", None)

    @cached_property
    def _stored(self) -> dict[str, Any]:
        file = _index_file(self.run)
        return read_json(file, remedy=self._remedy) if file.exists() else {}

    @cached_property
    def weights(self) -> str | None:
        """Hash of the run's weights; None of a cascade, which has none."""
        return hash_file(self.run.weights) if self.run.weights.exists() else None

    @property
    def _remedy(self) -> str:
        return f"run `deepens evaluate {self.run.path} --predict`"

    def _load(self, split: str) -> dict[str, Tensor]:
        if split not in self._tensors:
            if split not in (there := self.splits):
                missing = f"{self.run.path} has no predictions of {split!r}"
                raise ValueError(f"{missing}, only of {', '.join(there)}")
            self._tensors[split] = self._read(split)
        return self._tensors[split]

    def _read(self, split: str) -> dict[str, Tensor]:
        file = self.run.prediction(split)
        if not file.exists():
            raise damaged(file, self._remedy)
        tensors, content = load_tensors(file, remedy=self._remedy)
        named = content.get("split") if isinstance(content, dict) else None
        if named != split or "logits" not in tensors:
            raise self._wrong(file, f"no predictions of the split {split!r}")
        if self.weights is not None and content.get("weights") != self.weights:
            load_tensors(self.run.weights)  # damaged weights are named, not what they made
            raise self._wrong(file, "predictions of other weights than the run's")
        logits, members = tensors["logits"], self.num_members
        shape = list(logits.shape)
        classes = (logits if split == "test" else self.logits("test")).shape[-1]
        if logits.ndim != 3 or shape[::2] != [members, classes]:
            expected = f"[{members}, samples, {classes}]"
            raise self._wrong(file, f"logits of shape {shape}, not {expected}")
        for detector, scores in _detector_scores(tensors).items():
            if list(scores.shape) != shape[:2]:
                of_shape = f"of shape {list(scores.shape)}, not {shape[:2]}"
                raise self._wrong(file, f"scores of the detector {detector} {of_shape}")
        recorded = self.index.get("checksums", {})  # earlier versions stored none
        if not isinstance(recorded, dict):
            raise damaged(_index_file(self.run), self._remedy)
        if recorded.get(split) not in (None, stored_checksum(file)):
            raise self._wrong(file, "other predictions than those that were recorded")
        return tensors

    def _wrong(self, file: Path, held: str) -> ValueError:
        return ValueError(f"{file} holds {held}; {self._remedy}")


class EvaluatedRun(Run):
    """A run with its predictions: what training, evaluating and loading a run return."""

    @property
    def predictions(self) -> Predictions:
        """The run's predictions, opened anew at each access."""
        return Predictions(self)


def save_logits(
    run: Run,
    split: str,
    logits: Tensor,
    targets: Tensor | None,
    *,
    content: Mapping[str, Any],
    scores: Mapping[str, Tensor] = MappingProxyType({}),
) -> str:
    """Write a split's logits ``[M, N, C]`` in float32, labels, and detectors' scores ``[M, N]``.

    ``content`` is the hash of the ``weights`` that predicted it, and of the ``data``. Returns the
    checksum of the file.
    """
    tensors = {"logits": logits.float()}
    tensors |= {f"{DETECTOR}{name}": each for name, each in scores.items()}
    if targets is not None:
        tensors["targets"] = targets
    return save_tensors(run.prediction(split), tensors, {"split": split, **content})


def save_index(run: Run, checksums: Mapping[str, str], **content: Any) -> None:
    """Write what `Predictions` reads, last: what it names exists.

    ``checksums`` are those of the files of the splits whose logits are stored.
    """
    write_json(
        _index_file(run), {"splits": list(checksums), "checksums": dict(checksums), **content}
    )


def save_metrics(run: Run, metrics: Metrics) -> None:
    """Write ``metrics.json``, with the checksum of the predictions that they were computed of."""
    content = {**metrics, PREDICTIONS: _index_hash(run)}
    write_json(run.metrics, content)


def metrics_are_current(run: Run) -> bool:
    """Whether the metrics were computed of the stored predictions; of old files it is assumed."""
    if not run.metrics.exists():
        return False
    with suppress(ValueError):
        content = read_json(run.metrics)
        return content.get(PREDICTIONS, _index_hash(run)) == _index_hash(run)
    return False


def extent_of(run: Run) -> Literal["quick", "full"] | None:
    """How much of a run is predicted; None where nothing is, or the index is damaged."""
    with suppress(ValueError):
        return Predictions(run).extent if _index_file(run).exists() else None
    return None


def load_run(path: Path | str) -> EvaluatedRun:
    """Open the directory of a run, to read its predictions and metrics or to predict with it.

    Nothing but its configuration is read.

    Raises:
        ValueError: The path is not a run directory, or its configuration is damaged.
    """
    run = Run.open(path)
    return EvaluatedRun(run.path, run.config)


def load_metrics(run: Run) -> Metrics:
    """A run's ``metrics.json``, NaN where undefined; a missing or damaged file is a ValueError."""
    remedy = f"run `deepens evaluate {run.path}`"
    content = read_json(run.metrics, remedy=remedy)
    computed_of = content.pop(PREDICTIONS, None)
    if computed_of is not None and computed_of != _index_hash(run):
        raise ValueError(f"{run.metrics} is of other predictions than the run's; {remedy}")
    metrics = _parse_metrics(content, run.metrics, remedy)
    if "accuracy" not in metrics.get("test", {}):
        raise damaged(run.metrics, remedy)
    return metrics


def values_of(
    logits: Tensor,
    targets: Tensor | None,
    where: str,
    *,
    scores: Mapping[str, Tensor] = MappingProxyType({}),
    more: bool = True,
) -> SampleValues:
    """Values as of `Predictions.values`, from logits ``[M, N, C]`` and scores ``[M, N]``.

    ``where`` is the file or split that an error names.
    """
    try:
        values = sample_values(logits, targets, more=more)
        means = {name: members.double().mean(0) for name, members in scores.items()}
        return dataclasses.replace(values, detectors={**values.detectors, **means})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _index_file(run: Run) -> Path:
    """The file that names the predicted splits."""
    return run.path / "predictions" / "index.json"


def _index_hash(run: Run) -> str | None:
    file = _index_file(run)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def _detector_scores(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(DETECTOR)]
    return {name.removeprefix(DETECTOR): tensors[name] for name in names}


def _parse_metrics(content: Any, file: Path, remedy: str) -> Metrics:
    """Metrics as JSON stores them: null stands for an undefined value, NaN."""
    try:
        stored = conform(content, Mapping[str, Mapping[str, int | float | None]], file.name)
    except ValueError as error:
        raise damaged(file, f"{error}; {remedy}") from None
    return {
        split: {k: math.nan if v is None else v for k, v in values.items()}
        for split, values in stored.items()
    }
