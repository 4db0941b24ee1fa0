"""A trained ensemble, or its cascade, that answers batches of new images with rows of a table."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...datasets import normalize
from ...datasets.files import printable
from ...datasets.image_format import ImageFormat
from ...ensembles import Ensemble
from ...ensembles.backbones.pointwise import to_channels_last
from ...ensembles.policies import Cascade, PassThroughMonitor, ensemble_stages
from ...metrics.core.mixture import mixture_log_probs
from ...metrics.samples import sample_values
from ..config import Recipe
from ..store.run import Run
from ..training.devices import compute_device, suitable_threads
from ..training.weights import load_ensemble
from .cascade import StoredCascade
from .table_writer import Row

SCORES = ("confidence", "entropy", "mutual_information")
COLUMNS = {"path": str, "class": str, **dict.fromkeys(SCORES, float), "error": str}
CASCADE_COLUMNS = {
    **{"path": str, "class": str, "confidence": float, "decision": str, "ood": str},
    **{"stage": int, "error": str},
}

Read = tuple[Path, Tensor | str]
"""A file, and its pixels or why it could not be read."""

Wait = Callable[[], Iterator[Row]]


@dataclass(frozen=True)
class Answer:
    """A trained ensemble, on its device and evaluating, that turns batches of images into rows.

    ``threads`` suit its batches, None is torch's own number; ``cascade``, if any, answers instead
    of all members.
    """

    ensemble: Ensemble
    image_format: ImageFormat
    channels_last: bool
    threads: int | None
    cascade: "CascadeAnswer | None" = None

    @classmethod
    def of(cls, run: Run, cascade: StoredCascade | None = None) -> "Answer":
        """Computed as in the run's evaluation, so that an image gets the same answer from both."""
        return cls.by(*load_ensemble(run), run.config, cascade)

    @classmethod
    def by(
        cls,
        ensemble: Ensemble,
        image_format: ImageFormat,
        config: Recipe,
        cascade: StoredCascade | None = None,
    ) -> "Answer":
        """With an ensemble in evaluation mode, which is moved to its device."""
        count = suitable_threads(ensemble.member(0), image_format, config.batch_size)
        ensemble.to(compute_device(config))
        if config.channels_last:
            to_channels_last(ensemble)
        by_cascade = None if cascade is None else CascadeAnswer(ensemble, cascade)
        return cls(ensemble, image_format, config.channels_last, count, by_cascade)

    @property
    def columns(self) -> Mapping[str, type]:
        """Of the table."""
        return COLUMNS if self.cascade is None else CASCADE_COLUMNS

    def rows(self, batches: Iterable[list[Read]]) -> Iterator[list[Row]]:
        """The rows of each batch; a GPU works on the next one meanwhile."""
        before: Callable[[], list[Row]] | None = None
        for batch in batches:
            answers = self._start([each for _, each in batch if isinstance(each, Tensor)])
            # Without the pixels, which are on the device by now.
            errors = [(path, each if isinstance(each, str) else "") for path, each in batch]
            if before is not None:
                yield before()
            before = functools.partial(self._finish, errors, answers)
        if before is not None:
            yield before()

    def _start(self, pixels: list[Tensor]) -> Wait:
        """Start the network; the function that is returned waits for its answers."""
        if not pixels:
            return lambda: iter(())
        device = next(self.ensemble.parameters()).device
        images, cuda = torch.stack(pixels), device.type == "cuda"
        images = (images.pin_memory() if cuda else images).to(device, non_blocking=True)
        mean, std = self.image_format.mean, self.image_format.std
        inputs = normalize(images, mean=mean, std=std, channels_last=self.channels_last)
        if self.cascade is not None:  # which waits after each stage anyway
            rows = list(self.cascade.rows(inputs, self.image_format.classes))
            return lambda: iter(rows)
        with torch.inference_mode():
            logits = self.ensemble(inputs).float().to("cpu", non_blocking=True)
        if not cuda:
            return lambda: _answers(logits, self.image_format.classes)
        arrived = torch.cuda.current_stream(device).record_event()

        def wait() -> Iterator[Row]:
            arrived.synchronize()
            return _answers(logits, self.image_format.classes)

        return wait

    def _finish(self, errors: Iterable[tuple[Path, str]], wait: Wait) -> list[Row]:
        answers = wait()
        rows: list[Row] = []
        for path, error in errors:
            row: dict[str, str | float | int | None] = dict.fromkeys(self.columns)
            row |= {"path": printable(path), "error": error}
            rows.append(row if error else row | dict(next(answers)))
        return rows


class CascadeAnswer:
    """Answers of a run's cascade, watched for drift, by an evaluating ensemble on its device."""

    def __init__(self, ensemble: Ensemble, stored: StoredCascade) -> None:
        stages = ensemble_stages(ensemble, stored.order)
        self._cascade = Cascade(stages, stored.policy, pool=stored.pool)
        self._monitor = PassThroughMonitor(stored.reached, calibrated=stored.images)
        self._ood_threshold = stored.ood_threshold

    def rows(self, images: Tensor, classes: Sequence[str]) -> Iterator[Row]:
        """Answer a batch of normalised images, one row per image."""
        answers = self._cascade(images)
        self._monitor.watch(answers)
        columns = (answers.predicted, answers.confidence, answers.accepted, answers.stage)
        for index, confidence, accepted, stage in zip(*(c.tolist() for c in columns), strict=True):
            yield {
                "class": classes[index],
                "confidence": confidence,
                "decision": "accept" if accepted else "abstain",
                "ood": "yes" if confidence < self._ood_threshold else "no",
                "stage": stage,
            }


def _answers(logits: Tensor, classes: tuple[str, ...]) -> Iterator[Row]:
    values = sample_values(logits)
    indices = mixture_log_probs(logits).argmax(-1).tolist()
    scores = [values.confidence, values.entropy, values.mutual_information]
    columns = [column.double().tolist() for column in scores]
    for index, *each in zip(indices, *columns, strict=True):
        yield {"class": classes[index], **dict(zip(SCORES, each, strict=True))}
