"""A user's images through a trained run: class, confidence and uncertainty of each."""

import csv
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from ..datasets import list_images, normalize, read_image
from ..ensembles import Ensemble
from ..metrics.mixture import mixture_log_probs
from ..metrics.samples import sample_values
from .devices import compute_device
from .methods import ImageFormat
from .progress import Display
from .run import Run, whole_file
from .weights import load_ensemble

BATCH = 256
COLUMNS = ("path", "class", "confidence", "entropy", "mutual_information", "error")


def predict(run: Run, images: str, out: Path, *, display: Display) -> list[str]:
    """Classify every image of a folder and write one row an image, in the order of their paths.

    Columns: path; class (its name); confidence, the mixture's highest probability; entropy of the
    mixture and mutual information, in nats, higher is more uncertain; error, why an image could
    not be read, in which case the others are empty.

    Args:
        run: A trained run.
        images: ``folder:PATH``; every image below the folder.
        out: A .csv or .parquet file, written whole or not at all.
        display: Where progress is shown.

    Returns:
        One line for each image that could not be read; the others have their answers.

    Raises:
        ValueError: An unknown kind of images or of file, or a folder without images.
    """
    kind, _, folder = images.partition(":")
    if kind != "folder" or not folder:
        raise ValueError(f"images must be given as folder:PATH, got {images!r}")
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"out must end in .csv or .parquet, got {str(out)!r}")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            "writing Parquet needs pyarrow: pip install 'deepens[parquet]', or write .csv"
        )
    ensemble, form = load_ensemble(run)
    paths = list_images(Path(folder))
    ensemble.to(compute_device(run.config))
    errors: list[str] = []
    with (
        display.task(f"predict {folder}", len(paths)) as task,
        whole_file(out) as aside,
        _Table(aside, out.suffix) as table,
    ):
        for start in range(0, len(paths), BATCH):
            rows = _classify(ensemble, form, paths[start : start + BATCH])
            table.write(rows)
            for row in rows:
                errors += [row["error"]] if row["error"] else []
                task.advance()
    return errors


def _classify(ensemble: Ensemble, form: ImageFormat, paths: list[Path]) -> list[dict[str, Any]]:
    read: list[Tensor | str] = []
    for path in paths:
        try:
            read.append(read_image(path, channels=form.channels, size=form.size))
        except (ValueError, OSError) as error:
            line = str(error)
            read.append(printable(line if str(path) in line else f"{path}: {line}"))
    pixels = [each for each in read if isinstance(each, Tensor)]
    answers = iter(_answers(ensemble, form, torch.stack(pixels)) if pixels else [])
    rows = []
    for path, each in zip(paths, read, strict=True):
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"path": printable(path), "error": ""}
        if isinstance(each, Tensor):
            index, *scores = next(answers)
            row |= {"class": form.classes[int(index)]}
            row |= dict(zip(COLUMNS[2:5], scores, strict=True))
        else:
            row["error"] = each
        rows.append(row)
    return rows


def printable(text: object) -> str:
    """Text that can be written as UTF-8: bytes of a file's name that are none are escaped."""
    return os.fsencode(str(text)).decode("utf-8", "backslashreplace")


def _answers(ensemble: Ensemble, form: ImageFormat, pixels: Tensor) -> Iterator[list[float]]:
    device = next(ensemble.parameters()).device
    inputs = normalize(pixels.to(device), mean=form.mean, std=form.std)
    with torch.inference_mode():
        logits = ensemble(inputs).float().cpu()
    values = sample_values(logits)
    index = mixture_log_probs(logits).argmax(-1)
    columns = [index, values.confidence, values.entropy, values.mutual_information]
    yield from torch.stack([column.double() for column in columns], dim=1).tolist()


class _Table:
    """Rows to a CSV or a Parquet file, batch by batch."""

    def __init__(self, path: Path, suffix: str) -> None:
        self._path, self._suffix = path, suffix
        self._text: TextIO | None = None
        self._writer: Any = None

    def __enter__(self) -> "_Table":
        if self._suffix == ".csv":
            self._text = self._path.open("w", encoding="utf-8", newline="")
            self._writer = csv.DictWriter(self._text, COLUMNS, lineterminator="\n")
            self._writer.writeheader()
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            kinds = [
                pa.string() if c in ("path", "class", "error") else pa.float64() for c in COLUMNS
            ]
            schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
            self._writer = pq.ParquetWriter(self._path, schema)
        return self

    def write(self, rows: list[dict[str, Any]]) -> None:
        if self._suffix == ".csv":
            self._writer.writerows(rows)
        else:
            import pyarrow as pa

            self._writer.write_table(pa.Table.from_pylist(rows, schema=self._writer.schema))

    def __exit__(self, *exception: object) -> None:
        (self._text or self._writer).close()
