"""Run a trained network on every split, and store its member logits."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from ...datasets import SplitName, Splits, batches, load
from ...ensembles.backbones.pointwise import to_channels_last
from ...metrics.core.catalogue import DETECTORS
from ...metrics.suite import evaluate_values
from ..store.progress import Display
from ..store.run import Run
from ..store.seeds import derive_seed
from ..training import devices
from ..training.weights import check_data, hash_file, load_ensemble
from .detectors import choose_detectors, fit_on, notes, predict_batches
from .input_gradients import BATCH, MOST_IMAGES, MOST_SHIFTED, split_similarity
from .predictions import Metrics, Predictions, save_index, save_logits, values_of
from .shift_values import compact, save_shift_values
from .temperatures import CALIBRATE
from .validation_fit import CONFORM, ValidationFit

CHOSEN_ON = ("train", "val/select")
"""Splits on which nothing is reported, since weights are fitted or chosen on them."""


def predict_splits(
    run: Run, *, splits: Splits | None, display: Display, detectors: Sequence[str] = ()
) -> None:
    """Write one file of float32 member logits per split, each split predicted once.

    Of shifted splits metrics and the values of each image are stored, unless the run keeps their
    logits. Similarities of
    input gradients are measured on all but the validation images. Detectors, given ones, the run's
    and those of earlier predictions, are fitted on the training images and score all but the
    shifted splits.

    Raises:
        ValueError: The run has no weights, its data changed since, or a detector is unknown or does
            not suit the network.
    """
    wanted = choose_detectors((*run.config.detectors, *detectors, *_detectors_before(run)))
    ensemble, image_format = load_ensemble(run)
    if splits is None:
        splits = load(run.config, watcher=display)
        say_if_unjudged(wanted, splits, display)
    check_data(run, splits)
    pipeline = devices.pipeline_for(run.config, image_format)
    count = devices.suitable_threads(ensemble.member(0), image_format, run.config.batch_size)
    ensemble.to(pipeline.device)
    if run.config.channels_last:
        to_channels_last(ensemble)
    weights = hash_file(run.weights)
    kept, shift, gradients = dict[str, str](), Metrics(), Metrics()
    compared: dict[str, Tensor] = {}
    names = [name for name in splits.names() if name not in CHOSEN_ON]
    # What is fitted comes before its use.
    names.sort(key=lambda name: not SplitName.parse(name).is_validation)
    copied = {name: splits.copies(name) for name in (CALIBRATE, CONFORM) if name in splits}
    fit = ValidationFit(copied=copied)
    loading: dict[str, Any] = {"pipeline": pipeline, "workers": run.config.workers}
    loading["batch_size"] = devices.EVALUATION_BATCH
    with devices.threads(count), display.task(f"predict {run.path}", len(names)) as task:
        fitted = None
        if wanted:
            for note in notes(wanted, len(splits["train"])):
                display.say(note)
            seed = derive_seed(run.config.seed, "detectors")
            fitted = fit_on(ensemble, splits["train"], wanted, seed=seed, **loading)
        for name in names:
            split = splits[name]
            kind = SplitName.parse(name)
            shifted = kind.is_shift
            loaded = batches(split, **loading)
            logits, scores = predict_batches(ensemble, loaded, None if shifted else fitted)
            fit.fit(name, logits, split.targets)
            if shifted and split.targets is not None:
                values = values_of(logits, split.targets, f"split {name}")
                shift[name] = evaluate_values(values) | fit.metrics(name, logits, split.targets)
                if not run.config.keep_logits:
                    compared |= compact(name, values)
            if ensemble.num_members > 1 and not kind.is_validation:
                gradients[name] = split_similarity(
                    ensemble,
                    split,
                    logits,
                    most=MOST_SHIFTED if shifted else MOST_IMAGES,
                    # The batches of training fit in memory.
                    **{**loading, "batch_size": min(BATCH, run.config.batch_size)},
                )
            if not shifted or run.config.keep_logits:
                content = {"data": split.fingerprint(), "weights": weights}
                kept[name] = save_logits(
                    run, name, logits, split.targets, content=content, scores=scores
                )
            task.advance(name)
    save_index(
        run,
        kept,
        shift=shift,
        shift_values=save_shift_values(run, compared, content={"weights": weights}),
        gradients=gradients,
        data=splits.fingerprint(),
        detectors=wanted,
        copied=copied,
    )


def _detectors_before(run: Run) -> list[str]:
    """Those of earlier predictions that still exist; none where the index is damaged."""
    with suppress(ValueError):
        return [name for name in Predictions(run).detectors if name in DETECTORS]
    return []


def say_if_unjudged(detectors: Sequence[str], splits: Splits, display: Display) -> None:
    """Warn that detectors cannot be judged on data without OOD images."""
    if detectors and not splits.names("near_ood", "far_ood"):
        display.say(
            f"{splits.name} has no OOD images: detectors score its own, but detection "
            "cannot be evaluated; name some with --near-ood or --far-ood"
        )
