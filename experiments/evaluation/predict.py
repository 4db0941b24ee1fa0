"""A user's images through a trained run: class, confidence and uncertainty of each."""

import functools
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...datasets import normalize, read_image
from ...datasets.files import whole_file
from ...datasets.image_files import count_images, iterate_images
from ...datasets.image_format import ImageFormat
from ...datasets.options import folder_path
from ...ensembles import Ensemble
from ...ensembles.policies import Cascade, PassThroughMonitor, ensemble_stages
from ...metrics.core.mixture import mixture_log_probs
from ...metrics.samples import sample_values
from ..config import Recipe
from ..store.progress import Display
from ..store.run import Run
from ..training.devices import compute_device, suitable_threads, threads
from ..training.weights import load_ensemble
from .cascade import StoredCascade
from .read_ahead import available_cores, read_ahead
from .table_writer import Row, check_table_file, open_table

if TYPE_CHECKING:
    import pandas

BATCH = 256
BATCH_BYTES = 2**26
"""A batch of large images has fewer: what is in memory is a few times this."""
BATCHES_AHEAD = 2
MOST_READERS = 16
LISTED = 20
"""Bad images that are named one by one."""

SCORES = ("confidence", "entropy", "mutual_information")
COLUMNS = {"path": str, "class": str, **dict.fromkeys(SCORES, float), "error": str}
CASCADE_COLUMNS = {
    **{"path": str, "class": str, "confidence": float, "decision": str, "ood": str},
    **{"stage": int, "error": str},
}

Read = tuple[Path, Tensor | str]
"""A file, and its pixels or why it could not be read."""


@dataclass
class BadImages:
    """Images that could not be read: how many, and a line for each of the first.

    Attributes:
        count: How many.
        first: Why each of the first could not be read, its path named.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Count one more."""
        self.count += 1
        if self.count <= LISTED:
            self.first.append(line)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        yield from self.first
        if more := self.count - len(self.first):
            yield f"… and {more} more"


def predict(
    run: Run,
    images: Path | str,
    *,
    cascade: StoredCascade | None = None,
    display: Display | None = None,
) -> "pandas.DataFrame":
    """Classify every image of a folder: class, confidence and uncertainty of each.

    Use it in a notebook; `predict_folder` writes tables of any size to a file.

    Args:
        run: A trained run.
        images: The folder, also as ``folder:PATH``.
        cascade: As of `predict_folder`.
        display: Where progress is shown; nowhere by default.

    Returns:
        A row per image, with the columns that `predict_folder` names.

    Raises:
        ValueError: A folder without images.
    """
    import pandas

    if folder_path(str(images)) is None:
        images = f"folder:{images}"
    answer = Answer.of(run, cascade)
    rows = itertools.chain.from_iterable(_answers_of(str(images), answer, display))
    return pandas.DataFrame(rows, columns=list(answer.columns))


def predict_folder(
    run: Run,
    images: str,
    out: Path,
    *,
    display: Display | None = None,
    skip_bad_images: bool = False,
    cascade: StoredCascade | None = None,
) -> BadImages:
    """Classify every image of a folder and write one row per image, in the order of their paths.

    Columns: path; class (its name); confidence, the mixture's highest probability; entropy of the
    mixture and mutual information, in nats, higher is more uncertain; error, why an image could
    not be read, in which case the others are empty. With a cascade: path; class; confidence, by
    which it decides; decision, accept or abstain; ood, yes for an image less confident than 95 % of
    the calibration images; stage, how many members ran on the image; error.

    Images are read ahead in threads while the network works on the batch before. Only a few
    batches are ever in memory, whatever the number of images.

    Args:
        run: A trained run.
        images: ``folder:PATH``; every image below the folder.
        out: A .csv or .parquet file, written whole or not at all.
        display: Where progress is shown; nowhere by default.
        skip_bad_images: Leave out the rows of images that could not be read.
        cascade: Answer by a cascade of the run's members; it warns where images pass from member
            to member less or more often than those on which it was calibrated.

    Returns:
        The images that could not be read; the others have their answers.

    Raises:
        ValueError: An unknown kind of images or of file, or a folder without images.
    """
    check_table_file(out)
    answer = Answer.of(run, cascade)
    bad = BadImages()
    with (
        closing(_answers_of(images, answer, display)) as batches,
        whole_file(out) as aside,
        open_table(aside, answer.columns) as table,
    ):
        for rows in batches:
            for row in rows:
                if row["error"]:
                    bad.add(str(row["error"]))
            table.write([row for row in rows if not (skip_bad_images and row["error"])])
    return bad


def _answers_of(
    images: str, answer: "Answer", display: Display | None
) -> Generator[list[Row], None, None]:
    """The rows of each batch of a folder's images, with progress."""
    folder = folder_path(images)
    if folder is None:
        raise ValueError(f"images must be given as folder:PATH, got {images!r}")
    display = display or Display(quiet=True)
    total = count_images(folder)
    with (
        threads(answer.threads),
        display.task(f"predict {folder}", total) as task,
        closing(read_batches(iterate_images(folder), answer.form)) as batches,
    ):
        for rows in answer.rows(batches):
            for _ in rows:
                task.advance()
            yield rows


