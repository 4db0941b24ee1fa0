import csv
import shutil

import numpy as np
import pytest
import torch
from deepens.datasets import DataOptions, Split, Splits, load, stratified_parts
from deepens.datasets.copies import kept_together
from deepens.datasets.partition import VALIDATION_PARTS
from deepens.datasets.sources.decoding import Silent
from image_folders import labelled_folder, write_images
from PIL import Image

LIMITS = pytest.mark.parametrize("limit", [4.0, 0.0], ids=["memory", "disk"])


class Said(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def options(tmp_path):
    def make(root, **changes):
        defaults = {"cache": str(tmp_path / "cache"), "corruptions": ("none",)}
        return DataOptions(f"folder:{root}", **(defaults | changes))

    return make


def _copied(root, times):
    for file in list(root.rglob("*.png")):
        for number in range(times):
            shutil.copy(file, file.with_name(f"{file.stem}_{number}.png"))
    return root


def _hashes(splits, *names):
    return {each for name in names for each in splits[name].contents().tolist()}


@LIMITS
def test_copies_of_a_training_image_are_never_on_both_sides_of_a_cut(tmp_path, options, limit):
    root = labelled_folder(tmp_path / "pets", train=30)
    _copied(root / "train", 3)
    splits = load(options(root, memory_limit=limit))
    parts = ["train", *VALIDATION_PARTS]
    assert sum(len(splits[name]) for name in parts) == 240
    assert sum(len(_hashes(splits, name)) for name in parts) == 60
    assert all(splits.copies(name) == 0 for name in VALIDATION_PARTS)
    (said,) = [note for note in splits.notes if "copies of other training images" in note]
    assert said.startswith("180 of 240 training images")
    assert not splits.cautions


@LIMITS
def test_a_test_part_that_is_cut_and_a_val_that_is_given_are_cut_beside_copies(
    tmp_path, options, limit
):
    for name in ("cat", "dog"):
        write_images(tmp_path / "flat" / name, 30)
    splits = load(options(_copied(tmp_path / "flat", 2), memory_limit=limit))
    assert not _hashes(splits, "test") & _hashes(splits, "train", *VALIDATION_PARTS)
    root = labelled_folder(tmp_path / "pets", val=9)
    _copied(root / "val", 1)
    splits = load(options(root, memory_limit=limit))
    assert sum(len(_hashes(splits, name)) for name in VALIDATION_PARTS) == len(
        _hashes(splits, *VALIDATION_PARTS)
    )


@LIMITS
def test_copies_are_counted_between_every_pair_of_parts(tmp_path, options, limit):
    root = labelled_folder(tmp_path / "pets", val=9)
    near, far = tmp_path / "near", tmp_path / "far"
    for folder in (near, far):
        write_images(folder, 4)
    source = {part: root / part / "cat" / "0000.png" for part in ("train", "test", "val")}
    for part, file in source.items():
        shutil.copy(file, near / f"{part}.png")
    shutil.copy(source["train"], root / "test" / "cat" / "train.png")
    shutil.copy(source["train"], root / "val" / "cat" / "train.png")
    shutil.copy(source["test"], root / "val" / "cat" / "test.png")
    shutil.copy(near / "0000.png", far / "near.png")
    ood = {"near_ood": (f"folder:{near}",), "far_ood": (f"folder:{far}",)}
    splits = load(options(root, memory_limit=limit, **ood))
    counted = {line.partition(", by their pixels")[0] for line in splits.cautions}
    assert counted == {
        "1 of 13 test images are copies of training images",
        # The copies of the training image, in test/ and in val/.
        "2 of 20 validation images are copies of test images",
        "1 of 20 validation images are copies of training images",
        "1 of 7 near images are copies of training images",
        "2 of 7 near images are copies of test images",
        "3 of 7 near images are copies of validation images",
        "1 of 5 far images are copies of near images",
    }


def test_copies_are_known_by_pixels_wherever_the_images_are_and_however_stored(tmp_path, options):
    root = labelled_folder(tmp_path / "pets", size=(12, 12))
    far = write_images(tmp_path / "far", 3, size=(12, 12))
    Image.open(root / "train" / "cat" / "0000.png").save(far[0].with_suffix(".bmp"))
    far[0].unlink()
    limit = 4 * 3 * 12 * 12 / 2**30  # room for the three OOD images, not for the 52 others
    splits = load(options(root, far_ood=(f"folder:{far[0].parent}",), memory_limit=limit))
    assert (splits["train"].resident, splits["far_ood/far"].resident) == (False, True)
    assert any("1 of 3 far images are copies of training" in line for line in splits.cautions)
    assert (
        splits.copies("far_ood/far")
        + sum(splits.copies("far_ood/far", of=name) for name in VALIDATION_PARTS)
        == 1
    )


def test_validation_that_was_given_with_training_images_is_told_apart(tmp_path, options):
    root = labelled_folder(tmp_path / "pets", val=9)
    shutil.rmtree(root / "val")
    shutil.copytree(root / "train", root / "val")
    splits = load(options(root))
    assert splits.copies("val/calibrate") == len(splits["val/calibrate"])
    assert splits.copies("test") == 0
    (line,) = splits.cautions
    assert "40 of 40 validation images are copies of training images" in line
    assert "conformal sets fitted on them hold for no new image" in line


def test_copies_are_counted_in_splits_of_ones_own():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 4, 4)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    made = {"train": Split(images, labels), "test": Split(images[:2], labels[:2])}
    assert Splits("own", ("a", "b"), made, (0.5,), (0.5,)).copies("test") == 2


