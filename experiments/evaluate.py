"""Metrics of a run from its saved member logits, without running the network again."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..datasets import Pipeline, Splits, batches, load
from ..ensembles import Ensemble
from ..metrics.catalogue import DETECTORS
from ..metrics.detection import evaluate_members
from ..metrics.samples import SampleValues, sample_values
from ..metrics.suite import evaluate_ood_values, evaluate_values
from ..metrics.temperature import Temperature
from .checkpoint import load_tensors, save_tensors
from .detectors import Detectors, choose_detectors, notes
from .devices import compute_device, pipeline_for, suitable_threads, threads
from .families import derive_seed
from .input_gradients import BATCH, MOST_IMAGES, MOST_SHIFTED, split_similarity
from .member_features import fit_on, predict_batches
from .progress import Display
from .run import Run, damaged, read_json, write_json
from .temperatures import (
    CALIBRATE,
    JUDGED,
    fit_temperatures,
    load_temperatures,
    save_temperatures,
    scaled_metrics,
    scaled_values,
    temperature_metrics,
)
from .weights import hash_file, load_ensemble

SHIFT = "shift/"
CHOSEN_ON = ("train", "val/select")
"""Splits on which nothing is reported, since weights are fitted or chosen on them."""

EVALUATION_BATCH = 256
DETECTOR = "detector/"
"""Begins the name of the tensor ``[M, N]`` of a detector's scores, beside the logits."""

_AGAIN = "`deepens evaluate {} --predict`"


def evaluate(
    run: Run,
    *,
    predict: bool = False,
    detectors: Sequence[str] = (),
    splits: Splits | None = None,
    display: Display | None = None,
) -> dict[str, dict[str, int | float]]:
    """Compute a run's metrics by split and write ``metrics.json``.

    Args:
        run: A trained run.
        predict: Run the network again, instead of reading the saved logits.
        detectors: Detectors to add to those that the run has; only for predicting.
        splits: The run's data, where it is loaded already; read only for predicting.
        display: Where progress is shown.

    Returns:
        ``{split: {metric: value}}``, with n; undefined metrics are NaN.

    Raises:
        ValueError: Predictions that are missing, damaged, or another network's; unknown detectors,
            or some without predicting.
    """
    if detectors and not predict:
        raise ValueError(
            "detectors read features, which are not saved; run "
            f"`deepens evaluate {run.path} --predict --detectors {','.join(detectors)}`"
        )
    if predict:
        display = display or Display(quiet=run.config.quiet)
        predict_splits(run, detectors=detectors, splits=splits, display=display)
    with threads(1):  # a few numbers an image: more threads would wait for each other
        values = load_values(run)
        metrics: dict[str, dict[str, int | float]] = {}
        for name, each in values.items():
            if each.nll is not None:
                metrics[name] = evaluate_values(each)
        for name, more in _scaled(run).items():
            metrics[name] |= more
        index, remedy = _index(run), f"run {_AGAIN.format(run.path)}"
        metrics |= _read_metrics(index, "shift", remedy)
        scores = load_scores(run) if predicted_detectors(run) else {}
        for name, each in values.items():
            if each.nll is None:
                metrics[name] = evaluate_ood_values(values["test"], each)
                if name in scores and _members(run) > 1:
                    metrics[name] |= evaluate_members(scores["test"], scores[name])
        # What logits do not tell; predictions of earlier versions have none.
        for name, more in _read_metrics({"gradients": {}, **index}, "gradients", remedy).items():
            metrics.setdefault(name, {}).update(more)
    write_json(run.metrics, metrics)
    return metrics


def _scaled(run: Run) -> dict[str, dict[str, int | float]]:
    """Fit the run's temperatures, and compute what they make of its labelled splits."""
    logits = load_logits(run)
    on, labels = logits.get(CALIBRATE, (None, None))
    if on is None or labels is None:
        save_temperatures(run, {})
        return {}
    temperatures = fit_temperatures(on, labels)
    save_temperatures(run, temperatures)
    return {
        name: scaled_metrics(each, targets, temperatures) | temperature_metrics(temperatures)
        for name, (each, targets) in logits.items()
        if targets is not None and not name.startswith(SHIFT)
    }


