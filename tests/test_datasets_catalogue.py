from importlib import import_module

import pytest
from deepens.datasets import (
    DataOptions,
    LabelledImages,
    OODDefaults,
    known,
    load,
    register_data_set,
)
from deepens.datasets.sources.image_folder import folder_parts
from image_folders import labelled_folder, write_images


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Registered sets that are folders; ``absent`` is registered and has no files."""

    def loader_of(name):
        def loader(*, root, download, parts):
            folder = root / name
            if not folder.exists():
                raise ValueError(f"{name} is not at {folder}: add --download")
            layout = folder_parts(folder)
            classes = layout["train"].classes
            return classes, {
                part: LabelledImages.from_files(files.paths, files.labels, classes)
                for part, files in layout.items()
                if part in parts
            }

        return loader

    registry = import_module("deepens.datasets.sources.registry")
    monkeypatch.setattr(registry, "SETS", dict(registry.SETS))  # to be as before afterwards
    ood = OODDefaults(("absent",), ("beads", "shells"), ("Places365 (far)",), "OpenOOD v1.5")
    for name in ("toys", "beads", "shells", "absent"):
        register_data_set(name, loader_of(name), ood=ood if name == "toys" else None)
        if name != "absent":
            labelled_folder(tmp_path / "sets" / name)
    places = {"data_root": str(tmp_path / "sets"), "cache": str(tmp_path / "c")}
    return lambda data="toys", **options: load(DataOptions(data, **places, **options))


def test_the_known_sets_are_the_digits_and_those_of_torchvision():
    torchvisions = ("cifar10", "cifar100", "svhn", "mnist", "fashion-mnist", "kmnist", "dtd")
    assert set(known()) >= {"digits", "imagenet", *torchvisions}
    assert load("digits").name == "digits"


def test_a_registered_set_is_listed_and_loads_like_any_other(stand_in):
    assert {"toys", "beads", "shells", "absent"} <= set(known())
    splits = stand_in("beads")
    assert splits.name == "beads"
    assert {"train", "val/select", "val/calibrate", "val/conform", "test"} <= set(splits)
    assert len(splits.names("shift")) == 5 * len(DataOptions().corrupted_by)
    assert splits.names("near_ood", "far_ood") == ()
    asked = stand_in("beads", near_ood=("shells",))
    assert asked.names("near_ood") == ("near_ood/shells",)


@pytest.mark.parametrize("name", ["digits", "cifar10", "beads"])
def test_a_name_is_registered_once(stand_in, name):
    with pytest.raises(ValueError, match=f"'{name}' is registered already"):
        register_data_set(name, lambda **_: ((), {}))


@pytest.mark.parametrize("name", ["", "two words", "a/b", "folder:x"])
def test_a_name_that_no_split_can_bear_is_refused(name):
    with pytest.raises(ValueError, match="name must be letters"):
        register_data_set(name, lambda **_: ((), {}))


@pytest.mark.parametrize("option", ["data", "near_ood"])
def test_an_unknown_name_is_refused_with_the_list_and_the_nearest(option):
    line = "must be folder:PATH or one of cifar10, .*, got 'digit'; the nearest is 'digits'"
    with pytest.raises(ValueError, match=line):
        load(DataOptions("digit") if option == "data" else DataOptions(near_ood=("digit",)))


def test_a_named_set_brings_its_ood_sets_and_says_what_is_missing(stand_in):
    splits = stand_in()
    assert splits.names("near_ood") == ()
    assert splits.names("far_ood") == ("far_ood/beads", "far_ood/shells")
    assert len(splits["far_ood/beads"]) == len(splits["far_ood/shells"]) == 12
    text = " ".join(splits.notes)
    assert "absent, an OOD set by default, is left out: absent is not at" in text
    assert "OOD sets by OpenOOD v1.5. Add the others by folder:PATH: Places365 (far)." in text


def test_ood_sets_that_are_asked_for_replace_the_defaults_of_their_kind(stand_in, tmp_path):
    write_images(tmp_path / "mine", 3)
    splits = stand_in(near_ood=(f"folder:{tmp_path / 'mine'}",), far_ood=("none",))
    assert splits.names("near_ood") == ("near_ood/mine",)
    assert splits.names("far_ood") == ()


def test_an_ood_set_that_is_asked_for_must_be_there(stand_in):
    with pytest.raises(ValueError, match="absent is not at .*: add --download"):
        stand_in(far_ood=("absent",))


def test_digits_take_other_ood_sets_and_keep_their_cut(tmp_path):
    write_images(tmp_path / "photos", 3, size=(30, 20))
    options = DataOptions(
        far_ood=(f"folder:{tmp_path / 'photos'}",), corruptions=("none",), cache=str(tmp_path / "c")
    )
    splits = load(options)
    assert splits.names("far_ood") == ("far_ood/photos",)
    assert splits.names("shift") == ()
    assert splits.names("near_ood") == ("near_ood/digits-8-9",)
    assert list(splits["far_ood/photos"].images.shape) == [3, 1, 8, 8]
    assert splits["train"].fingerprint() == load("digits")["train"].fingerprint()


def test_what_the_fixed_cut_of_the_digits_does_not_allow_is_refused():
    for changes in ({"train_size": 10}, {"holdout_classes": ("1",)}, {"encode_ood": True}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            load(DataOptions(**changes))


def test_environment_variables_in_a_path_are_filled_in(tmp_path, monkeypatch):
    labelled_folder(tmp_path / "pets")
    monkeypatch.setenv("MY_IMAGES", str(tmp_path))
    options = DataOptions("folder:$MY_IMAGES/pets", cache=str(tmp_path / "c"))
    assert load(options).name == "pets"
    monkeypatch.delenv("MY_IMAGES")
    with pytest.raises(ValueError, match="environment variable MY_IMAGES, which is not set"):
        load(options)


@pytest.mark.parametrize("name", ["train_size", "validation_size", "image_size"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        DataOptions(**{name: 0})
