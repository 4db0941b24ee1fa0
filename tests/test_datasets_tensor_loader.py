from pathlib import Path

import pytest
import torch
from deepens.datasets import (
    Augmentation,
    Batch,
    EpochOrder,
    ImageFiles,
    OrderedLoader,
    Pipeline,
    Split,
    TensorLoader,
    batches,
    normalize,
)

MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)


def _split(samples: int = 23, channels: int = 3) -> Split:
    """Make images that tell their own index: it is the first value of the first channel."""
    generator = torch.Generator().manual_seed(0)
    shape = (samples, channels, 6, 5)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images[:, 0, 0, 0] = torch.arange(samples, dtype=torch.uint8)
    return Split(images, torch.arange(samples))


def _pipeline(*, augmented=True, channels=3, channels_last=False, augmentation=None):
    if augmentation is None:
        augmentation = Augmentation(crop_padding=2, flip=True) if augmented else Augmentation()
    return Pipeline(MEAN[:channels], STD[:channels], augmentation, channels_last=channels_last)


def _loader(*, seeds=(1,), shared=False, batch_size=5, split=None, **pipeline) -> TensorLoader:
    return TensorLoader(
        split or _split(),
        batch_size=batch_size,
        seeds=list(seeds),
        shared=shared,
        pipeline=_pipeline(**pipeline),
    )


def _epoch(loader: TensorLoader, epoch: int) -> Batch:
    """Every batch of an epoch, along a new first axis."""
    loader.sampler.set_epoch(epoch)
    return Batch(*map(torch.stack, zip(*loader, strict=True)))


EVERYTHING = Augmentation(2, True, resized_crop=0.3, rand_augment=2, magnitude=7, cutout=3)


@pytest.mark.parametrize("augmentation", [None, EVERYTHING], ids=["crop and flip", "everything"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_member_alone_sees_bit_for_bit_what_it_sees_among_others(channels_last, augmentation):
    seeds = (7, 3, 11)
    changes = {"channels_last": channels_last, "augmentation": augmentation}
    joint = _epoch(_loader(seeds=seeds, **changes), 4)
    for member, seed in enumerate(seeds):
        alone = _epoch(_loader(seeds=[seed], **changes), 4)
        for found, among_others in zip(alone, joint, strict=True):
            assert torch.equal(found[:, 0], among_others[:, member])


def test_shared_batches_are_those_of_the_first_seed():
    shared = _epoch(_loader(seeds=[7, 3], shared=True), 4)
    for found, own in zip(shared, _epoch(_loader(seeds=[7]), 4), strict=True):
        assert torch.equal(found, own[:, 0])


def test_batches_follow_from_seed_and_epoch_and_not_from_what_ran_before():
    used = _loader()
    first = _epoch(used, 2)
    _epoch(used, 9)
    torch.rand(5)  # the global generator plays no part
    assert all(map(torch.equal, first, _epoch(used, 2)))
    assert all(map(torch.equal, first, _epoch(_loader(), 2)))
    assert not torch.equal(first.targets, _epoch(used, 3).targets)
    assert not torch.equal(first.targets, _epoch(_loader(seeds=[2]), 2).targets)
    # (1, 0) and (0, 1) are different streams.
    one, other = _epoch(_loader(seeds=[0]), 1), _epoch(_loader(seeds=[1]), 0)
    assert not torch.equal(one.targets, other.targets)


def test_order_and_augmentation_do_not_depend_on_the_batch_size():
    by_five = _epoch(_loader(batch_size=5, augmentation=EVERYTHING), 1)
    by_ten = _epoch(_loader(batch_size=10, augmentation=EVERYTHING), 1)
    for fives, tens in zip(by_five, by_ten, strict=True):
        assert torch.equal(fives.flatten(0, 2)[:20], tens.flatten(0, 2))


def test_epochs_are_those_of_the_first_release():
    """A resumed or repeated run must not change: this order was drawn by version 0.1.0."""
    first = _epoch(_loader(seeds=[1]), 2).targets.flatten()[:8]
    assert first.tolist() == [1, 3, 8, 19, 4, 11, 15, 22]


@pytest.mark.parametrize("channels_last", [False, True])
def test_each_image_comes_with_its_own_target_and_index_and_at_most_once(channels_last):
    split = _split()
    # Targets that repeat, and that no order of the images explains.
    split = Split(split.images, (7 * torch.arange(len(split)) + 3) % 11)
    loader = _loader(seeds=[1, 2], split=split, augmented=False, channels_last=channels_last)
    images, targets, indices = _epoch(loader, 0)
    assert len(loader) == len(images) == 4  # 23 // 5: the last three are dropped
    assert torch.equal(split.targets[indices], targets)
    for member in range(2):
        seen = indices[:, member].flatten()
        assert len(seen.unique()) == len(seen) == 20
        expected = normalize(split.images[seen], mean=MEAN, std=STD)
        assert torch.equal(images[:, member].flatten(0, 1), expected)


@pytest.mark.parametrize(("shared", "shape"), [(False, (2, 5)), (True, (5,))])
def test_indices_come_member_by_member_as_targets_do(shared, shape):
    batch = next(iter(_loader(seeds=[1, 2], shared=shared)))
    assert batch.targets.shape == batch.indices.shape == shape
    assert batch.indices.dtype == torch.int64
    assert torch.equal(batch.targets, batch.indices)  # this split's targets are its positions


def test_augmentation_is_the_one_drawn_for_the_sample():
    """Undo the draws of the documented stream, and find the plain images."""
    plain = _epoch(_loader(augmented=False), 3).images
    augmented = _epoch(_loader(), 3).images
    black = normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), mean=MEAN, std=STD)
    found = 0
    for before, after in zip(plain.flatten(0, 2), augmented.flatten(0, 2), strict=True):
        padded = black[0].expand(3, 10, 9).clone()
        padded[:, 2:8, 2:7] = before
        windows = [padded[:, y : y + 6, x : x + 5] for y in range(5) for x in range(5)]
        either = windows + [window.flip(-1) for window in windows]
        found += any(torch.equal(window, after) for window in either)
    assert found == 20
    assert not torch.equal(plain, augmented)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augmented", [False, True])
