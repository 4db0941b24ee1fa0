"""What an image set holds, in words and in a picture."""

import dataclasses

import numpy as np
import pytest
import torch
from deepens.datasets import ImageFiles, Split, Splits, load
from deepens.experiments.cli import contact_sheet as sheets
from deepens.experiments.cli.contact_sheet import chosen, contact_sheet
from deepens.experiments.cli.describe_data import describe, run_data
from deepens.experiments.cli.options import DataConfig
from deepens.experiments.cli.text_tables import plain
from PIL import Image


def _split(counts, size=(8, 8), channels=1):
    """Each image is flat, of the grey level 10 times its class + 10."""
    targets = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)]).long()
    levels = (10 * targets + 10).to(torch.uint8)
    return Split(levels[:, None, None, None].repeat(1, channels, *size), targets)


def _refuse():
    raise AssertionError("a split was made")


def _splits(train=(30, 20, 10), test=(4, 4, 4), classes=("cat", "dog", "eel"), **others):
    made = {"train": _split(train), "test": _split(test), **others}
    return Splits("toy", classes, made, (0.25,), (0.5,), caveat="Only a toy.")


def _line(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def _cells(text, start):
    return [cell for cell in _line(text, start).split("  ") if cell]


def test_sizes_classes_moments_and_caveat_are_said():
    text = describe(_splits())
    assert text.splitlines()[0] == "toy: 3 classes, 8 x 8 pixels, grey"
    assert _line(text, "classes") == "classes: cat, dog, eel"
    assert _line(text, "mean") == "mean: 0.2500; standard deviation: 0.5000 (0 to 1)"
    assert _line(text, "caveat") == "caveat: Only a toy."
    noted = dataclasses.replace(_splits(), notes=("3 images were left out.",))
    assert _line(describe(noted), "note") == "note: 3 images were left out."


def test_balance_is_the_ratio_of_the_largest_class_to_the_smallest():
    text = describe(_splits())
    balance = text[text.index("balance") : text.index("\n\nclass ")]
    train = [cell.strip() for cell in _cells(balance, "train")]
    assert train == ["train", "3.00", "eel (10)", "cat (30)"]
    test = [cell.strip() for cell in _cells(balance, "test")]
    assert test == ["test", "1.00", "every class (4)", "every class (4)"]
    empty = describe(_splits(test=(4, 0, 2)))
    assert "undefined" in empty
    assert "dog (0)" in empty


def test_classes_are_counted_one_by_one_while_they_are_few():
    text = describe(_splits())
    counts = text[text.index("class ") :]
    assert _line(counts, "dog").split() == ["dog", "20", "4"]
    many = tuple(f"kind{index}" for index in range(21))
    text = describe(_splits(train=(2,) * 21, test=(1,) * 21, classes=many))
    assert "kind19" in text
    assert "kind20" not in text
    assert "and 1 more" in _line(text, "  kind")


def test_number_of_classes_present_is_said_of_each_split():
    text = describe(_splits(test=(4, 0, 2)))
    splits = text[: text.index("balance")]
    assert _line(splits, "train").split()[1:] == ["60", "3", "in", "memory"]
    assert _line(splits, "test").split()[1:] == ["6", "2", "in", "memory"]


def test_nothing_is_made_for_the_description():
    few = {f"shift/fog/{severity}": _refuse for severity in (1, 2)}
    text = describe(_splits(**few, **{"far_ood/noise": _refuse}))
    assert _line(text, "shift/fog/2").split()[1:] == ["12", "3", "made", "from", "test"]
    assert _line(text, "far_ood/noise").split()[1:] == ["made", "when", "asked", "for"]
    many = {f"shift/{kind}/{level}": _refuse for kind in "abcde" for level in range(1, 6)}
    text = describe(_splits(**many))
    start = "shift: 5 corruptions x 5 severities"
    assert _line(text, start).removeprefix(start).split() == ["12", "3", "made", "from", "test"]
    assert "shift/a" not in text


def test_what_is_read_from_disk_is_said_and_not_read(tmp_path):
    files = ImageFiles((tmp_path / "no.png", tmp_path / "such.png"), 1, (8, 8))
    text = describe(_splits(**{"near_ood/there": Split(files, None)}))
    assert _line(text, "near_ood/there").split()[1:] == ["2", "read", "from", "disk"]


def test_names_that_cannot_be_printed_are_escaped_and_long_ones_cut():
    assert plain("a\nb\x1b[31m\udcff") == r"a\nb\x1b[31m\udcff"
    assert plain("über 猫") == "über 猫"
    assert len(plain("x" * 100)) == 32
    assert plain("x" * 100).endswith("…")


def test_columns_stand_under_each_other_for_signs_two_columns_wide():
    text = describe(_splits(classes=("猫猫", "dog", "eel")))
    counts = text[text.index("class ") :]
    assert _line(counts, "猫猫") == "猫猫      30     4"
    assert _line(counts, "dog") == "dog       20     4"


def _blocks(sheet):
    """Rows of images: for each, the levels of its columns (paper is 255, text stands left)."""
    pixels = np.asarray(sheet.convert("L")).astype(int)
    right = pixels.shape[1] - sheets.MARGIN - sheets.GAP - 10
    columns = range(right - (sheets.IMAGES - 1) * (48 + sheets.GAP), right + 1, 48 + sheets.GAP)
    rows, y = [], 0
    while y + 24 < len(pixels):
        if (pixels[y : y + 48, columns[0] - 8 : columns[0] + 8] < 200).all():
            rows.append([int(pixels[y + 24, x]) for x in columns])
            y += 48
        else:
            y += 1
    return rows


def test_sheet_has_a_row_of_each_class_shift_and_ood_set():
    far = Split(torch.full((50, 1, 8, 8), 170, dtype=torch.uint8), None)
    near = Split(torch.full((3, 1, 8, 8), 140, dtype=torch.uint8), None)

    def fog():
        return Split(torch.full((12, 1, 8, 8), 90, dtype=torch.uint8), _split((4, 4, 4)).targets)

    shifts = {f"shift/fog/{level}": (fog if level == 3 else _refuse) for level in range(1, 6)}
    sheet = contact_sheet(
        _splits(**shifts, **{"near_ood/near": near, "far_ood/far": (lambda: far)})
    )
    rows = _blocks(sheet)
    assert rows[:2] == [[10] * 12, [20] * 12]
    assert rows[2] == [30] * 10 + [255] * 2  # ten images are all there is
    assert sorted(rows[3]) == [10] * 4 + [20] * 4 + [30] * 4  # test, without a corruption
    assert rows[4] == [90] * 12
    assert rows[5] == [140] * 3 + [255] * 9
    assert rows[6] == [170] * 12
    assert len(rows) == 7


def test_a_class_without_images_has_an_empty_row():
    rows = _blocks(contact_sheet(_splits(train=(2, 0, 2))))
    assert [row[:2] for row in rows] == [[10, 10], [30, 30]]


def test_of_many_classes_ten_are_shown_and_the_sheet_says_so(monkeypatch):
    said = []
    draw = sheets.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        sheets.ImageDraw.ImageDraw,
        "text",
        lambda self, place, text, **how: said.append(text) or draw(self, place, text, **how),
    )
    many = tuple(f"kind{index}" for index in range(24))
    contact_sheet(_splits(train=(2,) * 24, test=(1,) * 24, classes=many))
    shown = [text for text in said if text.startswith("kind")]
    assert len(shown) == len(set(shown)) == 10
    assert any("(10 of 24 classes)" in text for text in said)
    assert shown == sorted(shown, key=lambda name: int(name.removeprefix("kind")))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((8, 8), (48, 48)),
        ((28, 28), (56, 56)),
        ((32, 32), (64, 64)),
        ((64, 64), (64, 64)),
        ((224, 224), (96, 96)),
        ((300, 100), (32, 96)),
        ((5, 80), (80, 5)),
    ],
)
def test_images_are_enlarged_by_whole_factors_and_shrunk_in_proportion(size, shown):
    values = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    found = sheets.resized(Image.fromarray(values))
    assert found.size == shown
    if shown[1] >= size[0]:
        factor = shown[1] // size[0]
        assert np.array_equal(np.asarray(found), values.repeat(factor, 0).repeat(factor, 1))


