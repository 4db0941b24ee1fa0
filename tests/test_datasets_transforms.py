import pytest
import torch
import torchvision.transforms.v2.functional as reference
from deepens.datasets import (
    Augmentation,
    AugmentationDraws,
    cutout,
    flip,
    normalize,
    random_crop,
    resized_crop,
)
from deepens.datasets.augmentation.augmentations import draw_order
from deepens.datasets.augmentation.rand_augment import (
    OPERATIONS,
    change,
    draw_operations,
    rand_augment,
)
from torchvision.transforms import v2

EVERYTHING = Augmentation(2, True, resized_crop=0.3, rand_augment=2, magnitude=7, cutout=4)


def _images(samples: int = 6, channels: int = 3, *, channels_last: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (samples, channels, 9, 7)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("reflect", [False, True])
def test_random_crop_is_torchvisions_pad_and_crop_of_each_image(channels_last, reflect):
    images = _images(25, channels_last=channels_last)
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    offsets = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    mode = "reflect" if reflect else "constant"
    expected = torch.stack(
        [
            reference.crop(reference.pad(image, [2], padding_mode=mode), top, left, 9, 7)
            for image, (top, left) in zip(images, offsets.tolist(), strict=True)
        ]
    )
    assert torch.equal(random_crop(images, offsets, padding=2, reflect=reflect), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_flip_mirrors_the_chosen_images_only(channels_last):
    images = _images(channels_last=channels_last)
    flips = torch.tensor([True, False, False, True, True, False])
    expected = images.clone()
    expected[flips] = reference.horizontal_flip(images[flips])
    assert torch.equal(flip(images, flips), expected)
    assert torch.equal(flip(flip(images, flips), flips), images)


def test_a_window_outside_the_padded_image_is_refused():
    for offset in (-1, 5):
        with pytest.raises(IndexError, match=r"offsets must be in \[0, 4\]"):
            random_crop(_images(1), torch.tensor([[0, offset]]), padding=2)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crop_is_torchvisions_within_one_level(channels, channels_last):
    images = _images(5, channels, channels_last=channels_last)
    boxes = torch.tensor([[0, 0, 9, 7], [2, 1, 4, 5], [8, 6, 1, 1], [0, 3, 9, 2], [3, 0, 6, 7]])
    expected = torch.stack(
        [
            reference.resized_crop(image, *box, [9, 7], antialias=False)
            for image, box in zip(images, boxes.tolist(), strict=True)
        ]
    )
    found = resized_crop(images, boxes)
    assert (found.int() - expected.int()).abs().max() <= 1
    assert torch.equal(found[0], images[0])
    assert found.stride() == images.stride()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("side", [1, 2, 5, 40])
def test_cutout_blackens_the_square_around_its_centre_and_nothing_else(side, channels_last):
    images = _images(20, channels_last=channels_last).clamp(min=1)
    generator = torch.Generator().manual_seed(3)
    centres = torch.stack([torch.randint(n, (20,), generator=generator) for n in (9, 7)], dim=1)
    found = cutout(images, centres, side=side)
    for before, after, (row, column) in zip(images, found, centres.tolist(), strict=True):
        top, left = row - side // 2, column - side // 2
        expected = before.clone()
        expected[:, max(0, top) : top + side, max(0, left) : left + side] = 0
        assert torch.equal(after, expected)
        assert after[:, row, column].sum() == 0
    assert found.stride() == images.stride()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 3, 10])
