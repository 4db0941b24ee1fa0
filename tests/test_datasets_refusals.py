"""What needs no image is refused before one is decoded; only regular files are opened."""

import os

import pytest
from deepens.datasets import DataOptions, load
from deepens.datasets.sources import decoding
from image_folders import labelled_folder, write_images


@pytest.fixture
def unread(tmp_path, monkeypatch):
    """Options for a folder of which no image may be read."""
    root = labelled_folder(tmp_path / "pets", classes=("cat", "dog", "owl"))

    def refuse(path, **how):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(decoding, "look_at", refuse)

    def make(**changes):
        return DataOptions(f"folder:{root}", cache=str(tmp_path / "cache"), **changes)

    return make


def test_images_would_be_read(unread):
    with pytest.raises(AssertionError, match="was read"):
        load(unread())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holdout_classes": ("emu",)}, "holdout_classes must be classes of pets, got emu"),
        ({"holdout_classes": ("cat", "dog")}, "holdout_classes must leave >= 2 classes"),
        ({"validation_size": 20}, r"part_size must be in \[1, 19\]"),
        ({"train_size": 60}, "train_size must be <= 39"),
        ({"train_size": 2}, "train_size must leave each of the 3 classes an image"),
        ({"corruptions": ("mist",)}, "corruptions must be among .*, got 'mist'"),
        ({"group_by": "/test/"}, "group_by must give every image a group"),
        ({"encode_ood": True}, "encode_ood must be given with JPEG training images"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_an_image_is_decoded(unread, changes, message):
    with pytest.raises(ValueError, match=message):
        load(unread(**changes))


def test_ood_sets_of_one_name_are_refused_before_an_image_is_decoded(unread, tmp_path):
    far = [write_images(tmp_path / parent / "same", 1)[0].parent for parent in ("a", "b")]
    with pytest.raises(ValueError, match="far_ood must name different sets, got same twice"):
        load(unread(far_ood=tuple(f"folder:{folder}" for folder in far)))
    held = write_images(tmp_path / "held-out", 1)[0].parent
    with pytest.raises(ValueError, match="near_ood must name different sets, got held-out twice"):
        load(unread(near_ood=(f"folder:{held}",), holdout_classes=("cat",)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a FIFO")
@pytest.mark.parametrize("kind", ["device", "fifo", "folder"])
@pytest.mark.parametrize("option", ["ood_exclude", "group_by"])
def test_lists_are_regular_files(unread, tmp_path, kind, option):
    file = tmp_path / "list.csv"
    if kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.mkdir()
    far = write_images(tmp_path / "far", 1)[0].parent
    with pytest.raises(ValueError, match=f"{option} must name a .* file, got .*list.csv'"):
        load(unread(far_ood=(f"folder:{far}",), **{option: str(file)}))
