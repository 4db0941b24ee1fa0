"""Images that do not fit in memory: decoded by workers, the same whatever their number."""

import multiprocessing
import warnings

import numpy as np
import pytest
import torch
from deepens.datasets import (
    Augmentation,
    Batch,
    ImageFiles,
    OrderedLoader,
    Pipeline,
    Split,
    StreamLoader,
    TensorLoader,
    batches,
    normalize,
)
from PIL import Image

MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
SIZE = (10, 8)
COUNT = 11
EVERYTHING = Augmentation(2, True, resized_crop=0.3, rand_augment=2, magnitude=7, cutout=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    for index in range(COUNT):
        # Of several sizes, and one turned by its EXIF data.
        shape = (14 + index, 40 - index, 3)
        image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 4 else 1
        image.save(folder / f"{index:02d}.png", exif=exif)
    return folder


def _split(folder, channels: int = 3) -> Split:
    files = ImageFiles(tuple(sorted(folder.glob("*.png"))), channels=channels, size=SIZE)
    return Split(files, (5 * torch.arange(COUNT) + 2) % 7)


def _pipeline(augmentation: Augmentation, channels: int = 3, **changes) -> Pipeline:
    return Pipeline(MEAN[:channels], STD[:channels], augmentation, **changes)


def _loader(
    folder, augmentation=EVERYTHING, *, seeds=(1, 2), shared=False, workers=0, **pipeline
) -> StreamLoader:
    return StreamLoader(
        _split(folder, pipeline.get("channels", 3)),
        batch_size=4,
        seeds=list(seeds),
        shared=shared,
        pipeline=_pipeline(augmentation, **pipeline),
        workers=workers,
    )


def _epoch(loader, epoch: int) -> Batch:
    """Every batch of an epoch, along a new first axis."""
    loader.sampler.set_epoch(epoch)
    return Batch(*map(torch.stack, zip(*loader, strict=True)))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_are_bit_for_bit_those_of_images_in_memory(folder, shared, channels_last, channels):
    """So --memory-limit changes no result: all augmentations, whatever the number of workers."""
    split = _split(folder, channels)
    pipeline = _pipeline(EVERYTHING, channels, channels_last=channels_last)
    arguments = {"batch_size": 4, "seeds": [7, 3], "shared": shared, "pipeline": pipeline}
    resident = TensorLoader(Split(split.images.load(), split.targets), **arguments)
    expected = [_epoch(resident, epoch) for epoch in (0, 3)]
    assert not torch.equal(expected[0].images, expected[1].images)
    for workers in (0, 1) if shared else (0, 2):
        stream = StreamLoader(split, **arguments, workers=workers)
        assert len(stream) == len(resident) == 2
        for epoch, wanted in zip((0, 3), expected, strict=True):
            assert all(map(torch.equal, _epoch(stream, epoch), wanted))
        for found, held in zip(stream, resident, strict=True):
            assert found.images.stride() == held.images.stride()


def test_pixels_do_not_depend_on_the_batch_size_or_the_other_members(folder):
    split = _split(folder)
    arguments = {"shared": False, "pipeline": _pipeline(EVERYTHING), "workers": 0}
    joint = _epoch(StreamLoader(split, batch_size=4, seeds=[7, 3], **arguments), 2)
    alone = _epoch(StreamLoader(split, batch_size=2, seeds=[3], **arguments), 2)
    for found, among_others in zip(alone, joint, strict=True):
        assert torch.equal(found.flatten(0, 2)[:8], among_others[:, 1].flatten(0, 1))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_indices_tell_which_file_and_target_each_image_is_and_none_twice(folder, shared, workers):
    split = _split(folder)
    images, targets, indices = _epoch(
        _loader(folder, Augmentation(), shared=shared, workers=workers), 3
    )
    assert indices.shape == ((2, 4) if shared else (2, 2, 4))
    assert torch.equal(split.targets[indices], targets)
    expected = normalize(split.images.load()[indices.flatten()], mean=MEAN, std=STD)
    assert torch.equal(images.flatten(0, -4), expected)
    for seen in [indices] if shared else indices.unbind(1):
        assert len(seen.unique()) == seen.numel() == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_global_generator_is_left_alone(folder, workers):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _epoch(_loader(folder, workers=workers), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(_epoch(_loader(folder), 0).images, first.images)


def test_a_pass_goes_on_where_its_state_was_taken(folder):
    whole = _epoch(_loader(folder), 5)
    loader = _loader(folder, workers=1)
    loader.sampler.set_epoch(5)
    next(iter(loader))
    state = loader.state_dict()
    assert state == {"epoch": 5, "batch": 1}
    # A pass that was given up is no obstacle to the next.
    for again in (loader, _loader(folder)):
        again.load_state_dict(state)
        left = _epoch(again, 5)
        assert all(torch.equal(a, b[1:]) for a, b in zip(left, whole, strict=True))
        assert all(map(torch.equal, _epoch(again, 5), whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_the_loaded_tensor_bit_for_bit(folder, workers):
    split = _split(folder)
    loaded = split.images.load()
    for channels_last in (False, True):
        pipeline = _pipeline(EVERYTHING, channels_last=channels_last)  # must not be used
        loader = OrderedLoader(split, batch_size=4, pipeline=pipeline, workers=workers)
        assert len(loader) == 3
        for found in (loader, batches(split, batch_size=4, pipeline=pipeline, workers=workers)):
            images, targets = zip(*found, strict=True)
            assert [len(batch) for batch in images] == [4, 4, 3]
            assert torch.equal(torch.cat(images), normalize(loaded, mean=MEAN, std=STD))
            assert torch.equal(torch.cat(targets), split.targets)


def test_evaluation_of_files_without_targets_yields_none(folder):
    split = Split(_split(folder).images, None)
    found = batches(split, batch_size=8, pipeline=_pipeline(Augmentation()), workers=0)
    assert [targets for _, targets in found] == [None, None]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named_in_one_line(folder, tmp_path, workers):
    good = _split(folder).images
    bad = tmp_path / "torn.png"
    bad.write_bytes(good.paths[0].read_bytes()[:200])
    files = ImageFiles((*good.paths[:6], bad), channels=3, size=SIZE)
    split = Split(files, torch.arange(7))
    pipeline = _pipeline(EVERYTHING)
    loader = StreamLoader(
        split, batch_size=7, seeds=[1], shared=False, pipeline=pipeline, workers=workers
    )
    with pytest.raises(ValueError, match=r"cannot read image '.*torn.png'") as raised:
        list(loader)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"cannot read image '.*torn.png'") as raised:
        list(batches(split, batch_size=2, pipeline=pipeline, workers=workers))
    assert "\n" not in str(raised.value)


def test_workers_live_from_pass_to_pass_and_end_with_the_loader(folder):
    before = set(multiprocessing.active_children())
    loader = _loader(folder, workers=2)
    assert set(multiprocessing.active_children()) <= before  # none before the first batch
    list(loader)
    first = set(multiprocessing.active_children()) - before
    list(loader)
    assert set(multiprocessing.active_children()) - before == first
    assert len(first) == 2
    del loader
    assert not first & set(multiprocessing.active_children())
    list(batches(_split(folder), batch_size=4, pipeline=_pipeline(Augmentation()), workers=1))
    assert set(multiprocessing.active_children()) <= before


def test_starting_workers_warns_of_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(_loader(folder, workers=2))


def test_what_cannot_be_streamed_is_refused(folder):
    split = _split(folder)
    arguments = {"batch_size": 4, "seeds": [1], "shared": False}
    pipeline = _pipeline(Augmentation())
    with pytest.raises(ValueError, match="got a tensor: use TensorLoader"):
        StreamLoader(Split(split.images.load(), split.targets), **arguments, pipeline=pipeline)
    with pytest.raises(ValueError, match="workers must be >= 0, got -1"):
        StreamLoader(split, **arguments, pipeline=pipeline, workers=-1)
    with pytest.raises(ValueError, match="workers must be >= 0, got -1"):
        OrderedLoader(split, batch_size=4, pipeline=pipeline, workers=-1)
    with pytest.raises(ValueError, match=r"pipeline.mean must have one value per channel \(3\)"):
        StreamLoader(split, **arguments, pipeline=_pipeline(Augmentation(), 1))
    with pytest.raises(ValueError, match="split must have targets"):
        StreamLoader(Split(split.images, None), **arguments, pipeline=pipeline)


def test_a_worker_that_is_killed_is_told_in_one_line(folder):
    before = set(multiprocessing.active_children())
    loader = _loader(folder, workers=1)
    passing = iter(loader)
    next(passing)
    for worker in set(multiprocessing.active_children()) - before:
        worker.kill()
        worker.join()
    with pytest.raises(ValueError, match=r"was killed, .* lower --workers") as refused:
        list(passing) + list(loader) + list(loader)
    assert "\n" not in str(refused.value)
