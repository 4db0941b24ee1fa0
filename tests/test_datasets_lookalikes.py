"""Images that look the same without being copies: counted between parts, and no false alarms."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from deepens.datasets import DataOptions, Split, Splits, list_images, load
from deepens.datasets.lookalikes import Outlines
from image_folders import labelled_folder
from PIL import Image
from sklearn.datasets import load_digits

DATA = os.environ.get("DEEPENS_DATA")


def _digits():
    return (torch.from_numpy(load_digits().images) * 15.9).to(torch.uint8).unsqueeze(1)


def _encoded(images, quality):
    made = []
    for image in images:
        file = io.BytesIO()
        pixels = image.movedim(0, -1).numpy()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality)
        made.append(torch.from_numpy(np.array(Image.open(file))).view(*pixels.shape))
    return torch.stack(made).movedim(-1, 1)


def _less_by_one(images):
    return torch.where(images > 0, images - 1, 1)


@pytest.mark.parametrize(
    "change", [_less_by_one, lambda images: _encoded(images, 95)], ids=["1", "jpeg"]
)
def test_every_image_changed_a_little_is_found_and_different_ones_are_not(change):
    images = _digits()
    ours, others = Outlines.of(images[:400]), Outlines.of(images[400:])
    assert Outlines.of(change(images[:400])).found_in(ours).all()
    assert not Outlines.of(change(images[:400])).found_in(others).any()
    assert not Outlines.of(images).repeated(torch.arange(len(images))).any()


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (65, 130)])
def test_any_size_is_looked_at_and_images_without_contrast_match_nothing(size):
    images = torch.randint(0, 250, (6, 3, *size), dtype=torch.uint8)
    flat = torch.full((2, 3, *size), 80, dtype=torch.uint8)
    changed = torch.cat([images, flat])
    changed[:, :, 0, 0] += 1
    found = Outlines.of(changed).found_in(Outlines.of(torch.cat([images, flat])))
    assert found.tolist() == [True] * 6 + [False] * 2
    assert not Outlines.of(flat).found_in(Outlines.of(flat)).any()


def test_lookalikes_between_given_parts_are_said_and_counted_apart_from_copies(tmp_path):
    root = labelled_folder(tmp_path / "pets", size=(16, 16))
    trained = sorted((root / "train").rglob("*.png"))
    for number, file in enumerate(trained[:3]):
        pixels = np.array(Image.open(file))
        pixels[5, 5] = np.where(pixels[5, 5] < 255, pixels[5, 5] + 1, 254)
        Image.fromarray(pixels).save(root / "test" / "cat" / f"changed{number}.png")
    (root / "test" / "dog" / "copy.png").write_bytes(trained[0].read_bytes())
    options = {"cache": str(tmp_path / "cache"), "corruptions": ("none",)}
    splits = load(DataOptions(f"folder:{root}", **options))
    assert [line.partition(", but")[0].partition(", by")[0] for line in splits.cautions] == [
        "1 of 16 test images are copies of training images",
        "3 of 16 test images look the same as training images",
    ]
    on_disk = load(DataOptions(f"folder:{root}", memory_limit=0.0, **options))
    assert len(on_disk.cautions) == 1
    assert any("exact ones alone are found" in note for note in on_disk.notes)


def test_validation_that_was_encoded_again_is_told_apart_from_new_images():
    images, labels = _digits()[:60], torch.arange(60) % 3
    made = {"train": Split(images, labels), "val/calibrate": Split(_encoded(images, 95), labels)}
    splits = Splits("own", ("a", "b", "c"), made, (0.5,), (0.5,))
    assert splits.copies("val/calibrate") == 60
    assert not splits["train"].alike(splits["train"]).any()  # these are copies


def test_lookalikes_among_training_images_may_be_on_both_sides_of_our_cut(tmp_path):
    root = labelled_folder(tmp_path / "pets", size=(16, 16))
    for file in sorted((root / "train").rglob("*.png"))[:2]:
        pixels = np.array(Image.open(file))
        pixels[5, 5] = np.where(pixels[5, 5] < 255, pixels[5, 5] + 1, 254)
        Image.fromarray(pixels).save(file.with_name(f"frame-{file.name}"))
    options = {"cache": str(tmp_path / "cache"), "corruptions": ("none",)}
    (line,) = load(DataOptions(f"folder:{root}", **options)).cautions
    assert line.startswith("4 of 42 training images look the same as other training images")
    assert "--group-by" in line


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="DEEPENS_DATA names no folder of real image sets")
@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_no_two_different_images_of_real_sets_look_the_same(name):
    if not (Path(DATA) / name).exists():
        pytest.skip(f"{name} is not there")
    files = list_images(Path(DATA) / name / "test")
    images = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    images = images.unsqueeze(1) if images.ndim == 3 else images.movedim(-1, 1)
    assert not Split(images, None).repeated().any()
    assert Outlines.of(_encoded(images[:500], 95)).found_in(Outlines.of(images)).sum() > 450
