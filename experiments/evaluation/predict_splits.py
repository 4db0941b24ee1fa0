"""Run a trained network on every split, and store its member logits."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from ...datasets import Split, SplitName, Splits, batches, load
from ...ensembles.backbones.pointwise import to_channels_last
from ...metrics.core.catalogue import DETECTORS
from ...metrics.suite import evaluate_values
from ..store.progress import Display
from ..store.run import Run
from ..store.seeds import derive_seed
from ..training import devices
from ..training.weights import check_data, hash_file, load_ensemble
from .detectors import choose_detectors, fit_on, notes, predict_batches
from .input_gradients import BATCH, MOST_IMAGES, MOST_SHIFTED, split_similarities
from .predictions import (
    EXTENT,
    QUICK,
    UNPREDICTED,
    Metrics,
    Predictions,
    save_index,
    save_logits,
    values_of,
)
from .shift_values import compact, save_shift_values
from .temperatures import CALIBRATE, Values
from .validation_fit import CONFORM, ValidationFit

CHOSEN_ON = ("train", "val/select")
"""Splits on which nothing is reported, since weights are fitted or chosen on them."""


def predict_splits(
    run: Run,
    *,
    splits: Splits | None,
    display: Display,
    detectors: Sequence[str] = (),
    parts: Sequence[Run] = (),
    known: Predictions | None = None,
) -> None:
    """Write one file of float32 member logits per split, each split predicted once.

    Of shifted splits metrics and the values of each image are stored, unless the run keeps their
    logits. Detectors, given ones, the run's and those of earlier predictions, are fitted on the
    training images and score all but the shifted splits. Of a run that is evaluated in full,
    similarities of input gradients are measured on all but the validation images; a quick
    evaluation leaves these out, and shifted splits that nobody asked for.

    Args:
        run: A trained run.
        splits: Its data, where it is loaded already.
        display: Where progress is shown.
        detectors: More detectors than the run has.
        parts: Runs whose members are the first ones of this run's: their predictions are written
            too, from the same pass over the images.
        known: The predictions of a run whose first members are this run's, or of the run itself;
            what they hold of the same data is not computed again.

    Raises:
        ValueError: The run has no weights, its data changed since, or a detector is unknown or does
            not suit the network.
    """
    before = [name for each in (run, *parts) for name in _detectors_before(each)]
    wanted = choose_detectors((*run.config.detectors, *detectors, *before))
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
    left_out = [] if run.config.predicts_corrupted else splits.names("shift")
    names = [name for name in splits.names() if name not in (*CHOSEN_ON, *left_out)]
    # What is fitted comes before its use.
    names.sort(key=lambda name: not SplitName.parse(name).is_validation)
    copied = {name: splits.copies(name) for name in (CALIBRATE, CONFORM) if name in splits}
    records = [_Record(each, copied) for each in (run, *parts)]
    sizes = {record.members for record in records if record.members > 1}
    sizes = sizes if run.config.evaluates_fully else set()
    held = _held(known, splits, wanted)
    own = known if held and not parts and known is not None and known.run.path == run.path else None
    loading: dict[str, Any] = {"pipeline": pipeline, "workers": run.config.workers}
    loading["batch_size"] = devices.EVALUATION_BATCH
    with devices.threads(count), display.task(f"predict {run.path}", len(names)) as task:
        fitted = None
        if wanted and not held:
            for note in notes(wanted, len(splits["train"])):
                display.say(note)
            seed = derive_seed(run.config.seed, "detectors")
            fitted = fit_on(ensemble, splits["train"], wanted, seed=seed, **loading)
        for name in names:
            split, kind = splits[name], SplitName.parse(name)
            logits: Tensor | None = None
            scores: dict[str, Tensor] = {}
            if own is not None and name in own.shift and name not in held:
                records[0].keep(name, own)
            elif known is not None and name in held:
                logits, scores = known.logits(name), known.scores(name)
                scores = {detector: scores[detector] for detector in wanted if detector in scores}
            else:
                loaded = batches(split, **loading)
                logits, scores = predict_batches(
                    ensemble, loaded, None if kind.is_shift else fitted
                )
            if sizes and not kind.is_validation:
                similar = split_similarities(
                    ensemble,
                    split,
                    None if logits is None else logits[: ensemble.num_members],
                    [*sizes],
                    most=MOST_SHIFTED if kind.is_shift else MOST_IMAGES,
                    # The batches of training fit in memory.
                    **{**loading, "batch_size": min(BATCH, run.config.batch_size)},
                )
                for record in records:
                    record.compare(name, similar)
            if logits is not None:
                for record in records:
                    record.add(name, split, logits, scores)
            task.advance(name)
    extent = {} if run.config.evaluates_fully else {EXTENT: QUICK, UNPREDICTED: left_out}
    for record in reversed(records):  # the whole last: while it is missing, all are made again
        record.save(data=splits.fingerprint(), detectors=wanted, copied=copied, **extent)


def _held(known: Predictions | None, splits: Splits, detectors: Sequence[str]) -> tuple[str, ...]:
    """The splits that are predicted already, of the same data and scored by all detectors."""
    if known is None or known.data != splits.fingerprint():
        return ()
    return known.splits if set(detectors) <= set(known.detectors) else ()


class _Record:
    """What is written of a run's predictions: of all members that predict, or of the first ones."""

    def __init__(self, run: Run, copied: Mapping[str, int]) -> None:
        self.run, self.members = run, Predictions(run).num_members
        self.weights = hash_file(run.weights)
        self.fit = ValidationFit(copied=copied)
        self.kept, self.shift, self.gradients = dict[str, str](), Metrics(), Metrics()
        self.compared: dict[str, Tensor] = {}

    def add(
        self,
        name: str,
        split: Split,
        logits: Tensor,
        scores: Mapping[str, Tensor],
    ) -> None:
        """Keep what is stored of a split, from logits ``[M, N, C]`` of at least its members."""
        logits = logits[: self.members]
        self.fit.fit(name, logits, split.targets)
        shifted = SplitName.parse(name).is_shift
        if shifted and split.targets is not None:
            values = values_of(logits, split.targets, f"split {name}")
            own = self.fit.metrics(name, logits, split.targets)
            self.shift[name] = evaluate_values(values) | own
            if not self.run.config.keep_logits:
                self.compared |= compact(name, values)
        if not shifted or self.run.config.keep_logits:
            content = {"data": split.fingerprint(), "weights": self.weights}
            some = {detector: rows[: self.members] for detector, rows in scores.items()}
            self.kept[name] = save_logits(
                self.run, name, logits, split.targets, content=content, scores=some
            )

    def compare(self, name: str, similar: Mapping[int, Values]) -> None:
        """Keep the similarity of the input gradients of as many members, of several."""
        if self.members in similar:
            self.gradients[name] = dict(similar[self.members])

    def keep(self, name: str, before: Predictions) -> None:
        """Keep what earlier predictions of these members hold of a shifted split."""
        self.shift[name] = before.shift[name]
        self.compared |= before.shift_values.stored(name)

    def save(self, **content: Any) -> None:
        """Write the index, by which the predictions are there."""
        held = save_shift_values(self.run, self.compared, content={"weights": self.weights})
        save_index(
            self.run,
            self.kept,
            shift=self.shift,
            shift_values=held,
            gradients=self.gradients,
            **content,
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
