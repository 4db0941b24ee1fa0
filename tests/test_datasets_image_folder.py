import re

import pytest
from deepens.datasets.sources.image_folder import folder_images, folder_parts
from image_folders import labelled_folder, write_images


def test_parts_hold_every_image_with_the_name_of_its_class_folder(tmp_path):
    labelled_folder(tmp_path, classes=("b", "a", "ä b"), train=3, val=1, test=2)
    parts = folder_parts(tmp_path)
    assert list(parts) == ["train", "val", "test"]
    assert {name: len(part.paths) for name, part in parts.items()} == {
        "train": 9,
        "val": 3,
        "test": 6,
    }
    for part in parts.values():
        assert part.classes == ("a", "b", "ä b")
        assert list(part.labels) == [path.parent.name for path in part.paths]


def test_images_in_deeper_folders_count_for_the_class_they_are_below(tmp_path):
    labelled_folder(tmp_path)
    write_images(tmp_path / "train" / "cat" / "tabby", 2)
    labels = folder_parts(tmp_path)["train"].labels
    assert (labels.count("cat"), labels.count("dog")) == (22, 20)


def test_a_folder_without_parts_is_one_split(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 2)
    assert list(folder_parts(tmp_path)) == ["all"]


def test_as_an_ood_set_the_test_part_of_a_folder_with_parts_counts(tmp_path):
    labelled_folder(tmp_path, train=3, test=2)
    assert {path.parts[-3] for path in folder_images(tmp_path).paths} == {"test"}


def test_excluded_class_folders_are_left_out_and_unknown_ones_ignored(tmp_path):
    labelled_folder(tmp_path, classes=("cat", "dog", "owl"), test=2)
    left = folder_images(tmp_path / "test", exclude={"dog", "no such"})
    assert left.classes == ("cat", "owl")
    assert set(left.labels) == {"cat", "owl"}
    with pytest.raises(ValueError, match="no image left"):
        folder_images(tmp_path / "test", exclude={"cat", "dog", "owl"})


def test_non_image_files_among_images_are_passed_over(tmp_path):
    labelled_folder(tmp_path)
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "labels.csv").write_text("x")
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    assert len(folder_parts(tmp_path)["train"].paths) == 40


def _missing(root):
    return "not found"


def _file(root):
    root.write_text("x")
    return "not a folder"


def _empty(root):
    root.mkdir()
    return "must hold >= 2 classes, a folder each, got none"


def _no_test(root):
    labelled_folder(root, test=0)
    return "must hold train/ and test/ (val/ is optional), got only train/"


def _one_class(root):
    labelled_folder(root, classes=("cat",))
    return "must hold >= 2 classes, a folder each, got only 'cat'"


def _class_without_images(root):
    labelled_folder(root)
    (root / "train" / "owl").mkdir()
    (root / "train" / "owl" / "notes.txt").write_text("x")
    return "1 of 3 classes hold no image: 'owl'; add images or delete the folders"


def _other_classes(root):
    labelled_folder(root)
    write_images(root / "train" / "emu", 1)
    write_images(root / "test" / "owl", 1)
    return "train/ and test/ differ in classes: only train/ has 'emu'; only test/ has 'owl'"


def _stray_image(root):
    labelled_folder(root)
    write_images(root / "train", 1)
    return "images must lie in class folders, got 1 outside of them, such as"


@pytest.mark.parametrize(
    "make",
    [
        _missing,
        _file,
        _empty,
        _no_test,
        _one_class,
        _class_without_images,
        _other_classes,
        _stray_image,
    ],
)
def test_a_folder_that_is_no_labelled_set_is_refused_in_one_line(tmp_path, make):
    root = tmp_path / "set"
    expected = make(root)
    with pytest.raises(ValueError, match=re.escape(expected)) as refused:
        folder_parts(root)
    assert str(root) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_loops_of_links_end_and_linked_class_folders_count(tmp_path):
    root = labelled_folder(tmp_path / "set")
    owls = tmp_path / "elsewhere"
    write_images(owls, 4)
    for part in ("train", "test"):
        (root / part / "owl").symlink_to(owls)
        (root / part / "cat" / "up").symlink_to(root)
        (root / part / "itself").symlink_to(root / part / "itself")
    parts = folder_parts(root)
    assert {name: part.labels.count("owl") for name, part in parts.items()} == {
        "train": 4,
        "test": 4,
    }
    assert parts["train"].labels.count("cat") == 20
