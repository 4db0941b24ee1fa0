"""What data a run or a comparison was made of: a table of its images, and remarks on them."""

import csv
import gzip
import io
import os
from pathlib import Path

from ...datasets import SplitName, Splits
from ...datasets.files import printable, whole_file
from .run import read_json, write_json

IMAGES, DATA = "images.csv.gz", "data.json"


def keep_data_record(path: Path, splits: Splits) -> None:
    """Write what data a directory's results are of.

    ``images.csv.gz`` has a row for each image of each split: split, index (its place in the split
    and in predictions), file (empty where images came from elsewhere) and hash (hexadecimal, of its
    pixels before they were resized: copies share one). Corrupted and encoded copies are left out.
    ``data.json`` has the caveat, cautions and notes, and for each split how many of its images are
    copies of training images.
    """
    names = [name for name in splits if _has_images_of_its_own(name)]
    with (
        whole_file(path / IMAGES) as aside,
        aside.open("wb") as raw,
        # Without a time, so that the same data give the same file.
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["split", "index", "file", "hash"])
        for name in names:
            split = splits[name]
            files = split.paths or [None] * len(split)
            for index, (file, known) in enumerate(
                zip(files, split.contents().tolist(), strict=True)
            ):
                where = "" if file is None else printable(os.path.abspath(file))
                table.writerow([name, index, where, f"{known % 2**64:016x}"])
    content: dict[str, object] = {
        "data": splits.name,
        "caveat": splits.caveat,
        "cautions": splits.cautions,
        "notes": splits.notes,
    }
    if "train" in splits:
        copies = {name: splits.copies(name) for name in names if name != "train"}
        content["copies_of_training_images"] = copies
    write_json(path / DATA, content)


def data_remarks(path: Path) -> list[str]:
    """Cautions and notes of a directory's data, each with what it is; none of earlier versions."""
    if not (path / DATA).exists():
        return []
    content = read_json(path / DATA)
    kinds = {"caution": content.get("cautions"), "note": content.get("notes")}
    return [f"{kind}: {line}" for kind, lines in kinds.items() for line in lines or ()]


def _has_images_of_its_own(name: str) -> bool:
    parsed = SplitName.parse(name)
    return not parsed.is_shift and not parsed.encoded
