"""A picture of an image set: some images of each class, shift and OOD set, with their names."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...datasets import ImageFiles, Split, SplitName, Splits
from .letters import font_of, undrawn
from .text_tables import plain

CLASSES = 10
IMAGES = 12
"""Images of a row."""
SEVERITY = 3
SMALLEST, LARGEST = 48, 96
"""Pixels of an image's side in the sheet."""
TITLE_SIZE, TEXT_SIZE = 18, 13
LABEL_WIDTH = 220
"""The most; longer names are cut."""
GAP, MARGIN = 4, 16
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)


@dataclass(frozen=True)
class Row:
    """Images of one kind and one size, grey or RGB, with a name and a note in small print."""

    name: str
    note: str
    images: tuple[Image.Image, ...]


def contact_sheet(splits: Splits) -> Image.Image:
    """Draw some images of each class, each corruption and each OOD set.

    Which images are shown depends on their positions alone, so that the same data gives the same
    sheet. Shifted images are drawn where they are made of images in memory.
    """
    part, classes = "train" if "train" in splits else "test", splits.num_classes
    source = "training" if part == "train" else part
    some = f" ({CLASSES} of {classes} classes)" if classes > CLASSES else ""
    sections = [
        (f"Classes, {source} images{some}", list(_class_rows(splits, splits[part]))),
        (f"Test images under shift, severity {SEVERITY} of 5", list(_shift_rows(splits))),
        ("Near out of distribution", list(_ood_rows(splits, "near_ood"))),
        ("Far out of distribution", list(_ood_rows(splits, "far_ood"))),
    ]
    height, width = splits.image_size
    title = f"{plain(splits.name)}: {classes} classes, {width} x {height} pixels"
    return _draw(title, [(name, rows) for name, rows in sections if rows])


def chosen(positions: Sequence[int], count: int) -> list[int]:
    """Choose some positions by their SHA-256, which no platform changes; ascending."""
    by_hash = sorted(positions, key=lambda each: hashlib.sha256(str(each).encode()).digest())
    return sorted(by_hash[:count])


def _class_rows(splits: Splits, split: Split) -> Iterator[Row]:
    if split.targets is None:
        return
    for label in chosen(range(splits.num_classes), CLASSES):
        found = (split.targets == label).nonzero().flatten().tolist()
        images = tuple(_images(split, chosen(found, IMAGES)))
        yield Row(plain(splits.classes[label]), f"{len(found):,} images", images)


def _shift_rows(splits: Splits) -> Iterator[Row]:
    if "test" not in splits or not splits["test"].resident:
        return
    positions = chosen(range(len(splits["test"])), IMAGES)
    parsed = [SplitName.parse(name) for name in splits.names("shift")]
    shifts = [name for name in parsed if name.severity == SEVERITY]
    if shifts:
        yield Row("no corruption", "", tuple(_images(splits["test"], positions)))
    for name in shifts:
        corruption = name.name.replace("_", " ")
        yield Row(plain(corruption), "", tuple(_images(splits[str(name)], positions)))


def _ood_rows(splits: Splits, kind: Literal["near_ood", "far_ood"]) -> Iterator[Row]:
    for name in splits.names(kind):
        split = splits[name]
        images = tuple(_images(split, chosen(range(len(split)), IMAGES)))
        parsed = SplitName.parse(name)
        label = f"{parsed.name} (encoded)" if parsed.encoded else parsed.name
        yield Row(plain(label), f"{len(split):,} images", images)


def _images(split: Split, positions: list[int]) -> Iterator[Image.Image]:
    if not positions:
        return
    some = split.images[torch.tensor(positions)]
    pixels = some.load() if isinstance(some, ImageFiles) else some
    for each in pixels:
        yield resized(_picture(each))


def _picture(pixels: Tensor) -> Image.Image:
    values = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    return Image.fromarray(values[..., 0] if len(pixels) == 1 else values)


def resized(image: Image.Image) -> Image.Image:
    """Enlarge a small image by a whole factor, pixel by pixel; shrink a large one in proportion."""
    if max(image.size) > LARGEST:
        shrink = LARGEST / max(image.size)
        size = tuple(max(1, round(side * shrink)) for side in image.size)
        return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    factor = max(1, min(-(-SMALLEST // min(image.size)), LARGEST // max(image.size)))
    size = tuple(side * factor for side in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.NEAREST)


def _draw(title: str, sections: list[tuple[str, list[Row]]]) -> Image.Image:
    shown = [image for _, section in sections for row in section for image in row.images]
    cell = (max(image.width for image in shown), max(image.height for image in shown))
    across, down = cell[0] + GAP, cell[1] + GAP
    bold = font_of(title, TITLE_SIZE)
    rows = [row for _, section in sections for row in section]
    longest = max(_length(line) for row in rows for line in (row.name, row.note))
    label_width = min(LABEL_WIDTH, math.ceil(longest) + MARGIN)
    needed = [label_width + IMAGES * across, bold.getlength(title)]
    needed += [_length(name) for name, _ in sections]
    width = 2 * MARGIN + math.ceil(max(needed))
    heading = TITLE_SIZE + MARGIN
    height = 2 * MARGIN + heading + len(sections) * (heading + MARGIN // 2) + len(rows) * down
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=bold)
    top = MARGIN + heading
    for name, section in sections:
        top += MARGIN // 2
        heading_font = font_of(name, TEXT_SIZE)
        draw.text((MARGIN, top + MARGIN // 2), name, fill=FAINT, font=heading_font)
        draw.line((MARGIN, top, width - MARGIN, top), fill=(220, 220, 220))
        top += heading
        for row in section:
            lines = [row.name, row.note] if row.note else [row.name]
            line_height = TEXT_SIZE + 5
            start = top + (cell[1] - line_height * len(lines)) // 2
            for number, line in enumerate(lines):
                place = (MARGIN, start + number * line_height)
                font = font_of(line, TEXT_SIZE)
                short = _elided(line, label_width - MARGIN)
                draw.text(place, short, fill=FAINT if number else INK, font=font)
            for column, image in enumerate(row.images):
                sheet.paste(image, (MARGIN + label_width + column * across, top))
            top += down
    return sheet


def _length(line: str) -> float:
    return font_of(line, TEXT_SIZE).getlength(line)


def _elided(line: str, width: int) -> str:
    font = font_of(line, TEXT_SIZE)
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def boxes(splits: Splits) -> str:
    """The letters of names that a contact sheet shows as boxes, since no font has them."""
    names = (*splits.classes, *(SplitName.parse(name).name for name in splits))
    return undrawn([plain(splits.name), *map(plain, names)])
