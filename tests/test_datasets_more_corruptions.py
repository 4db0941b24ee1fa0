"""The corruptions against straightforward code, image by image, given the same draws."""

import colorsys
import io
import itertools
import math

import numpy as np
import pytest
import torch
from deepens.datasets import CORRUPTIONS, corrupt
from deepens.datasets.corruptions.draws import Draws
from deepens.datasets.corruptions.water import relief
from PIL import Image
from scipy import ndimage

SEVERITIES = range(1, 6)
SEED = 3


def make_images(samples=3, channels=3, size=32, seed=0):
    """Smooth colours with an edge, so that blurs and zooms have something to do."""
    random = np.random.default_rng(seed)
    waves = random.uniform(0, 255, (samples, channels, 6, 6))
    images = np.stack([[ndimage.zoom(c, size / 6, order=1) for c in image] for image in waves])
    images[:, :, : size // 3, size // 2 :] = 255 - images[:, :, : size // 3, size // 2 :]
    return torch.from_numpy(images.clip(0, 255)).byte()


def assert_close(found, expected, *, levels=1, share=0.02):
    """At most some grey levels apart, and hardly anywhere."""
    distance = np.abs(found.numpy().astype(int) - np.stack(expected).astype(int))
    assert distance.max() <= levels
    assert (distance > 0).mean() <= share


def truncated(values):
    return np.uint8(np.clip(values, 0, 1) * 255)


def draws_of(name, severity, index, part=0):
    return Draws(SEED, name, severity, (index,), part)


def level_of(name, severity):
    return CORRUPTIONS[name].levels[severity - 1]


def run(name, severity, images):
    return corrupt(images, name, severity=severity, seed=SEED)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_speckle_noise_is_noise_in_proportion(severity):
    images = make_images()
    expected = []
    for index, image in enumerate(images.numpy() / 255.0):
        noise = draws_of("speckle_noise", severity, index).normal((3, 32, 32))[0].numpy()
        expected.append(truncated(image * (1 + level_of("speckle_noise", severity) * noise)))
    assert_close(run("speckle_noise", severity, images), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_has_the_mean_and_variance_of_counts(severity):
    rate = level_of("shot_noise", severity)
    grey = torch.full((20, 3, 32, 32), 100, dtype=torch.uint8)
    values = (run("shot_noise", severity, grey).double() + 0.5) / 255
    mean = 100 / 255
    error = math.sqrt(mean / rate / values.numel())
    assert values.mean().item() == pytest.approx(mean, abs=5 * error + 1e-3)
    assert values.var().item() == pytest.approx(mean / rate, rel=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_is_a_soft_disk(severity):
    radius, softness = level_of("defocus_blur", severity)
    grid = np.arange(-8, 9)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
    disk /= disk.sum()
    bell = np.exp(-0.5 * (np.array([-1, 0, 1]) / softness) ** 2)
    bell /= bell.sum()
    kernel = ndimage.correlate(disk, np.outer(bell, bell))
    images = make_images()
    expected = [
        truncated([ndimage.correlate(c, kernel, mode="mirror") for c in image])
        for image in images.numpy() / 255.0
    ]
    assert_close(run("defocus_blur", severity, images), expected, share=0.05)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [8, 32])
def test_glass_blur_takes_neighbours_pixel_by_pixel_in_the_generators_order(severity, size):
    sigma, _, times = level_of("glass_blur", severity)
    images = make_images(size=size)
    expected = []
    for index, image in enumerate(images.numpy() / 255.0):
        chances = draws_of("glass_blur", severity, index).uniform((times, 2, size - 2, size - 2))[0]
        smooth = [ndimage.gaussian_filter(c, sigma, mode="nearest", truncate=4) for c in image]
        x = np.uint8(np.stack(smooth, -1) * 255)
        for time in range(times):
            for row in range(size - 1, 1, -1):
                for column in range(size - 1, 1, -1):
                    left, up = (int(chances[time, k, row - 2, column - 2] < 0.5) for k in (0, 1))
                    # As views of one array are swapped: the second assignment does nothing.
                    x[row, column] = x[row - up, column - left]
        again = [
            ndimage.gaussian_filter(c / 255.0, sigma, mode="nearest", truncate=4)
            for c in x.transpose(2, 0, 1)
        ]
        expected.append(truncated(np.stack(again)))
    assert_close(run("glass_blur", severity, images), expected)


def smear(image, radius, sigma, degrees):
    """One pixel after the other; image [H, W], whole levels out."""
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(2 * radius + 1)]
    height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            for i, weight in enumerate(weights):
                dx = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
                dy = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
                row, column = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
                out[y, x] += weight / sum(weights) * image[row, column]
    return np.round(out * 255) / 255


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_smears_along_the_drawn_line(severity):
    radius, sigma = level_of("motion_blur", severity)
    images = make_images(samples=2, size=16)
    expected = []
    for index, image in enumerate(images.numpy() / 255.0):
        angle = 90 * draws_of("motion_blur", severity, index).uniform((1,)).item() - 45
        smeared = np.stack([smear(channel, radius, sigma, angle) for channel in image])
        expected.append(np.round(smeared * 255))
    assert_close(run("motion_blur", severity, images), expected)


def enlarge(image, factor):
    size = len(image)
    kept = math.ceil(size / factor)
    top = (size - kept) // 2
    zoomed = ndimage.zoom(image[top : top + kept, top : top + kept], factor, order=1)
    trim = (len(zoomed) - size) // 2
    return zoomed[trim : trim + size, trim : trim + size]


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [8, 32])
def test_zoom_blur_is_the_mean_of_enlargements(severity, size):
    images = make_images(size=size)
    factors = np.arange(1, level_of("zoom_blur", severity), 0.01)
    expected = [
        truncated([(c + sum(enlarge(c, f) for f in factors)) / (len(factors) + 1) for c in image])
        for image in images.numpy() / 255.0
    ]
    assert_close(run("zoom_blur", severity, images), expected)


