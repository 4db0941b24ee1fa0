"""What needs no image is refused before one is decoded; only regular files are opened."""

import os

import numpy as np
import pytest
from deepens.datasets import DataOptions, load
from deepens.datasets.sources import decoding
from deepens.experiments.cli import entry as cli
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
        ({"validation_size": 20}, r"validation_size must be in \[1, 19\] for 60 training"),
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


def _published(folder, labels, *, shape):
    folder.mkdir(exist_ok=True)
    np.save(folder / "labels.npy", np.tile(labels, 5))
    np.save(folder / "fog.npy", np.zeros((5 * len(labels), *shape), np.uint8))


def test_published_corruptions_are_checked_before_an_image_is_decoded(unread, tmp_path):
    labels, folder = np.arange(3).repeat(6), tmp_path / "C"
    given = {"corruptions": (f"folder:{folder}",)}
    for call, line in (
        (lambda: None, "which is not a folder"),
        (lambda: _published(folder, labels[::-1], shape=(8, 8, 3)), "must hold the 18 test labels"),
        (lambda: _published(folder, labels, shape=(9, 8, 3)), r"of shape \[90, 8, 8, 3\], got"),
    ):
        call()
        with pytest.raises(ValueError, match=line):
            load(unread(**given))
    _published(folder, labels, shape=(8, 8, 3))
    with pytest.raises(AssertionError, match="was read"):
        load(unread(**given))


def test_ood_sets_that_cannot_be_encoded_in_memory_are_refused_before_an_image_is_decoded(
    tmp_path, monkeypatch
):
    root = labelled_folder(tmp_path / "pets", suffix="jpg", size=(16, 16))
    far = write_images(tmp_path / "far", 40, size=(16, 16))[0].parent
    monkeypatch.setattr(decoding, "look_at", None)
    images = 16 * 16 * 3
    with pytest.raises(ValueError, match="encode_ood .* far does not fit in memory: raise --mem"):
        load(
            DataOptions(
                f"folder:{root}",
                far_ood=(f"folder:{far}",),
                encode_ood=True,
                memory_limit=(52 + 70) * images / 2**30,
                cache=str(tmp_path / "cache"),
            )
        )


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        ("ab", "training images must be >= 4, from which three validation parts are cut, got 2"),
        ("abcde", "each of the 5 classes must have an image to train on .* got 2 images without 3"),
    ],
)
@pytest.mark.parametrize("parts", [True, False])
def test_one_image_a_class_is_too_few_in_words(tmp_path, classes, line, parts):
    for name in classes:
        for part in ("train", "test") if parts else (".",):
            write_images(tmp_path / "few" / part / name, 1)
    if not parts:
        line = "training images must be >= 4|must have an image to train on"
    with pytest.raises(ValueError, match=line):
        load(DataOptions(f"folder:{tmp_path / 'few'}", cache=str(tmp_path / "cache")))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/train images/val", "labels/train labels/val"),
        ("train/images valid/images test/images", "train/labels valid/labels test/labels"),
        ("images", "annotations"),
    ],
)
def test_labels_of_object_detection_are_named(tmp_path, images, labels):
    for folder in images.split():
        write_images(tmp_path / "set" / folder, 2)
    for folder in labels.split():
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / "set" / folder / "0000.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match=r"of object detection .*0000\.txt.* one folder per"):
        load(DataOptions(f"folder:{tmp_path / 'set'}", cache=str(tmp_path / "cache")))


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


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--backbone", "torchvision:resnet19"],
            "name must be a classification network of torchvision, got 'torchvision:resnet19'; "
            "nearest known: 'resnet1",
        ),
        (
            ["--backbone", "torchvision:resnet18@BEST"],
            "weights of torchvision:resnet18 must be one of ['DEFAULT', 'IMAGENET1K_V1'], got "
            "'BEST'",
        ),
        (["--backbone", "timm:resnet19"], "name must be a network of timm, got 'timm:resnet19'"),
        (
            ["--backbone", "timm:resnet18.a9@pretrained"],
            "name must have a tag that timm knows, got 'timm:resnet18.a9'; nearest known: ",
        ),
        (["--backbone", "timm:resnet18@best"], "weights of timm:resnet18 must be 'pretrained'"),
        (
            ["--backbone", "timm:resnet18", "--width", "2"],
            "width must be 1 for the published network timm:resnet18, got 2.0",
        ),
    ],
)
def test_unknown_published_networks_are_refused_before_data_are_loaded(
    command, options, message, tmp_path, monkeypatch, capsys
):
    if any("timm" in word for word in options):
        pytest.importorskip("timm")

    def loaded(*arguments, **more):
        raise AssertionError("data were loaded")

    for module in ("training.train", "comparison.compare"):
        monkeypatch.setattr(f"deepens.experiments.{module}.load", loaded)
    words = [command, *options, "--quiet", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
