"""Metrics of a run from its saved member logits, without running the network again."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ...datasets import Pipeline, SplitName, Splits, batches, load
from ...ensembles import Ensemble
from ...metrics.calibration.temperature import Temperature
from ...metrics.conformal.prediction_sets import ConformalSets
from ...metrics.core.catalogue import DETECTORS
from ...metrics.detection.score_detection import evaluate_members
from ...metrics.suite import evaluate_ood_values, evaluate_values
from ..store.checkpoint import save_tensors
from ..store.progress import Display
from ..store.run import Run, write_json
from ..store.seeds import derive_seed
from ..training.devices import (
    EVALUATION_BATCH,
    compute_device,
    pipeline_for,
    suitable_threads,
    threads,
)
from ..training.weights import check_data, hash_file, load_ensemble
from .conformal_sets import CONFORM, fit_sets, set_metrics
from .detectors import Detectors, choose_detectors, notes
from .input_gradients import BATCH, MOST_IMAGES, MOST_SHIFTED, split_similarity
from .member_features import fit_on, predict_batches
from .predictions import (
    AGAIN,
    DETECTOR,
    index_file,
    load_logits,
    load_scores,
    load_values,
    members_of,
    predicted_detectors,
    read_index,
    read_metrics,
    values_of,
)
from .temperatures import (
    CALIBRATE,
    fit_temperatures,
    save_temperatures,
    scaled_metrics,
    temperature_metrics,
)

CHOSEN_ON = ("train", "val/select")
"""Splits on which nothing is reported, since weights are fitted or chosen on them."""


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
        display: Where progress is shown; nowhere by default.

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
        display = display or Display(quiet=True)
        predict_splits(run, detectors=detectors, splits=splits, display=display)
    with threads(1):  # a few numbers an image: more threads would wait for each other
        values = load_values(run)
        metrics: dict[str, dict[str, int | float]] = {}
        for name, each in values.items():
            if each.nll is not None:
                metrics[name] = evaluate_values(each)
        for name, more in _fitted_on_validation(run).items():
            metrics[name] |= more
        index, remedy = read_index(run), f"run {AGAIN.format(run.path)}"
        metrics |= read_metrics(index, "shift", remedy)
        scores = load_scores(run) if predicted_detectors(run) else {}
        for name, each in values.items():
            if each.nll is None:
                metrics[name] = evaluate_ood_values(values["test"], each)
                if name in scores and members_of(run) > 1:
                    metrics[name] |= evaluate_members(scores["test"], scores[name])
        # What logits do not tell; predictions of earlier versions have none.
        for name, more in read_metrics({"gradients": {}, **index}, "gradients", remedy).items():
            metrics.setdefault(name, {}).update(more)
    write_json(run.metrics, metrics)
    return metrics


def _fitted_on_validation(run: Run) -> dict[str, dict[str, int | float]]:
    """Fit the run's temperatures and conformal sets, and compute what they make of its splits."""
    logits = {
        name: (each, targets)
        for name, (each, targets) in load_logits(run).items()
        if targets is not None and not SplitName.parse(name).is_shift
    }
    temperatures = fit_temperatures(*logits[CALIBRATE]) if CALIBRATE in logits else {}
    save_temperatures(run, temperatures)
    sets = fit_sets(*logits[CONFORM]) if CONFORM in logits else {}
    return {
        name: scaled_metrics(each, targets, temperatures)
        | temperature_metrics(temperatures)
        | ({} if name == CONFORM else set_metrics(each, targets, sets))
        for name, (each, targets) in logits.items()
    }


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
    # What is fitted comes before its use.
    names.sort(key=lambda name: not SplitName.parse(name).is_validation)
    temperatures: dict[str, Temperature] = {}
    sets: dict[str, ConformalSets] = {}
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
            kind = SplitName.parse(name)
            shifted = kind.is_shift
            logits, scores = predict_batches(ensemble, loaded, None if shifted else fitted)
            if name == CALIBRATE and split.targets is not None:
                temperatures = fit_temperatures(logits, split.targets)
            if name == CONFORM and split.targets is not None:
                sets = fit_sets(logits, split.targets)
            if shifted and split.targets is not None:
                shift[name] = shifted_metrics(name, logits, split.targets, temperatures, sets)
            if ensemble.num_members > 1 and not kind.is_validation:
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
        index_file(run),
        {
            "splits": kept,
            "shift": shift,
            "gradients": gradients,
            "data": splits.fingerprint(),
            "detectors": wanted,
        },
    )


def shifted_metrics(
    name: str,
    logits: Tensor,
    targets: Tensor,
    temperatures: Mapping[str, Temperature],
    sets: Mapping[str, ConformalSets],
) -> dict[str, int | float]:
    """Metrics of a shifted split, whose logits need not be kept.

    Args:
        name: The split.
        logits: ``[M, N, C]``.
        targets: Its labels.
        temperatures: As fitted without shift.
        sets: Likewise.
    """
    return {
        **evaluate_values(values_of(logits, targets, f"split {name}")),
        **scaled_metrics(logits, targets, temperatures),
        **temperature_metrics(temperatures),
        **set_metrics(logits, targets, sets),
    }


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
    if detectors and not splits.names("near_ood", "far_ood"):
        display.say(
            f"{splits.name} has no OOD images: detectors score its own, and nothing is said of "
            "how well they detect; name some with --near-ood or --far-ood"
        )