def load_metrics(run: Run) -> dict[str, dict[str, int | float]]:
    """A run's ``metrics.json``; undefined values are NaN.

    Raises:
        ValueError: The file is missing or damaged.
    """
    remedy = f"run `deepens evaluate {run.path}`"
    return _read_metrics({"metrics": read_json(run.metrics)}, "metrics", remedy, run.metrics)


def predict_splits(
    run: Run, *, splits: Splits | None, display: Display, detectors: Sequence[str] = ()
) -> None:
    """Write one file of float32 member logits a split, each split predicted once.

    Shift splits leave only their metrics behind, unless the run keeps their logits. How alike the
    members' input gradients are is measured on all but the validation images. Detectors of OOD
    images are fitted on the training images and score all splits but the shifted ones, on the way
    to the logits; those that earlier predictions have are made again too.

    Raises:
        ValueError: The run has no weights, or its data changed since the training; an unknown
            detector, or one that does not suit the network.
    """
    wanted = choose_detectors((*run.config.detectors, *detectors, *_detectors_before(run)))
    ensemble, form = load_ensemble(run)
    if splits is None:
        splits = load(run.config, watcher=display)
        say_if_unjudged(wanted, splits, display)
    check_data(run, splits)
    device = compute_device(run.config)
    pipeline = pipeline_for(run.config, form)
    count = suitable_threads(ensemble.member(0), form, run.config.batch_size)
    ensemble.to(device)
    if run.config.channels_last:
        ensemble.to(memory_format=torch.channels_last)
    weights = hash_file(run.weights)
    kept: list[str] = []
    shift: dict[str, dict[str, int | float]] = {}
    gradients: dict[str, dict[str, int | float]] = {}
    names = [name for name in splits.names() if name not in CHOSEN_ON]
    names.sort(key=lambda name: not name.startswith("val/"))  # temperatures come before their use
    temperatures: dict[str, Temperature] = {}
    with threads(count), display.task(f"predict {run.path}", len(names)) as task:
        fitted = _fitted(run, ensemble, splits, wanted, pipeline, display) if wanted else None
        for name in names:
            split = splits[name]
            loaded = batches(
                split,
                batch_size=EVALUATION_BATCH,
                pipeline=pipeline,
                workers=run.config.workers,
            )
            shifted = name.startswith(SHIFT)
            logits, scores = predict_batches(ensemble, loaded, None if shifted else fitted)
            if name == CALIBRATE and split.targets is not None:
                temperatures = fit_temperatures(logits, split.targets)
            if shifted and split.targets is not None:
                shift[name] = evaluate_values(_values(logits, split.targets, f"split {name}"))
                shift[name] |= scaled_metrics(logits, split.targets, temperatures)
            if ensemble.num_members > 1 and not name.startswith("val/"):
                gradients[name] = split_similarity(
                    ensemble,
                    split,
                    logits,
                    most=MOST_SHIFTED if shifted else MOST_IMAGES,
                    batch_size=min(BATCH, run.config.batch_size),  # which fits in memory
                    pipeline=pipeline,
                    workers=run.config.workers,
                )
            if not shifted or run.config.keep_logits:
                tensors = {"logits": logits}
                tensors |= {f"{DETECTOR}{key}": value for key, value in scores.items()}
                if split.targets is not None:
                    tensors["targets"] = split.targets
                content = {"split": name, "data": split.fingerprint(), "weights": weights}
                save_tensors(run.prediction(name), tensors, content)
                kept.append(name)
            task.advance(name)
    # Written last: what it names is there.
    write_json(
        _index_file(run),
        {
            "splits": kept,
            "shift": shift,
            "gradients": gradients,
            "data": splits.fingerprint(),
            "detectors": wanted,
        },
    )


def _fitted(
    run: Run,
    ensemble: Ensemble,
    splits: Splits,
    names: Sequence[str],
    pipeline: Pipeline,
    display: Display,
) -> Detectors:
    """Detectors fitted on the run's training images, as they are without augmentation."""
    train = splits["train"]
    for note in notes(names, len(train)):
        display.say(note)
    return fit_on(
        ensemble,
        train,
        names,
        seed=derive_seed(run.config.seed, "detectors"),
        batch_size=EVALUATION_BATCH,
        pipeline=pipeline,
        workers=run.config.workers,
    )