def test_the_choice_of_images_is_always_the_same():
    assert chosen(range(1000), 4) == chosen(range(1000), 4) == [245, 286, 671, 886]
    assert chosen([7, 3], 12) == [3, 7]
    first, second = contact_sheet(load("digits")), contact_sheet(load("digits"))
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_images_on_disk_are_read_and_drawn_and_no_shift_is_made_of_them(tmp_path):
    paths = tuple(tmp_path / f"{index}.png" for index in range(3))
    for path in paths:
        Image.new("RGB", (8, 8), (200, 0, 0)).save(path)
    split = Split(ImageFiles(paths, 3, (8, 8)), torch.tensor([0, 1, 2]))
    made = {"train": split, "test": split, "shift/fog/3": _refuse}
    sheet = contact_sheet(Splits("toy", ("a", "b", "c"), made, (0.5,) * 3, (0.5,) * 3))
    red = (np.asarray(sheet) == (200, 0, 0)).all(-1)
    assert red.sum() == 3 * 48 * 48


def test_command_prints_the_description_and_writes_the_sheet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_data(DataConfig("digits", quiet=True)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("digits: 8 classes, 8 x 8 pixels, grey\n")
    assert printed.endswith("\ncontact sheet: digits-sheet.png\n")
    with Image.open(tmp_path / "digits-sheet.png") as sheet:
        assert np.array_equal(np.asarray(sheet), np.asarray(contact_sheet(load("digits"))))
    assert [path.name for path in tmp_path.iterdir()] == ["digits-sheet.png"]


def test_a_sheet_that_cannot_be_drawn_leaves_no_file(tmp_path, monkeypatch):
    def broken(self, *arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="no space left"):
        run_data(DataConfig("digits", out=str(tmp_path / "x.png"), quiet=True))
    assert list(tmp_path.iterdir()) == []
