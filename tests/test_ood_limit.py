"""Of large OOD sets a part is used, the same on every machine and in every order of the files."""

import dataclasses
import shutil

import pytest
import torch
from deepens.datasets import DataOptions, LabelledImages, load, register_data_set
from deepens.datasets.sources import decoding
from deepens.experiments.config import CompareConfig, TrainConfig
from deepens.experiments.store.run import Run, settled, store_config
from image_folders import write_images


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "ood" / "a", 30, mode="L")
    write_images(tmp_path / "ood" / "b", 20, mode="L")
    return tmp_path / "ood"


def _drawn(folder, tmp_path, limit):
    options = DataOptions(
        "digits", far_ood=(f"folder:{folder}",), ood_limit=limit, cache=str(tmp_path / "cache")
    )
    return load(options)


def test_the_choice_depends_on_contents_alone(folder, tmp_path):
    chosen = _drawn(folder, tmp_path, 12)["far_ood/ood"]
    assert len(chosen) == 12
    for index, file in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        (folder / "c").mkdir(exist_ok=True)
        shutil.move(file, folder / "c" / f"{index:03}.png")
    shutil.rmtree(folder / "a")
    again = _drawn(folder, tmp_path, 12)["far_ood/ood"]
    assert set(again.contents().tolist()) == set(chosen.contents().tolist())
    fewer = _drawn(folder, tmp_path, 5)["far_ood/ood"]
    assert set(fewer.contents().tolist()) < set(chosen.contents().tolist())


def test_images_that_are_not_drawn_are_not_decoded(folder, tmp_path, monkeypatch):
    decoded = []
    look = decoding.look_at

    def spy(path, **how):
        decoded.append(path)
        return look(path, **how)

    monkeypatch.setattr(decoding, "look_at", spy)
    splits = _drawn(folder, tmp_path, 12)
    assert set(decoded) == set(splits["far_ood/ood"].paths)
    assert "ood: 12 of 50 images are used, drawn by content (--ood-limit)." in splits.notes


@pytest.mark.parametrize("limit", ["auto", "none", 0, 354, 1000])
def test_all_are_used_where_there_is_room(folder, tmp_path, limit):
    splits = _drawn(folder, tmp_path, limit)
    assert len(splits["far_ood/ood"]) == 50
    assert splits.notes == ()


def test_four_for_each_test_image_are_enough(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def loader(*, root, download, parts):
        del root, download
        sizes = {"train": 200, "test": 10}
        drawn = {
            part: torch.randint(256, (n, 8, 8, 1), dtype=torch.uint8, generator=generator)
            for part, n in sizes.items()
        }
        return ("a", "b"), {
            part: LabelledImages(images.movedim(-1, 1), torch.arange(len(images)) % 2)
            for part, images in drawn.items()
            if part in parts
        }

    register_data_set("few-test-images", loader)
    options = DataOptions("few-test-images", far_ood=("digits",), cache=str(tmp_path))
    splits = load(dataclasses.replace(options, holdout_classes=()))
    whole = load(dataclasses.replace(options, ood_limit="none"))["far_ood/digits"]
    few = splits["far_ood/digits"]
    assert (len(few), len(whole)) == (40, 577)
    assert torch.isin(few.contents(), whole.contents()).all()


def test_own_ood_sets_of_the_digits_are_drawn_from_too():
    assert len(load(DataOptions("digits", ood_limit=100))["near_ood/digits-8-9"]) == 100


@pytest.mark.parametrize("kind", [TrainConfig, CompareConfig])
def test_directories_of_earlier_versions_keep_all_images(tmp_path, kind):
    old = kind(ood_limit=0, out=str(tmp_path))
    store_config(tmp_path, old)
    file = tmp_path / "config.yaml"
    text = file.read_text().partition("\n")[2]
    file.write_text(text.replace("ood_limit: 0\n", ""))  # and no checksum
    assert "ood_limit" not in file.read_text()
    now = kind(out=str(tmp_path))
    stored = Run.open(tmp_path).config if kind is TrainConfig else None
    assert stored is None or stored.ood_limit == 0
    assert settled(tmp_path, now).ood_limit == 0
    assert not now.differences(settled(tmp_path, now))
    assert settled(tmp_path, now).substance() == old.substance()
    assert "ood_limit" not in old.substance()  # as in checkpoints of earlier versions
    other = kind(out=str(tmp_path), ood_limit=7)
    assert other.differences(settled(tmp_path, now)) == ["ood_limit: 7, not 0"]


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="ood_limit must be >= 0, got -1"):
        DataOptions(ood_limit=-1)