def test_each_members_batch_is_contiguous_in_the_order_asked_for(channels, augmented):
    split = _split(channels=channels)
    arguments = {"split": split, "channels": channels, "augmented": augmented}
    for layout, channels_last in (
        (torch.contiguous_format, False),
        (torch.channels_last, True),
    ):
        own = next(iter(_loader(seeds=[1, 2], channels_last=channels_last, **arguments)))
        assert all(member.is_contiguous(memory_format=layout) for member in own.images)
        shared = next(iter(_loader(shared=True, channels_last=channels_last, **arguments)))
        assert shared.images.is_contiguous(memory_format=layout)


def test_epoch_counts_from_when_the_first_batch_is_fetched():
    # Lightning calls iter() on a resumed fit before it sets the epoch.
    loader = _loader()
    expected = _epoch(loader, 6).targets
    loader.sampler.set_epoch(0)
    started = iter(loader)
    loader.sampler.set_epoch(6)
    assert torch.equal(torch.stack([batch.targets for batch in started]), expected)


def test_a_pass_goes_on_where_its_state_was_taken():
    whole = _epoch(_loader(), 5)
    loader = _loader()
    loader.sampler.set_epoch(5)
    running = iter(loader)
    next(running), next(running)
    state = loader.state_dict()
    assert state == {"epoch": 5, "batch": 2}
    other = _loader()
    other.load_state_dict(state)
    for left, all_of_it in zip(_epoch(other, 5), whole, strict=True):
        assert torch.equal(left, all_of_it[2:])
    assert all(map(torch.equal, _epoch(other, 5), whole))  # only once


def test_the_state_of_another_epoch_skips_nothing():
    loader = _loader()
    loader.load_state_dict({"epoch": 4, "batch": 4})
    assert torch.equal(_epoch(loader, 5).targets, _epoch(_loader(), 5).targets)