def plasma(size, decay, draw):
    """Diamond-square, a point at a time, on a torus."""
    field = np.zeros((size, size))
    step, wobble = size, 100.0
    while step >= 2:
        half = step // 2
        for y in range(0, size, step):
            for x in range(0, size, step):
                corners = [
                    field[(y + a) % size, (x + b) % size] for a in (0, step) for b in (0, step)
                ]
                field[y + half, x + half] = sum(corners) / 4 + wobble**2 * draw[y + half, x + half]
        for y, x in [(0, half), (half, 0)]:
            for row in range(y, size, step):
                for column in range(x, size, step):
                    around = [(-half, 0), (half, 0), (0, -half), (0, half)]
                    near = [field[(row + a) % size, (column + b) % size] for a, b in around]
                    field[row, column] = sum(near) / 4 + wobble**2 * draw[row, column]
        step, wobble = half, wobble / decay
    field -= field.min()
    return field / field.max()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_is_plasma_under_the_same_maximum(severity):
    thickness, decay = level_of("fog", severity)
    images = make_images()
    expected = []
    for index, image in enumerate(images.numpy() / 255.0):
        draw = 2 * draws_of("fog", severity, index).uniform((32, 32))[0].numpy() - 1
        misty = image + thickness * plasma(32, decay, draw)
        expected.append(truncated(misty * image.max() / (image.max() + thickness)))
    assert_close(run("fog", severity, images), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_whitens_and_adds_flakes_both_ways(severity):
    mean, deviation, factor, threshold, radius, sigma, kept = level_of("snow", severity)
    images = make_images(samples=2)
    expected = []
    for index, image in enumerate(images.numpy() / 255.0):
        draws = draws_of("snow", severity, index)
        flakes = enlarge(mean + deviation * draws.normal((32, 32))[0].numpy(), factor)
        flakes = np.floor(np.where(flakes < threshold, 0, flakes).clip(0, 1) * 255) / 255
        angle = 90 * draws_of("snow", severity, index, 1).uniform((1,)).item() - 135
        flakes = smear(flakes, int(radius), sigma, angle)
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        white = kept * image + (1 - kept) * np.maximum(image, grey * 1.5 + 0.5)
        expected.append(truncated(white + flakes + np.rot90(flakes, 2)))
    assert_close(run("snow", severity, images), expected)


@pytest.mark.parametrize("severity", [4, 5])
def test_mud_covers_where_the_liquid_stands_high(severity):
    mean, deviation, smoothing, threshold, strength, _ = level_of("spatter", severity)
    images = make_images()
    mud = np.array([63, 42, 20]).reshape(3, 1, 1) / 255
    expected = []
    for index, image in enumerate(images.numpy() / 255.0):
        noise = mean + deviation * draws_of("spatter", severity, index).normal((32, 32))[0].numpy()
        liquid = ndimage.gaussian_filter(noise, smoothing, mode="nearest", truncate=4)
        covered = (liquid >= threshold).astype(float)
        covered = ndimage.gaussian_filter(covered, strength, mode="nearest", truncate=4)
        covered[covered < 0.8] = 0
        expected.append(truncated(image * (1 - covered) + covered * mud))
    assert_close(run("spatter", severity, images), expected)


# A layer, and what OpenCV (Canny, distanceTransform, blur, equalizeHist, filter2D) makes of it.
LIQUID = """
  0   0   0   0   0   0   0   0   0   0   0 181
  0 180 183 181   0   0   0   0   0   0   0   0
  0   0 188 183   0   0   0   0   0   0   0   0
  0   0   0   0   0   0   0   0   0   0   0   0
  0   0   0   0   0   0   0   0   0   0   0   0
181   0   0   0   0   0   0   0   0   0   0   0
  0 182   0   0   0   0   0   0   0   0   0   0
  0   0   0   0   0   0   0   0   0   0   0   0
  0   0   0   0   0   0   0   0   0   0   0   0
  0   0   0   0   0   0   0   0   0   0   0   0
  0   0   0   0 183   0   0   0   0   0   0   0
  0   0   0   0 183 181   0   0   0   0   0 187
"""
RELIEF = """
  9   9  85 170 255 255 240 171  86  36  85 104
  9   9  85 170 255 255 245 193 125  88 121 142
  0  28 113 198 255 255 250 221 182 168 197 217
  0  57 142 227 255 255 255 249 238 238 244 255
  0  85 170 255 255 255 255 255 255 255 254 254
  0  85 170 255 255 255 255 255 254 253 253 252
  9  94 170 236 231 226 234 229 218 213 208 208
 76 132 161 179 165 162 175 167 146 135 124 124
142 161 132 104  89 111 150 144  98  63  40  40
179 161  85  38  47 103 162 159  94  35   0   0
131 112  38   9  57 139 220 210 128  46   9   9
112  93  19   0  66 151 236 222 137  52   9   9
"""


def test_the_relief_of_water_is_opencvs():
    liquid, expected = (
        torch.tensor([[int(value) for value in line.split()] for line in text.strip().splitlines()])
        for text in (LIQUID, RELIEF)
    )
    both = torch.stack([liquid.double(), torch.zeros(12, 12).double()])
    assert torch.equal(relief(both)[0], expected.double())
    assert relief(both)[1].unique().tolist() == [20.0]  # without an edge all is far away


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_is_the_liquid_times_its_relief(severity):
    mean, deviation, smoothing, threshold, strength, _ = level_of("spatter", severity)
    images = make_images()
    turquoise = np.array([175, 238, 238]).reshape(3, 1, 1) / 255
    expected = []
    for index, image in enumerate(images.numpy() / 255.0):
        noise = mean + deviation * draws_of("spatter", severity, index).normal((32, 32))[0].numpy()
        liquid = ndimage.gaussian_filter(noise, smoothing, mode="nearest", truncate=4)
        liquid[liquid < threshold] = 0
        levels = (liquid * 255).astype(np.uint8)
        water = levels * relief(torch.from_numpy(levels)[None].double())[0].numpy()
        expected.append(truncated(image + strength * water / water.max() * turquoise))
    assert_close(run("spatter", severity, images), expected)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_scales_saturation_and_leaves_grey_images(severity):
    factor, added = level_of("saturate", severity)
    images = make_images(samples=1, size=12)
    expected = np.empty(images.shape)
    for y, x in np.ndindex(12, 12):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[0, :, y, x] / 255.0).tolist())
        changed = min(max(saturation * factor + added, 0.0), 1.0)
        expected[0, :, y, x] = colorsys.hsv_to_rgb(hue, changed, value)
    # colorsys forms the same products in another order: whole numbers fall on either side.
    assert_close(run("saturate", severity, images), list(truncated(expected)), share=0.3)
    grey = make_images(channels=1)
    assert torch.equal(run("saturate", severity, grey), grey)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_compression_is_pillows(severity, channels):
    images = make_images(channels=channels)
    expected = []
    for image in images.permute(0, 2, 3, 1).numpy():
        held = io.BytesIO()
        whole = Image.fromarray(image if channels == 3 else image[..., 0])
        whole.save(held, "JPEG", quality=level_of("jpeg_compression", severity))
        back = np.asarray(Image.open(held))
        expected.append(back.reshape(32, 32, channels).transpose(2, 0, 1))
    assert np.array_equal(run("jpeg_compression", severity, images).numpy(), np.stack(expected))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_transform_is_an_affine_map_and_a_smooth_field(severity):
    size, smoothness, reach = (32 * share for share in level_of("elastic_transform", severity))
    images = make_images()
    rows, columns = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    expected = []
    for index, image in enumerate(images.numpy() / 255.0):
        chances = draws_of("elastic_transform", severity, index).uniform((3, 2))[0].numpy()
        points = np.array([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]])  # x and y
        targets = points + reach * (2 * chances - 1)
        back = np.linalg.solve(np.c_[targets, np.ones(3)], points)
        source = np.stack([columns, rows, np.ones((32, 32))], -1) @ back
        moved = [
            ndimage.map_coordinates(c, [source[..., 1], source[..., 0]], order=1, mode="mirror")
            for c in image
        ]
        field = draws_of("elastic_transform", severity, index, 1).uniform((2, 32, 32))[0].numpy()
        smooth = [
            ndimage.gaussian_filter(2 * each - 1, smoothness, mode="reflect", truncate=3)
            for each in field
        ]
        places = [rows + size * smooth[1], columns + size * smooth[0]]
        expected.append(
            truncated([ndimage.map_coordinates(c, places, order=1, mode="reflect") for c in moved])
        )
    assert_close(run("elastic_transform", severity, images), expected, share=0.05)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_and_water_only_add_light_to_what_they_leave(severity, channels):
    images = make_images(channels=channels)
    left = level_of("frost", severity)[0]
    frosted = run("frost", severity, images)
    assert (frosted >= torch.floor(left * images.double()) - 1).all()
    assert (frosted.double() - left * images.double()).mean() > 5
    if severity <= 3:
        wet = run("spatter", severity, images)
        assert (wet.int() >= images.int() - 1).all()
        assert not torch.equal(wet, images)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14), (3, 32, 32)])
