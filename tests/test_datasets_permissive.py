"""What could be read in more than one way is recognised and said, or refused."""

import os
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from deepens.datasets import DataOptions, load, read_image
from deepens.datasets.corruptions.shift import FROST_NOTE
from deepens.datasets.image_files import iterate_images
from deepens.datasets.image_reading import MEGAPIXELS, SUFFIXES, Room
from image_folders import labelled_folder, write_images
from PIL import Image, features

LIMITS = pytest.mark.parametrize("limit", [4.0, 0.0], ids=["memory", "disk"])


@pytest.fixture
def options(tmp_path):
    def make(root, **changes):
        defaults = {"cache": str(tmp_path / "cache"), "corruptions": ("none",)}
        return DataOptions(f"folder:{root}", **(defaults | changes))

    return make


def _renamed(root, **names):
    for part, name in names.items():
        (root / part).rename(root / name)
    return root


@pytest.mark.parametrize(
    "names",
    [
        {"train": "Train", "test": "Test"},
        {"train": "TRAIN", "val": "valid"},
        {"train": "training", "test": "Testing", "val": "validation"},
        {"val": "dev"},
        {"val": "Development"},
    ],
)
def test_parts_by_other_names_are_recognised_and_said(tmp_path, options, names):
    expected = load(options(labelled_folder(tmp_path / "pets", val=9)))
    root = _renamed(tmp_path / "pets", **names)
    splits = load(options(root))
    assert splits.fingerprint() == expected.fingerprint()
    said = {note for note in splits.notes if "is taken as" in note}
    assert said == {f"{root}: {name}/ is taken as {part}/." for part, name in names.items()}


def test_two_folders_of_one_part_are_refused(tmp_path, options):
    root = labelled_folder(tmp_path / "pets", val=9)
    shutil.copytree(root / "val", root / "validation")
    with pytest.raises(ValueError, match=r"must hold one val/, got val/ and validation/"):
        load(options(root))


def test_classes_that_hold_the_same_folders_are_refused_as_parts(tmp_path, options):
    root = _renamed(labelled_folder(tmp_path / "pets"), train="seen", test="unseen")
    with pytest.raises(ValueError, match=r"'seen', 'unseen' hold the same folders each, 'cat'"):
        load(options(root))
    # As in tiny ImageNet, one folder a class is none.
    for name in ("cat", "dog"):
        write_images(tmp_path / "flat" / name / "images", 20)
    assert load(options(tmp_path / "flat")).classes == ("cat", "dog")


def test_classes_called_as_parts_are_classes_where_they_are_alone(tmp_path, options):
    for name in ("Testing", "dog"):
        write_images(tmp_path / "flat" / name, 20)
    assert load(options(tmp_path / "flat")).classes == ("Testing", "dog")


def test_folders_beside_the_parts_are_named(tmp_path, options):
    root = labelled_folder(tmp_path / "pets")
    write_images(root / "unlabelled", 3)
    (note,) = [note for note in load(options(root)).notes if "beside the parts" in note]
    assert note == f"{root}: 'unlabelled' beside the parts are passed over."
    (root / "test").rename(root / "eval")
    with pytest.raises(ValueError, match=r"got only eval/, train/, unlabelled/"):
        load(options(root))


def test_of_an_ood_folder_with_parts_by_other_names_the_test_images_count(tmp_path, options):
    root = labelled_folder(tmp_path / "pets")
    far = _renamed(labelled_folder(tmp_path / "far", train=9, test=2), train="Train", test="Test")
    splits = load(options(root, far_ood=(f"folder:{far}",)))
    assert len(splits["far_ood/far"]) == 4
    assert f"{far}: of its parts, Test/ alone is used." in splits.notes


def test_class_names_that_differ_by_unicode_form_only_are_told(tmp_path, options):
    root = labelled_folder(tmp_path / "pets", classes=("dog", unicodedata.normalize("NFC", "bär")))
    (root / "test" / unicodedata.normalize("NFC", "bär")).rename(
        root / "test" / unicodedata.normalize("NFD", "bär")
    )
    with pytest.raises(ValueError, match="the names differ by Unicode form alone"):
        load(options(root))


def test_files_that_are_not_read_are_counted_by_suffix(tmp_path, options):
    root = labelled_folder(tmp_path / "pets")
    for number in range(3):
        (root / "train" / "cat" / f"{number}.HEIC").touch()
    (root / "train" / "dog" / "README").touch()
    (root / "test" / "dog" / "labels.txt").touch()
    (root / "test" / "dog" / ".hidden.heic").touch()
    splits = load(options(root))
    said = "files that are not read as images are passed over"
    assert f"{root / 'train'}: 4 {said}: 3 .heic, 1 without suffix." in splits.cautions
    assert (
        f"{root / 'test'}: 1 file that is not read as an image is passed over: 1 .txt."
        in splits.notes
    )
    assert len(splits.cautions) == 1


def test_other_files_are_counted_once_however_often_a_folder_is_scanned(tmp_path, monkeypatch):
    from deepens.datasets import image_files

    write_images(tmp_path, 7)
    for number in range(5):
        (tmp_path / f"{number}.raw").touch()
    monkeypatch.setattr(image_files, "NAMES_AT_ONCE", 2)
    passed = Counter()
    assert len(list(iterate_images(tmp_path, passed=passed))) == 7
    assert passed == {".raw": 5}
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match=r"got 0 in .*5 files .* passed over: 5 .raw"):
        next(iterate_images(tmp_path))


