"""How much faster batched corruptions are than corrupting image by image.

``python -m deepens.experiments.benchmarks.corruptions``: CIFAR-10 images at severity 3, our batches
against straightforward code with NumPy, SciPy and Pillow that corrupts one image at a time with the
same constants, with torch's default number of threads.
"""

import colorsys
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ...datasets import CORRUPTIONS, corrupt
from . import harness

LEAST = {"contrast": 8.0, "brightness": 8.0, "glass_blur": 20.0}
SEVERITY = 3
Corrupt = Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Work(harness.Options):
    """What is measured."""

    images: int = harness.option(2000, "images per batched round")
    one_by_one: int = harness.option(50, "images per round one by one")


def main(arguments: Sequence[str] | None = None) -> harness.Outcome:
    """Measure and print."""
    given = Work.parse(__doc__, arguments)
    print(harness.setting())
    split, source = harness.cifar_split(given.images)
    images = cast(Tensor, split.images)
    print(f"{given.images} images: {source}; severity {SEVERITY}; {given.rounds} rounds\n")
    plain = images[: given.one_by_one].permute(0, 2, 3, 1).numpy()
    measurements: list[harness.Measurement] = []
    rows = [("corruption", "ms an image, one by one", "in batches", "times as fast")]
    lines = []
    for name, slow in ONE_BY_ONE.items():
        found = harness.compare(
            [
                harness.Candidate(f"{name}, one by one", _slowly(slow, name, plain)),
                harness.Candidate(f"{name}, in batches", _batched(name, images)),
            ],
            rounds=given.rounds,
        )
        alone, batched = found.values()
        measurements += [alone, batched]
        times = (str(alone.milliseconds), str(batched.milliseconds))
        rows.append((name, *times, str(batched.speedup)))
        if name in LEAST:
            lines.append(harness.verdict(name, batched.speedup.median, least=LEAST[name]))
    print(harness.table(rows) + "\n")
    return harness.conclude(lines, given.out, measurements, severity=SEVERITY)


def _batched(name: str, images: Tensor) -> Callable[[], float]:
    return harness.timed(
        lambda: corrupt(images, name, severity=SEVERITY, seed=0), units=len(images)
    )


def _slowly(function: Corrupt, name: str, images: np.ndarray) -> Callable[[], float]:
    level = CORRUPTIONS[name].levels[SEVERITY - 1]

    def work() -> None:
        for index, image in enumerate(images):
            values = function(image / 255.0, level, np.random.default_rng(index))
            np.uint8(values.clip(0, 1) * 255)

    return harness.timed(work, units=len(images))


def _blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return cast(np.ndarray, ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest"))


def _by_pixel(
    x: np.ndarray, change: Callable[[float, float, float], tuple[float, float, float]]
) -> np.ndarray:
    out = np.empty_like(x)
    for place in np.ndindex(x.shape[:2]):
        red, green, blue = x[place]
        out[place] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(red, green, blue)))
    return out


def _glass(x: np.ndarray, level: Any, random: np.random.Generator) -> np.ndarray:
    sigma, reach, times = level
    pixels = (_blurred(x, sigma) * 255).astype(np.uint8)
    for _ in range(times):
        for row in range(len(x) - 1, 1, -1):
            for column in range(len(x) - 1, 1, -1):
                up, left = random.integers(0, reach + 1, 2)
                pixels[row, column] = pixels[row - up, column - left]
    return _blurred(pixels.astype(float) / 255, sigma)


def _zoom(x: np.ndarray, level: Any, random: np.random.Generator) -> np.ndarray:
    total, factors, size = x.copy(), np.arange(1, level, 0.01), len(x)
    for factor in factors:
        kept = int(np.ceil(size / factor))
        first = (size - kept) // 2
        part = x[first : first + kept, first : first + kept]
        large = ndimage.zoom(part, (factor, factor, 1), order=1)
        trim = (len(large) - size) // 2
        total += large[trim : trim + size, trim : trim + size]
    return total / (len(factors) + 1)


def _defocus(x: np.ndarray, level: Any, random: np.random.Generator) -> np.ndarray:
    grid = np.arange(-8, 9)
    disk = (grid[:, None] ** 2 + grid**2 <= level[0] ** 2).astype(float)
    soft = ndimage.gaussian_filter(disk / disk.sum(), level[1])
    return np.stack([ndimage.correlate(c, soft, mode="mirror") for c in x.transpose(2, 0, 1)], -1)


def _jpeg(x: np.ndarray, level: Any, random: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(x * 255)).save(buffer, "JPEG", quality=level)
    return np.asarray(Image.open(buffer)) / 255.0


def _pixelate(x: np.ndarray, level: Any, random: np.random.Generator) -> np.ndarray:
    whole, side = Image.fromarray(np.uint8(x * 255)), int(len(x) * level)
    small = whole.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize(whole.size, Image.Resampling.BOX)) / 255.0


def _elastic(x: np.ndarray, level: Any, random: np.random.Generator) -> np.ndarray:
    size, smoothness, reach = (len(x) * share for share in level)
    rows, columns = np.indices(x.shape[:2]).astype(float)
    points = np.array([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]])
    targets = points + random.uniform(-reach, reach, (3, 2))
    back = np.linalg.solve(np.c_[targets, np.ones(3)], points)
    source = np.stack([columns, rows, np.ones_like(rows)], -1) @ back
    places = [source[..., 1], source[..., 0]]
    channels = x.transpose(2, 0, 1)
    moved = [ndimage.map_coordinates(c, places, order=1, mode="mirror") for c in channels]
    down, across = (
        size * ndimage.gaussian_filter(random.uniform(-1, 1, x.shape[:2]), smoothness, truncate=3)
        for _ in range(2)
    )
    places = [rows + down, columns + across]
    return np.stack([ndimage.map_coordinates(c, places, order=1) for c in moved], -1)


ONE_BY_ONE: dict[str, Corrupt] = {
    "gaussian_noise": lambda x, level, random: x + random.normal(0, level, x.shape),
    "shot_noise": lambda x, level, random: random.poisson(x * level) / level,
    "speckle_noise": lambda x, level, random: x + x * random.normal(0, level, x.shape),
    "defocus_blur": _defocus,
    "glass_blur": _glass,
    "zoom_blur": _zoom,
    "gaussian_blur": lambda x, level, random: _blurred(x, level),
    "brightness": lambda x, level, random: _by_pixel(
        x, lambda h, s, v: (h, s, min(v + level, 1.0))
    ),
    "contrast": lambda x, level, random: (
        (x - x.mean((0, 1), keepdims=True)) * level + x.mean((0, 1), keepdims=True)
    ),
    "elastic_transform": _elastic,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg,
    "saturate": lambda x, level, random: _by_pixel(
        x, lambda h, s, v: (h, min(max(s * level[0] + level[1], 0.0), 1.0), v)
    ),
}
"""Straightforward code; the tests, not this file, compare the corrupted images."""

if __name__ == "__main__":
    raise SystemExit(0 if main() else 1)