def test_outcomes_are_those_of_torchvisions_rand_augment(channels, magnitude):
    """Its module, drawn from 400 times, makes all of our images and no others."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(30, 220, (channels, 33, 32), dtype=torch.uint8, generator=generator)
    ours = torch.cat(
        [
            change(image[None], name, sign * strength.at(magnitude))
            for name, strength in OPERATIONS.items()
            for sign in ((1, -1) if strength.signed else (1,))
        ]
    )
    theirs = v2.RandAugment(1, magnitude, num_magnitude_bins=11)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([theirs(image) for _ in range(400)]).unique(dim=0)
    # But for rounding of the strength, on which a pixel in a hundred may depend.
    same = (drawn[:, None] == ours).float().mean((2, 3, 4)) >= 0.99
    assert same.any(0).all()
    assert same.any(1).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_operations_act_on_each_image_as_if_it_were_alone(channels, channels_last):
    images = _images(60, channels, channels_last=channels_last)
    operations, strengths = draw_operations(60, 3, 8, torch.Generator().manual_seed(4))
    whole = rand_augment(images, operations, strengths)
    alone = [
        rand_augment(images[i : i + 1], operations[i : i + 1], strengths[i : i + 1])
        for i in range(60)
    ]
    assert torch.equal(whole, torch.cat(alone))
    in_turn = images
    for now in range(3):
        one_round = slice(now, now + 1)
        in_turn = rand_augment(in_turn, operations[:, one_round], strengths[:, one_round])
    assert torch.equal(whole, in_turn)
    assert whole.stride() == images.stride()


def test_operations_and_signs_are_uniform():
    operations, strengths = draw_operations(14000, 2, 10, torch.Generator().manual_seed(0))
    counts = operations.flatten().bincount(minlength=14)
    assert (counts - 2000).abs().max() < 4 * 2000**0.5
    turned = strengths[operations == list(OPERATIONS).index("rotate")]
    assert set(turned.tolist()) == {-30.0, 30.0}
    assert abs((turned > 0).float().mean() - 0.5) < 4 * 0.5 / len(turned) ** 0.5


AUGMENTATIONS = {
    "nothing": Augmentation(),
    "crop": Augmentation(2),
    "flip": Augmentation(flip=True),
    "resized crop": Augmentation(resized_crop=0.3),
    "rand augment": Augmentation(rand_augment=2, magnitude=9),
    "cutout": Augmentation(cutout=3),
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_keeps_the_memory_order_and_its_input(name, channels):
    augmentation, images = AUGMENTATIONS[name], _images(40, channels)
    draws = augmentation.draw(40, (9, 7), seed=1, epoch=0)
    plain = augmentation.apply(images, draws)
    assert plain.is_contiguous()
    assert torch.equal(images, _images(40, channels))
    rearranged = augmentation.apply(_images(40, channels, channels_last=True), draws)
    assert rearranged.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, rearranged)
    assert torch.equal(plain, images) == (name == "nothing")


def test_augmentation_runs_in_the_order_stated():
    images = _images(50)
    draws = EVERYTHING.draw(50, (9, 7), seed=1, epoch=0)
    expected = resized_crop(images, draws.boxes)
    expected = flip(random_crop(expected, draws.offsets, padding=2), draws.flips)
    expected = rand_augment(expected, draws.operations, draws.strengths)
    assert torch.equal(EVERYTHING.apply(images, draws), cutout(expected, draws.centres, side=4))


def _same(one: AugmentationDraws, other: AugmentationDraws, *names: str) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_switching_one_augmentation_on_leaves_the_draws_of_the_others():
    whole = EVERYTHING.draw(30, (9, 7), seed=5, epoch=2)
    drawn = {name: each.draw(30, (9, 7), seed=5, epoch=2) for name, each in AUGMENTATIONS.items()}
    assert _same(drawn["crop"], whole, "offsets", "flips")
    assert _same(drawn["flip"], whole, "flips")
    assert _same(drawn["resized crop"], whole, "boxes")
    assert _same(drawn["rand augment"], whole, "operations")
    assert torch.equal(
        Augmentation(cutout=20).draw(30, (9, 7), seed=5, epoch=2).centres, whole.centres
    )


def test_draws_differ_from_seed_to_seed_and_from_epoch_to_epoch():
    first = EVERYTHING.draw(30, (9, 7), seed=5, epoch=2)
    names = ("offsets", "flips", "boxes", "operations", "centres")
    assert _same(first, EVERYTHING.draw(30, (9, 7), seed=5, epoch=2), *names, "strengths")
    for seed, epoch in ((6, 2), (5, 3)):
        other = EVERYTHING.draw(30, (9, 7), seed=seed, epoch=epoch)
        assert not any(_same(first, other, name) for name in names)


def test_crops_and_flips_are_those_of_the_first_release():
    """A resumed or repeated run must not change: these were drawn by version 0.1.0."""
    draws = Augmentation(4, True).draw(4, (32, 32), seed=7, epoch=3)
    assert draws.offsets.tolist() == [[2, 7], [6, 0], [8, 1], [0, 3]]
    assert draws.flips.tolist() == [False, True, True, True]


def test_draws_are_uniform_over_windows_and_sides_and_centres():
    augmentation = Augmentation(crop_padding=1, flip=True, cutout=3)
    draws = augmentation.draw(9000, (3, 3), seed=0, epoch=0)
    for places in (draws.offsets, draws.centres):
        windows = (places[:, 0] * 3 + places[:, 1]).bincount(minlength=9)
        assert windows.sum() == 9000
        assert (windows - 1000).abs().max() < 4 * 1000**0.5
    assert abs(draws.flips.sum().item() - 4500) < 4 * (9000 / 4) ** 0.5


@pytest.mark.parametrize("size", [(32, 32), (20, 60), (60, 20)])
def test_boxes_are_distributed_as_torchvisions(size):
    """Means of height, width, top and left, each within five standard errors of theirs."""
    count = 1500
    boxes = Augmentation(resized_crop=0.3).draw(count, size, seed=0, epoch=0).boxes
    assert boxes.min() >= 0
    for axis in (0, 1):
        assert (boxes[:, axis] + boxes[:, axis + 2]).max() <= size[axis]
    transform, image = v2.RandomResizedCrop(size, scale=(0.3, 1.0)), torch.zeros(1, *size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[each[k] for k in ("top", "left", "height", "width")] for each in drawn])
    error = 5 * ((boxes.double().var(0) + theirs.double().var(0)) / count).sqrt()
    assert ((boxes.double().mean(0) - theirs.double().mean(0)).abs() <= error + 1e-9).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be >= 0, got -1"),
        ({"rand_augment": -1}, "rand_augment must be >= 0, got -1"),
        ({"cutout": -2}, "cutout must be >= 0, got -2"),
        ({"magnitude": 11}, r"magnitude must be in \[0, 10\], got 11"),
        ({"resized_crop": 0.0}, r"resized_crop must be in \(0, 1\], got 0.0"),
        ({"resized_crop": 1.5}, r"resized_crop must be in \(0, 1\], got 1.5"),
    ],
)
def test_augmentation_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**changes)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_torchvisions_formula(channels, channels_last):
    images = _images(channels=channels)
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.2, 0.3, 0.4)[:channels]
    expected = reference.normalize(images.double() / 255, list(mean), list(std))
    exact = normalize(images, mean=mean, std=std, dtype=torch.float64, channels_last=channels_last)
    torch.testing.assert_close(exact, expected, rtol=1e-13, atol=1e-13)
    single = normalize(images, mean=mean, std=std, channels_last=channels_last)
    torch.testing.assert_close(single, expected.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stored_channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_gives_each_members_batch_in_the_order_asked_for(channels, stored_channels_last):
    images = _images(6, channels, channels_last=stored_channels_last).unflatten(0, (2, 3))
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.2, 0.3, 0.4)[:channels]
    plain = normalize(images, mean=mean, std=std)
    rearranged = normalize(images, mean=mean, std=std, channels_last=True)
    assert torch.equal(plain, rearranged)
    for member in range(2):
        assert plain[member].is_contiguous()
        assert rearranged[member].is_contiguous(memory_format=torch.channels_last)


def test_normalized_values_do_not_depend_on_the_batch():
    images = _images(37)
    arguments = {"mean": (0.1, 0.5, 0.9), "std": (0.2, 0.3, 0.4)}
    for channels_last in (False, True):
        whole = normalize(images, **arguments, channels_last=channels_last)
        alone = [normalize(images[i : i + 1], **arguments) for i in range(37)]
        assert torch.equal(whole, torch.cat(alone))


def test_what_was_normalized_in_inference_mode_first_still_trains():
    # The coefficients are kept; made in inference mode they could not be used here.
    mean, std = (0.123, 0.456, 0.789), (0.21, 0.31, 0.41)
    with torch.inference_mode():
        normalize(_images(), mean=mean, std=std)
    images = normalize(_images(), mean=mean, std=std).requires_grad_()
    (images**2).sum().backward()
    assert torch.equal(images.grad, 2 * images.detach())


def test_one_value_a_channel_is_needed():
    with pytest.raises(ValueError, match=r"one value per channel \(3\), got 1 and 3"):
        normalize(_images(), mean=(0.5,), std=(0.5, 0.5, 0.5))


def test_a_border_as_wide_as_the_image_cannot_reflect_it():
    with pytest.raises(ValueError, match="padding must be < 7 to reflect, got 7"):
        random_crop(_images(1), torch.tensor([[0, 0]]), padding=7, reflect=True)


def test_alternating_flips_show_each_image_both_ways_in_turn():
    augmentation = Augmentation(flip="alternate", crop_padding=1)
    seen = []
    for epoch in range(4):
        draws = augmentation.draw(200, (9, 7), seed=3, epoch=epoch)
        by_image = torch.empty(200, dtype=torch.bool)
        by_image[draw_order(200, seed=3, epoch=epoch)] = draws.flips
        seen.append(by_image)
    assert 70 < int(seen[0].sum()) < 130
    assert torch.equal(seen[1], ~seen[0])
    assert torch.equal(seen[2], seen[0])
    assert torch.equal(seen[3], seen[1])
    other = augmentation.draw(200, (9, 7), seed=4, epoch=0).flips
    assert not torch.equal(other, augmentation.draw(200, (9, 7), seed=3, epoch=0).flips)
    plain = Augmentation(flip=True, crop_padding=1).draw(200, (9, 7), seed=3, epoch=0)
    again = augmentation.draw(200, (9, 7), seed=3, epoch=0)
    assert torch.equal(again.offsets, plain.offsets)  # other draws stay as they were


def test_unknown_flips_and_fills_are_refused(unchecked):
    with pytest.raises(ValueError, match="flip must be true, false or 'alternate', got 'both'"):
        Augmentation(flip="both")
    with pytest.raises(ValueError, match="crop_fill must be 'black' or 'reflect', got 'white'"):
        Augmentation(crop_fill="white")