def batch_size(form: ImageFormat) -> int:
    """Images of a batch: 256, or fewer where they are large."""
    channels, height, width = form.shape
    return max(1, min(BATCH, BATCH_BYTES // (channels * height * width)))


def read_batches(paths: Iterable[Path], form: ImageFormat) -> Generator[list[Read], None, None]:
    """Read files ahead, in threads, and yield them in order, in whole batches."""
    size = batch_size(form)
    readers = min(available_cores(), MOST_READERS)
    read_one = functools.partial(read, form=form)
    with closing(
        read_ahead(paths, read_one, readers=readers, ahead=BATCHES_AHEAD * size)
    ) as images:
        while batch := list(itertools.islice(images, size)):
            yield batch


def read(path: Path, *, form: ImageFormat) -> Tensor | str:
    """Read an image as a network takes it; of one that cannot be read, say why."""
    try:
        return read_image(path, channels=form.channels, size=form.size)
    except (ValueError, OSError) as error:
        line = str(error)
        return printable(line if str(path) in line else f"{path}: {line}")


def printable(text: object) -> str:
    """Text that can be written as UTF-8: bytes of a file's name that are none are escaped."""
    return os.fsencode(str(text)).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Answer:
    """A trained ensemble that turns batches of images into rows.

    Attributes:
        ensemble: On its device, in evaluation mode.
        form: The images that it takes.
        channels_last: Memory layout of the images.
        threads: Threads that suit its batches; None is torch's own number.
        cascade: What answers instead of all members, if anything.
    """

    ensemble: Ensemble
    form: ImageFormat
    channels_last: bool
    threads: int | None
    cascade: "CascadeAnswer | None" = None

    @classmethod
    def of(cls, run: Run, cascade: StoredCascade | None = None) -> "Answer":
        """As the run's evaluation computes, so that an image gets the same answer from both."""
        return cls.by(*load_ensemble(run), run.config, cascade)

    @classmethod
    def by(
        cls,
        ensemble: Ensemble,
        form: ImageFormat,
        config: Recipe,
        cascade: StoredCascade | None = None,
    ) -> "Answer":
        """With an ensemble in evaluation mode, which is moved to its device."""
        count = suitable_threads(ensemble.member(0), form, config.batch_size)
        ensemble.to(compute_device(config))
        if config.channels_last:
            ensemble.to(memory_format=torch.channels_last)
        by_cascade = None if cascade is None else CascadeAnswer(ensemble, cascade)
        return cls(ensemble, form, config.channels_last, count, by_cascade)

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

    def _start(self, pixels: list[Tensor]) -> "Callable[[], Iterator[Row]]":
        """Set the network to work; what is returned waits for its answers."""
        if not pixels:
            return lambda: iter(())
        device = next(self.ensemble.parameters()).device
        images, cuda = torch.stack(pixels), device.type == "cuda"
        images = (images.pin_memory() if cuda else images).to(device, non_blocking=True)
        mean, std = self.form.mean, self.form.std
        inputs = normalize(images, mean=mean, std=std, channels_last=self.channels_last)
        if self.cascade is not None:  # which waits after each stage anyway
            rows = list(self.cascade.rows(inputs, self.form.classes))
            return lambda: iter(rows)
        with torch.inference_mode():
            logits = self.ensemble(inputs).float().to("cpu", non_blocking=True)
        if not cuda:
            return lambda: _answers(logits, self.form.classes)
        arrived = torch.cuda.current_stream(device).record_event()

        def wait() -> Iterator[Row]:
            arrived.synchronize()
            return _answers(logits, self.form.classes)

        return wait

    def _finish(
        self, errors: list[tuple[Path, str]], wait: "Callable[[], Iterator[Row]]"
    ) -> list[Row]:
        answers = wait()
        rows: list[Row] = []
        for path, error in errors:
            row: dict[str, str | float | int | None] = dict.fromkeys(self.columns)
            row |= {"path": printable(path), "error": error}
            rows.append(row if error else row | dict(next(answers)))
        return rows


class CascadeAnswer:
    """Answers of a run's cascade, watched for drift.

    Args:
        ensemble: On its device, in evaluation mode.
        stored: The cascade.
    """

    def __init__(self, ensemble: Ensemble, stored: StoredCascade) -> None:
        stages = ensemble_stages(ensemble, stored.order)
        self._cascade = Cascade(stages, stored.policy, pool=stored.pool)
        self._monitor = PassThroughMonitor(stored.reached, calibrated=stored.images)
        self._ood_threshold = stored.ood_threshold

    def rows(self, images: Tensor, classes: Sequence[str]) -> Iterator[Row]:
        """Answer a batch of normalised images, a row each."""
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