def _detectors_before(run: Run) -> list[str]:
    """Those of earlier predictions that there still are; none where predicting mends the index."""
    with suppress(ValueError):
        return [name for name in predicted_detectors(run) if name in DETECTORS]
    return []


def say_if_unjudged(detectors: Sequence[str], splits: Splits, display: Display) -> None:
    """Say that detectors detect nothing on data without OOD images."""
    if detectors and not splits.names("near_ood/") and not splits.names("far_ood/"):
        display.say(
            f"{splits.name} has no OOD images: detectors score its own, and nothing is said of "
            "how well they detect; name some with --near-ood or --far-ood"
        )


def check_data(run: Run, splits: Splits) -> None:
    """Refuse data on which a run was not trained.

    Raises:
        ValueError: The images that it learned from, or their classes, changed since.
    """
    if splits.training_fingerprint() != load_tensors(run.weights)[1]["data"]:
        raise ValueError(
            f"{run.path} was trained on other data than {run.config.data} holds now; train again "
            "into another --out"
        )


def predicted_data(run: Run) -> str | None:
    """Fingerprint of the splits that a run's predictions are of; None where there are none."""
    if not _index_file(run).exists():
        return None
    return read_json(_index_file(run)).get("data")


def predicted_detectors(run: Run) -> tuple[str, ...]:
    """The detectors whose scores a run's predictions hold."""
    if not _index_file(run).exists():
        return ()
    held = read_json(_index_file(run)).get("detectors", [])
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise damaged(_index_file(run), f"run {_AGAIN.format(run.path)}")
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
    found = {name: _scores(tensors) for name, tensors in _predictions(run)}
    return {name: scores for name, scores in found.items() if scores}


def _scores(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(DETECTOR): tensor
        for name, tensor in tensors.items()
        if name.startswith(DETECTOR)
    }


def _members(run: Run) -> int:
    return run.config.members if run.config.member is None else 1


def _predictions(run: Run) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What the file of each split holds, checked."""
    weights = None
    if run.weights.exists():
        load_tensors(run.weights)  # what is damaged is named before what was made with it
        weights = hash_file(run.weights)
    members, known = _members(run), None
    for name in _index(run)["splits"]:
        file = run.prediction(name)
        if not file.exists():
            raise damaged(file, f"run {_AGAIN.format(run.path)}")
        tensors, content = load_tensors(file)
        _check(file, name, tensors, content, weights)
        logits = tensors["logits"]
        classes = known or logits.shape[-1]
        if logits.ndim != 3 or (len(logits), logits.shape[-1]) != (members, classes):
            raise ValueError(
                f"{file} holds logits of shape {list(logits.shape)}, not [{members}, samples, "
                f"{classes}]; run {_AGAIN.format(run.path)}"
            )
        for detector, scores in _scores(tensors).items():
            if scores.shape != logits.shape[:2]:
                raise ValueError(
                    f"{file} holds scores of the detector {detector} of shape "
                    f"{list(scores.shape)}, not {list(logits.shape[:2])}; run "
                    f"{_AGAIN.format(run.path)}"
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
        name: _values(
            tensors["logits"],
            tensors.get("targets"),
            str(run.prediction(name)),
            scores=_scores(tensors) if more else {},
            more=more,
        )
        for name, tensors in _predictions(run)
        if shift or not name.startswith(SHIFT)
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


def _values(
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


def _index_file(run: Run) -> Path:
    return run.path / "predictions" / "index.json"


def _index(run: Run) -> dict[str, Any]:
    """Names of the splits whose logits were kept, and what those do not tell."""
    remedy = f"run {_AGAIN.format(run.path)}"
    if not _index_file(run).exists():
        raise damaged(_index_file(run), remedy)
    index = read_json(_index_file(run))
    if not isinstance(index.get("splits"), list) or "test" not in index["splits"]:
        raise damaged(_index_file(run), remedy)
    return index


def _read_metrics(
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