@pytest.mark.parametrize(
    ("feature", "suffix"), [("avif", ".avif"), ("jpg_2000", ".jp2"), ("webp", ".webp")]
)
def test_formats_count_where_pillow_reads_them(tmp_path, feature, suffix):
    if not features.check(feature):
        assert suffix not in SUFFIXES
        return
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / f"a{suffix}")
    (file,) = iterate_images(tmp_path)
    assert abs(int(read_image(file, channels=3, size=(8, 8))[0, 4, 4]) - 200) < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("seen", "around"), [(0, 255), (120, 255), (255, 0)])
def test_what_is_transparent_is_laid_on_white_or_where_that_hides_all_on_black(
    tmp_path, mode, seen, around
):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    pixels[:, :4] = (seen, seen, seen, 255)
    pixels[:, 4:, 3] = 0
    Image.fromarray(pixels, "RGBA").convert(mode).save(tmp_path / "a.png")
    for channels in (1, 3):
        found = read_image(tmp_path / "a.png", channels=channels, size=(8, 8))
        assert found[..., :4].unique().tolist() == [seen]
        assert found[..., 4:].unique().tolist() == [around]


def test_opaque_alpha_changes_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", channels=3, size=(8, 8))
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels[..., :3])


@LIMITS
def test_how_images_were_read_is_said_for_each_part(tmp_path, options, limit):
    root = labelled_folder(tmp_path / "pets", train=30)
    cats = sorted((root / "train" / "cat").iterdir())
    for file in cats[:3]:
        image = Image.open(file).convert("RGBA")
        image.putalpha(Image.fromarray(np.eye(8, dtype=np.uint8) * 255))
        image.save(file)
    for file in cats[3:5]:
        Image.open(file).save(file, exif=b"Exif\x00\x00garbage garbage")
    frames = [Image.open(file).copy() for file in cats[5:7]]
    frames[0].save(cats[5].with_suffix(".tiff"), save_all=True, append_images=frames[1:])
    cats[5].unlink()
    for _ in range(2):  # read, then from the cache
        notes = load(options(root, memory_limit=limit)).notes
        assert [note for note in notes if note.startswith("pets train:")] == [
            "pets train: 3 of 60 images have transparent parts, laid on white, or on black if "
            "white hides all.",
            "pets train: 2 of 60 images have damaged EXIF data, and are read as they are stored.",
            "pets train: 1 of 60 images have several frames, of which the first counts.",
        ]


@LIMITS
def test_twelve_bits_in_files_of_sixteen_are_a_caution(tmp_path, options, limit):
    root = labelled_folder(tmp_path / "pets", mode="L")
    for file in root.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 16).save(file)
    cautions = load(options(root, memory_limit=limit)).cautions
    assert [line.partition(":")[0] for line in cautions] == ["pets train", "pets test"]
    assert "if they have 12 bits in files of 16, multiply the values by 16" in cautions[0]
    file = root / "train" / "cat" / "0000.png"
    Image.fromarray(np.asarray(Image.open(file)) * 16).save(file)  # one that uses the range
    assert len(load(options(root, memory_limit=limit)).cautions) == 1


def test_the_limit_of_megapixels_is_named_and_can_be_raised(tmp_path):
    Image.new("1", (400, 400)).save(tmp_path / "large.png")
    code = (
        "import sys; from deepens.datasets import read_image\n"
        "try: print(read_image(sys.argv[1], channels=1, size=(8, 8)).shape)\n"
        "except ValueError as error: print(error)"
    )

    def read(megapixels):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "large.png")],
            env=os.environ | {MEGAPIXELS: megapixels},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    refused = read("0.1")
    assert "decompression bomb" in refused
    assert f"raise the limit: {MEGAPIXELS}=" in refused
    assert read("0.2") == "torch.Size([1, 8, 8])"
    assert f"{MEGAPIXELS} must be a number, got 'x'" in read("x")


def test_images_in_memory_at_once_stay_within_the_limit_and_one_has_room_always():
    room, inside, most = Room(2**30), [], []

    def work(size):
        with room.of(size):
            inside.append(size)
            most.append(sum(inside))
            time.sleep(0.01)
            inside.remove(size)

    threads = [threading.Thread(target=work, args=(300 * 2**20,)) for _ in range(12)]
    threads.append(threading.Thread(target=work, args=(2**31,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(most) == 13
    assert all(total <= 2**30 or total == 2**31 for total in most)
    assert max(total for total in most if total <= 2**30) > 300 * 2**20


def test_the_limit_of_the_data_bounds_what_is_decoded_at_once(tmp_path, options):
    from deepens.datasets.image_reading import READING

    root = labelled_folder(tmp_path / "pets", train=5, test=2)
    load(options(root, memory_limit=1.5))
    assert READING.limit == round(1.5 * 2**30)


def test_frost_of_our_own_is_said_and_published_frost_is_not(tmp_path, options):
    root = labelled_folder(tmp_path / "pets")
    ours = load(options(root, corruptions=("frost", "fog")))
    assert FROST_NOTE in ours.notes
    assert FROST_NOTE not in load(options(root, corruptions=("fog",))).notes
    published = tmp_path / "published"
    published.mkdir()
    test = ours["test"]
    np.save(published / "labels.npy", np.tile(test.labels.numpy(), 5))
    np.save(published / "frost.npy", np.tile(test.images.permute(0, 2, 3, 1).numpy(), (5, 1, 1, 1)))
    splits = load(options(root, corruptions=(f"folder:{published}",)))
    assert "shift/frost/3" in splits
    assert FROST_NOTE not in splits.notes