def test_every_corruption_takes_grey_and_colour_of_any_size(name, shape):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *shape))).byte()
    for severity in (1, 5):
        found = run(name, severity, images)
        assert found.dtype == torch.uint8
        assert found.shape == images.shape
        if name != "saturate" or shape[0] == 3:
            assert not torch.equal(found, images) or (name, severity) == ("defocus_blur", 1)


OF_NO_ORDER = {"saturate", "spatter", "elastic_transform", "glass_blur", "pixelate"}
MONOTONE = sorted(set(CORRUPTIONS) - OF_NO_ORDER)


@pytest.mark.parametrize("name", MONOTONE)
def test_severities_grow(name):
    """By squared change; of the others one level does another thing than that before it."""
    images = make_images(samples=40)
    change = [
        (run(name, severity, images).double() - images.double()).square().mean().item()
        for severity in SEVERITIES
    ]
    order = change if name != "frost" else change[:3]  # later levels of which darken what is left
    assert all(later > 0.95 * earlier for earlier, later in itertools.pairwise(order))
    assert change[4] > change[0]


def test_there_are_fifteen_standard_corruptions_and_four_extra():
    extra = {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    assert len(CORRUPTIONS) == 19
    assert list(CORRUPTIONS)[15:] == ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
    assert extra < set(CORRUPTIONS)
