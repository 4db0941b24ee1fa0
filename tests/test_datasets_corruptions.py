import colorsys

import numpy as np
import pytest
import torch
from deepens.datasets import CORRUPTIONS, corrupt
from deepens.datasets.corruptions.corruption import Corruption
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter


def _images(samples: int = 4, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _truncated(values: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(values, 0, 1) * 255)


def _agree(found: torch.Tensor, expected: np.ndarray) -> bool:
    """Equal but for one grey level in one of a thousand values, where the last bit decides."""
    distance = np.abs(found.numpy().astype(int) - expected.astype(int))
    return distance.max() <= 1 and (distance > 0).mean() <= 1e-3


@pytest.mark.parametrize("severity", range(1, 6))
def test_gaussian_blur_is_scipys_filter(severity):
    images, sigma = _images(), (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    blurred = gaussian_filter(
        images.numpy() / 255.0, (0, 0, sigma, sigma), mode="nearest", truncate=4.0
    )
    assert _agree(corrupt(images, "gaussian_blur", severity=severity, seed=0), _truncated(blurred))


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_shrinks_the_distance_to_each_channels_mean(channels, severity):
    images, factor = _images(channels=channels), (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    values = images.numpy() / 255.0
    means = values.mean(axis=(2, 3), keepdims=True)
    expected = _truncated((values - means) * factor + means)
    assert _agree(corrupt(images, "contrast", severity=severity, seed=0), expected)


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_adds_to_the_value_of_hsv(severity):
    images, added = _images(samples=2), (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    images[0, :, 0, :8] = torch.arange(8, dtype=torch.uint8) * 36  # greys, black among them
    expected = np.empty(images.shape)
    for sample, y, x in np.ndindex(2, 32, 32):
        hue, saturation, value = colorsys.rgb_to_hsv(
            *(images[sample, :, y, x].double() / 255).tolist()
        )
        expected[sample, :, y, x] = colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1.0))
    found = corrupt(images, "brightness", severity=severity, seed=0)
    # colorsys forms the same products in another order: whole numbers fall on either side.
    distance = np.abs(found.numpy().astype(int) - _truncated(expected).astype(int))
    assert distance.max() <= 1
    assert (distance > 0).mean() < 0.005


def test_brightness_adds_to_the_value_of_grey_images():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = _truncated(grey.numpy() / 255.0 + 0.15)
    assert np.array_equal(corrupt(grey, "brightness", severity=3, seed=0).numpy(), expected)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("size", [8, 32, 45])
def test_pixelate_is_pillows_box_filter_there_and_back(size, severity):
    images, factor = _images(size=size), (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    expected = []
    for image in images:
        whole = Image.fromarray(image.permute(1, 2, 0).numpy())
        small = whole.resize((int(size * factor),) * 2, Image.Resampling.BOX)
        back = small.resize((size, size), Image.Resampling.BOX)
        expected.append(np.asarray(back).transpose(2, 0, 1))
    found = corrupt(images, "pixelate", severity=severity, seed=0)
    assert np.array_equal(found.numpy(), np.stack(expected))


@pytest.mark.parametrize("severity", [1, 5])
def test_gaussian_noise_is_normal_with_the_published_deviation(severity):
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = corrupt(grey, "gaussian_noise", severity=severity, seed=0)
    # Truncation to whole levels takes half a level off the mean.
    residual = (noisy.double() + 0.5 - 128).flatten() / 255
    assert abs(residual.mean().item()) < 4 * sigma / residual.numel() ** 0.5
    assert residual.std().item() == pytest.approx(sigma, rel=0.02)
    assert stats.kstest(residual[:2000].numpy() / sigma, "norm").pvalue > 1e-3


@pytest.mark.parametrize("severity", [1, 5])
def test_impulse_noise_sets_the_published_fraction_half_black_half_white(severity):
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = corrupt(grey, "impulse_noise", severity=severity, seed=0)
    assert noisy.unique().tolist() == [0, 128, 255]
    for value in (0, 255):
        found = (noisy == value).double().mean().item()
        spread = (amount / 2 / noisy.numel()) ** 0.5
        assert abs(found - amount / 2) < 4 * spread
    assert not torch.equal(noisy[0, 0] == 0, noisy[0, 1] == 0)  # channels apart


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_the_same_in_any_batch(name, monkeypatch):
    images = _images(samples=7)
    whole = corrupt(images, name, severity=3, seed=5)
    some = [6, 2, 3]
    assert torch.equal(corrupt(images[some], name, severity=3, seed=5, indices=some), whole[some])
    monkeypatch.setattr("deepens.datasets.corruptions.corruption.VALUES_AT_ONCE", 2 * 3 * 32 * 32)
    assert torch.equal(corrupt(images, name, severity=3, seed=5), whole)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise"])
def test_draws_differ_by_seed_severity_and_index(name):
    same = _images(samples=1).expand(2, -1, -1, -1).contiguous()
    found = corrupt(same, name, severity=3, seed=5)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found, corrupt(same, name, severity=3, seed=6))
    # The same pattern at every severity would make severities one sample, five times.
    patterns = [corrupt(same, name, severity=severity, seed=5) != same for severity in (4, 5)]
    assert (patterns[0] & ~patterns[1]).any()


def test_clean_images_are_left_as_they_are():
    images = _images()
    before = images.clone()
    for name in CORRUPTIONS:
        corrupt(images, name, severity=5, seed=0)
    assert torch.equal(images, before)


def test_a_new_corruption_is_one_function_and_one_line(monkeypatch):
    def negative(images, level, draws):
        return level - images

    monkeypatch.setitem(CORRUPTIONS, "negative", Corruption(negative, (1.0,) * 5))
    images = _images()
    expected = _truncated(1.0 - images.numpy() / 255.0)
    assert _agree(corrupt(images, "negative", severity=1, seed=0), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "gausian_noise"}, "got 'gausian_noise'; the nearest is 'gaussian_noise'"),
        ({"severity": 0}, "severity must be in 1 to 5, got 0"),
        ({"severity": 6}, "severity must be in 1 to 5, got 6"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"indices": [1, 2]}, r"indices must have one entry per image \(4\), got 2"),
    ],
)
def test_arguments_out_of_bounds_are_refused(changes, message):
    arguments = {"name": "contrast", "severity": 1, "seed": 0, **changes}
    with pytest.raises(ValueError, match=message):
        corrupt(_images(), arguments.pop("name"), **arguments)
