"""Images that do not fit in memory: decoded by workers, the same whatever their number."""

import multiprocessing
import pickle
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
    read_image,
)
from deepens.datasets.loading.stream_loader import AugmentedFiles
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
def test_without_augmentation_batches_are_those_of_the_loaded_tensor(folder, shared, channels_last):
    arguments = {"seeds": [1, 2], "shared": shared}
    stream = _loader(folder, Augmentation(), channels_last=channels_last, **arguments)
    split = _split(folder)
    resident = TensorLoader(
        Split(split.images.load(), split.targets),
        batch_size=4,
        pipeline=_pipeline(Augmentation(), channels_last=channels_last),
        **arguments,
    )
    assert len(stream) == len(resident) == 2
    for epoch in (0, 3):
        for found, expected in zip(_epoch(stream, epoch), _epoch(resident, epoch), strict=True):
            assert torch.equal(found, expected)
    for found, expected in zip(stream, resident, strict=True):
        assert found.images.stride() == expected.images.stride()


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


def test_batches_do_not_depend_on_the_number_of_workers(folder):
    alone = _loader(folder, workers=0)
    expected = [_epoch(alone, epoch) for epoch in (0, 1)]
    for workers in (1, 2):
        loader = _loader(folder, workers=workers)
        for epoch in (0, 1):
            assert all(map(torch.equal, _epoch(loader, epoch), expected[epoch]))


def test_a_member_alone_sees_bit_for_bit_what_it_sees_among_others(folder):
    joint = _epoch(_loader(folder, seeds=[7, 3]), 4)
    for member, seed in enumerate((7, 3)):
        alone = _epoch(_loader(folder, seeds=[seed]), 4)
        for found, among_others in zip(alone, joint, strict=True):
            assert torch.equal(found[:, 0], among_others[:, member])
    shared = _epoch(_loader(folder, seeds=[7, 3], shared=True), 4)
    for found, own in zip(shared, joint, strict=True):
        assert torch.equal(found, own[:, 0])


def test_images_change_from_epoch_to_epoch_and_from_member_to_member(folder):
    files = AugmentedFiles(_split(folder).images, EVERYTHING)
    images = [files[key] for key in ((1, 0, 3), (2, 0, 3), (1, 1, 3), (1, 0, 4))]
    assert torch.equal(images[0], files[1, 0, 3])
    for other in images[1:]:
        assert not torch.equal(images[0], other)


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_global_generator_is_left_alone(folder, workers):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _epoch(_loader(folder, workers=workers), 0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(_epoch(_loader(folder), 0).images, first.images)


def test_crops_and_flips_are_windows_of_the_image_and_all_occur(folder):
    files = _split(folder).images
    augmented = AugmentedFiles(files, Augmentation(1, True))
    padded = torch.nn.functional.pad(files.read(0), (1, 1, 1, 1))
    windows = [padded[:, top : top + 10, left : left + 8] for top in range(3) for left in range(3)]
    candidates = windows + [window.flip(-1) for window in windows]
    seen = set()
    for epoch in range(200):
        image = augmented[1, epoch, 0]
        seen.add(next(i for i, window in enumerate(candidates) if torch.equal(window, image)))
    assert seen == set(range(18))


def test_resized_crop_is_cut_from_the_image_as_it_is_on_disk(tmp_path):
    """Where a crop of the shrunken image would be grey, one of the original is black or white."""
    fine = np.zeros((64, 64), dtype=np.uint8)
    fine[::2] = 255
    Image.fromarray(fine).save(tmp_path / "stripes.png")
    files = ImageFiles((tmp_path / "stripes.png",), channels=1, size=(16, 16))
    grey = files.read(0)[:, 1:-1].float()  # at its border the filter reaches out
    assert (grey - 127.5).abs().max() < 30
    cropped = AugmentedFiles(files, Augmentation(resized_crop=0.05))
    contrast = [float(cropped[1, epoch, 0].float().std()) for epoch in range(100)]
    assert max(contrast) > 60


def test_turned_images_keep_their_whole_side(folder):
    """The fifth file is 18 x 36 as stored and 36 x 18 as seen."""
    files = AugmentedFiles(_split(folder).images, Augmentation(resized_crop=1.0))
    path = _split(folder).images.paths[4]
    with Image.open(path) as image:
        width, height = image.size
    assert torch.equal(files._read_whole(4), read_image(path, channels=3, size=(width, height)))
    assert width != height


def test_cutout_of_a_streamed_image_is_black_and_no_larger_than_asked_for(folder):
    plain = _split(folder).images
    cut = AugmentedFiles(plain, Augmentation(cutout=3))
    sizes = set()
    for epoch in range(60):
        differing = (cut[1, epoch, 2] != plain.read(2)).any(0)
        rows, columns = differing.nonzero().unbind(1)
        assert cut[1, epoch, 2][:, differing].sum() == 0
        sizes.add((int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1))
    assert (3, 3) in sizes
    assert all(max(size) <= 3 for size in sizes)


def test_switching_cutout_on_leaves_the_other_changes(folder):
    images = _split(folder).images
    without = AugmentedFiles(images, Augmentation(2, True, rand_augment=1))[1, 0, 5]
    with_square = AugmentedFiles(images, Augmentation(2, True, rand_augment=1, cutout=2))[1, 0, 5]
    differing = (without != with_square).any(0)
    assert differing.sum() <= 4
    assert with_square[:, differing].sum() == 0


@pytest.mark.parametrize("augmentation", [Augmentation(), EVERYTHING])
def test_grey_images_stream_too(folder, augmentation):
    images = _epoch(_loader(folder, augmentation, channels=1), 0).images
    assert images.shape == (2, 2, 4, 1, 10, 8)
    black = (0 - MEAN[0]) / STD[0]
    assert images.min() >= black - 1e-5
    assert images.unique().numel() > 20


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
@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(resized_crop=0.3)])
def test_a_bad_image_is_named_in_one_line(folder, tmp_path, workers, augmentation):
    good = _split(folder).images
    bad = tmp_path / "torn.png"
    bad.write_bytes(good.paths[0].read_bytes()[:200])
    files = ImageFiles((*good.paths[:6], bad), channels=3, size=SIZE)
    split = Split(files, torch.arange(7))
    pipeline = _pipeline(augmentation)
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


def test_what_workers_get_survives_pickling(folder):
    """Where processes are spawned, as on macOS, it travels so."""
    files = AugmentedFiles(_split(folder).images, EVERYTHING)
    copied = pickle.loads(pickle.dumps(files))
    assert torch.equal(copied[1, 2, 3], files[1, 2, 3])


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
    with pytest.raises(ValueError, match=r"pipeline.mean must have one value a channel \(3\)"):
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
