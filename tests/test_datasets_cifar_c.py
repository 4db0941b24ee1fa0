"""The published files of CIFAR-C: rows by severity, checked, never executed."""

import numpy as np
import pytest
import torch
from deepens.datasets import CORRUPTIONS, Split
from deepens.datasets.corruptions.shift import shifted_splits


@pytest.fixture
def test_split():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, torch.tensor([3, 1, 0, 2, 1, 3]))


@pytest.fixture
def folder(tmp_path, test_split):
    random = np.random.default_rng(0)
    for name in ("fog", "snow"):
        images = random.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
        np.save(tmp_path / f"{name}.npy", images)
    np.save(tmp_path / "labels.npy", np.tile(test_split.targets.numpy().astype(np.uint8), 5))
    return tmp_path


def offer(folder, test_split):
    return shifted_splits(test_split, [f"folder:{folder}"])


def test_each_severity_is_its_rows_with_channels_first(folder, test_split):
    offered = offer(folder, test_split)
    assert list(offered) == [f"shift/{n}/{s}" for n in ("fog", "snow") for s in range(1, 6)]
    images = np.load(folder / "snow.npy")
    for severity in range(1, 6):
        split = offered[f"shift/snow/{severity}"]()
        expected = images[6 * (severity - 1) : 6 * severity]
        assert np.array_equal(split.tensor.numpy().transpose(0, 2, 3, 1), expected)
        assert torch.equal(split.targets, test_split.targets)


def test_labels_of_other_images_are_refused(folder, test_split):
    np.save(folder / "labels.npy", np.zeros(30, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"labels.npy must hold the 6 test labels five times over"):
        offer(folder, test_split)


def test_files_of_another_shape_are_refused(folder, test_split):
    np.save(folder / "fog.npy", np.zeros((29, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"fog.npy must hold uint8 images of shape \[30, 32"):
        offer(folder, test_split)


def test_a_pickle_is_refused_and_not_executed(folder, test_split):
    np.save(folder / "fog.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"fog.npy is not an array of numbers"):
        offer(folder, test_split)


def test_a_truncated_file_is_refused(folder, test_split):
    whole = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"fog.npy is not an array of numbers"):
        offer(folder, test_split)


def test_missing_folders_files_and_labels_are_named(tmp_path, folder, test_split):
    with pytest.raises(ValueError, match="got .*nowhere"):
        offer(tmp_path / "nowhere", test_split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no .npy files of corruptions"):
        offer(tmp_path / "empty", test_split)
    (folder / "labels.npy").unlink()
    with pytest.raises(ValueError, match=r"labels.npy does not exist"):
        offer(folder, test_split)


def test_a_folder_stands_alone(folder, test_split):
    with pytest.raises(ValueError, match="must stand alone"):
        shifted_splits(test_split, [f"folder:{folder}", "contrast"])


def test_words_stand_for_many_corruptions(test_split):
    assert len(shifted_splits(test_split, ["all"])) == 19 * 5
    standard = shifted_splits(test_split, ["standard", "contrast"])
    assert len(standard) == 15 * 5
    assert {name.split("/")[1] for name in standard} == set(list(CORRUPTIONS)[:15])