def test_an_image_under_two_classes_is_said(tmp_path, options):
    root = labelled_folder(tmp_path / "pets")
    shutil.copy(root / "train" / "cat" / "0000.png", root / "train" / "dog" / "copy.png")
    cautions = load(options(root)).cautions
    assert "1 training images occur under several classes." in cautions


def test_files_are_read_once_and_on_a_second_start_not_at_all(tmp_path, options, monkeypatch):
    from deepens.datasets.sources import decoding

    root = labelled_folder(tmp_path / "pets", train=5, test=3)
    read = []
    kept = decoding.look_at
    monkeypatch.setattr(
        decoding, "look_at", lambda path, **how: (read.append(path), kept(path, **how))[1]
    )
    for limit, times in ((4.0, 16), (0.0, 16)):
        first = load(options(root, memory_limit=limit))
        times += 0 if limit else len(first["train"])  # mean and deviation
        assert len(read) == times
        read.clear()
        second = load(options(root, memory_limit=limit))
        assert not read
        assert torch.equal(first["test"].contents(), second["test"].contents())


def test_a_cut_is_the_same_where_nothing_belongs_together():
    labels = torch.arange(90) % 4
    alone = stratified_parts(labels, [10, 10])
    for groups in (torch.arange(90), torch.arange(90).flip(0) * 7):
        grouped = stratified_parts(labels, [10, 10], groups=groups)
        assert all(torch.equal(a, b) for a, b in zip(alone, grouped, strict=True))


@pytest.mark.parametrize("size", [1, 2, 4, 15])
def test_groups_are_on_one_side_and_sizes_nearly_met(size):
    rng = np.random.default_rng(size)
    labels = torch.from_numpy(rng.integers(0, 3, 600))
    groups = torch.from_numpy(rng.permutation(600) // size)
    parts = stratified_parts(labels, [60, 60, 60], groups=groups)
    assert torch.cat(parts).sort().values.tolist() == list(range(600))
    sides = [set(groups[part].tolist()) for part in parts]
    assert sum(map(len, sides)) == len(set.union(*sides))
    for part in parts[:3]:
        assert abs(len(part) - 60) <= 2 * size
        assert all(abs(int((labels[part] == c).sum()) - 20) <= size for c in range(3))


def test_few_large_groups_give_each_part_one_and_fewer_are_refused():
    labels = torch.arange(100) % 2
    parts = stratified_parts(labels, [5, 5, 5], groups=torch.arange(100) // 25)
    assert [len(part) for part in parts] == [25, 25, 25, 25]
    with pytest.raises(ValueError, match=r">= 4 groups, one per part.*got 3"):
        stratified_parts(labels, [5, 5, 5], groups=torch.arange(100) % 3)


def _patients(root):
    """Six patients, an eighth of the images each, in the names of the files."""
    for part, number in (("train", 24), ("test", 6)):
        for name in ("ill", "well"):
            for index, file in enumerate(write_images(root / part / name, number)):
                file.rename(file.with_name(f"p{index % 6 + (part == 'test') * 5}_{index}.png"))
    return root


@pytest.mark.parametrize("kind", ["pattern", "table of paths", "table of names"])
def test_no_group_is_on_both_sides_of_a_cut(tmp_path, options, kind):
    root = _patients(tmp_path / "patients")
    group_by = r"/(p\d+)_"
    if kind != "pattern":
        group_by = str(tmp_path / "groups.csv")
        with open(group_by, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["filename", "age", "group"])
            for each in root.rglob("*.png"):
                path = each.relative_to(root).as_posix()
                table.writerow([path if kind.endswith("paths") else each.name, 7, each.name[:3]])
    splits = load(options(root, group_by=group_by, validation_size=8))
    seen = [set(splits[name].groups.tolist()) for name in ("train", *VALIDATION_PARTS)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 6
    assert all(seen)
    (line,) = splits.cautions
    assert line.startswith("2 of 12 test images belong to 1 groups of --group-by")


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("(", r"group_by must be a regular expression, got '\('"),
        ("zebra", "group_by must give every image a group, got none for 48 of 48 images of train"),
        ("missing.csv", "group_by must name a CSV file, got 'missing.csv': no such file"),
        (" ", "group_by must be a regular expression or a .csv file, got ''"),
    ],
)
def test_groups_that_do_not_fit_are_refused_in_one_line(tmp_path, options, group_by, message):
    root = _patients(tmp_path / "patients")
    with pytest.raises(ValueError, match=message):
        load(options(root, group_by=group_by))


def test_a_table_of_groups_needs_its_columns_and_images_must_be_files(tmp_path, options):
    root, table = _patients(tmp_path / "patients"), tmp_path / "groups.csv"
    table.write_text("name,patient\na,b\n")
    with pytest.raises(ValueError, match="must have columns file and group, got name, patient"):
        load(options(root, group_by=str(table)))
    with pytest.raises(ValueError, match="group_by must be left out with the digits"):
        load(DataOptions("digits", group_by="x"))


def test_copies_join_groups():
    images = torch.tensor([1, 2, 3, 3, 4], dtype=torch.uint8).view(5, 1, 1, 1)
    groups = torch.tensor([0, 1, 1, 2, 3])
    together = kept_together(Split(images, None, groups=groups)).tolist()
    assert together[1] == together[2] == together[3]
    assert len(set(together)) == 3
    assert kept_together(Split(images[:3], None)) is None


def test_cautions_are_said_at_once(tmp_path, options):
    root = labelled_folder(tmp_path / "pets")
    shutil.copy(root / "train" / "cat" / "0000.png", root / "test" / "cat" / "copy.png")
    said = Said()
    load(options(root), watcher=said)
    assert any(line.startswith("caution: 1 of 13 test images") for line in said.lines)