def test_images_already_in_place_are_not_copied():
    split = _split()
    loader = TensorLoader(
        split, batch_size=5, seeds=[1], shared=True, pipeline=_pipeline(augmented=False)
    )
    split.images.zero_()
    images = next(iter(loader)).images
    black = normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), mean=MEAN, std=STD)
    assert torch.equal(images, black.expand_as(images))


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_stored_channels_last_are_not_copied(channels_last):
    plain = _split()
    stored = plain.images.movedim(1, -1).contiguous()
    split = Split(stored.movedim(-1, 1), plain.targets)
    for augmentation in (Augmentation(), EVERYTHING):
        changes = {"channels_last": channels_last, "augmentation": augmentation}
        loader = _loader(split=split, **changes)
        assert torch.equal(_epoch(loader, 3).images, _epoch(_loader(**changes), 3).images)
        for batch in loader:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert batch.images[0].is_contiguous(memory_format=layout)
    stored.zero_()  # the loader sees it
    assert len(next(iter(_loader(split=split, augmented=False))).images.unique()) == 3


def test_files_are_refused_where_a_tensor_is_needed():
    files = ImageFiles((Path("a.png"), Path("b.png")), channels=3, size=(6, 5))
    with pytest.raises(ValueError, match="got files: use StreamLoader"):
        _loader(split=Split(files, torch.arange(2)), batch_size=1)


def test_evaluation_sees_every_image_once_in_order_and_as_it_is():
    split = _split()
    for channels_last in (False, True):
        pipeline = _pipeline(channels_last=channels_last)  # its augmentation must not be used
        images, targets = zip(*batches(split, batch_size=10, pipeline=pipeline), strict=True)
        assert [len(batch) for batch in images] == [10, 10, 3]
        assert torch.equal(torch.cat(images), normalize(split.images, mean=MEAN, std=STD))
        assert torch.equal(torch.cat(targets), split.targets)


def test_evaluation_without_targets_yields_none():
    split = Split(_split().images, None)
    assert [targets for _, targets in batches(split, batch_size=23, pipeline=_pipeline())] == [None]


def test_ordered_loader_can_be_iterated_again_and_knows_its_length():
    loader = OrderedLoader(_split(), batch_size=10, pipeline=_pipeline())
    assert len(loader) == len(list(loader)) == len(list(loader)) == 3


def test_batch_larger_than_the_split_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"in \[1, 23\].*got 24: choose a smaller batch"):
        _loader(batch_size=24)


def test_what_cannot_be_trained_on_is_refused():
    with pytest.raises(ValueError, match="split must have targets"):
        _loader(split=Split(_split().images, None))
    with pytest.raises(ValueError, match="seeds must hold >= 1 seed"):
        _loader(seeds=[])
    with pytest.raises(ValueError, match=r"each >= 0, got \[1, -2\]"):
        _loader(seeds=[1, -2])
    with pytest.raises(ValueError, match=r"pipeline.mean must have one value per channel \(1\)"):
        _loader(split=_split(channels=1))
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        batches(_split(), batch_size=0, pipeline=_pipeline())
    with pytest.raises(ValueError, match="epoch must be >= 0, got -1"):
        EpochOrder().set_epoch(-1)
    with pytest.raises(ValueError, match=r"std must be > 0 for each channel, got \(0.0,\)"):
        Pipeline((0.5,), (0.0,))


def test_training_images_are_cropped_and_flipped_as_drawn_and_not_left_alone():
    loader = _loader(batch_size=23)
    loader.sampler.set_epoch(3)
    ((images, _, indices),) = list(loader)
    split = _split()
    plain = normalize(split.images[indices[0]], mean=MEAN, std=STD)
    assert not torch.equal(images[0], plain)
    padded = torch.nn.functional.pad(split.images, (2, 2, 2, 2))
    found = 0
    for image, index in zip(images[0], indices[0], strict=True):
        candidates = [
            padded[index, :, top : top + 6, left : left + 5].flip([-1] if flipped else [])
            for top in range(5)
            for left in range(5)
            for flipped in (False, True)
        ]
        expected = normalize(torch.stack(candidates), mean=MEAN, std=STD)
        found += bool((expected == image).flatten(1).all(1).any())
    assert found == len(split)
