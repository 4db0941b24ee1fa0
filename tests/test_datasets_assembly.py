import numpy as np
import pytest
import torch
from deepens.datasets import DataOptions, ImageFiles, Split, load, read_image
from deepens.datasets.sources.assembly import bring, validation_size
from deepens.datasets.sources.decoding import Silent
from image_folders import labelled_folder, write_images
from PIL import Image


class Said(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def options(tmp_path):
    root = labelled_folder(tmp_path / "pets", classes=("cat", "dog", "owl"), train=24, test=6)

    def make(**changes):
        defaults = {"cache": str(tmp_path / "cache"), "corruptions": ("none",)}
        return DataOptions(f"folder:{root}", **(defaults | changes))

    return make


def _pixels(split):
    images = split.images
    return images.load() if isinstance(images, ImageFiles) else images


def _keys(split):
    return {image.numpy().tobytes() for image in _pixels(split)}


def test_validation_comes_out_of_train_and_the_test_images_are_all_there(options, tmp_path):
    splits = load(options())
    parts = ["train", "val/select", "val/calibrate", "val/conform"]
    pixels = [_keys(splits[name]) for name in parts]
    written = {
        read_image(p, channels=3, size=(8, 8)).numpy().tobytes()
        for p in (tmp_path / "pets" / "train").rglob("*.png")
    }
    assert set.union(*pixels) == written
    assert sum(map(len, pixels)) == len(written) == 72
    assert len(splits["test"]) == 18
    assert splits["test"].targets.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert splits.classes == ("cat", "dog", "owl")


def test_labels_stay_with_their_images(options, tmp_path):
    splits = load(options(train_size=12))
    for name in ("train", "val/select", "test"):
        split = splits[name]
        for image, target in zip(split.images, split.targets.tolist(), strict=True):
            part = "test" if name == "test" else "train"
            folder = tmp_path / "pets" / part / splits.classes[target]
            own = [read_image(p, channels=3, size=(8, 8)) for p in folder.iterdir()]
            assert any(torch.equal(image, each) for each in own)


def test_val_is_cut_into_the_three_parts_where_it_is_given(tmp_path):
    root = labelled_folder(tmp_path / "pets", val=6, train=5)
    splits = load(DataOptions(f"folder:{root}", cache=str(tmp_path / "c")))
    sizes = {name: len(splits[name]) for name in splits.names() if "shift" not in name}
    assert sizes == {
        "train": 10,
        "val/select": 4,
        "val/calibrate": 4,
        "val/conform": 4,
        "test": 12,
    }
    cut = [_keys(splits[name]) for name in ("val/select", "val/calibrate", "val/conform")]
    assert len(set.union(*cut)) == 12


def test_a_training_part_is_stratified_and_leaves_validation_alone(options):
    whole, part = load(options(validation_size=6)), load(options(validation_size=6, train_size=9))
    assert torch.bincount(part["train"].targets).tolist() == [3, 3, 3]
    assert _keys(part["train"]) <= _keys(whole["train"])
    assert part["val/select"].fingerprint() == whole["val/select"].fingerprint()
    with pytest.raises(ValueError, match="train_size must be <= 54"):
        load(options(validation_size=6, train_size=55))


def test_a_folder_without_parts_is_cut_and_says_so(tmp_path):
    for name in ("cat", "dog"):
        write_images(tmp_path / "all" / name, 20)
    splits = load(DataOptions(f"folder:{tmp_path / 'all'}", cache=str(tmp_path / "c")))
    assert torch.bincount(splits["test"].targets).tolist() == [4, 4]
    assert not _keys(splits["test"]) & _keys(splits["train"])
    assert any("stratified 20% of its images" in note for note in splits.notes)


def test_mean_and_deviation_are_those_of_the_training_images(options):
    splits = load(options())
    values = splits["train"].images.double() / 255
    assert splits.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert splits.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_held_out_classes_leave_every_part_and_become_near_ood(options, tmp_path):
    splits = load(options(holdout_classes=("dog",)))
    assert splits.classes == ("cat", "owl")
    held = {
        read_image(p, channels=3, size=(8, 8)).numpy().tobytes()
        for p in (tmp_path / "pets" / "test" / "dog").iterdir()
    }
    assert _keys(splits["near_ood/held-out"]) == held
    for name in ("train", "val/select", "val/calibrate", "val/conform", "test"):
        assert set(splits[name].targets.tolist()) == {0, 1}
    owls = splits["test"].images[splits["test"].targets == 1]
    folder = tmp_path / "pets" / "test" / "owl"
    expected = torch.stack(
        [read_image(p, channels=3, size=(8, 8)) for p in sorted(folder.iterdir())]
    )
    assert torch.equal(owls, expected)


@pytest.mark.parametrize(
    ("held", "line"),
    [
        (("emu",), "holdout_classes must be classes of pets, got emu; it has cat, dog, owl"),
        (("cat", "dog"), "holdout_classes must leave >= 2 classes, got 1 left"),
    ],
)
def test_classes_that_cannot_be_held_out_are_refused(options, held, line):
    with pytest.raises(ValueError, match=line):
        load(options(holdout_classes=held))


def test_ood_images_take_the_size_and_colour_of_the_training_images(options, tmp_path):
    write_images(tmp_path / "grey", 5, size=(20, 30), mode="L")
    splits = load(options(far_ood=(f"folder:{tmp_path / 'grey'}",)))
    far = splits["far_ood/grey"]
    assert far.targets is None
    expected = [
        read_image(p, channels=3, size=(8, 8)) for p in sorted((tmp_path / "grey").iterdir())
    ]
    assert torch.equal(far.images, torch.stack(expected))


def test_excluded_classes_are_left_out_of_ood_sets_by_name(options, tmp_path):
    for name in ("n01", "n02", "n03"):
        write_images(tmp_path / "tiny" / "val" / name, 4)
    (tmp_path / "exclude.txt").write_text("# like ours\nn02  # tabby\n\n")
    near = (f"folder:{tmp_path / 'tiny' / 'val'}",)
    splits = load(options(near_ood=near, ood_exclude=str(tmp_path / "exclude.txt")))
    assert len(splits["near_ood/tiny-val"]) == 8
    left = _keys(splits["near_ood/tiny-val"])
    for path in (tmp_path / "tiny" / "val" / "n02").iterdir():
        assert read_image(path, channels=3, size=(8, 8)).numpy().tobytes() not in left
    assert any("1 excluded classes are left out, 8 images stay" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "ood_exclude must name a text file, got .*: No such file"),
        ("# nothing\n", "ood_exclude must name >= 1 class, got none"),
        ("n99\n", "names 1 classes that no OOD set has: n99"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_an_exclusion_list_that_excludes_nothing_is_refused(options, tmp_path, content, line):
    write_images(tmp_path / "tiny" / "n01", 1)
    file = tmp_path / "exclude.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=line):
        load(options(near_ood=(f"folder:{tmp_path / 'tiny'}",), ood_exclude=str(file)))


def test_ood_images_also_come_through_the_training_images_encoder(tmp_path):
    root = labelled_folder(tmp_path / "pets", suffix="jpg", size=(16, 16))
    write_images(tmp_path / "png", 4, size=(16, 16))
    common = {"far_ood": (f"folder:{tmp_path / 'png'}",), "cache": str(tmp_path / "c")}
    splits = load(DataOptions(f"folder:{root}", encode_ood=True, **common))
    raw, encoded = splits["far_ood/png"].images, splits["far_ood/png.encoded"].images
    assert not torch.equal(raw, encoded)
    for before, after in zip(raw, encoded, strict=True):
        Image.fromarray(before.permute(1, 2, 0).numpy()).save(tmp_path / "once.jpg")
        expected = np.array(Image.open(tmp_path / "once.jpg"))
        assert np.array_equal(after.permute(1, 2, 0).numpy(), expected)
    assert "far_ood/png.encoded" not in load(DataOptions(f"folder:{root}", **common))


def test_copies_between_train_and_test_are_counted_and_said(tmp_path):
    root = labelled_folder(tmp_path / "pets")
    for index in range(3):
        source = root / "test" / "cat" / f"{index:04d}.png"
        (root / "train" / "dog" / f"copy{index}.png").write_bytes(source.read_bytes())
    said = Said()
    splits = load(DataOptions(f"folder:{root}", cache=str(tmp_path / "c")), watcher=said)
    assert any("3 of 12 test images are copies of training images" in n for n in splits.cautions)
    assert any(line.startswith("caution: 3 of 12") for line in said.lines)
    clean = load(
        DataOptions(f"folder:{labelled_folder(tmp_path / 'clean')}", cache=str(tmp_path / "c"))
    )
    assert not clean.cautions


def test_ood_images_that_were_trained_on_are_counted(options, tmp_path):
    splits = load(options(far_ood=(f"folder:{tmp_path / 'pets' / 'train' / 'cat'}",)))
    assert any("of 24 cat images are copies of training images" in c for c in splits.cautions)


def test_a_set_too_large_for_memory_is_read_from_disk_with_the_same_images(options):
    said = Said()
    whole, streamed = load(options()), load(options(memory_limit=0.0), watcher=said)
    for name in ("train", "val/select", "test"):
        assert whole[name].resident
        assert not streamed[name].resident
        assert torch.equal(whole[name].images, streamed[name].images.load())
        assert torch.equal(whole[name].targets, streamed[name].targets)
    assert any("are read from disk again in every epoch" in note for note in streamed.notes)
    assert streamed.mean == pytest.approx(whole.mean, abs=1e-12)


def test_bad_images_are_left_out_of_both_kinds_and_listed(options, tmp_path):
    bad = tmp_path / "pets" / "test" / "dog" / "0002.png"
    bad.write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 18 images cannot be read"):
        load(options())
    for limit in (4.0, 0.0):
        splits = load(options(skip_bad_images=True, memory_limit=limit))
        assert torch.bincount(splits["test"].targets).tolist() == [6, 5, 6]
        (note,) = [note for note in splits.cautions if "were left out" in note]
        assert str(bad) in note
        assert "1 of 18" in note


def test_two_ood_sets_of_one_name_are_refused(options, tmp_path):
    for parent in ("a", "b"):
        write_images(tmp_path / parent / "same", 1)
    far = tuple(f"folder:{tmp_path / parent / 'same'}" for parent in ("a", "b"))
    with pytest.raises(ValueError, match="far_ood must name different sets, got same twice"):
        load(options(far_ood=far))


def test_shifted_test_images_are_made_as_asked(options):
    splits = load(options(corruptions=("contrast",)))
    assert splits.names("shift") == tuple(f"shift/contrast/{s}" for s in range(1, 6))
    assert torch.equal(splits["shift/contrast/5"].targets, splits["test"].targets)
    with pytest.raises(ValueError, match="corruptions must be among .*, got 'mist'"):
        load(options(corruptions=("mist",)))


def test_some_severities_are_the_same_images_as_among_all(options):
    every = load(options(corruptions=("contrast", "frost")))
    some = load(options(corruptions=("contrast", "frost"), severities=(5, 1)))
    names = tuple(f"shift/{name}/{s}" for name in ("contrast", "frost") for s in (1, 5))
    assert some.names("shift") == names
    for name in names:
        assert torch.equal(some[name].images, every[name].images)
    assert some.notes == every.notes  # on our frost, at whatever severity
    digits = load(DataOptions(severities=(3,)))
    assert {name.rpartition("/")[2] for name in digits.names("shift")} == {"3"}


@pytest.mark.parametrize("severities", [(0,), (6,), (1, 1)])
def test_severities_that_do_not_exist_are_refused(severities):
    with pytest.raises(ValueError, match="severities must be different numbers from 1 to 5, got "):
        DataOptions(severities=severities)


def test_the_same_options_make_the_same_data(options):
    assert load(options()).fingerprint() == load(options()).fingerprint()
    other = load(options(train_size=12)).fingerprint()
    assert other != load(options()).fingerprint()


@pytest.mark.parametrize(("channels", "mode"), [(3, "L"), (1, "RGB"), (3, "RGB")])
@pytest.mark.parametrize("size", [(8, 8), (5, 5), (6, 9)])
def test_decoded_images_are_brought_to_a_form_as_files_are(tmp_path, channels, mode, size):
    paths = write_images(tmp_path, 3, size=(8, 8), mode=mode)
    own = 1 if mode == "L" else 3
    images = torch.stack([read_image(p, channels=own, size=(8, 8)) for p in paths])
    files = torch.stack([read_image(p, channels=channels, size=size) for p in paths])
    brought = bring(images, channels, size)
    assert brought.movedim(1, -1).is_contiguous()
    # Two resizers: cut before or after, and other rounding.
    tolerance = 0 if size == (8, 8) else 1 if size[0] == size[1] else 255
    assert (brought.int() - files.int()).abs().max() <= tolerance


def test_validation_never_takes_the_last_training_image():
    for training in (8, 9, 50, 1000, 10**6):
        assert validation_size(training) >= 1
        assert 3 * validation_size(training) < training


def test_selecting_keeps_the_memory_order():
    stored = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    split = Split(stored.movedim(-1, 1), torch.tensor([0, 1]))
    chosen = split.select(torch.tensor([1, 0]))
    assert chosen.images.movedim(1, -1).is_contiguous()
    assert torch.equal(chosen.images, split.images.flip(0))


def test_batches_of_a_split_are_its_images_in_order_wherever_they_are(options):
    for limit in (4.0, 0.0):
        split = load(options(memory_limit=limit))["test"]
        parts = list(split.image_batches(5))
        assert [len(part) for part in parts] == [5, 5, 5, 3]
        assert torch.equal(torch.cat(parts), _pixels(split))


def test_a_bad_test_image_on_disk_is_named_before_anything_is_trained(options, tmp_path):
    bad = tmp_path / "pets" / "test" / "dog" / "0002.png"
    bad.write_bytes(bad.read_bytes()[:-60])
    with pytest.raises(ValueError, match="1 of 18 images cannot be read") as refused:
        load(options(memory_limit=0.0))
    assert str(bad) in str(refused.value)


def test_images_on_disk_count_by_their_bytes_in_the_fingerprint(options, tmp_path):
    before = load(options(memory_limit=0.0))
    file = tmp_path / "pets" / "test" / "dog" / "0002.png"
    size = file.stat().st_size
    content = bytearray(file.read_bytes())
    content[-20] ^= 1  # in the checksum of the last part, which is not looked at
    file.write_bytes(content)
    assert file.stat().st_size == size
    after = load(options(memory_limit=0.0, skip_bad_images=True))
    assert after["test"].fingerprint() != before["test"].fingerprint()
    assert after.training_fingerprint() == before.training_fingerprint()


def test_copies_between_val_and_the_other_parts_are_counted(tmp_path):
    root = labelled_folder(tmp_path / "pets", val=6)
    for part in ("train", "test"):
        (root / "val" / "cat" / f"{part}.png").write_bytes(
            (root / part / "cat" / "0000.png").read_bytes()
        )
    cautions = " ".join(load(DataOptions(f"folder:{root}", cache=str(tmp_path / "c"))).cautions)
    assert "1 of 14 validation images are copies of training images" in cautions
    assert "1 of 14 validation images are copies of test images" in cautions


def test_a_class_without_training_images_is_refused(options):
    with pytest.raises(ValueError, match="each of the 3 classes an image, got 2 images without 1"):
        load(options(train_size=2))


def test_memory_is_counted_over_all_sets_together(options, tmp_path):
    write_images(tmp_path / "far", 100)
    one = 3 * 8 * 8
    limit = (72 + 18 + 50) * one / 2**30  # train and test, and half of the OOD images
    splits = load(options(memory_limit=limit, far_ood=(f"folder:{tmp_path / 'far'}",)))
    assert splits["train"].resident
    assert not splits["far_ood/far"].resident
