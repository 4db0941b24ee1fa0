import pytest
import torch
import torchvision.transforms.v2.functional as reference
from deepens.datasets import Augmentation, flip, normalize, random_crop


def _images(samples: int = 6, channels: int = 3, *, channels_last: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (samples, channels, 9, 7)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.contiguous(memory_format=layout)


@pytest.mark.parametrize("channels_last", [False, True])
def test_random_crop_is_torchvisions_pad_and_crop_of_each_image(channels_last):
    images = _images(25, channels_last=channels_last)
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    offsets = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    expected = torch.stack(
        [
            reference.crop(reference.pad(image, [2]), top, left, 9, 7)
            for image, (top, left) in zip(images, offsets.tolist(), strict=True)
        ]
    )
    assert torch.equal(random_crop(images, offsets, padding=2), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_flip_mirrors_the_chosen_images_only(channels_last):
    images = _images(channels_last=channels_last)
    flips = torch.tensor([True, False, False, True, True, False])
    expected = images.clone()
    expected[flips] = reference.horizontal_flip(images[flips])
    assert torch.equal(flip(images, flips), expected)
    assert torch.equal(flip(flip(images, flips), flips), images)


@pytest.mark.parametrize("crop_padding", [0, 2])
@pytest.mark.parametrize("flipped", [False, True])
def test_augmentation_keeps_the_memory_order(crop_padding, flipped):
    augmentation = Augmentation(crop_padding, flipped)
    draws = augmentation.draw(6, torch.Generator().manual_seed(1))
    plain = augmentation.apply(_images(), *draws)
    assert plain.is_contiguous()
    rearranged = augmentation.apply(_images(channels_last=True), *draws)
    assert rearranged.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, rearranged)


def test_augmentation_without_changes_returns_the_images():
    images = _images()
    draws = Augmentation().draw(6, torch.Generator().manual_seed(1))
    assert torch.equal(Augmentation().apply(images, *draws), images)


def test_draws_are_uniform_over_windows_and_sides():
    augmentation = Augmentation(crop_padding=1, flip=True)
    offsets, flips = augmentation.draw(9000, torch.Generator().manual_seed(0))
    windows = (offsets[:, 0] * 3 + offsets[:, 1]).bincount(minlength=9)
    assert windows.sum() == 9000
    assert (windows - 1000).abs().max() < 4 * 1000**0.5
    assert abs(flips.sum().item() - 4500) < 4 * (9000 / 4) ** 0.5


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="crop_padding must be >= 0, got -1"):
        Augmentation(crop_padding=-1)


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
    with pytest.raises(ValueError, match=r"one value a channel \(3\), got 1 and 3"):
        normalize(_images(), mean=(0.5,), std=(0.5, 0.5, 0.5))
