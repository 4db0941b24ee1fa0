"""A user's images through a trained run: class, confidence and uncertainty of each."""

import functools
import glob
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ...datasets import read_image
from ...datasets.files import whole_file
from ...datasets.image_files import count_images, iterate_images, passed_over
from ...datasets.image_format import ImageFormat
from ...datasets.options import at_home, folder_path
from ..store.progress import Display
from ..store.run import Run
from ..training.devices import threads
from .answers import Answer, Read, printable
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


@dataclass
class BadImages:
    """Images that could not be read: their number, and one line for each of the first."""

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
    images: Path | str | Sequence[str],
    *,
    cascade: StoredCascade | None = None,
    display: Display | None = None,
) -> "pandas.DataFrame":
    """Classify images: class, confidence and uncertainty of each.

    Use it in a notebook; `predict_folder` writes tables of any size to a file.

    Args:
        run: A trained run.
        images: As of `find_images`.
        cascade: As of `predict_folder`.
        display: Where progress is shown; nowhere by default.

    Returns:
        A row per image, with the columns that `predict_folder` names.

    Raises:
        ValueError: A folder without images.
    """
    import pandas

    given = str(images) if isinstance(images, Path | str) else images
    files = find_images(given)
    answer = Answer.of(run, cascade)
    rows = itertools.chain.from_iterable(_answers_of(files, given, answer, display))
    return pandas.DataFrame(rows, columns=list(answer.columns))


def predict_folder(
    run: Run,
    images: str | Sequence[str],
    out: Path,
    *,
    display: Display | None = None,
    skip_bad_images: bool = False,
    cascade: StoredCascade | None = None,
) -> BadImages:
    """Classify images and write one row per image, in the order of their paths.

    Columns: path; class (its name); confidence, the mixture's highest probability; entropy of the
    mixture and mutual information, in nats, higher is more uncertain; error, why an image could not
    be read, in which case the others are empty. With a cascade: path; class; confidence, by which
    it decides; decision, accept or abstain; ood, yes for an image less confident than 95 % of the
    calibration images; stage, how many members ran on the image; error.

    Images are read ahead in threads; only a few batches are ever in memory.

    Args:
        run: A trained run.
        images: As of `find_images`.
        out: A .csv or .parquet file, written whole or not at all.
        display: Where progress is shown; nowhere by default.
        skip_bad_images: Leave out the rows of images that could not be read.
        cascade: Answer by a cascade of the run's members; it warns where images pass from member to
            member less or more often than those on which it was calibrated.

    Returns:
        The images that could not be read.

    Raises:
        ValueError: An unknown kind of images or of file, or a folder without images.
    """
    check_table_file(out)
    files = find_images(images)
    answer = Answer.of(run, cascade)
    bad = BadImages()
    with (
        closing(_answers_of(files, images, answer, display)) as batches,
        whole_file(out) as aside,
        open_table(aside, answer.columns) as append,
    ):
        for rows in batches:
            for row in rows:
                if row["error"]:
                    bad.add(str(row["error"]))
            append([row for row in rows if not (skip_bad_images and row["error"])])
    return bad


Images = tuple[int, Callable[[], Iterable[Path]]]
"""The number of a user's images, and what lists them."""


def find_images(images: str | Sequence[str]) -> Images:
    """A user's images: those below a folder, a file, or the files of a pattern such as ``a/*``.

    A folder may be given as ``folder:PATH`` too. Of several of these, the images of each follow one
    another. A ValueError says that there are none, and a RuntimeWarning which files of a folder are
    not read as images.
    """
    if not isinstance(images, str):
        each = [find_images(one) for one in images]
        total = sum(number for number, _ in each)
        return total, lambda: itertools.chain.from_iterable(files() for _, files in each)
    path = folder_path(images) or at_home(images)
    if path.is_dir():
        passed: Counter[str] = Counter()
        total = count_images(path, passed=passed)
        if other := passed_over(passed):
            warnings.warn(f"{path}: {other[0]}", RuntimeWarning, stacklevel=3)
        return total, functools.partial(iterate_images, path)
    if path.is_file():
        return 1, lambda: [path]
    found = [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]
    if files := [each for each in found if each.is_file()]:
        return len(files), lambda: files
    raise ValueError(
        f"images must be a folder, a file or a pattern such as 'photos/*.jpg', got {images!r}: "
        "not found"
    )


def _answers_of(
    found: Images, given: str | Sequence[str], answer: Answer, display: Display | None
) -> Generator[list[Row], None, None]:
    """The rows of each batch of images, with progress."""
    display = display or Display(quiet=True)
    total, files = found
    paths = [given] if isinstance(given, str) else given
    name = paths[0] if len(paths) == 1 else f"{len(paths)} paths"
    with (
        threads(answer.threads),
        display.task(f"predict {name}", total) as task,
        closing(read_batches(files(), answer.image_format)) as batches,
    ):
        for rows in answer.rows(batches):
            for _ in rows:
                task.advance()
            yield rows


def batch_size(image_format: ImageFormat) -> int:
    """Images of a batch: 256, or fewer where they are large."""
    channels, height, width = image_format.shape
    return max(1, min(BATCH, BATCH_BYTES // (channels * height * width)))


def read_batches(
    paths: Iterable[Path], image_format: ImageFormat
) -> Generator[list[Read], None, None]:
    """Read files ahead, in threads, and yield them in order, in whole batches."""
    size = batch_size(image_format)
    readers = min(available_cores(), MOST_READERS)
    read_one = functools.partial(read, image_format=image_format)
    ahead = BATCHES_AHEAD * size
    with closing(read_ahead(paths, read_one, readers=readers, ahead=ahead)) as images:
        while batch := list(itertools.islice(images, size)):
            yield batch


def read(path: Path, *, image_format: ImageFormat) -> Tensor | str:
    """Read an image in the format of the network, or return why it cannot be read."""
    try:
        return read_image(path, channels=image_format.channels, size=image_format.size)
    except (ValueError, OSError) as error:
        line = str(error)
        return printable(line if str(path) in line else f"{path}: {line}")
