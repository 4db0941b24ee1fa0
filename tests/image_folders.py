"""Small labelled image folders for tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(
    folder: Path,
    number: int,
    *,
    size: tuple[int, int] = (8, 8),
    mode: str = "RGB",
    suffix: str = "png",
    seed: int = 0,
) -> list[Path]:
    """Images of noise, all different; ``size`` is (height, width)."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, *folder.as_posix().encode()])
    files = []
    for index in range(number):
        shape = (*size, 3) if mode == "RGB" else size
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        files.append(folder / f"{index:04d}.{suffix}")
        Image.fromarray(pixels).save(files[-1])
    return files


def labelled_folder(
    root: Path,
    *,
    classes: Sequence[str] = ("cat", "dog"),
    train: int = 20,
    test: int = 6,
    val: int = 0,
    **how,
) -> Path:
    """``root`` with train/, test/ and perhaps val/, so many images a class in each."""
    for part, number in (("train", train), ("test", test), ("val", val)):
        for name in classes if number else ():
            write_images(root / part / name, number, **how)
    return root
