import pytest
from deepens.datasets import DataOptions, known, load
from deepens.datasets.sources import named_sets as catalogue
from deepens.datasets.sources.torchvision_sets import NAMES, OODDefaults
from image_folders import labelled_folder, write_images


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Named sets made of folders: only those that were written are there."""

    def load_parts(name, root, *, download, parts):
        folder = tmp_path / "sets" / name
        if not folder.exists():
            raise ValueError(f"{name} is not at {folder}: add --download")
        source = catalogue._labelled_set(DataOptions(f"folder:{folder}"))
        return source.classes, {n: p for n, p in source.parts.items() if n in parts}

    def defaults(name):
        return OODDefaults(("kmnist",), ("svhn", "dtd"), ("Places365 (far)",), "OpenOOD v1.5")

    monkeypatch.setattr(catalogue, "load_parts", load_parts)
    monkeypatch.setattr(catalogue, "ood_defaults", defaults)
    for name in ("cifar10", "svhn", "dtd"):
        labelled_folder(tmp_path / "sets" / name, val=2 if name == "dtd" else 0)
    return lambda **options: load(DataOptions("cifar10", cache=str(tmp_path / "c"), **options))


def test_the_known_sets_are_the_digits_and_those_of_torchvision():
    assert known() == tuple(sorted(("digits", *NAMES)))
    assert load("digits").name == "digits"


@pytest.mark.parametrize("option", ["data", "near_ood"])
def test_an_unknown_name_is_refused_with_the_list_and_the_nearest(option):
    line = "must be folder:PATH or one of cifar10, .*, got 'digit'; the nearest is 'digits'"
    with pytest.raises(ValueError, match=line):
        load(DataOptions("digit") if option == "data" else DataOptions(near_ood=("digit",)))


def test_a_named_set_brings_its_ood_sets_and_says_what_is_missing(stand_in):
    splits = stand_in()
    assert splits.names("near_ood") == ()
    assert splits.names("far_ood") == ("far_ood/svhn", "far_ood/dtd")
    assert (len(splits["far_ood/svhn"]), len(splits["far_ood/dtd"])) == (12, 56)
    text = " ".join(splits.notes)
    assert "kmnist, an OOD set by default, is left out: kmnist is not at" in text
    assert "OOD sets by OpenOOD v1.5. Add the others by folder:PATH: Places365 (far)." in text


def test_ood_sets_that_are_asked_for_replace_the_defaults_of_their_kind(stand_in, tmp_path):
    write_images(tmp_path / "mine", 3)
    splits = stand_in(near_ood=(f"folder:{tmp_path / 'mine'}",), far_ood=("none",))
    assert splits.names("near_ood") == ("near_ood/mine",)
    assert splits.names("far_ood") == ()


def test_an_ood_set_that_is_asked_for_must_be_there(stand_in):
    with pytest.raises(ValueError, match="mnist is not at .*: add --download"):
        stand_in(far_ood=("mnist",))


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
