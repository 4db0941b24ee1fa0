import numpy as np
import pytest
import torch
from deepens.datasets import load
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images


@pytest.fixture(scope="module")
def splits():
    return load("digits")


def _rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


def test_parts_have_the_promised_sizes(splits):
    in_distribution = splits.names("train") + splits.names("val") + splits.names("test")
    sizes = {name: len(splits[name]) for name in in_distribution}
    total = int((load_digits().target < 8).sum())
    assert sum(sizes.values()) == total
    assert sizes["test"] == round(0.4 * total)
    assert [sizes[name] for name in splits.names("val")] == [74, 74, 74]


def test_every_digit_is_in_one_part_with_its_own_label(splits):
    source = load_digits()
    label_of = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
        for image, label in zip(source.images, source.target, strict=True)
    }
    assert len(label_of) == len(source.images)  # the images are distinct, and so identify
    seen = []
    for name in ("train", "val/select", "val/calibrate", "val/conform", "test"):
        rows = _rows(splits[name].images)
        assert [label_of[row] for row in rows] == splits[name].targets.tolist()
        seen += rows
    near = _rows(splits["near_ood/digits-8-9"].images)
    assert {label_of[row] for row in near} == {8, 9}
    assert set(seen + near) == set(label_of)
    assert len(seen + near) == len(label_of)


def test_every_part_has_the_class_proportions_of_the_whole(splits):
    names = ("train", "val/select", "val/calibrate", "val/conform", "test")
    counts = torch.stack([splits[name].targets.bincount(minlength=8) for name in names])
    expected = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
    assert (counts - expected).abs().max() < 1.5


def test_cut_is_the_same_for_ever(splits):
    # Found on one machine; no seed, platform or library version may change it.
    found = {name: splits[name].fingerprint()[:12] for name in ("train", "val/conform", "test")}
    assert found == {
        "train": "c0aef4d19e8f",
        "val/conform": "974139ff9319",
        "test": "fe440a130636",
    }
    assert load("digits").fingerprint() == splits.fingerprint()


def test_mean_and_std_are_those_of_the_training_images(splits):
    values = splits["train"].images.numpy() / 255
    assert splits.mean == pytest.approx((values.mean(),), abs=1e-12)
    assert splits.std == pytest.approx((values.std(),), abs=1e-12)


def test_far_patches_are_area_averages_of_the_photographs(splits):
    images = splits["far_ood/photographs"].images
    assert 400 <= len(images) == len(set(_rows(images)))
    grey = np.asarray(Image.fromarray(load_sample_images().images[0]).convert("L"))
    shrunk = grey[:416].reshape(104, 4, 160, 4).mean(axis=(1, 3))
    # Reading order, and each the nearest of the digits' 17 levels, up to Pillow's rounded grey.
    first, last_of_row = shrunk[:8, :8], shrunk[:8, 152:]
    assert np.abs(images[0, 0].numpy() - first).max() <= 255 / 32 + 1
    assert any(
        np.abs(image[0].numpy() - last_of_row).max() <= 255 / 32 + 1 for image in images[:20]
    )
    assert set(images.unique().tolist()) <= set(splits["train"].images.unique().tolist())


def test_shifted_tests_keep_their_labels_and_grow_with_severity(splits):
    clean = splits["test"]
    for corruption in (
        "gaussian_noise",
        "impulse_noise",
        "gaussian_blur",
        "brightness",
        "contrast",
    ):
        changes = []
        for severity in range(1, 6):
            shifted = splits[f"shift/{corruption}/{severity}"]
            assert torch.equal(shifted.targets, clean.targets)
            changes.append((shifted.images.double() - clean.images).abs().mean().item())
        assert changes[0] > 0
        assert changes == sorted(changes)


def test_caveat_says_what_the_data_cannot_do(splits):
    assert "cannot tell strong methods apart" in splits.caveat
    assert "577 test images is 0.17 %" in splits.caveat
    assert not splits.conclusive
