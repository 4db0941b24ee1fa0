"""Processes that share each batch: their parts are the batch, with the same augmentation."""

import pytest
import torch
from deepens.datasets import (
    Augmentation,
    ImageFiles,
    OrderedLoader,
    Pipeline,
    Split,
    StreamLoader,
    TensorLoader,
)
from PIL import Image

EVERYTHING = Augmentation(2, True, resized_crop=0.3, rand_augment=2, magnitude=7, cutout=3)


def _files(folder, count=14):
    pixels = torch.randint(0, 256, (count, 6, 5), generator=torch.Generator().manual_seed(0))
    for index, each in enumerate(pixels.to(torch.uint8)):
        Image.fromarray(each.numpy()).save(folder / f"{index:02d}.png")
    files = ImageFiles(tuple(sorted(folder.glob("*.png"))), channels=1, size=(6, 5))
    return Split(files, torch.arange(count) % 3)


def _split(folder, kind):
    split = _files(folder)
    return split if kind is StreamLoader else Split(split.images.load(), split.targets)


def _loader(kind, split, part, shared):
    how = {"seeds": [4, 9], "shared": shared, "workers": 0}
    loader = kind(split, batch_size=6, **how, pipeline=Pipeline((0.4,), (0.2,), EVERYTHING))
    loader.sampler.set_epoch(2)
    if part is not None:
        loader.take_part(*part)
    return loader


@pytest.mark.parametrize("kind", [TensorLoader, StreamLoader])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("processes", [2, 3])
def test_parts_together_are_the_batch_bit_for_bit(tmp_path, kind, shared, processes):
    split = _split(tmp_path, kind)
    whole = _loader(kind, split, None, shared)
    parts = [_loader(kind, split, (rank, processes), shared) for rank in range(processes)]
    assert all(len(part) == len(whole) == 2 for part in parts)
    for batch, *shares in zip(whole, *parts, strict=True):
        for one, *own in zip(batch, *shares, strict=True):
            assert torch.equal(torch.cat(own, 0 if shared else 1), one)


def test_whole_batches_can_be_had_for_a_pass(tmp_path):
    split = _split(tmp_path, TensorLoader)
    part = _loader(TensorLoader, split, (1, 2), False)
    before = [batch.indices for batch in part]
    passed = [batch.indices for batch in part.whole()]
    expected = [batch.indices for batch in _loader(TensorLoader, split, None, False)]
    assert all(map(torch.equal, passed, expected))
    assert all(torch.equal(b, e[:, 3:]) for b, e in zip(before, expected, strict=True))
    assert all(map(torch.equal, before, [batch.indices for batch in part]))


@pytest.mark.parametrize("kind", [TensorLoader, StreamLoader])
@pytest.mark.parametrize(("size", "processes"), [(3, 2), (4, 3), (2, 5), (64, 14)])
def test_validation_counts_no_image_twice_in_as_many_batches(tmp_path, kind, size, processes):
    split = _split(tmp_path, kind)
    labelled = Split(split.images, torch.arange(14))
    how = {"batch_size": size, "pipeline": Pipeline((0.0,), (1.0,)), "workers": 0}
    images, labels = map(torch.cat, zip(*OrderedLoader(labelled, **how), strict=True))
    whole = dict(zip(labels.tolist(), images, strict=True))
    seen, lengths = {}, set()
    for rank in range(processes):
        loader = OrderedLoader(labelled, **how)
        loader.take_part(rank, processes)
        batches = list(loader)
        lengths |= {len(batches), len(loader)}
        assert all(1 <= len(images) <= size for images, _ in batches)
        for images, labels in batches:
            for image, label in zip(images, labels.tolist(), strict=True):
                assert label not in seen
                seen[label] = image
    assert len(lengths) == 1
    assert seen.keys() == whole.keys()
    assert all(torch.equal(seen[label], image) for label, image in whole.items())


def test_what_cannot_be_shared_is_refused(tmp_path):
    split = _split(tmp_path, TensorLoader)
    loader = _loader(TensorLoader, split, None, True)
    with pytest.raises(ValueError, match="batch_size must be a multiple of 4, .*, got 6"):
        loader.take_part(0, 4)
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"):
        loader.take_part(2, 2)
    ordered = OrderedLoader(split, batch_size=4, pipeline=Pipeline((0.0,), (1.0,)))
    with pytest.raises(ValueError, match="14 validation images .* too few for 15 processes"):
        ordered.take_part(0, 15)
