"""What an image set holds: its splits, sizes, classes and balance, in words and in a picture."""

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from rich.cells import cell_len

from ...datasets import Split, SplitName, Splits, load
from ...datasets.files import whole_file
from ..store.progress import Display
from .options import DataConfig
from .text_tables import plain

CLASSES_COUNTED = 20
"""Most classes for which every count is shown."""
SHIFTS_LISTED = 20
"""Most shift splits that are named one by one."""
TEXT_WIDTH = 100


def run_data(config: DataConfig) -> int:
    """Print what an image set holds, and write its contact sheet."""
    # Imported here: it draws with matplotlib's letters, which the description does not need.
    from .contact_sheet import boxes, contact_sheet

    file = config.file()
    splits = load(config, watcher=Display(quiet=config.quiet))
    width = min(TEXT_WIDTH, shutil.get_terminal_size((TEXT_WIDTH, 24)).columns)
    print(describe(splits, width=width), flush=True)
    sheet = contact_sheet(splits)
    with whole_file(file) as aside:
        sheet.save(aside, format="PNG")
    print(f"\ncontact sheet: {file}")
    if letters := boxes(splits):
        some = letters[:10] + "…" * (len(letters) > 10)
        print(
            f"{len(letters)} letters are boxes in it ({some}): no installed font has them; install "
            "one, such as Noto Sans CJK"
        )
    return 0


def describe(splits: Splits, *, width: int = TEXT_WIDTH) -> str:
    """Describe an image set in plain text; splits that are made on demand are not made for it."""
    sizes = _aligned(["split", "images", "classes", "kept"], _split_rows(splits))
    tables = (*sizes, "", *_balance(splits), *_counts(splits))
    return "\n".join([*_head(splits, width), "", *tables, *_remarks(splits, width)])


def _head(splits: Splits, width: int) -> Iterator[str]:
    height, across = splits.image_size
    colour = {1: "grey", 3: "RGB"}.get(splits.channels, f"{splits.channels} channels")
    form = f"{across} x {height} pixels, {colour}"
    yield f"{plain(splits.name)}: {splits.num_classes} classes, {form}"
    names = [plain(name) for name in splits.classes[:CLASSES_COUNTED]]
    more = splits.num_classes - len(names)
    listed = ", ".join(names) + (f" and {more} more" if more else "")
    yield from _wrapped(f"classes: {listed}", width)
    mean, std = (" ".join(f"{each:.4f}" for each in moment) for moment in (splits.mean, splits.std))
    yield f"mean: {mean}; standard deviation: {std} (0 to 1)"


def _split_rows(splits: Splits) -> Iterator[list[str]]:
    shifts = splits.names("shift")
    together = len(shifts) > SHIFTS_LISTED
    for name in splits:
        if not (together and name in shifts):
            yield [name, *_cells(splits, name)]
        elif name == shifts[0]:
            parsed = [SplitName.parse(shift) for shift in shifts]
            corruptions = {shift.name for shift in parsed}
            severities = {shift.severity for shift in parsed}
            label = f"shift: {len(corruptions)} corruptions x {len(severities)} severities"
            yield [label, *_cells(splits, name)]


def _cells(splits: Splits, name: str) -> list[str]:
    split = splits.splits[name]
    if isinstance(split, Split):
        kept = "in memory" if split.resident else "read from disk"
    elif SplitName.parse(name).is_shift and "test" in splits:
        split, kept = splits["test"], "made from test"
    else:
        return ["", "", "made when asked for"]
    present = "" if split.targets is None else str(len(split.targets.unique()))
    return [f"{len(split):,}", present, kept]


def _balance(splits: Splits) -> Iterator[str]:
    """Smallest and largest class of each part that has labels of its own."""
    rows = []
    for name, counts in _class_counts(splits).items():
        small, large = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        ratio = f"{counts[large] / counts[small]:.2f}" if counts[small] else "undefined"
        ends = [f"{plain(splits.classes[end])} ({counts[end]:,})" for end in (small, large)]
        if counts[small] == counts[large]:
            ends = [f"every class ({counts[small]:,})"] * 2
        rows.append([name, ratio, *ends])
    if rows:
        yield from _aligned(["balance", "ratio", "smallest class", "largest class"], rows)


def _counts(splits: Splits) -> Iterator[str]:
    counts = {name: each for name, each in _class_counts(splits).items() if "/" not in name}
    if counts and splits.num_classes <= CLASSES_COUNTED:
        rows = [
            [plain(name), *(f"{each[index]:,}" for each in counts.values())]
            for index, name in enumerate(splits.classes)
        ]
        yield ""
        yield from _aligned(["class", *counts], rows)


def _class_counts(splits: Splits) -> dict[str, Counter[int]]:
    counts = {}
    for name, split in splits.splits.items():
        shifted = SplitName.parse(name).is_shift
        if isinstance(split, Split) and split.targets is not None and not shifted:
            found = torch.bincount(split.targets, minlength=splits.num_classes).tolist()
            counts[name] = Counter(dict(enumerate(found)))
    return counts


def _remarks(splits: Splits, width: int) -> Iterator[str]:
    remarks = {"caveat": [splits.caveat], "caution": splits.cautions, "note": splits.notes}
    for kind, text in [(kind, text) for kind, texts in remarks.items() for text in texts if text]:
        yield ""
        yield from _wrapped(f"{kind}: {text}", width)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(20, width), subsequent_indent="  ", break_on_hyphens=False)


def _aligned(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Lines of a table; columns of numbers stand to the right."""
    table = [header, *rows]
    columns = []
    for title, *cells in zip(*table, strict=True):
        number = all(re.fullmatch(r"[\d,.]*|undefined", cell) for cell in cells)
        width = max(map(cell_len, (title, *cells)))
        padded = [(cell, " " * (width - cell_len(cell))) for cell in (title, *cells)]
        columns.append([space + cell if number else cell + space for cell, space in padded])
    for line in zip(*columns, strict=True):
        yield "  ".join(line).rstrip()
